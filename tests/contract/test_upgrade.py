"""What `upgrade` promises, over SQLite and MariaDB alike."""

import asyncio
import multiprocessing
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, inspect, text

from avatarforge.domain.changes import LogBounds
from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.persistence import JobRepository, open_engine
from avatarforge.persistence.database import begin_write
from avatarforge.persistence.rows import PhotoKind, event_row, job_row, photo_row
from avatarforge.persistence.tables import (
    customers,
    job_events,
    metadata,
    profile_photo_jobs,
    profile_photos,
    tracker_shards,
)
from avatarforge.persistence.upgrade import current, latest, lock_name, upgrade
from avatarforge.settings import DatabaseSettings
from tests.jobs import a_job, submission
from tests.servers.mariadb import MariaDbServer
from tests.waiting import wait_until


def test_an_empty_database_has_no_revision(empty_database_url: str) -> None:
    assert current(empty_database_url) is None


def test_an_empty_database_is_brought_to_the_latest_revision(empty_database_url: str) -> None:
    upgrade(empty_database_url)

    assert current(empty_database_url) == latest()


def test_the_statements_of_the_readme_make_a_user_who_may_do_all_that_is_needed(
    mariadb: MariaDbServer,
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```sql\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    mariadb.run(*block[1].strip().splitlines())
    url = f"mysql+pymysql://forge:password@127.0.0.1:{mariadb.port}/avatarforge"
    upgrade(url)
    engine = open_engine(DatabaseSettings(), url)
    records = JobRepository(engine)
    epoch = records.claim_shard(0)
    records.commit(0, epoch, [submission(a_job())])
    records.check(0, epoch)
    with engine.connect() as connection:
        charset = text(
            "SELECT ccsa.character_set_name FROM information_schema.tables AS t JOIN "
            "information_schema.collation_character_set_applicability AS ccsa ON ccsa.collation_name = "
            "t.table_collation WHERE t.table_schema = 'avatarforge' GROUP BY 1"
        )
        assert connection.scalars(charset).all() == ["utf8mb4"]
    engine.dispose()


def test_the_migrations_make_what_the_tables_say(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        differences = compare_metadata(context, metadata)

    assert differences == []


def test_a_missing_index_would_be_noticed(engine: Engine) -> None:
    """The test above can fail."""
    with engine.begin() as connection:
        on = " ON job_events" if engine.dialect.name != "sqlite" else ""
        connection.execute(text(f"DROP INDEX ix_job_events_shard_seq{on}"))
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)

    assert [difference[0] for difference in differences] == ["add_index"]


def test_every_text_column_of_mariadb_compares_bytes(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite compares bytes by itself.")
    with engine.connect() as connection:
        collations = connection.execute(
            text(
                "SELECT DISTINCT collation_name FROM information_schema.columns "
                "WHERE table_schema = database() AND data_type <> 'longtext' AND collation_name IS NOT NULL"
            )
        ).scalars()
        assert set(collations) == {"utf8mb4_nopad_bin"}


def test_upgrading_again_changes_nothing(database_url: str, records: JobRepository) -> None:
    job = a_job()
    [seq] = records.commit(0, records.claim_shard(0), [submission(job)])

    upgrade(database_url)

    assert current(database_url) == latest()
    assert [entry.event.seq for entry in records.list_shard_events(0, 0, 10)] == [seq]


def test_processes_that_upgrade_at_once_all_succeed(empty_database_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        pool.map(upgrade, [empty_database_url] * 3, chunksize=1)

    assert current(empty_database_url) == latest()


def test_an_upgrade_that_was_cut_short_is_finished_by_the_next(empty_database_url: str) -> None:
    """MariaDB commits every table by itself; SQLite would have rolled back."""
    upgrade(empty_database_url)
    engine = open_engine(DatabaseSettings(), empty_database_url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE tracker_shards"))
        if engine.dialect.name == "sqlite":
            for table, column in (
                ("customers", "photo_count"),
                ("profile_photo_jobs", "images"),
                ("profile_photo_jobs", "kept"),
            ):
                connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        connection.execute(text("DELETE FROM alembic_version"))

    upgrade(empty_database_url)

    assert set(metadata.tables) < set(inspect(engine).get_table_names())
    assert current(empty_database_url) == latest()
    engine.dispose()


def test_a_folder_for_sqlite_is_made(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'not' / 'yet' / 'avatarforge.db'}"

    upgrade(url)

    assert current(url) == latest()


def test_an_upgrade_waits_for_another_no_longer_than_its_patience(mariadb: MariaDbServer) -> None:
    url = mariadb.create_database("upgraded_elsewhere")
    engine = open_engine(DatabaseSettings(), url)
    with engine.connect() as other:
        assert other.scalar(text(f"SELECT get_lock('{lock_name('upgraded_elsewhere')}', 0)")) == 1
        with pytest.raises(DatabaseUnavailable) as refused:
            upgrade(url, patience=0.2)
        assert "another process" in refused.value.reason
    engine.dispose()

    upgrade(url, patience=0.2)

    assert current(url) == latest()


def test_an_upgrade_from_the_first_release_keeps_what_is_on_record(empty_database_url: str) -> None:
    _migrate(empty_database_url, command.upgrade, "0001")
    engine = open_engine(DatabaseSettings(), empty_database_url)
    change = submission(a_job()).with_seq(7)
    job = change.job
    new_columns = {"images", "kept"}
    job_of_then = {name: value for name, value in job_row(job, job.seq).items() if name not in new_columns}
    with engine.begin() as connection:
        for table, row in (
            (tracker_shards, {"shard": 0, "epoch": 1}),
            (customers, {"customer_id": job.customer_id, "shard": 0, "created_at": job.created_at}),
            (profile_photo_jobs, job_of_then),
            (profile_photos, photo_row(job, PhotoKind.ORIGINAL, job.original)),
            (job_events, {"seq": job.seq, **event_row(0, change, with_snapshot=True)}),
        ):
            connection.execute(table.insert(), row)
        for table, column in (("profile_photo_jobs", "parameters"), ("job_events", "snapshot")):
            # The first release called it so.
            renamed = f"REPLACE({column}, '\"crop_to_face\"', '\"cut_face\"')"
            connection.execute(text(f"UPDATE {table} SET {column} = {renamed}"))

    upgrade(empty_database_url)

    records = JobRepository(engine)
    assert records.list_unfinished(0) == [job]
    assert [entry.job for entry in records.list_shard_events(0, 0, 10)] == [job]
    assert records.get_log_bounds(0) == LogBounds(pruned_seq=0, latest_seq=job.seq)
    assert records.claim_shard(0) == 2
    assert [customer.jobs for customer in records.list_customers(None, 10)] == [1]
    engine.dispose()


def test_every_migration_leaves_what_an_older_release_reads_and_writes(empty_database_url: str) -> None:
    engine, known = open_engine(DatabaseSettings(), empty_database_url), MetaData()
    for revision in _list_revisions():
        _migrate(empty_database_url, command.upgrade, revision)
        schema = MetaData()
        schema.reflect(engine)
        for old in known.tables.values():
            columns = schema.tables[old.name].columns
            assert {column.name: str(column.type) for column in old.columns}.items() <= {
                column.name: str(column.type) for column in columns
            }.items(), f"{revision} takes something of {old.name} away"
            for column in columns:
                is_optional = column.nullable or column.server_default is not None
                is_known = column.name in old.columns
                assert is_known or is_optional, f"{revision} asks {old.name} for {column.name}"
        known = schema
    engine.dispose()


async def test_an_older_release_goes_on_while_the_schema_is_upgraded(empty_database_url: str) -> None:
    _migrate(empty_database_url, command.upgrade, _list_revisions()[-2])
    engine, known = open_engine(DatabaseSettings(), empty_database_url), MetaData()
    known.reflect(engine)
    written, stopping = 0, threading.Event()

    def write() -> None:
        """Submit jobs and start them, as far as the older release knows their columns."""
        nonlocal written
        while not stopping.is_set():
            change = submission(a_job()).with_seq(written + 1)
            job = change.job
            with begin_write(engine) as connection:
                for table, row in (
                    (customers, None if written else _customer_row(job)),
                    (profile_photo_jobs, job_row(job, job.seq)),
                    (profile_photos, photo_row(job, PhotoKind.ORIGINAL, job.original)),
                    (job_events, {"seq": job.seq, **event_row(0, change, with_snapshot=True)}),
                ):
                    columns = known.tables[table.name].columns
                    if row is not None:
                        connection.execute(
                            table.insert(), {name: row[name] for name in row if name in columns}
                        )
                this = profile_photo_jobs.c.job_id == job.job_id
                connection.execute(profile_photo_jobs.update().where(this), {"attempt": 1})
            written += 1

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            await wait_until(lambda: written > 2 or writing.done(), 30)
            await asyncio.to_thread(upgrade, empty_database_url)
            before = written
            await wait_until(lambda: written > before + 2 or writing.done(), 30)
        finally:
            stopping.set()
        writing.result()

    records = JobRepository(engine)
    assert [job.attempt for job in records.list_unfinished(0)] == [1] * written
    assert records.claim_shard(0) == 1
    engine.dispose()


def test_every_migration_can_be_taken_back(database_url: str, engine: Engine) -> None:
    _migrate(database_url, command.downgrade, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]

    upgrade(database_url)

    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def _customer_row(job: ProfilePhotoJob) -> dict[str, object]:
    return {"customer_id": job.customer_id, "shard": 0, "created_at": job.created_at}


def _list_revisions() -> list[str]:
    """The first one first."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[2] / "migrations"))
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]


def _migrate(url: str, step: Callable[[Config, str], None], revision: str) -> None:
    """To a revision that is not the latest, which no release asks for."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[2] / "migrations"))
    engine = open_engine(DatabaseSettings(), url)
    with begin_write(engine) as connection:
        config.attributes["connection"] = connection
        step(config, revision)
    engine.dispose()


def test_sqlites_files_are_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "data" / "avatarforge.db"
    url = f"sqlite:///{path}"
    upgrade(url)
    path.chmod(0o644)  # as an earlier version left it
    upgrade(url)
    engine = open_engine(DatabaseSettings(), url)
    with begin_write(engine) as connection:
        connection.execute(text("DELETE FROM job_events"))
        files = sorted(path.parent.iterdir())
        assert [file.name for file in files] == [path.name, f"{path.name}-shm", f"{path.name}-wal"]
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    engine.dispose()
    assert path.parent.stat().st_mode & 0o777 == 0o700
