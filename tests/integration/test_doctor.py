"""`avatarforge doctor` over real servers, and over what is broken in the ways in which it breaks."""

import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from avatarforge.cli import app
from avatarforge.diagnosis import Finding, State, data, examine
from avatarforge.diagnosis.data import list_risks
from avatarforge.diagnosis.redis import check_redis
from avatarforge.persistence import open_engine
from avatarforge.persistence.upgrade import latest, upgrade
from avatarforge.settings import DatabaseSettings, Settings, load_settings
from tests.keys import kept_key
from tests.servers.mariadb import MariaDbServer, free_port
from tests.servers.redis import PASSWORD, RedisServer
from tests.servers.s3 import S3Server


@dataclass(frozen=True)
class Deployment:
    mariadb: MariaDbServer
    url: str
    s3: S3Server
    redis: RedisServer


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("doctor")
    with (
        MariaDbServer(folder / "mariadb") as mariadb,
        S3Server(folder / "s3") as s3,
        RedisServer(folder / "redis") as redis,
    ):
        url = mariadb.create_database("healthy")
        upgrade(url)
        yield Deployment(mariadb, url, s3, redis)


def settings_of(folder: Path, **groups: Any) -> Settings:
    ports = {"http": {"port": free_port()}, "grpc": {"port": free_port()}}
    return load_settings({"data_dir": str(folder), **ports, **groups}, environ={})


def on_servers(deployment: Deployment, folder: Path, **groups: Any) -> Settings:
    storage = deployment.s3.settings().model_dump()
    plain = {
        name: value.get_secret_value() if hasattr(value, "get_secret_value") else value
        for name, value in storage.items()
    }
    return settings_of(folder, **{"database": {"url": deployment.url}, "storage": plain, **groups})


def found(settings: Settings, **options: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(settings, **options)}


