"""The whole recipe of avatar-mini: draw portraits, train three parts one by one, save a pipeline in fp16.

Every stage leaves its state in the work folder and resumes from it, so the command can be stopped and
repeated. To end a stage early, write the number of steps it shall have into WORK/autoencoder.steps or
WORK/denoiser.steps.
"""

import argparse
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import autoencoder
import denoiser
import numpy as np
import text_encoder
import torch
from autoencoder import AutoencoderPlan
from dataset import Dataset, drawn
from denoiser import DenoiserPlan
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from text_encoder import TextPlan
from training import Budget
from transformers import CLIPTextModel, CLIPTokenizer

log = logging.getLogger("avatar-mini")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Sizes and lengths that fit a picture size and the machine that it is meant for."""

    portraits: int
    autoencoder: AutoencoderPlan
    autoencoder_steps: int
    text: TextPlan
    text_steps: int
    denoiser: DenoiserPlan
    denoiser_steps: int
    denoiser_rate: float


PRESETS: Final[dict[int, Preset]] = {
    128: Preset(  # two CPU cores, a few hours
        portraits=6_000,
        autoencoder=AutoencoderPlan(channels=32, batch=16),
        autoencoder_steps=6_000,
        text=TextPlan(width=128),
        text_steps=400,
        denoiser=DenoiserPlan(channels=(64, 96, 160), batch=16),
        denoiser_steps=8_000,
        denoiser_rate=6e-4,
    ),
    256: Preset(  # one GPU
        portraits=40_000,
        autoencoder=AutoencoderPlan(channels=64, batch=32),
        autoencoder_steps=30_000,
        text=TextPlan(width=192),
        text_steps=3_000,
        denoiser=DenoiserPlan(channels=(128, 192, 320), batch=64, average=0.9995),
        denoiser_steps=60_000,
        denoiser_rate=4e-4,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Words:
    """The frozen text side of the pipeline."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel
    device: str

    @torch.no_grad()
    def states(self, texts: list[str]) -> torch.Tensor:
        """The text encoder's states, (B, tokens, width)."""
        numbers = text_encoder.tokens(self.tokenizer, texts).to(self.device)
        states: torch.Tensor = self.encoder(numbers).last_hidden_state
        return states


class Recipe:
    """One run: each method makes a part, or finds it made in the work folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._preset = PRESETS[options.size]
        self._options = options
        self._work: Path = options.work
        self._device: str = options.device

    def dataset(self) -> Dataset:
        options = self._options
        return drawn(
            self._work / "portraits",
            count=options.portraits or self._preset.portraits,
            size=options.size,
            seed=options.seed,
            processes=options.threads,
        )

    def autoencoder(self, dataset: Dataset) -> AutoencoderTiny:
        folder = self._work / "vae"
        if not (folder / "config.json").exists():
            start = _loaded_autoencoder(self._options.init_vae) if self._options.init_vae else None
            steps = self._options.autoencoder_steps or self._preset.autoencoder_steps
            budget = Budget(
                steps=steps,
                decay=max(1, steps // 3),
                peak=5e-4 if start else 1e-3,
                override=self._work / "autoencoder.steps",
            )
            plan = self._preset.autoencoder
            model = autoencoder.train(dataset, plan, budget, self._work, start, self._device)
            model.save_pretrained(folder)
        return _loaded_autoencoder(folder).to(self._device).eval()

    def words(self) -> Words:
        tokenizer = text_encoder.trained_tokenizer(self._work / "tokenizer", seed=self._options.seed)
        folder = self._work / "text_encoder"
        if not (folder / "config.json").exists():
            steps = self._options.text_steps or self._preset.text_steps
            budget = Budget(
                steps=steps, decay=max(1, steps // 2), peak=1e-3, override=self._work / "text.steps"
            )
            plan = self._preset.text
            encoder = text_encoder.train(
                tokenizer, plan, budget, seed=self._options.seed, device=self._device
            )
            encoder.save_pretrained(folder)
        encoder = CLIPTextModel.from_pretrained(folder, dtype=torch.float32).to(self._device).eval()
        return Words(tokenizer=tokenizer, encoder=encoder, device=self._device)

    def latents(self, model: AutoencoderTiny, dataset: Dataset) -> torch.Tensor:
        file = self._work / "latents.npy"
        if not file.exists():
            np.save(file, autoencoder.encoded(model, dataset, self._device).numpy())
        return torch.from_numpy(np.load(file))

    def untrained_denoiser(self, words: Words) -> UNet2DConditionModel:
        torch.manual_seed(self._options.seed)
        width = words.encoder.config.hidden_size
        return denoiser.new(self._preset.denoiser, side=self._options.size // 8, text_width=width)

    def denoiser(self, dataset: Dataset, latents: torch.Tensor, words: Words) -> UNet2DConditionModel:
        steps = self._options.denoiser_steps or self._preset.denoiser_steps
        budget = Budget(
            steps=steps,
            decay=max(1, steps // 4),
            peak=self._preset.denoiser_rate,
            override=self._work / "denoiser.steps",
        )
        model, plan = self.untrained_denoiser(words), self._preset.denoiser
        return denoiser.train(dataset, latents, words.states, model, plan, budget, self._work, self._device)


def _loaded_autoencoder(folder: Path) -> AutoencoderTiny:
    model: AutoencoderTiny = AutoencoderTiny.from_pretrained(folder, dtype=torch.float32)
    return model


def save(vae: AutoencoderTiny, words: Words, unet: UNet2DConditionModel, folder: Path) -> None:
    """Write the parts as one diffusers folder in fp16."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=words.encoder,
        tokenizer=words.tokenizer,
        unet=unet,
        scheduler=denoiser.sampler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to("cpu", torch.float16).save_pretrained(folder)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for pictures, states and stages (resumable)"
    )
    parser.add_argument("--output", type=Path, required=True, help="where to save the pipeline")
    parser.add_argument(
        "--size", type=int, choices=sorted(PRESETS), default=128, help="pixels (default: 128)"
    )
    parser.add_argument("--portraits", type=int, help="pictures to draw (default: by size)")
    parser.add_argument("--autoencoder-steps", type=int, help="length of stage 1 (default: by size)")
    parser.add_argument("--text-steps", type=int, help="length of stage 2 (default: by size)")
    parser.add_argument("--denoiser-steps", type=int, help="length of stage 3 (default: by size)")
    parser.add_argument("--init-vae", type=Path, help="folder of an AutoencoderTiny to begin stage 1 with")
    parser.add_argument("--peek", action="store_true", help="save what stage 3 has reached so far, and stop")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of drawings and weights (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    recipe = Recipe(options)
    dataset = recipe.dataset()
    vae, words = recipe.autoencoder(dataset), recipe.words()
    if options.peek:
        unet, steps = denoiser.averaged(recipe.untrained_denoiser(words), options.work / "denoiser.pt")
        log.info("saving the average after %d steps", steps)
    else:
        unet = recipe.denoiser(dataset, recipe.latents(vae, dataset), words)
    save(vae, words, unet, options.output)
    log.info("saved %s, processor time of this run %d s", options.output, time.process_time())


if __name__ == "__main__":
    main()
