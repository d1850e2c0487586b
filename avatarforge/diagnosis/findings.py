"""The findings of a check."""

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    OK = "ok"
    ABSENT = "absent"
    """Not asked for, and not needed."""
    WARNING = "warning"
    """It works, but somebody should look at it."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    state: State
    found: str
    """What is there, without secrets."""
    advice: str = ""
    """What to do about it; empty where nothing is to be done."""
    check: str = ""
    """The name of the check, which `examine` gives."""


def make_failure(found: object, advice: str) -> Finding:
    return Finding(State.FAILED, one_line(found), advice)


def one_line(found: object) -> str:
    """Drivers wrap their messages; and a parenthesis with SQL in it helps nobody here."""
    text = str(found).partition("\n")[0].strip()
    return text if len(text) <= 300 else f"{text[:300]} …"
