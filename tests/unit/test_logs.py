"""Log events as they come out on stderr."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from avatarforge.settings import LogSettings
from avatarforge.telemetry.logs import configure


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    configure(LogSettings())


def test_our_events_and_a_librarys_come_out_as_json_with_the_same_fields(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(LogSettings(format="json"))
    structlog.get_logger("ours").info("job started", job_id="j1")
    logging.getLogger("theirs").warning("%s of them", 3)
    ours, theirs = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (ours["event"], ours["job_id"], ours["level"], ours["logger"]) == (
        "job started",
        "j1",
        "info",
        "ours",
    )
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("3 of them", "warning", "theirs")
    assert ours["timestamp"].endswith("Z")


def test_configuring_twice_writes_an_event_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings())
    configure(LogSettings())
    structlog.get_logger().warning("once")
    assert capsys.readouterr().err.count("once") == 1


def test_the_last_level_and_format_hold(capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger()
    configure(LogSettings(level="DEBUG"))
    configure(LogSettings(level="ERROR", format="text"))
    log.warning("too quiet")
    log.error("loud")
    written = capsys.readouterr().err
    assert "too quiet" not in written
    assert "loud" in written
    assert not written.lstrip().startswith("{")
