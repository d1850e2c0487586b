"""What the command line says to every benchmark."""

from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How much to measure, and where to work."""

    folder: Path
    """An empty folder of this benchmark's own: databases, objects, logs."""
    results: Path = RESULTS
    """Where the JSON goes, and what else is worth keeping."""
    quick: bool = False
    """Only see whether the benchmark works: its numbers mean nothing."""
    rounds: int | None = None
    """Repetitions, where the benchmark's own number is not wanted."""
    portraits: Path | None = None
    """Pictures of one face each, sorted by name; every tenth is measured with."""
    faceless: Path | None = None
    """Photos without faces."""

    def repeat(self, normally: int, quick: int = 1) -> int:
        """How often to measure."""
        if self.rounds is not None:
            return self.rounds
        return quick if self.quick else normally

    def size(self, normally: int, quick: int) -> int:
        """How much to do in one measurement."""
        return quick if self.quick else normally
