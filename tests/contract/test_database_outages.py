"""A database that dies, hangs, is full or busy is `DatabaseUnavailable` in bounded time, and works after."""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pymysql
import pytest
from sqlalchemy import Connection, Engine, event, make_url, text
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError
from typer.testing import CliRunner

from avatarforge.cli import app
from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.persistence import JobRepository, open_engine
from avatarforge.persistence.database import begin_read, translate_errors
from avatarforge.persistence.upgrade import current, latest, upgrade
from avatarforge.secret_file import SecretFile
from avatarforge.settings import DatabaseSettings, SettingsError
from tests.jobs import a_detailed_job, a_job, start, submission
from tests.servers.mariadb import OUTAGE_ERRORS, PASSWORD, USER, MariaDbServer, free_port
from tests.servers.pausing import hanging
from tests.waiting import wait_until

IMPATIENT = DatabaseSettings(connect_timeout=1, read_timeout=2, pool_size=2)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDbServer]:
    """A server to do harm to."""
    with MariaDbServer(tmp_path_factory.mktemp("victim")) as server:
        yield server


@pytest.fixture
def server(victim: MariaDbServer) -> MariaDbServer:
    if not victim.is_running:
        victim.start()
    return victim


@pytest.fixture
def database(server: MariaDbServer) -> str:
    name = f"test_{uuid4().hex}"
    upgrade(server.create_database(name))
    return name


@pytest.fixture
def served(server: MariaDbServer, database: str) -> Iterator[JobRepository]:
    url = server.url(database)
    records = JobRepository(open_engine(IMPATIENT, url))
    yield records
    records.close()


@pytest.fixture
def bystander(server: MariaDbServer, database: str) -> Iterator[Engine]:
    """Another client of the same database."""
    engine = open_engine(DatabaseSettings(), server.url(database))
    yield engine
    engine.dispose()


@pytest.fixture
def embedded_engine(tmp_path: Path) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path / 'avatarforge.db'}"
    upgrade(url)
    engine = open_engine(DatabaseSettings(read_timeout=0.2, connect_timeout=0.2, pool_size=2), url)
    yield engine
    engine.dispose()


# --- MariaDB ------------------------------------------------------------------------------------------


def test_a_password_is_rotated_in_its_file_while_connections_are_used(
    server: MariaDbServer, database: str, tmp_path: Path
) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("first\n")
    server.run(
        "CREATE OR REPLACE USER rotating@'%' IDENTIFIED BY 'first'",
        f"GRANT ALL ON {database}.* TO rotating@'%'",
    )
    url = f"mysql+pymysql://rotating@127.0.0.1:{server.port}/{database}?password_file={passwords}"
    assert current(url) == latest()
    records = JobRepository(open_engine(IMPATIENT, url))
    try:
        epoch = records.claim_shard(0)

        passwords.write_text("second\nfirst\n")
        records.close()
        records.ping()
        server.run("ALTER USER rotating@'%' IDENTIFIED BY 'second'")
        records.commit(0, epoch, [submission(a_job())])
        records.close()
        records.commit(0, epoch, [submission(a_job())])
        passwords.write_text("second\n")
        records.close()
        records.ping()

        passwords.unlink()
        records.close()
        records.ping()
        passwords.write_text("third\n")
        records.close()
        with pytest.raises(DatabaseUnavailable) as refused:
            records.ping()
        assert refused.value.defect == 1045
    finally:
        records.close()


