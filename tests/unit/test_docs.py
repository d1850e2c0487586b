"""Our documents name only what is there."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parents[2]
ARCHITECTURE = TREE / "docs" / "architecture.md"
WRITTEN = [TREE / "README.md", *sorted((TREE / "docs").glob("*.md"))]
PATH = re.compile(r"`((?:\.?\w[\w.-]*/)+(?:[\w-]+\.\w+)?|\w+\.py)`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
ROW = re.compile(r"\| `([\w/]+\.py)` \| (.*) \|")


def find_functions(tree: ast.AST, outer: str = "") -> set[str]:
    names: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        name = outer
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{outer}.{node.name}".lstrip(".")
            names.add(name)
        names |= find_functions(node, name)
    return names


def test_every_path_of_the_architecture_is_there() -> None:
    paths = set(PATH.findall(ARCHITECTURE.read_text(encoding="utf-8")))
    assert len(paths) > 60
    missing = [
        path for path in paths if not any((root / path).exists() for root in (TREE, TREE / "avatarforge"))
    ]
    assert sorted(missing) == []


def test_every_guard_that_is_listed_has_its_test() -> None:
    listed = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (TREE / "docs" / "security.md").read_text("utf-8"))
    assert len(listed) > 30
    missing = [
        name
        for path, name in listed
        if name not in find_functions(ast.parse((TREE / path).read_text(encoding="utf-8")))
    ]
    assert missing == []


def test_every_function_that_is_listed_there_is_in_its_file() -> None:
    rows = ROW.findall(ARCHITECTURE.read_text(encoding="utf-8"))
    assert len(rows) > 60
    missing = []
    for file, functions in rows:
        known = find_functions(ast.parse((TREE / "avatarforge" / file).read_text(encoding="utf-8")))
        missing += [f"{file} {name}" for name in re.findall(r"`([^`]+)`", functions) if name not in known]
    assert missing == [], "write the lists anew: PYTHONPATH=. python .ci/trace_paths.py --write"


def test_the_pages_that_are_made_from_the_code_are_what_it_says() -> None:
    checked = subprocess.run(
        [sys.executable, TREE / ".ci" / "pages.py", "--check"],
        env={**os.environ, "PYTHONPATH": str(TREE), "AVATARFORGE_HTTP_PORT": "8123"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("document", WRITTEN, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_to_one(document: Path) -> None:
    targets = LINK.findall(document.read_text(encoding="utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []
