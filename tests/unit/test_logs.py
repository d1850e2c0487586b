"""Log events as they come out on stderr."""

import asyncio
import json
import logging
import sys
from collections.abc import Iterator
from logging.handlers import MemoryHandler

import pytest
import structlog
from ray.serve._private.logging_utils import StreamToLogger

from avatarforge.settings import LogSettings, load_settings
from avatarforge.telemetry.logs import RepeatedWarnings, configure, set_up_process
from avatarforge.telemetry.redaction import secrets_of


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


def test_lines_about_a_job_carry_its_identity_also_from_its_tasks_and_from_libraries(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(LogSettings())

    async def work() -> None:
        with structlog.contextvars.bound_contextvars(job_id="j1", customer_id="ana", attempt=2):
            await asyncio.create_task(part())
        structlog.get_logger().info("idle")

    async def part() -> None:
        structlog.get_logger().info("fetched")
        logging.getLogger("theirs").warning("slow")

    asyncio.run(work())
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = [
        (line["event"], line.get("job_id"), line.get("customer_id"), line.get("attempt")) for line in lines
    ]
    assert told == [("fetched", "j1", "ana", 2), ("slow", "j1", "ana", 2), ("idle", None, None, None)]


def test_a_repeated_warning_is_written_once_a_minute_with_its_count(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(LogSettings())
    ours, theirs = structlog.get_logger("ours"), logging.getLogger("theirs")

    def write() -> list[tuple[str, object, object]]:
        for path in ("/a", "/b"):
            ours.warning("request refused", code="unavailable", request_path=path)
            ours.warning("worker lost", job_id=path)
            theirs.warning("%s is full", path)
            ours.error("broke", path=path)
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        return [(line["event"], line.get("job_id"), line.get("repeated")) for line in lines]

    lost, broke = [("worker lost", job_id, None) for job_id in ("/a", "/b")], ("broke", None, None)
    refused, full = ("request refused", None, None), ("/a is full", None, None)
    assert write() == [refused, lost[0], full, broke, lost[1], broke]
    assert write() == [broke, broke]
    monkeypatch.setattr(RepeatedWarnings, "INTERVAL_SECONDS", 0)
    assert write()[:3] == [
        ("request refused", None, 3),
        ("worker lost", "/a", 1),
        ("/a is full (repeated 3 times)", None, None),
    ]


def test_a_warning_of_another_thing_is_another_one(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings())
    ours = structlog.get_logger("ours")
    written = [
        ("worker lost", {"job_id": "j1", "attempt": 1}),
        ("worker lost", {"job_id": "j1", "attempt": 2}),
    ]
    written += [("secret cannot be read again", {"path": path}) for path in ("/a", "/b")]
    written += [("objects were left", {"prefix": prefix}) for prefix in ("ana/", "ben/")]
    for event, thing in written * 2:
        ours.warning(event, **thing)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [
        (line["event"], {name: line[name] for name in thing})
        for line, (_, thing) in zip(lines, written, strict=True)
    ] == written


def test_whatever_a_library_logs_is_written_and_known_by_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings())
    for _ in range(2):
        for message in ({"a": 1}, ["x"], ValueError("another object each time")):
            logging.getLogger("theirs").warning(message)
    written = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert written == ["{'a': 1}", "['x']", "another object each time"]


def test_a_process_has_the_settings_it_was_handed_and_tells_where_its_nodes_differ(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = {"http": {"port": 8123}, "tracker": {"shards": 2}}
    monkeypatch.setenv("AVATARFORGE_HTTP_PORT", "8124")
    monkeypatch.setenv("AVATARFORGE_TRACKER_SHARDS", "2")

    settings = set_up_process(handed, "ingress")

    assert settings == load_settings(handed, environ={})
    [line] = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (line["level"], line["variables"]) == ("warning", ["AVATARFORGE_HTTP_PORT"])


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_secret_of_the_settings_is_written(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_settings(
        {
            "database": {"url": "mysql+pymysql://forge:p%40ssword@db/avatarforge"},
            "storage": {"secret_access_key": "storage-secret"},
            "webhook": {
                "secrets": "whsec_Zmlyc3Qtc2VjcmV0LW9mLXRoZS10ZXN0, whsec_c2Vjb25kLXNlY3JldC1vZi10ZXN0"
            },
            "telemetry": {"otlp_headers": "Authorization=Bearer of-the-collector"},
            "log": {"format": log_format},
        },
        environ={},
    )
    configure(settings.log, secrets_of(settings))
    log = structlog.get_logger("ours")
    log.warning("refused", url="mysql+pymysql://forge:p%40ssword@db/avatarforge", password="p@ssword")
    try:
        raise ValueError("key storage-secret is unknown")
    except ValueError:
        log.exception("broke")
    logging.getLogger("theirs").error("header: %s", "Bearer of-the-collector")
    log.warning("signed with whsec_c2Vjb25kLXNlY3JldC1vZi10ZXN0 and whsec_Zmlyc3Qtc2VjcmV0LW9mLXRoZS10ZXN0")
    written = capsys.readouterr().err
    for secret in ("p%40ssword", "p@ssword", "storage-secret", "of-the-collector", "whsec_Z", "whsec_c"):
        assert secret not in written
    assert "forge:***@db" in written
    assert "ValueError: key *** is unknown" in written


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_tracebacks_have_no_local_variables(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure(load_settings({"log": {"format": log_format}}, environ={}).log)

    def fails(prompt: str) -> None:
        raise ValueError("no step is left")

    try:
        fails("-".join(["of", "Ana"]))
    except ValueError:
        structlog.get_logger("ours").exception("broke")
    written = capsys.readouterr().err
    assert "ValueError: no step is left" in written
    assert "of-Ana" not in written


def test_lines_of_a_replica_do_not_pass_through_serves_logger(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve puts this in the place of a replica's stderr, and may buffer what it gets."""
    serves = logging.getLogger("of serve")
    serves.addHandler(buffer := MemoryHandler(1000))
    monkeypatch.setattr(sys, "stderr", StreamToLogger(serves, logging.INFO, sys.stderr))
    configure(LogSettings())
    structlog.get_logger().info("model serves")
    assert json.loads(capsys.readouterr().err)["event"] == "model serves"
    assert buffer.buffer == []


def test_serves_lines_on_stderr_come_out_as_ours(capsys: pytest.CaptureFixture[str]) -> None:
    serves = logging.getLogger("ray.serve")
    serves.addHandler(logging.StreamHandler(sys.stderr))
    serves.propagate = False
    configure(LogSettings())
    serves.warning("controller is away")
    assert json.loads(capsys.readouterr().err)["event"] == "controller is away"
