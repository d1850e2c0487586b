"""Makes the pictures that show the model, through a running service's REST interface.

    python grids.py --url http://127.0.0.1:8000 --portraits FOLDER

They are the sample portrait in all styles (docs/images/styles.png), and rows of people who were not seen in
training (../grids/people.png). Of those only avatars are shown, never photos.
"""

import argparse
import io
from pathlib import Path
from typing import Final

from photos import split_files
from PIL import Image, ImageDraw, ImageFont

from avatarforge.client import Client

MODEL: Final = Path(__file__).resolve().parents[1]
TREE: Final = MODEL.parents[1]
SAMPLE: Final = TREE / "avatarforge" / "samples" / "portrait.png"
MAX_BYTES: Final = 400_000
SEED: Final = 7
GAP: Final = 8
_LABEL: Final = 26
"""Pixels above a picture for its title."""


def draw_avatars(client: Client, photo: Path, side: int) -> dict[str, Image.Image]:
    """By style's title an avatar of `side` pixels; first, as "Photo", the square that they are made from."""
    drawn = {}
    styles = client.list_styles().styles
    jobs = [client.submit("grids", photo, style=style.name, seed=SEED) for style in styles]
    for style, job in zip(styles, jobs, strict=True):
        done = client.wait(job)
        if not drawn:
            drawn["Photo"] = _read(client.download(done, "square").content, side)
        drawn[style.title] = _read(client.download(done).content, side)
    client.erase_customer("grids")
    return drawn


def _read(content: bytes, side: int) -> Image.Image:
    with Image.open(io.BytesIO(content)) as picture:
        return picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def lay_out(rows: list[list[Image.Image]], titles: list[str]) -> Image.Image:
    """Pictures of one size in rows, with titles above the first; columns without a title get none."""
    side = rows[0][0].width
    width = GAP + (side + GAP) * len(rows[0])
    sheet = Image.new("RGB", (width, _LABEL + (side + GAP) * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column, title in enumerate(titles):
        middle = GAP + (side + GAP) * column + side // 2
        draw.text((middle, _LABEL // 2), title, fill="#333333", font=font, anchor="mm")
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            sheet.paste(picture, (GAP + (side + GAP) * column, _LABEL + (side + GAP) * number))
    return sheet


def save(sheet: Image.Image, file: Path) -> None:
    """Write a PNG, with as many colours as the limit of bytes allows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for colours in (None, 256, 128, 64, 32):
        kept = sheet if colours is None else sheet.quantize(colours, dither=Image.Dither.FLOYDSTEINBERG)
        kept.save(file, optimize=True)
        if file.stat().st_size <= MAX_BYTES:
            print(f"{file}  {file.stat().st_size:,} bytes")
            return
    raise SystemExit(f"{file} is larger than {MAX_BYTES} bytes with 32 colours, too; take fewer people")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service (default: %(default)s)")
    parser.add_argument("--portraits", type=Path, help="the folder that the model was trained from")
    parser.add_argument("--people", type=int, default=6, help="rows of people (default: %(default)s)")
    options = parser.parse_args()
    with Client(options.url) as client:
        drawn = draw_avatars(client, SAMPLE, 192)
        save(lay_out([list(drawn.values())], list(drawn)), TREE / "docs" / "images" / "styles.png")
        if options.portraits is None:
            return
        _, files = split_files(options.portraits)
        rows = []
        for file in files[:: max(1, len(files) // options.people)][: options.people]:
            drawn = draw_avatars(client, file, 112)
            del drawn["Photo"]
            rows.append(list(drawn.values()))
        save(lay_out(rows, list(drawn)), MODEL / "grids" / "people.png")


if __name__ == "__main__":
    main()
