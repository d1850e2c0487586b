"""What README.md and docs/ tell people to type works as it stands there.

Blocks run in order, in a copy of the tree. Exported variables hold for the later blocks, as in one terminal.
The ports are not those of the text, so that a service that runs here already is left alone.
"""

from collections.abc import Iterator

import pytest

from tests.documents import blocks_of
from tests.terminal import TREE, Terminal

OTHERS = {"docs/operations.md"}
"""Run on MariaDB and S3: `tests/chaos/test_operations.py`."""
DOCUMENTS = ["README.md", *sorted({f"docs/{path.name}" for path in (TREE / "docs").glob("*.md")} - OTHERS)]


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path_factory.mktemp("readme") / "tree")
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_is_written_there_works(terminal: Terminal, document: str) -> None:
    for block in blocks_of(TREE / document, document):
        if block.skipped_because is None:
            terminal.run(block)