@pytest.mark.parametrize(
    ("user", "name", "told"),
    [("nobody", "absent", "1045"), (USER, "absent", "1049"), ("poor", "absent", "1044")],
)
def test_commands_tell_in_one_sentence_how_the_server_refuses(
    server: MariaDbServer, user: str, name: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.run(f"CREATE OR REPLACE USER poor@'%' IDENTIFIED BY '{PASSWORD}'")
    url = f"mysql+pymysql://{user}:{PASSWORD}@127.0.0.1:{server.port}/{name}"
    monkeypatch.setenv("AVATARFORGE_DATABASE_URL", url)
    monkeypatch.setenv("COLUMNS", "300")
    for command in (["db", "current"], ["db", "upgrade"], ["keys", "list"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 1
        assert re.fullmatch(rf"Error: The database refuses us: \({told}, .*\n", result.stderr), result.stderr


def test_a_file_of_passwords_that_cannot_be_used_is_told_with_the_setting(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    for user, path, told in (
        ("forge", tmp_path / "absent", "absent'.* No such file"),
        ("forge", empty, "empty', which is empty"),
        ("forge:secret", empty, "one password_file, or a password, but not both"),
    ):
        with pytest.raises(SettingsError, match=told):
            open_engine(DatabaseSettings(), f"mysql+pymysql://{user}@db/name?password_file={path}")


def test_sqlite_takes_no_file_of_passwords(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="has a password_file, but SQLite knows no passwords"):
        open_engine(DatabaseSettings(), f"sqlite:///{tmp_path}/a.db?password_file={tmp_path}/passwords")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b" first \n\nsec\xc2\x85ond\n   \n", (" first ", "sec\x85ond")),
        (b"\xef\xbb\xbffirst\r\nsec\xe2\x80\xa8ond\x0b\r\n", ("first", "sec\u2028ond\x0b")),
    ],
)
def test_each_line_of_a_file_of_secrets_is_one_as_it_stands(
    content: bytes, expected: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "passwords"
    path.write_bytes(content)
    assert SecretFile(path, "a.setting").read() == expected


def test_a_killed_server_is_unavailable_and_serves_again_when_it_is_back(
    server: MariaDbServer, served: JobRepository
) -> None:
    epoch = served.claim_shard(0)
    job = a_job()
    served.commit(0, epoch, [submission(job)])
    calls: list[Callable[[], object]] = [
        served.ping,
        lambda: served.commit(0, epoch, [start(job)]),
        lambda: served.read_back([start(job)]),
        lambda: served.list_unfinished(0),
        lambda: served.claim_shard(0),
    ]
    server.kill()
    began = time.monotonic()

    for call in calls:
        with pytest.raises(DatabaseUnavailable):
            call()

    assert time.monotonic() - began < len(calls) * IMPATIENT.connect_timeout
    server.start()
    assert served.read_back([start(job)]) is None
    [seq] = served.commit(0, epoch, [start(job)])
    assert served.read_back([start(job)]) == [seq]


async def test_a_server_that_is_killed_under_a_commit_has_kept_all_or_nothing(
    server: MariaDbServer, bystander: Engine
) -> None:
    # Its settings are the default ones: on a slow machine a group of this size takes longer than `IMPATIENT`.
    records = JobRepository(bystander)
    epoch = records.claim_shard(0)
    group = [submission(a_job(f"customer-{number}")) for number in range(2000)]
    with ThreadPoolExecutor(1) as threads:
        commit = threads.submit(records.commit, 0, epoch, group)
        with bystander.connect() as watcher:
            await wait_until(lambda: _thread_at(watcher, "INSERT INTO job_events%"), deadline=60)
        server.kill()
        error = commit.exception(60)
    assert isinstance(error, DatabaseUnavailable)
    server.start()

    seqs = records.read_back(group)

    assert seqs is None
    assert records.list_unfinished(0) == []
    assert len(records.commit(0, epoch, group)) == len(records.list_unfinished(0)) == 2000


def test_a_server_that_hangs_is_unavailable_after_the_read_time_out(
    server: MariaDbServer, served: JobRepository
) -> None:
    served.ping()
    began = time.monotonic()
    with hanging(server.pid), pytest.raises(DatabaseUnavailable, match="database"):
        served.ping()

    # The pool's question whether the connection lives, then the new connection's greeting.
    assert time.monotonic() - began < 2 * IMPATIENT.read_timeout + 1
    served.ping()


def test_a_server_that_shuts_down_in_order_is_unavailable(
    server: MariaDbServer, served: JobRepository
) -> None:
    served.ping()
    server.stop()

    with pytest.raises(DatabaseUnavailable):
        served.ping()


def test_a_shard_that_somebody_holds_is_unavailable_within_the_time_out(
    served: JobRepository, bystander: Engine
) -> None:
    epoch = served.claim_shard(0)
    with bystander.connect() as holder:
        _hold_shard(holder)
        with pytest.raises(DatabaseUnavailable) as refused:
            served.commit(0, epoch, [submission(a_job())])

    assert "Lock wait timeout" in refused.value.reason
    assert isinstance(refused.value.__cause__, OperationalError)
    assert served.commit(0, epoch, [submission(a_job())])


async def test_a_statement_that_an_administrator_kills_is_unavailable(
    served: JobRepository, bystander: Engine
) -> None:
    epoch = served.claim_shard(0)
    with (
        bystander.connect() as holder,
        bystander.connect() as administrator,
        ThreadPoolExecutor(1) as threads,
    ):
        _hold_shard(holder)
        commit = threads.submit(served.commit, 0, epoch, [submission(a_job())])
        thread = await wait_until(lambda: _thread_at(administrator, "SELECT tracker_shards%FOR UPDATE"))
        administrator.execute(text(f"KILL {thread}"))
        error = commit.exception(10)

    assert isinstance(error, DatabaseUnavailable)
    assert served.commit(0, epoch, [submission(a_job())])


def test_a_server_with_too_many_connections_is_unavailable(
    server: MariaDbServer, served: JobRepository, bystander: Engine
) -> None:
    with bystander.connect() as administrator, ExitStack() as taken:
        administrator.execute(text("SET GLOBAL max_connections = 10"))
        _take_all_connections(server, taken)
        with pytest.raises(DatabaseUnavailable) as refused:
            served.ping()
        administrator.execute(text("SET GLOBAL max_connections = 151"))

    assert "1040" in refused.value.reason
    served.ping()


def test_a_port_where_nobody_listens_is_unavailable() -> None:
    records = JobRepository(
        open_engine(IMPATIENT, f"mysql+pymysql://ana:secret@127.0.0.1:{free_port()}/avatars")
    )

    with pytest.raises(DatabaseUnavailable) as refused:
        records.ping()

    assert "refused" in refused.value.reason
    assert "secret" not in f"{refused.value!r} {refused.value.__cause__!r}"


def test_a_wrong_password_is_an_outage_that_no_waiting_heals(mariadb: MariaDbServer) -> None:
    url = make_url(mariadb.url("mysql")).set(password="wrong")
    records = JobRepository(open_engine(IMPATIENT, url.render_as_string(hide_password=False)))

    with pytest.raises(DatabaseUnavailable) as refused:
        records.ping()

    assert refused.value.defect == 1045
    assert "wrong" not in refused.value.reason


def test_sessions_are_strict_and_in_utc(mariadb: MariaDbServer) -> None:
    engine = open_engine(IMPATIENT, mariadb.url("mysql"))
    with begin_read(engine) as connection:
        zone, isolation, mode = connection.execute(
            text("SELECT @@session.time_zone, @@session.tx_isolation, @@session.sql_mode")
        ).one()
    engine.dispose()

    assert (zone, isolation) == ("+00:00", "READ-COMMITTED")
    assert "STRICT_ALL_TABLES" in mode


# --- SQLite -------------------------------------------------------------------------------------------


def test_a_write_lock_held_by_another_process_is_unavailable_within_the_time_out(
    embedded_engine: Engine,
) -> None:
    records = JobRepository(embedded_engine)
    epoch = records.claim_shard(0)
    with embedded_engine.connect() as holder:
        holder.execute(text("UPDATE tracker_shards SET epoch = epoch"))
        with pytest.raises(DatabaseUnavailable) as refused:
            records.commit(0, epoch, [submission(a_job())])
        assert records.list_unfinished(0) == []

    assert "locked" in refused.value.reason
    assert records.commit(0, epoch, [submission(a_job())])


def test_a_full_disk_is_unavailable_and_leaves_nothing(embedded_engine: Engine) -> None:
    records = JobRepository(embedded_engine)
    epoch = records.claim_shard(0)
    full = True

    @event.listens_for(embedded_engine, "checkout")
    def limit(connection: Any, *_: object) -> None:
        # A disk of our own would need root; SQLite's own limit raises the same error (SQLITE_FULL).
        connection.execute(f"PRAGMA max_page_count = {1 if full else 1_000_000}")

    with pytest.raises(DatabaseUnavailable) as refused:
        records.commit(0, epoch, [submission(a_detailed_job()) for _ in range(256)])
    full = False

    assert "full" in refused.value.reason
    assert records.get_latest_seq(0) == 0
    assert records.commit(0, epoch, [submission(a_detailed_job())])


def test_a_file_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    records = JobRepository(open_engine(IMPATIENT, f"sqlite:///{tmp_path / 'gone' / 'avatarforge.db'}"))

    with pytest.raises(DatabaseUnavailable):
        records.ping()


def test_a_commit_is_on_the_disk_before_it_is_answered(embedded_engine: Engine) -> None:
    with begin_read(embedded_engine) as connection:
        modes = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]

    assert modes == ["wal", 2, 1]


def test_a_pool_without_a_free_connection_is_unavailable(embedded_engine: Engine) -> None:
    records = JobRepository(embedded_engine)
    one, other = embedded_engine.connect(), embedded_engine.connect()
    with one, other, pytest.raises(DatabaseUnavailable) as refused:
        records.ping()

    assert "busy" in refused.value.reason
    records.ping()


# --- what each error means ----------------------------------------------------------------------------

REFUSALS = (1048, 1062, 1264, 1366, 1406, 1451, 1452)
DEFECTS = (1044, 1045, 1049, 1054, 1064, 1142, 1143, 1146, 1227, 1290, 1364, 1698, 1836)


def meet(code: int) -> None:
    """Meet the error that a server's packet with this number becomes."""
    with translate_errors():
        try:
            pymysql.err.raise_mysql_exception(b"\xff" + code.to_bytes(2, "little") + b"#HY000something")
        except pymysql.err.Error as error:
            raise DBAPIError.instance("SELECT 1", None, error, pymysql.err.Error) from error


@pytest.mark.parametrize("code", OUTAGE_ERRORS)
def test_errors_that_do_not_speak_about_the_data_are_outages(code: int) -> None:
    with pytest.raises(DatabaseUnavailable) as refused:
        meet(code)
    assert refused.value.defect == (code if code in DEFECTS else 0)


@pytest.mark.parametrize("code", REFUSALS)
def test_errors_that_speak_about_the_data_are_refusals(code: int) -> None:
    with pytest.raises((IntegrityError, DataError)):
        meet(code)


def test_missing_tables_are_an_outage_that_no_waiting_heals(empty_database_url: str) -> None:
    engine = open_engine(DatabaseSettings(), empty_database_url)

    with pytest.raises(DatabaseUnavailable, match="database") as refused:
        JobRepository(engine).claim_shard(0)
    engine.dispose()

    assert refused.value.defect in (1146, 1)
    assert "tracker_shards" in refused.value.reason


@pytest.mark.parametrize(
    "harm", ["DROP TABLE webhook_attempts", "ALTER TABLE customers DROP COLUMN photo_count"]
)
def test_a_schema_that_is_not_whole_is_found_before_anything_is_written(
    records: JobRepository, epoch: int, engine: Engine, harm: str
) -> None:
    records.check(0, epoch)
    with engine.begin() as connection:
        connection.execute(text(harm))

    with pytest.raises(DatabaseUnavailable) as refused:
        records.check(0, epoch)

    assert refused.value.defect in (1146, 1054, 1)


def test_errors_do_not_tell_what_the_customer_wrote(records: JobRepository) -> None:
    epoch = records.claim_shard(0)
    job = a_detailed_job()
    records.commit(0, epoch, [submission(job)])

    with pytest.raises(IntegrityError) as refused:
        records.commit(0, epoch, [submission(job)])

    assert "quoted" not in str(refused.value)


@pytest.mark.parametrize("url", ["postgresql://host/name", "mysql://host/name", "avatars.db"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        open_engine(DatabaseSettings(), url)


def _hold_shard(connection: Connection) -> None:
    connection.execute(text("SELECT epoch FROM tracker_shards WHERE shard = 0 FOR UPDATE"))


def _thread_at(connection: Connection, statement: str) -> int | None:
    """The server's thread that runs a statement like this one at the moment."""
    running = text(
        "SELECT id FROM information_schema.processlist WHERE db = database() AND info LIKE :statement"
    )
    return connection.scalar(running, {"statement": statement})


def _take_all_connections(server: MariaDbServer, taken: ExitStack) -> None:
    for _ in range(20):
        try:
            connection = pymysql.connect(host="127.0.0.1", port=server.port, user=USER, password=PASSWORD)
        except pymysql.err.OperationalError:
            return
        taken.enter_context(connection)
    raise AssertionError("The server takes more connections than it may.")