def test_a_deployment_that_has_everything_is_found_well(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_REDIS_ADDRESS", deployment.redis.address)
    monkeypatch.setenv("RAY_REDIS_PASSWORD", PASSWORD)
    findings = found(on_servers(deployment, tmp_path))
    states = {name: finding.state for name, finding in findings.items()}
    assert states == {
        "webhook secrets": State.ABSENT,
        "data folder": State.OK,
        "file modes": State.OK,
        "database": State.OK,
        "database server": State.OK,
        "migrations": State.OK,
        "API keys": State.ABSENT,
        "storage": State.OK,
        "Redis": State.OK,
        "GPU": State.ABSENT,
        "model": State.OK,
        "REST port": State.OK,
        "gRPC port": State.OK,
    }
    assert "MariaDB" in findings["database"].found
    assert "PONG" in findings["Redis"].found


def test_a_server_that_forgets_or_is_too_narrow(deployment: Deployment, tmp_path: Path) -> None:
    engine = open_engine(DatabaseSettings(), deployment.url)
    names = ("innodb_flush_log_at_trx_commit", "max_allowed_packet")
    with engine.connect() as connection:
        before = [connection.scalar(text(f"SELECT @@GLOBAL.{name}")) for name in names]
        for name, value in zip(names, (2, 1024 * 1024), strict=True):
            connection.execute(text(f"SET GLOBAL {name} = {value}"))
        finding = found(on_servers(deployment, tmp_path))["database server"]
        for name, value in zip(names, before, strict=True):
            connection.execute(text(f"SET GLOBAL {name} = {value}"))
    engine.dispose()
    assert finding.state is State.WARNING
    assert "innodb_flush_log_at_trx_commit is 2" in finding.found
    assert "max_allowed_packet is 1048576" in finding.found


def test_each_of_a_servers_risks_is_named() -> None:
    fine = {"innodb_flush_log_at_trx_commit": "1", "max_allowed_packet": "16777216", "wsrep_on": "OFF"}
    session = {"transaction_isolation": "READ-COMMITTED", "sql_mode": "STRICT_ALL_TABLES,NO_ZERO_DATE"}
    assert list(list_risks({**fine, "sync_binlog": "0"}, session)) == []
    assert list(list_risks(fine, {"tx_isolation": "READ-COMMITTED", "sql_mode": "STRICT_ALL_TABLES"})) == []

    def named(server: dict[str, str], **changed: str) -> str:
        [(found, advice)] = list_risks({**fine, **server}, {**session, **changed})
        assert advice
        return found

    assert "sync_binlog is 0" in named({"log_bin": "ON", "sync_binlog": "0"})
    assert "Galera" in named({"wsrep_on": "ON"})
    assert "REPEATABLE-READ" in named({}, transaction_isolation="REPEATABLE-READ")
    assert "not as set" in named({}, sql_mode="")


def test_clocks_that_differ_are_told(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) - timedelta(seconds=60)

    monkeypatch.setattr(data, "datetime", Late)
    findings = found(on_servers(deployment, tmp_path))
    assert "+60 s off" in findings["database server"].found
    assert "s off this machine's" in findings["storage"].found


def test_files_that_others_may_read_are_named(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    settings.webhook_secret_file.write_text("whsec_x")
    settings.webhook_secret_file.chmod(0o640)
    tmp_path.chmod(0o700)
    assert found(settings)["file modes"].state is State.OK
    tmp_path.chmod(0o755)
    finding = found(settings)["file modes"]
    assert finding.state is State.WARNING
    assert f"chmod -R go= {settings.webhook_secret_file}" in finding.advice


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_free_gib", lambda place: 0.4 if place == tmp_path else 50.0)
    finding = found(settings_of(tmp_path))["data folder"]
    assert (finding.state, "0.4 GiB free" in finding.found) == (State.WARNING, True)


def test_the_secret_that_up_has_made_is_found(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    assert found(settings)["webhook secrets"].state is State.ABSENT
    settings.webhook_secret_file.parent.mkdir(parents=True, exist_ok=True)
    settings.webhook_secret_file.write_text("whsec_x")
    assert found(settings)["webhook secrets"].state is State.OK


def test_no_secret_is_shown(deployment: Deployment, tmp_path: Path) -> None:
    secret = deployment.url.split(":")[2].partition("@")[0]
    shown = " ".join(f"{finding}" for finding in examine(on_servers(deployment, tmp_path)))
    assert secret not in shown
    assert "***" in shown


def test_nothing_is_left_behind_in_storage(deployment: Deployment, tmp_path: Path) -> None:
    found(on_servers(deployment, tmp_path))
    bucket = deployment.s3.folder / "buckets" / deployment.s3.bucket
    assert [path for path in bucket.rglob("*") if path.is_file()] == []


def test_the_embedded_default_needs_nothing_before_its_first_start(tmp_path: Path) -> None:
    findings = found(settings_of(tmp_path / "new"))
    assert [finding for finding in findings.values() if finding.state is State.FAILED] == []
    assert findings["database"].state is State.ABSENT
    assert not (tmp_path / "new" / "avatarforge.db").exists()


def test_a_service_that_others_reach_needs_a_key(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, http={"host": "0.0.0.0", "port": free_port()})
    upgrade(settings.database_url)
    finding = found(settings)["API keys"]
    assert finding.state is State.FAILED
    assert "avatarforge keys create" in finding.advice
    local = settings_of(tmp_path, http={"port": free_port()})
    assert found(local)["API keys"].state is State.ABSENT

    kept_key(settings, "*")
    assert found(settings)["API keys"].state is State.OK
    nobody = settings_of(tmp_path, access={"required": "never"})
    assert found(nobody)["API keys"].state is State.ABSENT


def test_a_database_that_does_not_answer(tmp_path: Path) -> None:
    url = f"mysql+pymysql://forge:secret@127.0.0.1:{free_port()}/avatarforge"
    findings = found(settings_of(tmp_path, database={"url": url}))
    assert findings["database"].state is State.FAILED
    assert "does not answer" in findings["database"].found
    assert "Is the server running" in findings["database"].advice
    assert findings["migrations"].state is State.FAILED


@pytest.mark.parametrize(
    ("wrong", "right"), [("only-for-tests", "forgotten"), ("/healthy", "/missing"), ("avatarforge:", "ana:")]
)
def test_a_database_that_refuses_us(deployment: Deployment, tmp_path: Path, wrong: str, right: str) -> None:
    url = deployment.url.replace(wrong, right, 1)
    assert url != deployment.url
    finding = found(settings_of(tmp_path, database={"url": url}))["database"]
    assert finding.state is State.FAILED
    assert "user, password and database name" in finding.advice
    assert "forgotten" not in finding.found


def test_a_database_url_of_another_kind(tmp_path: Path) -> None:
    finding = found(settings_of(tmp_path, database={"url": "postgresql://a@b/c"}))["database"]
    assert finding.state is State.FAILED
    assert "mysql+pymysql://" in finding.advice


def test_an_empty_database_wants_migrations(deployment: Deployment, tmp_path: Path) -> None:
    url = deployment.mariadb.create_database("empty")
    finding = found(settings_of(tmp_path, database={"url": url}))["migrations"]
    assert (finding.state, finding.advice) == (State.FAILED, "Run `avatarforge db upgrade`.")
    assert latest() in finding.found


def test_a_bucket_that_is_not_there(deployment: Deployment, tmp_path: Path) -> None:
    settings = on_servers(deployment, tmp_path)
    other = settings.model_copy(
        update={"storage": settings.storage.model_copy(update={"bucket": "elsewhere"})}
    )
    finding = found(other)["storage"]
    assert finding.state is State.FAILED
    assert "AVATARFORGE_STORAGE_BUCKET" in finding.advice
    assert "NoSuchBucket" in finding.found


def test_storage_that_does_not_answer(tmp_path: Path) -> None:
    storage = {
        "bucket": "avatars",
        "endpoint_url": f"http://127.0.0.1:{free_port()}",
        "access_key_id": "a",
        "secret_access_key": "b",
        "timeout": 0.5,
    }
    finding = found(settings_of(tmp_path, storage=storage))["storage"]
    assert finding.state is State.FAILED
    assert "put failed" in finding.found
    assert "Could not connect" in finding.found


def test_redis_that_is_away_and_redis_with_another_password(deployment: Deployment) -> None:
    away = check_redis({"RAY_REDIS_ADDRESS": f"127.0.0.1:{free_port()}"})
    assert away.state is State.FAILED
    refused = check_redis(
        {"RAY_REDIS_ADDRESS": f"redis://{deployment.redis.address}", "RAY_REDIS_PASSWORD": "wrong"}
    )
    assert refused.state is State.FAILED
    assert "WRONGPASS" in refused.found
    unsaid = check_redis({"RAY_REDIS_ADDRESS": deployment.redis.address})
    assert "NOAUTH" in unsaid.found


def test_a_gpu_that_is_asked_for_and_not_there(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert found(settings_of(tmp_path), gpu=True)["GPU"].state is State.FAILED
    by_settings = settings_of(tmp_path, diffusion={"num_gpus": 1})
    assert found(by_settings)["GPU"].state is State.FAILED
    assert found(by_settings, gpu=False)["GPU"].state is State.ABSENT


def test_a_model_without_a_manifest_and_one_whose_file_was_changed(tmp_path: Path) -> None:
    missing = found(settings_of(tmp_path, diffusion={"model": "no-such-model"}))["model"]
    assert missing.state is State.FAILED
    models = tmp_path / "models"
    shutil.copytree(Path(__file__).parents[2] / "models" / "avatar-mini", models / "avatar-mini")
    [weights, *_] = sorted((models / "avatar-mini" / "checkpoint").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes() + b"\0")
    changed = found(settings_of(tmp_path, diffusion={"models_dir": str(models)}))["model"]
    assert changed.state is State.FAILED
    assert weights.name in changed.found


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.server.is_ours else 404)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(("is_ours", "state"), [(True, State.OK), (False, State.WARNING)])
def test_a_port_that_is_used(tmp_path: Path, is_ours: bool, state: State) -> None:
    with HTTPServer(("127.0.0.1", 0), _Page) as server:
        server.is_ours = is_ours  # type: ignore[attr-defined]
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            findings = found(settings_of(tmp_path, http={"port": server.server_address[1]}))
        finally:
            server.shutdown()
            thread.join()
    assert findings["REST port"].state is state


def test_a_grpc_port_of_another_program(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        finding = found(settings_of(tmp_path, grpc={"port": other.getsockname()[1]}))["gRPC port"]
    assert finding.state is State.WARNING
    assert "AVATARFORGE_GRPC_PORT" in finding.advice


def test_the_command_tells_programs_and_people(deployment: Deployment, tmp_path: Path) -> None:
    environ = {"AVATARFORGE_DATABASE_URL": deployment.url, "AVATARFORGE_DATA_DIR": str(tmp_path)}
    well = CliRunner().invoke(app, ["doctor", "--json"], env=environ)
    assert well.exit_code == 0
    assert {row["check"]: row["state"] for row in json.loads(well.stdout)}["database"] == "ok"
    empty = deployment.mariadb.create_database("told")
    ill = CliRunner().invoke(app, ["doctor"], env={**environ, "AVATARFORGE_DATABASE_URL": empty})
    assert ill.exit_code == 1
    assert "avatarforge db upgrade" in ill.stdout
    assert "1 failed." in ill.stdout
