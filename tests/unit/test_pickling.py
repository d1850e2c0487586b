"""Values that travel between processes of two releases."""

import dataclasses
import importlib
import pickle
import pkgutil
from typing import Any

import pytest

import avatarforge.domain
from avatarforge.domain.jobs import GenerationParameters, ImageFormat, Vary
from avatarforge.domain.pickling import pickle_by_name
from avatarforge.domain.replicas import ReplicaReport, ReplicaState
from avatarforge.messages import LiveJob
from avatarforge.telemetry.aggregation import MetricsReport
from avatarforge.telemetry.exposition import ShardMetrics
from avatarforge.tracker.eta import Forecast
from avatarforge.tracker.feed import FeedBatch, FeedCursor
from tests.factories import a_job, a_report

VALUES = [a_job(), a_job().parameters, a_report(), FeedCursor(tracker="1-a", seq=3)]


def list_values() -> list[type]:
    """Return the domain's frozen dataclasses with slots, and those that actors pass beside them."""
    modules = [
        importlib.import_module(f"avatarforge.domain.{module.name}")
        for module in pkgutil.iter_modules(avatarforge.domain.__path__)
    ]
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and hasattr(value, "__slots__")
    }
    return sorted(
        found | {LiveJob, MetricsReport, ShardMetrics, Forecast, FeedBatch, FeedCursor},
        key=lambda value: value.__name__,
    )


@pytest.mark.parametrize("value", list_values(), ids=lambda value: value.__name__)
def test_every_value_that_travels_is_pickle_by_name(value: Any) -> None:
    assert value.__getstate__.__module__ == pickle_by_name.__module__


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_is_the_same_after_its_journey(value: Any) -> None:
    assert pickle.loads(pickle.dumps(value)) == value


def test_what_has_its_default_does_not_travel_so_that_no_release_meets_a_class_that_it_lacks() -> None:
    ordinary = a_job(parameters=GenerationParameters(seed=7))
    assert b"Vary" not in pickle.dumps(ordinary)
    assert b"ImageFormat" not in pickle.dumps(ordinary)
    assert ordinary.__getstate__().keys() == {  # type: ignore[attr-defined]  # a dict
        field.name
        for field in dataclasses.fields(ordinary)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    assert b"Vary" in pickle.dumps(GenerationParameters(seed=7, vary=Vary.STYLE))
    # All defaults, one from a factory, and what is equal to its default alone.
    for value in (FeedCursor(), a_report(step_seconds={}), dataclasses.replace(ordinary, attempt=False)):
        received: Any = pickle.loads(pickle.dumps(value))
        assert repr(received) == repr(value)


def test_a_field_that_the_sender_lacks_takes_its_default_and_one_of_its_own_is_dropped() -> None:
    parameters = GenerationParameters(
        seed=7, prompt="sea", width=512, height=512, request_id="r", format=ImageFormat.WEBP
    )
    state: Any = parameters.__getstate__()
    for lacking in ("width", "height", "request_id"):
        del state[lacking]
    received = object.__new__(GenerationParameters)
    received.__setstate__({"of_the_next_release": 1, **state})  # type: ignore[attr-defined]  # by its decorator

    assert received == dataclasses.replace(parameters, width=None, height=None, request_id=None)
    report = object.__new__(ReplicaReport)
    sent = a_report().__getstate__()
    del sent["step_seconds"]  # type: ignore[attr-defined]  # a dict
    report.__setstate__(sent)  # type: ignore[attr-defined]
    assert (report.step_seconds, report.state) == ({}, ReplicaState.SERVING)


def test_a_value_without_what_it_cannot_do_without_says_so() -> None:
    received = object.__new__(GenerationParameters)
    with pytest.raises(TypeError, match="GenerationParameters came without seed"):
        received.__setstate__({})  # type: ignore[attr-defined]
