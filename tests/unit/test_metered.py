"""Storage and database that count what they are asked."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pytest
from sqlalchemy import text

from avatarforge.domain.errors import DatabaseUnavailable, ObjectNotFound, StorageFull, StorageUnavailable
from avatarforge.persistence.database import begin_read, begin_write, meter_engine, open_engine
from avatarforge.settings import DatabaseSettings
from avatarforge.storage.folder import FolderStorage
from avatarforge.storage.interface import StoredObject
from avatarforge.storage.metered import MeteredStorage
from avatarforge.telemetry import metrics
from avatarforge.telemetry.registry import Metric, MetricsRegistry


def counted(registry: MetricsRegistry, metric: Metric) -> dict[tuple[str, ...], float]:
    """How many calls, by labels."""
    histograms = registry.snapshot().histograms
    return {labels: sum(values[:-1]) for (name, labels), values in histograms.items() if name == metric.name}


class Silent(FolderStorage):
    def delete(self, key: str) -> None:
        raise StorageUnavailable("it is silent")

    def list(self, prefix: str) -> Iterator[StoredObject]:
        raise OSError("a fault of ours")


def test_calls_of_storage_are_counted_by_operation_and_outcome_and_answered_as_ever(tmp_path: Path) -> None:
    registry = MetricsRegistry()
    storage = MeteredStorage(FolderStorage(tmp_path), registry, "ingress")
    for key in ("customers/a", "customers/b"):
        storage.put(key, BytesIO(key.encode()), "image/png")
    assert storage.get("customers/a") == b"customers/a"
    assert b"".join(storage.stream("customers/b")) == b"customers/b"
    assert [stored.key for stored in storage.list("customers/")] == ["customers/a", "customers/b"]
    assert list(storage.list("nobody/")) == []
    with pytest.raises(ObjectNotFound):
        storage.get("customers/c")
    storage.delete("customers/a")
    storage.check()
    assert counted(registry, metrics.STORAGE_CALLS) == {
        ("ingress", "put", "ok"): 2,
        ("ingress", "get", "ok"): 1,
        ("ingress", "stream", "ok"): 1,
        ("ingress", "list", "ok"): 2,
        ("ingress", "get", "absent"): 1,
        ("ingress", "delete", "ok"): 1,
        ("ingress", "check", "ok"): 1,
    }


def test_storage_that_does_not_answer_is_told_from_one_that_breaks(tmp_path: Path) -> None:
    registry = MetricsRegistry()
    storage = MeteredStorage(Silent(tmp_path), registry, "tracker")
    with pytest.raises(StorageUnavailable):
        storage.delete("customers/a")
    with pytest.raises(OSError, match="a fault of ours"):
        list(storage.list("customers/"))
    assert counted(registry, metrics.STORAGE_CALLS) == {
        ("tracker", "delete", "unavailable"): 1,
        ("tracker", "list", "error"): 1,
    }


class Full(FolderStorage):
    is_full = True

    def put(self, key: str, content: BinaryIO, media_type: str) -> None:
        if self.is_full:
            raise StorageFull("there is no room")
        super().put(key, content, media_type)


def test_a_check_tries_to_store_until_that_can_be_done_and_leaves_nothing(tmp_path: Path) -> None:
    inner = Full(tmp_path)
    storage = MeteredStorage(inner, MetricsRegistry(), "ingress")
    for _ in range(2):
        with pytest.raises(StorageFull):
            storage.check()
    inner.is_full = False
    storage.check()
    # It was stored a moment ago: nothing is tried.
    inner.is_full = True
    storage.check()
    with pytest.raises(StorageFull):
        storage.put("customers/a", BytesIO(b"a"), "image/png")
    with pytest.raises(StorageFull):
        storage.check()
    assert list(storage.list("")) == []


def test_transactions_are_counted_by_kind_and_outcome(tmp_path: Path) -> None:
    registry = MetricsRegistry()
    engine = open_engine(DatabaseSettings(), f"sqlite:///{tmp_path / 'a.db'}")
    meter_engine(engine, registry, "tracker")
    with begin_write(engine) as connection:
        connection.execute(text("CREATE TABLE things (name TEXT)"))
    with begin_read(engine) as connection:
        connection.execute(text("SELECT * FROM things"))
    with pytest.raises(ZeroDivisionError), begin_write(engine):
        raise ZeroDivisionError
    engine.dispose()
    away = open_engine(DatabaseSettings(), f"sqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}")
    meter_engine(away, registry, "ingress")
    with pytest.raises(DatabaseUnavailable), begin_read(away) as connection:
        connection.execute(text("SELECT 1"))
    assert counted(registry, metrics.DATABASE_CALLS) == {
        ("tracker", "write", "ok"): 1,
        ("tracker", "read", "ok"): 1,
        ("tracker", "write", "error"): 1,
        ("ingress", "read", "unavailable"): 1,
    }
