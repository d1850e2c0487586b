"""What a benchmark hands back: a table for people, JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.machine import Machine

Cell = str | float | int


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One number that a benchmark is run for."""

    name: str
    value: float
    unit: str
    wanted: str = ""
    """What the project asks of it, in words: nothing here fails when it is missed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """What the figures were made from."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A benchmark's outcome."""

    title: str
    figures: Sequence[Figure]
    conditions: Mapping[str, Cell]
    """What somebody else has to know to measure the same."""
    tables: Sequence[Table] = field(default_factory=tuple)
    notes: Sequence[str] = field(default_factory=tuple)


def spread(name: str, values: Sequence[float], unit: str, wanted: str = "") -> list[Figure]:
    """Median, least and most of repeated measurements."""
    return [
        Figure(name=f"{name}, median of {len(values)}", value=median(values), unit=unit, wanted=wanted),
        Figure(name=f"{name}, least", value=min(values), unit=unit),
        Figure(name=f"{name}, most", value=max(values), unit=unit),
    ]


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least `share` (0 to 1) of the values do not exceed."""
    ordered = sorted(values)
    # Rounded first: 0.9 * 10 is a little more than 9.
    rank = -(-round(share * len(ordered), 9) // 1)
    return ordered[max(0, int(rank) - 1)]


def show(console: Console, report: Report, machine: Machine) -> None:
    """Print the report as tables."""
    console.rule(f"[bold]{report.title}")
    figures = RichTable("figure", "value", "wanted", title_justify="left")
    for figure in report.figures:
        figures.add_row(figure.name, f"{_shown(figure.value)} {figure.unit}", figure.wanted)
    console.print(figures)
    for table in report.tables:
        shown = RichTable(*table.columns, title=table.title, title_justify="left")
        for row in table.rows:
            shown.add_row(*(_shown(cell) for cell in row))
        console.print(shown)
    for name, value in report.conditions.items():
        console.print(f"[dim]{name}:[/] {value}", highlight=False)
    for note in report.notes:
        console.print(f"[yellow]note:[/] {note}", highlight=False)
    console.print(f"[dim]machine:[/] {machine.in_words()}", highlight=False)


def write(path: Path, name: str, report: Report, machine: Machine, quick: bool) -> None:
    """Write the report as JSON. `quick` marks numbers that are not worth quoting."""
    document = {
        "benchmark": name,
        "measuredAt": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        **asdict(report),
        "machine": asdict(machine),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _shown(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.3g}" if abs(cell) < 10 else f"{cell:.1f}"
    return str(cell)
