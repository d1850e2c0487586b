"""The whole recipe of avatar-mini: pairs from a folder of portraits, four stages, a pipeline in fp16.

Denoiser and decoder leave averaged weights in the work folder every two minutes, and every file is written
whole. A repeated command makes only what is missing and trains on from the weights in the work folder
(optimiser state need not survive); with `--init` an empty work folder begins with a checkpoint's weights.
"""

import argparse
import logging
import shutil
import time
from pathlib import Path
from typing import Final

import numpy as np
import torch
from autoencoder import BlockCode, create_autoencoder, find_code, read_code
from dataset import SCENES_PER_SHARD, TARGETS_PER_SCENE, as_tensor, read_shard, read_shards, write_shards
from decoder import gather_samples, train_decoder
from denoiser import DenoiserTraining, create_denoiser, create_scheduler, encode_pairs
from diffusers import AutoencoderKLHunyuanImage, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
from pairs import SIDE
from photos import split_files
from text_encoder import Words, train_text_encoder, train_tokenizer
from training import Budget, replace_folder, save_whole
from transformers import CLIPTextModel

log = logging.getLogger("avatar-mini")

_CODE_SHARDS: Final = 4
"""Shards that the block code is found from."""
_DENOISER_PHASES: Final = ((16, 0.6, 1.0), (32, 0.4, 0.6))
"""Side of the windows in latents, share of the time, and share of the highest learning rate."""
_SHARD_BYTES: Final = SCENES_PER_SHARD * (1 + TARGETS_PER_SCENE) * 3 * SIDE**2
_OTHER_BYTES: Final = 256 * 1024**2
"""Weights and what else the work folder takes."""


def take_over(checkpoint: Path, work: Path) -> None:
    """Lay a checkpoint's code, text side, denoiser and decoder into a work folder, where they are missing.

    Raises:
        SystemExit: the checkpoint is none of avatar-mini's.
    """
    try:
        autoencoder = AutoencoderKLHunyuanImage.from_pretrained(checkpoint / "vae", dtype=torch.float32)
        denoiser = UNet2DConditionModel.from_pretrained(checkpoint / "unet", dtype=torch.float32)
        create_denoiser().load_state_dict(denoiser.state_dict())
        save_missing(vars(read_code(autoencoder)), work / "code.pt")
        save_missing(denoiser.state_dict(), work / "denoiser.pt")
        save_missing(autoencoder.decoder.state_dict(), work / "decoder.pt")
        for name in ("tokenizer", "text_encoder"):
            if not (work / name).exists():
                with replace_folder(work / name) as fresh:
                    shutil.copytree(checkpoint / name, fresh)
    # What diffusers and torch raise for files that are missing, of another kind, or of another size.
    except (OSError, RuntimeError, TypeError) as error:
        raise SystemExit(f"{checkpoint} is no checkpoint that this recipe can go on from: {error}") from error


def save_missing(value: object, file: Path) -> None:
    """Save a value unless there is one already."""
    if not file.exists():
        save_whole(value, file)


def find_or_load_code(work: Path, shards: list[Path]) -> BlockCode:
    """The block code, found once from the first shards."""
    file = work / "code.pt"
    if not file.exists():
        read = [read_shard(shard) for shard in shards[:_CODE_SHARDS]]
        pictures = np.concatenate(
            [shard.photos for shard in read]
            + [shard.targets.reshape(-1, *shard.photos.shape[1:]) for shard in read]
        )
        code = find_code(as_tensor(pictures[::3]))
        save_whole(vars(code), file)
    return BlockCode(**torch.load(file))


def train_or_load_words(work: Path, minutes: float, seed: int) -> Words:
    """The text side, trained once."""
    tokenizer = train_tokenizer(work / "tokenizer", seed=seed)
    folder = work / "text_encoder"
    if not (folder / "config.json").exists():
        encoder = train_text_encoder(tokenizer, Budget(minutes=minutes, peak=1e-3), seed=seed)
        with replace_folder(folder) as fresh:
            encoder.save_pretrained(fresh)
    # A checkpoint's is in half precision.
    loaded = CLIPTextModel.from_pretrained(folder, dtype=torch.float32)
    return Words(tokenizer=tokenizer, encoder=loaded.eval())


