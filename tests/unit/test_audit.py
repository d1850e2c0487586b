"""The check of dependencies: red for what is known to be harmful, never for a network that is away."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[2] / ".ci" / "audit.py"
SOUND = {"name": "sound", "version": "1.0", "vulns": []}
HARMFUL = {
    "name": "harmful",
    "version": "2.0",
    "vulns": [{"id": "PYSEC-2026-1", "fix_versions": ["2.1"], "aliases": [], "description": ""}],
}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found"}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def saying(out: str, err: str = "", status: int = 0) -> tuple[str, ...]:
    """A program that answers as pip-audit may."""
    script = f"import sys; print({out!r}); print({err!r}, file=sys.stderr); sys.exit({status})"
    return sys.executable, "-c", script


def reporting(*dependencies: dict[str, Any], status: int = 0) -> tuple[str, ...]:
    return saying(json.dumps({"dependencies": dependencies, "fixes": []}), status=status)


@pytest.mark.parametrize(
    ("command", "status", "told"),
    [
        (reporting(SOUND, SOUND), 0, "2 of 2 dependencies audited, 0 with known"),
        (reporting(SOUND, HARMFUL, status=1), 1, "harmful 2.0: PYSEC-2026-1, mended in 2.1"),
        (reporting(UNKNOWN, SOUND), 0, "NOT audited, since the advisory service does not know them: unknown"),
        (reporting(UNKNOWN, HARMFUL, status=1), 1, "1 of 2 dependencies audited, 1 with known"),
        (saying("", "Traceback\nrequests.exceptions.ConnectionError: no way", 1), 0, "NOT audited"),
        (saying("", "ERROR: constraints.txt: no such file", 1), 1, "no such file"),
        (saying("", "", 1), 1, "pip-audit failed"),
    ],
)
def test_what_pip_audit_finds_decides_and_its_silence_is_told(
    audit: ModuleType, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], status: int, told: str
) -> None:
    assert audit.main(Path("constraints.txt"), command) == status
    assert told in capsys.readouterr().out


def test_the_pinned_packages_are_read(audit: ModuleType, tmp_path: Path) -> None:
    """With the real program, and a file that it cannot read."""
    wrong = tmp_path / "constraints.txt"
    wrong.write_text("not a requirement ==\n")

    assert audit.main(wrong) == 1
