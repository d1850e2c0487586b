"""Makes the pictures of the model card: from captions, from a photo, and through the autoencoder."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from measure import Sampling, generated, held_out, loaded, round_trip
from palette import STYLES
from PIL import Image, ImageDraw, ImageFont
from portraits import draw
from reading import Pixels

STRENGTHS: Final = (0.5, 0.65, 0.8)
CAPTIONS: Final = (
    "pale skin, short black hair, glasses, serious, yellow shirt, teal background",
    "dark skin, curly white hair, smiling, orange shirt, navy background",
    "tan skin, long pink hair, smiling, green shirt, white background",
    "brown skin, blonde hair in a bun, serious, red shirt, blue background",
    "fair skin, spiky red hair, beard, smiling, purple shirt, gray background",
)
_MARGIN = 4


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A square of the photo, in its pixels; it may reach beyond the photo's edges."""

    left: int
    top: int
    side: int


def parse_crop(text: str) -> Crop:
    left, top, side = (int(number) for number in text.split(","))
    return Crop(left=left, top=top, side=side)


def cropped(photo: Image.Image, crop: Crop, size: int) -> Image.Image:
    """The square at the size of a portrait; beyond the photo its edge is repeated."""
    margin = crop.side
    padded = np.pad(
        np.asarray(photo.convert("RGB")), ((margin, margin), (margin, margin), (0, 0)), mode="edge"
    )
    box = (
        crop.left + margin,
        crop.top + margin,
        crop.left + margin + crop.side,
        crop.top + margin + crop.side,
    )
    return Image.fromarray(padded).crop(box).resize((size, size), Image.Resampling.LANCZOS)


def sheet(rows: Sequence[Sequence[Pixels]], columns: Sequence[str], labels: Sequence[str]) -> Image.Image:
    """Pictures in rows with a heading above each column and a line of text above each row."""
    side, font = rows[0][0].shape[0], ImageFont.load_default(12)
    step, line = side + _MARGIN, 16
    width = max(len(row) for row in rows) * step + _MARGIN
    result = Image.new("RGB", (width, line + len(rows) * (step + line) + _MARGIN), "white")
    canvas = ImageDraw.Draw(result)
    for column, heading in enumerate(columns):
        canvas.text((_MARGIN + column * step, 1), heading, fill="black", font=font)
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        top = line + number * (step + line)
        canvas.text((_MARGIN, top), label, fill=(90, 90, 90), font=font)
        for column, pixels in enumerate(row):
            result.paste(Image.fromarray(pixels), (_MARGIN + column * step, top + line))
    return result


def caption_grid(pipeline: StableDiffusionPipeline, sampling: Sampling) -> Image.Image:
    """Every style from the same five captions."""
    prompts = [f"{style} portrait of a person, {caption}" for caption in CAPTIONS for style in STYLES]
    pictures = list(generated(pipeline, prompts, sampling))
    rows = [pictures[start : start + len(STYLES)] for start in range(0, len(pictures), len(STYLES))]
    return sheet(rows, STYLES, CAPTIONS)


def photo_grid(pipeline: StableDiffusionPipeline, photo: Image.Image, sampling: Sampling) -> Image.Image:
    """Every style from the same photo at three strengths; the photo itself comes first in each row."""
    stylist = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    stylist.set_progress_bar_config(disable=True)
    rows = [[np.asarray(photo), *_stylised(stylist, photo, strength, sampling)] for strength in STRENGTHS]
    return sheet(rows, ("photo", *STYLES), [f"strength {strength}" for strength in STRENGTHS])


def _stylised(
    stylist: StableDiffusionImg2ImgPipeline, photo: Image.Image, strength: float, sampling: Sampling
) -> list[Pixels]:
    """One picture for each style; all begin with the same noise."""
    pictures = stylist(
        [f"{style} portrait of a person" for style in STYLES],
        image=[photo] * len(STYLES),
        strength=strength,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance,
        generator=[torch.Generator().manual_seed(sampling.seed) for _ in STYLES],
    ).images
    return [np.asarray(picture) for picture in pictures]


def round_trip_grid(pipeline: StableDiffusionPipeline, photo: Image.Image, seed: int) -> Image.Image:
    """Drawings of every style and the photo, above what the autoencoder keeps of them."""
    rng = np.random.default_rng((seed, 97))
    drawings = [draw(portrait, rng, photo.width) for portrait in held_out(len(STYLES), STYLES, seed)]
    drawings.append(np.asarray(photo))
    return sheet(
        [drawings, round_trip(pipeline.vae, drawings)],
        (*STYLES, "photo"),
        ("before", "after the autoencoder"),
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--photo", type=Path, required=True, help="a portrait photo")
    parser.add_argument(
        "--crop",
        type=parse_crop,
        default=parse_crop("65,-30,320"),
        help="LEFT,TOP,SIDE of the square around the head, in pixels of the photo; fits the sample photo",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the noise (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    pipeline = loaded(options.checkpoint)
    photo = cropped(Image.open(options.photo), options.crop, pipeline.unet.config.sample_size * 8)
    sampling = Sampling(steps=options.steps, guidance=options.guidance, batch=10, seed=options.seed)
    grids = {
        "captions": caption_grid(pipeline, sampling),
        "photo": photo_grid(pipeline, photo, sampling),
        "autoencoder": round_trip_grid(pipeline, photo, options.seed),
    }
    for name, grid in grids.items():
        grid.save(options.output / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
