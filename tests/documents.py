"""The code blocks of Markdown files, and what to do with them.

A comment before a block tells a test how to run it; readers do not see it:

    <!-- test: skip, because … -->            it cannot be run here, for this reason
    <!-- test: background until "words" -->   it goes on; the next block follows once it has said the words
    <!-- test: cut after 3 s -->              it does not end by itself, but has said something by then
    <!-- test: refused -->                    it shows how something is refused
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = ("sh", "python")
"""Those that are run; others show something."""

_FENCE = re.compile(r"```(\w*)\s*")
_COMMENT = re.compile(r"<!--\s*test:\s*(.*?)\s*-->")
_SKIP = re.compile(r"skip, because \S.*")
_BACKGROUND = re.compile(r'background until "(.+)"')
_CUT = re.compile(r"cut after (\d+) s")


@dataclass(frozen=True, kw_only=True)
class Block:
    file: str
    line: int
    """Of its first line of code."""
    language: str
    code: str
    skipped_because: str | None = None
    background_until: str | None = None
    cut_after: float | None = None
    is_refused: bool = False

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


class MalformedDocument(Exception):
    """A fence or a comment that cannot be understood."""


def blocks_of(path: Path, name: str) -> Iterator[Block]:
    """The blocks that are to be run, in order."""
    directive, begun, language = "", 0, ""
    code: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.fullmatch(line.strip())
        if begun and fence is not None:
            if language in LANGUAGES:
                yield _block(name, begun + 1, language, "\n".join(code), directive)
            directive, begun, code = "", 0, []
        elif begun:
            code.append(line)
        elif fence is not None:
            begun, language = number, fence[1]
        elif comment := _COMMENT.fullmatch(line.strip()):
            directive = comment[1]
        elif line.strip() and directive:
            raise MalformedDocument(f"{name}:{number}: no block follows <!-- test: {directive} -->")
    if begun:
        raise MalformedDocument(f"{name}:{begun}: the block does not end")


def _block(name: str, line: int, language: str, code: str, directive: str) -> Block:
    plain = {"file": name, "line": line, "language": language, "code": code}
    if not directive:
        return Block(**plain)  # type: ignore[arg-type]  # their types are above
    if _SKIP.fullmatch(directive):
        return Block(**plain, skipped_because=directive.partition("because ")[2])  # type: ignore[arg-type]
    if background := _BACKGROUND.fullmatch(directive):
        return Block(**plain, background_until=background[1])  # type: ignore[arg-type]
    if cut := _CUT.fullmatch(directive):
        return Block(**plain, cut_after=float(cut[1]))  # type: ignore[arg-type]
    if directive == "refused":
        return Block(**plain, is_refused=True)  # type: ignore[arg-type]
    raise MalformedDocument(f"{name}:{line}: <!-- test: {directive} --> is not understood")
