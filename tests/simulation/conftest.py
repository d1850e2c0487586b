"""Which seeds to run: `pytest tests/simulation --seed 42`, or SIMULATION_SEEDS=100000 in the environment."""

import os

import pytest

SEEDS = 500
"""Seeds of one run of the tests; `make chaos` takes many more."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed", type=int, default=None, help="run this seed of the simulation, and tell its story"
    )


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int | None:
    """The only seed that is wanted, if there is one."""
    # Unknown to pytest where it was not started on this folder.
    wanted: int | None = request.config.getoption("--seed", default=None)
    return wanted


@pytest.fixture
def seeds() -> range:
    """SIMULATION_SEEDS of them, from SIMULATION_FIRST on."""
    first = int(os.environ.get("SIMULATION_FIRST", "0"))
    return range(first, first + int(os.environ.get("SIMULATION_SEEDS", SEEDS)))
