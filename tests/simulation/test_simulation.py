"""No seed breaks a promise of the tracker, every seed replays exactly, and bugs do not stay hidden.

A seed that fails is named with its story. `pytest tests/simulation --seed N` runs it again.
"""

import gc
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, event

from avatarforge.domain.jobs import GenerationParameters
from avatarforge.persistence import DeletionRepository, DeliveryRepository, JobRepository, open_engine
from avatarforge.persistence.tables import metadata
from avatarforge.persistence.upgrade import upgrade
from avatarforge.settings import DatabaseSettings
from avatarforge.tracker.queue.fair_queue import _RoundRobin
from tests.factories import a_job
from tests.simulation.conftest import SEEDS
from tests.simulation.memory_database import MemoryDatabase
from tests.simulation.plants import PLANTS, Plant
from tests.simulation.simulation import Simulation
from tests.simulation.witness import watched_line

COLLECT = 50
"""Seeds after which garbage is collected: not while one runs, so that each runs alike."""
MOST_FOR_A_PLANT = SEEDS
"""Seeds within which a planted bug has to be found: as many as `make test` runs."""
SEEDS_OVER_SQL = 40


def run(seed: int, make_database: Callable[[], Any] = MemoryDatabase) -> Simulation:
    """Run one seed; a failure tells its story."""
    simulation = Simulation(seed, make_database)
    try:
        simulation.run()
    except Exception as error:
        story = "\n".join(simulation.trace.lines)
        pytest.fail(
            f"Seed {seed}: {error!r}\n{story}\nSeed {seed}: {error!r}\n"
            f"Run it again: pytest tests/simulation --seed {seed}",
            pytrace=not isinstance(error, AssertionError),
        )
    return simulation


@pytest.mark.timeout(0)
def test_no_seed_breaks_a_promise(seeds: range, seed: int | None) -> None:
    if seed is not None:
        print(*run(seed).trace.lines, sep="\n")
        return
    kept = 0
    for number in seeds:
        kept += len(run(number).witness.promised)
        if number % COLLECT == 0:
            gc.collect()
    assert kept > len(seeds), "where nothing is promised, nothing can be broken"


@pytest.mark.parametrize("number", [1, 7, 42])
def test_a_seed_replays_exactly_also_in_another_process(number: int) -> None:
    first = run(number).trace
    assert run(number).trace.lines == first.lines
    environment = {**os.environ, "PYTHONHASHSEED": str(number + 1)}
    again = subprocess.run(
        [sys.executable, "-c", _REPLAY, str(number)],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout.strip() == first.digest


_REPLAY = """
import sys
from tests.simulation.simulation import Simulation
simulation = Simulation(int(sys.argv[1]))
simulation.run()
print(simulation.trace.digest)
"""


def test_seeds_differ() -> None:
    assert len({run(number).trace.digest for number in range(5)}) == 5


# --- planted bugs -------------------------------------------------------------------------------------


@pytest.mark.timeout(0)
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    for number in range(MOST_FOR_A_PLANT):
        try:
            Simulation(number).run()
        except AssertionError:
            return
    pytest.fail(f"{MOST_FOR_A_PLANT} seeds did not find out that {plant.__name__.replace('_', ' ')}.")


def count_passed_over() -> int:
    """Count the long queues, rare in simulations, in which a customer is passed over."""
    passed_over: set[int] = set()
    for number in range(40):
        chance = random.Random(number)
        witness: Any = SimpleNamespace(violated=lambda _, number=number: passed_over.add(number))
        queue = watched_line(witness, fits_vary=False)()
        for _ in range(120):
            if chance.random() < 0.6:
                parameters = GenerationParameters(seed=1, variants=chance.choice((1, 1, 2, 8)))
                queue.add(a_job(customer_id=chance.choice("abcd"), parameters=parameters))
            else:
                queue.pop()
    return len(passed_over)


def test_whoever_asked_for_several_images_is_passed_over_for_no_more_turns_than_they_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert count_passed_over() == 0
    record_turn = _RoundRobin.record_turn
    monkeypatch.setattr(
        _RoundRobin,
        "record_turn",
        lambda self, customer_id, turns: record_turn(self, customer_id, turns if turns == 1 else 10 * turns),
    )
    assert count_passed_over() > 0


# --- over the real record -----------------------------------------------------------------------------


class _Sql:
    """The real record, with the methods of all its parts."""

    def __init__(self, engine: Engine) -> None:
        self._parts = (JobRepository(engine), DeliveryRepository(engine), DeletionRepository(engine))

    def __getattr__(self, name: str) -> Any:
        return next(getattr(part, name) for part in self._parts if hasattr(part, name))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path / 'avatarforge.db'}"
    upgrade(url)
    engine = open_engine(DatabaseSettings(), url)

    @event.listens_for(engine, "connect")
    def hurry(connection: Any, _: object) -> None:
        # Nobody pulls the plug of this disk.
        connection.execute("PRAGMA synchronous=OFF")

    yield engine
    engine.dispose()


@pytest.mark.timeout(0)
def test_no_promise_is_broken_over_the_real_record(engine: Engine) -> None:
    def emptied() -> _Sql:
        with engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
            connection.exec_driver_sql("DELETE FROM sqlite_sequence")
        return _Sql(engine)

    for number in range(SEEDS_OVER_SQL):
        run(number, emptied)