def load_weights(model: torch.nn.Module, file: Path) -> bool:
    """Put saved weights into a model, if there are any."""
    if not file.exists():
        return False
    model.load_state_dict({name: value.float() for name, value in torch.load(file).items()})
    return True


def export(
    autoencoder: AutoencoderKLHunyuanImage, words: Words, denoiser: UNet2DConditionModel, folder: Path
) -> None:
    """Write the parts as one diffusers folder in fp16, and put it in place whole."""
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=autoencoder,
        text_encoder=words.encoder,
        tokenizer=words.tokenizer,
        unet=denoiser,
        scheduler=create_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with replace_folder(folder) as fresh:
        pipeline.to("cpu", torch.float16).save_pretrained(fresh)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--portraits", type=Path, required=True, help="folder of JPEG or PNG files, a person each"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for pairs and weights (resumable)")
    parser.add_argument("--output", type=Path, required=True, help="where to save the pipeline")
    parser.add_argument("--init", type=Path, metavar="CHECKPOINT", help="a checkpoint's folder to begin from")
    parser.add_argument("--shards", type=int, default=100, help="shards of 60 scenes (default: %(default)s)")
    parser.add_argument("--text-minutes", type=float, default=4, help="default: %(default)s")
    parser.add_argument("--denoiser-minutes", type=float, default=60, help="default: %(default)s")
    parser.add_argument("--decoder-minutes", type=float, default=15, help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=1e-3, help="of the denoiser (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of pairs and weights (default: %(default)s)")
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    """Make what is missing in the work folder, train, and export."""
    work: Path = options.work
    training, _ = split_files(options.portraits)
    work.mkdir(parents=True, exist_ok=True)
    missing = max(0, options.shards - len(read_shards(work / "pairs")))
    needed = missing * _SHARD_BYTES + _OTHER_BYTES
    if (free := shutil.disk_usage(work).free) < needed:
        raise SystemExit(f"{work} has {free / 1024**3:.1f} GiB free; {needed / 1024**3:.1f} GiB are needed")
    if options.init is not None:
        take_over(options.init, work)
    words = train_or_load_words(work, options.text_minutes, options.seed)
    write_shards(work / "pairs", training, count=options.shards, seed=options.seed, processes=options.threads)
    shards = read_shards(work / "pairs")
    code = find_or_load_code(work, shards)
    autoencoder, denoiser = create_autoencoder(code), create_denoiser()
    load_weights(denoiser, work / "denoiser.pt")
    load_weights(autoencoder.decoder, work / "decoder.pt")
    if options.denoiser_minutes > 0:
        pairs = encode_pairs(shards, code)
        stage = DenoiserTraining(denoiser, words, code, seed=options.seed)
        for cells, share, rate in _DENOISER_PHASES:
            budget = Budget(minutes=share * options.denoiser_minutes, peak=rate * options.rate)
            stage.run(pairs, budget, work, cells=cells)
        load_weights(denoiser, work / "denoiser.pt")
    if options.decoder_minutes > 0:
        samples = gather_samples(shards, code, denoiser.eval(), words, seed=options.seed)
        budget = Budget(minutes=options.decoder_minutes, peak=4e-4)
        train_decoder(autoencoder, samples, budget, work, seed=options.seed)
    export(autoencoder.eval(), words, denoiser.eval(), options.output)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    try:
        run(options)
    except OSError as error:
        raise SystemExit(
            f"{error}; what was finished before is whole, so free some space and repeat"
        ) from error
    log.info("saved %s, processor time of this run %d s", options.output, time.process_time())


if __name__ == "__main__":
    main()
