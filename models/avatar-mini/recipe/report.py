"""Writes the figures of measure.py into the model card, between its two marks, with the grid that there is.

python report.py ../measurement.json
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final

CARD: Final = Path(__file__).resolve().parents[1] / "README.md"
PEOPLE: Final = "grids/people.png"
"""From the card; written by grids.py."""
BEGIN, END = "<!-- figures: written by recipe/report.py -->", "<!-- end of figures -->"


def render(figures: Mapping[str, Any]) -> str:
    """The measurement as tables in Markdown."""
    rows = [
        "| style | own photo nearest: filter | autoencoder | **avatar** | face found: filter | **avatar** "
        "| nearest to its filter | Lab distance | PSNR: autoencoder | avatar to filter |",
        "|" + " --- |" * 10,
    ]
    for style, found in figures["styles"].items():
        avatar, plain, repeated = found["avatar"], found["filter"], found["filter_through_autoencoder"]
        cells = (
            style,
            f"{plain['nearest_is_own']:g} %",
            f"{repeated['nearest_is_own']:g} %",
            f"**{avatar['nearest_is_own']:g} %**",
            f"{plain['face_found']:g} %",
            f"**{avatar['face_found']:g} %**",
            f"{found['is_the_style']:g} %",
            f"{found['lab_distance']:g}",
            f"{repeated['psnr']:.1f} dB",
            f"{found['psnr_to_filter']:.1f} dB",
        )
        rows.append("| " + " | ".join(cells) + " |")
    photo, background, odd = (
        figures[name] for name in ("photo_through_autoencoder", "background", "odd_photos")
    )
    lowest = min(odd, key=odd.__getitem__)
    by_steps = [
        f"{steps}: {rate['nearest_is_own']:g} % and {rate['face_found']:g} %"
        for steps, rate in figures["steps"].items()
    ]
    rest = (
        f"- People: {figures['people']}.",
        f"- Photos through the autoencoder alone: {photo['psnr']:.1f} dB; own photo nearest "
        f"{photo['nearest_is_own']:g} %, face found {photo['face_found']:g} %.",
        f"- By the number of steps, each person in one style: own photo nearest and face found "
        f"{', '.join(by_steps)}.",
        f"- Background as the prompt asked: {background['styles_that_keep_colour']:g} % in the styles that "
        f"keep colour, {background['other_styles']:g} % in the others (pencil sketch and neon).",
        f"- {len(odd)} odd photos, SSIM of blurred light between avatar and filter: median "
        f"{median(odd.values()):.2f}, lowest {odd[lowest]:.2f} ({lowest}).",
    )
    return "\n".join([*rows, "", *rest])


def write_figures(figures: Mapping[str, Any], card: Path) -> None:
    """Put the tables between the card's marks, in place of what is there."""
    before, begin, rest = card.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{card} lacks the marks {BEGIN!r} and {END!r}")
    parts = [begin, render(figures), end]
    if (card.parent / PEOPLE).exists():
        parts.insert(2, f"![People who were not seen in training, in the six styles]({PEOPLE})")
    card.write_text(before + "\n\n".join(parts) + after)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path, help="the file that measure.py wrote")
    write_figures(json.loads(parser.parse_args().json.read_text()), CARD)


if __name__ == "__main__":
    main()
