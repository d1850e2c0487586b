"""Measures how often a generated portrait shows the colours that its caption names.

The captions are new and name skin, hair, shirt and background colours out of the whole palette, each as
likely as any other; no portrait is bald. Colours are read at the places where the drawings have them and
matched to the nearest entry of the palette, as the drawings show it in that style. For comparison the same
captions are drawn instead of generated, and the drawings are sent through the autoencoder: better than that,
no denoiser can be.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from captions import canonical
from dataset import as_tensor
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from palette import CUTS, EXPRESSIONS, PALETTES, STYLES
from portraits import Portrait, draw
from reading import Pixels, References, read, references


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How pictures are generated."""

    steps: int
    guidance: float
    batch: int
    seed: int


def held_out(count: int, styles: Sequence[str], seed: int) -> list[Portrait]:
    """Portraits that training never saw; the styles take turns and the colours are the palette's own."""
    rng = np.random.default_rng((seed, 99))
    portraits = []
    for index in range(count):
        names: dict[str, str | None] = {
            part: str(rng.choice(list(palette))) for part, palette in PALETTES.items()
        }
        colours = {part: palette[str(names[part])] for part, palette in PALETTES.items()}
        names |= {
            "style": styles[index % len(styles)],
            "cut": str(rng.choice([cut for cut in CUTS if cut != "bald"])),
            "expression": str(rng.choice(EXPRESSIONS)),
            "glasses": "glasses" if rng.random() < 0.3 else None,
            "beard": "beard" if rng.random() < 0.22 else None,
        }
        portraits.append(Portrait(names=names, colours=colours, loose=False))
    return portraits


def loaded(checkpoint: Path) -> StableDiffusionPipeline:
    """The pipeline in fp32, quiet."""
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generated(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], sampling: Sampling
) -> Iterator[Pixels]:
    """One picture for each prompt; the number of a prompt decides its noise."""
    for start in range(0, len(prompts), sampling.batch):
        some = list(prompts[start : start + sampling.batch])
        noise = [
            torch.Generator().manual_seed(sampling.seed * 100_000 + start + place)
            for place in range(len(some))
        ]
        pictures = pipeline(
            some,
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            generator=noise,
            output_type="np",
        ).images
        yield from (255 * pictures).round().astype(np.uint8)


@torch.no_grad()
def round_trip(vae: AutoencoderTiny, pictures: Sequence[Pixels]) -> list[Pixels]:
    """What the autoencoder keeps of the pictures."""
    kept: list[Pixels] = []
    for start in range(0, len(pictures), 10):
        batch = as_tensor(np.stack(pictures[start : start + 10]))
        decoded = vae.decode(vae.encode(batch).latents).sample.clamp(-1, 1)
        kept += list(((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return kept


def shares(
    portraits: Sequence[Portrait], pictures: Sequence[Pixels], known: References
) -> dict[str, dict[str, float]]:
    """For all styles together and for each: the share of right colours of each part, 0 to 1."""
    right: dict[str, dict[str, list[bool]]] = {}
    for portrait, picture in zip(portraits, pictures, strict=True):
        style = str(portrait.names["style"])
        for part, colour in read(picture, style, known).items():
            for group in ("all", style):
                right.setdefault(group, {}).setdefault(part, []).append(colour == portrait.names[part])
    return {
        group: {part: float(np.mean(found)) for part, found in parts.items()}
        for group, parts in right.items()
    }


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The results as a Markdown table, in percent."""
    lines = [
        "| pictures | style | " + " | ".join(PALETTES) + " |",
        "| --- | --- |" + " --- |" * len(PALETTES),
    ]
    for source, groups in results.items():
        for group, parts in groups.items():
            figures = " | ".join(f"{100 * parts[part]:.0f}" for part in PALETTES)
            lines.append(f"| {source} | {group} | {figures} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--count", type=int, default=200, help="captions (default: %(default)s)")
    parser.add_argument("--style", choices=STYLES, help="only this style (default: all six in turn)")
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=10, help="pictures at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of captions and noise (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    parser.add_argument("--skip-ceiling", action="store_true", help="leave out drawings and round trips")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    styles = (options.style,) if options.style else STYLES
    portraits = held_out(options.count, styles, options.seed)
    pipeline = loaded(options.checkpoint)
    side = pipeline.unet.config.sample_size * 8
    known = references(styles, side)
    sampling = Sampling(
        steps=options.steps, guidance=options.guidance, batch=options.batch, seed=options.seed
    )
    prompts = [canonical(portrait.names) for portrait in portraits]
    results = {"generated": shares(portraits, list(generated(pipeline, prompts, sampling)), known)}
    if not options.skip_ceiling:
        rng = np.random.default_rng((options.seed, 98))
        drawings = [draw(portrait, rng, side) for portrait in portraits]
        results["drawn"] = shares(portraits, drawings, known)
        results["drawn, through the autoencoder"] = shares(
            portraits, round_trip(pipeline.vae, drawings), known
        )
    print(table(results))
    if options.json:
        settings = {"captions": options.count, "scheduler": "DDIM", **vars(sampling)}
        options.json.write_text(json.dumps({"settings": settings, "right": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
