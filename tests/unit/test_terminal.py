"""The terminal that runs our documents' blocks notices what does not work."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.documents import Block
from tests.servers.mariadb import free_port
from tests.terminal import Terminal


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path_factory.mktemp("terminal") / "tree")
    try:
        yield terminal
    finally:
        terminal.close()


def block(code: str, **more: Any) -> Block:
    return Block(**{"file": "x.md", "line": 10, "language": "sh", "code": code, **more})


def test_exports_hold_for_later_blocks_and_the_tree_is_there(terminal: Terminal) -> None:
    terminal.run(block("export NAME='two words'\ntest -f README.md"))
    terminal.run(block('test "$NAME" = "two words"'))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (block("true\nfalse\ntrue"), "it ended with 1.*line 2: false"),
        (block("echo $NOWHERE"), "NOWHERE"),
        (block("false | true"), "line 1"),
        (block("true", is_refused=True), "it was not refused"),
        (block("sleep 5", cut_after=0.5), "it said nothing"),
        (block("exit 3", background_until="ready"), "it ended"),
        (block("1 / 0", language="python"), "ZeroDivisionError"),
    ],
    ids=lambda value: value.code if isinstance(value, Block) else "",
)
def test_what_does_not_work_is_told_with_its_place(terminal: Terminal, wrong: Block, told: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?s)x\.md:10.*{told}"):
        terminal.run(wrong)


def test_what_goes_on_is_waited_for_and_a_refusal_of_a_server_is_a_failure(
    terminal: Terminal, tmp_path: Path
) -> None:
    server = f".venv/bin/python -u -m http.server --bind 127.0.0.1 {(port := free_port())}"
    terminal.run(block(server, background_until="Serving HTTP"))
    terminal.run(block(f"curl http://127.0.0.1:{port}/README.md"))
    terminal.run(block("echo heard; sleep 60", cut_after=0.5))
    with pytest.raises(AssertionError, match="404"):
        terminal.run(block(f"curl http://127.0.0.1:{port}/nowhere"))
    terminal.run(block(f"curl http://127.0.0.1:{port}/nowhere", is_refused=True))
