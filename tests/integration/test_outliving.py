"""Slots, streams and trackers under a real Ray and Serve, in a process of its own: Ray leaves its mark."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.outliving", str(tmp_path_factory.mktemp("outliving"))],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answers, done.stderr[-4000:]
    return json.loads(answers[0].removeprefix("ANSWER "))


def test_the_slot_of_a_tracker_that_was_killed_is_free_again(seen: Any) -> None:
    assert 0.5 < seen["freedAfter"] < 15


def test_a_replica_that_is_stopped_gives_its_work_back_and_burns_no_attempt(seen: Any) -> None:
    assert "worker_stopping" in seen["last"]
    assert "counts_as_failure=False" in seen["last"]


def test_a_tracker_is_kept_for_the_same_arguments_and_replaced_for_others(seen: Any) -> None:
    assert (seen["kept"], seen["replaced"], seen["lastArguments"]) == (True, True, True)


def test_a_tracker_of_another_release_would_be_replaced(seen: Any) -> None:
    assert seen["isOfAnotherRelease"]


def test_clients_follow_to_the_tracker_that_has_taken_the_epoch(seen: Any) -> None:
    assert seen["followed"]
    assert seen["epochs"] == ["1", "2"]
