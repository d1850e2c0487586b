"""The record in memory is held to the contract of the real one, but for what concerns SQL itself."""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tests.contract import (
    test_deliveries,
    test_erasure,
    test_idempotency_keys,
    test_job_records,
    test_pruning,
)
from tests.simulation.memory_database import MemoryDatabase

_CONTRACTS = (test_deliveries, test_erasure, test_idempotency_keys, test_job_records, test_pruning)
_OF_SQL = {
    "test_times_come_back_aware_and_to_the_microsecond",
    "test_a_naive_time_is_refused_and_nothing_is_kept",
    "test_a_clock_of_ours_that_runs_ahead_lets_no_key_expire",
}
"""What becomes of a value in a column; here it stays what it is. And whose clock the database has."""


@pytest.fixture
def records() -> MemoryDatabase:
    return MemoryDatabase()


@pytest.fixture
def epoch(records: MemoryDatabase) -> int:
    return records.claim_shard(0)


@pytest.fixture
def deliveries(records: MemoryDatabase) -> MemoryDatabase:
    return records


@pytest.fixture
def deletions(records: MemoryDatabase) -> MemoryDatabase:
    return records


# Fixtures of the deliveries' contract.
job = test_deliveries.job
delivery = test_deliveries.delivery


def _cases(contract: ModuleType) -> dict[str, Callable[..., Any]]:
    """The contract's cases that need nothing but the record."""
    return {
        name: case
        for name, case in vars(contract).items()
        if name.startswith("test_") and name not in _OF_SQL and _needs_only_the_record(case)
    }


def _needs_only_the_record(case: Callable[..., Any]) -> bool:
    needed = set(inspect.signature(case).parameters)
    return "records" in needed and not needed & {"engine", "database_url"}


for _contract in _CONTRACTS:
    globals().update(_cases(_contract))
