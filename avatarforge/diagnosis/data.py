"""Where data lie: the database, its schema, object storage."""

import io
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from avatarforge.diagnosis.findings import Finding, State, make_failure, one_line
from avatarforge.domain.errors import AvatarForgeError, DatabaseUnavailable, Unavailable
from avatarforge.persistence.api_keys import ApiKeyRepository
from avatarforge.persistence.database import begin_read, is_sqlite, open_engine, parse_url, read_clock
from avatarforge.persistence.upgrade import current, latest
from avatarforge.settings import Settings, SettingsError
from avatarforge.storage import open_storage

PROBE = b"avatarforge doctor was here"
MIN_PACKET_BYTES = 4 * 1024 * 1024
"""The driver sends many rows in statements of a megabyte; one row has less than another."""
MAX_SKEW_SECONDS = 5.0
"""Half of the time for which a cluster that is silent is not taken for dead."""


def check_database(settings: Settings) -> Finding:
    """Connect and ask for the version."""
    if (absent := _absent_file(settings)) is not None:
        return absent
    try:
        url = parse_url(settings.database_url)
        shown = url.render_as_string(hide_password=True)
        engine = open_engine(settings.database, settings.database_url)
    except (SettingsError, SQLAlchemyError) as error:
        return make_failure(error, "Set AVATARFORGE_DATABASE_URL to mysql+pymysql://user:password@host/name.")
    try:
        began = time.perf_counter()
        with begin_read(engine) as connection:
            question = "SELECT sqlite_version()" if is_sqlite(url) else "SELECT version()"
            version = connection.scalar(text(question))
        took = time.perf_counter() - began
    except DatabaseUnavailable as error:
        if error.defect:
            return make_failure(
                f"{shown} refuses us: {error.reason}",
                "Look at user, password and database name in AVATARFORGE_DATABASE_URL; the user needs all "
                "rights on that database (GRANT ALL ON name.* TO user).",
            )
        return make_failure(
            f"{shown} does not answer: {error.reason}",
            "Is the server running, and can this machine reach it? Look at host and port in "
            "AVATARFORGE_DATABASE_URL, and at firewalls.",
        )
    finally:
        engine.dispose()
    return Finding(State.OK, f"{shown}: {version}, {took * 1000:.0f} ms")


def check_server(settings: Settings) -> Finding:
    """Look at the settings of MariaDB's server on which our promises rest, and at its clock."""
    try:
        if settings.database.url is None or is_sqlite(parse_url(settings.database_url)):
            return Finding(State.ABSENT, "SQLite has none")
        engine = open_engine(settings.database, settings.database_url)
    except (SettingsError, SQLAlchemyError) as error:
        return make_failure(error, "Mend the database's URL first.")
    try:
        with begin_read(engine) as connection:
            ahead = (read_clock(connection) - datetime.now(UTC)).total_seconds()
            server, session = (
                {str(name): str(value) for name, value in connection.execute(text(question))}
                for question in ("SHOW GLOBAL VARIABLES", "SHOW SESSION VARIABLES")
            )
    except DatabaseUnavailable as error:
        return make_failure(f"cannot be asked: {error.reason}", "Mend the database first.")
    finally:
        engine.dispose()
    risks = [*list_risks(server, session), *_list_skew("the server's", ahead)]
    if risks:
        found, advice = (" · ".join(texts) for texts in zip(*risks, strict=True))
        return Finding(State.WARNING, found, advice)
    return Finding(State.OK, f"commits are durable; its clock is {ahead:+.1f} s off")


def list_risks(server: Mapping[str, str], session: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a server's variables, those of its own and of our sessions, and what to do."""
    if (flush := server.get("innodb_flush_log_at_trx_commit")) != "1":
        yield (
            f"innodb_flush_log_at_trx_commit is {flush}: a crash loses jobs that were promised",
            "Set it to 1.",
        )
    if server.get("log_bin") == "ON" and (sync := server.get("sync_binlog")) != "1":
        yield (
            f"sync_binlog is {sync} with the binary log on: a crash rolls back what was committed, and "
            "replicas differ",
            "Set it to 1.",
        )
    if server.get("wsrep_on") == "ON":
        yield (
            "this is a Galera cluster: two nodes that take our writes refuse one another's at their commit",
            "Let AVATARFORGE_DATABASE_URL name one node, or a proxy that sends all writes to one.",
        )
    if (packet := int(server.get("max_allowed_packet", 0))) < MIN_PACKET_BYTES:
        yield f"max_allowed_packet is {packet}", f"Set it to {MIN_PACKET_BYTES} at least (16M by default)."
    isolation = session.get("transaction_isolation", session.get("tx_isolation"))
    if isolation != "READ-COMMITTED" or "STRICT_ALL_TABLES" not in session.get("sql_mode", ""):
        yield (
            f"our sessions are not as set: isolation {isolation}, sql_mode {session.get('sql_mode')}",
            "A proxy between must keep a session's settings (no statement multiplexing).",
        )


def _list_skew(whose: str, ahead: float) -> Iterator[tuple[str, str]]:
    if abs(ahead) > MAX_SKEW_SECONDS:
        yield f"{whose} clock is {ahead:+.0f} s off this machine's", "Let NTP set the clocks of both."


def check_migrations(settings: Settings) -> Finding:
    """Compare the schema with what this release works with."""
    wanted = latest()
    upgrade = "Run `avatarforge db upgrade`."
    if _absent_file(settings) is not None:
        return Finding(State.ABSENT, "there is no database yet")
    try:
        found = current(settings.database_url)
    except (AvatarForgeError, SettingsError, SQLAlchemyError) as error:
        return make_failure(f"cannot be read: {error}", "Mend the database first.")
    if found == wanted:
        return Finding(State.OK, f"revision {found}")
    if found is None:
        return make_failure(f"the database is empty, {wanted} is wanted", upgrade)
    if found > wanted:
        return make_failure(
            f"revision {found} is newer than this release, which wants {wanted}",
            "Install the release that upgraded it, or a later one.",
        )
    return make_failure(f"revision {found}, {wanted} is wanted", upgrade)


def check_keys(settings: Settings) -> Finding:
    """Check that somebody could come in, where API keys are needed."""
    required = settings.access.required
    if required == "never":
        return Finding(State.ABSENT, "nobody is asked for one")
    try:
        if _absent_file(settings) is None:
            if current(settings.database_url) != latest():
                return Finding(State.ABSENT, "looked for once the tables are there")
            if _has_key(settings):
                return Finding(State.OK, "there is a valid one")
    except (AvatarForgeError, SettingsError, SQLAlchemyError) as error:
        return make_failure(f"cannot be read: {error}", "Mend the database first.")
    make = "`avatarforge keys create NAME --all-customers --admin`"
    if required == "always" or not settings.http.is_local:
        return make_failure("none is valid: the service would not start", f"Make one: {make}.")
    found = f"none is valid; where others reach the service, or in a cluster, it needs one: {make}"
    return Finding(State.ABSENT, found)


def check_storage(settings: Settings) -> Finding:
    """Put, get and delete a small object, and compare the clocks."""
    try:
        storage = open_storage(settings)
    except SettingsError as error:
        return make_failure(error, "Put the access key and its secret there, a line each.")
    bucket = settings.storage.bucket
    place = str(settings.storage_folder) if bucket is None else f"bucket {bucket}"
    key, step = f"doctor/{uuid4()}", "put"
    try:
        began = time.perf_counter()
        storage.put(key, io.BytesIO(PROBE), "text/plain")
        step = "list"
        stored = [found.modified_at for found in storage.list(key)]
        ahead = (stored[0] - datetime.now(UTC)).total_seconds() if stored else 0.0
        step = "get"
        same = storage.get(key) == PROBE
        step = "delete"
        storage.delete(key)
        took = time.perf_counter() - began
    except (AvatarForgeError, OSError) as error:
        advice = (
            "Can this user write there? Look at AVATARFORGE_DATA_DIR."
            if bucket is None
            else "Look at AVATARFORGE_STORAGE_BUCKET, _ENDPOINT_URL, _REGION and the keys. The bucket must "
            "exist, and the keys must be allowed to put, get, list and delete objects in it."
        )
        why = error.reason if isinstance(error, Unavailable) else error
        return make_failure(f"{place}: {step} failed: {why}", advice)
    if not same:
        return make_failure(f"{place}: another content came back", "Is a cache between us and the storage?")
    for found, advice in _list_skew(f"{place}: its", ahead):
        return Finding(State.WARNING, found, advice)
    return Finding(State.OK, f"{place}: put, get, delete in {took * 1000:.0f} ms")


def check_data_folder(settings: Settings) -> Finding:
    """Room and rights in the folder of the embedded default."""
    folder = settings.data_dir.resolve()
    there = _nearest(folder)
    if not os.access(there, os.W_OK | os.X_OK):
        return make_failure(f"{there} cannot be written", "Choose another with AVATARFORGE_DATA_DIR.")
    # Uploads under way lie in the one, Ray's objects and logs on a cluster in the other.
    free = {place: _free_gib(place) for place in (there, Path(tempfile.gettempdir()))}
    found = ", ".join(f"{place}: {room:.1f} GiB free" for place, room in free.items())
    if min(free.values()) < 1:
        advice = "Make room, or set AVATARFORGE_DATA_DIR and TMPDIR."
        return Finding(State.WARNING, one_line(found), advice)
    return Finding(State.OK, one_line(found))


def check_modes(settings: Settings) -> Finding:
    """Look for photos and secrets that other users of this machine may read."""
    folder, key = settings.data_dir.resolve(), settings.provenance.private_key
    private = [folder / name for name in ("avatarforge.db", "objects", "webhook-secret", "link-secret")]
    within = [] if not folder.exists() or _is_private(folder) else [path for path in private if path.exists()]
    files = [*within, *([key] if key is not None and key.exists() else [])]
    if readable := [str(path) for path in files if not _is_private(path)]:
        return Finding(
            State.WARNING,
            one_line(f"others may read {', '.join(readable)}"),
            f"Take the right from them: chmod -R go= {' '.join(readable)}",
        )
    return Finding(State.OK, "photos and secrets here are for this user alone")


def _is_private(path: Path) -> bool:
    return path.stat().st_mode & 0o077 == 0


def _free_gib(place: Path) -> float:
    room = os.statvfs(place)
    return room.f_bavail * room.f_frsize / 2**30


def _nearest(folder: Path) -> Path:
    """The folder, or the one that it would be made in."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _has_key(settings: Settings) -> bool:
    engine = open_engine(settings.database, settings.database_url)
    try:
        return ApiKeyRepository(engine).has_valid(datetime.now(UTC))
    finally:
        engine.dispose()


def _absent_file(settings: Settings) -> Finding | None:
    """Looking at an SQLite file that is not there would make an empty one."""
    path = settings.data_dir.resolve() / "avatarforge.db"
    if settings.database.url is not None or path.exists():
        return None
    return Finding(State.ABSENT, f"{path}: the first start makes it")
