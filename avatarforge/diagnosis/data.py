"""Where data lie: the database, its schema, object storage."""

import io
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from sqlalchemy import make_url, text
from sqlalchemy.exc import SQLAlchemyError

from avatarforge.diagnosis.findings import Finding, State, failed, one_line
from avatarforge.domain.errors import AvatarForgeError, DatabaseUnavailable, Unavailable
from avatarforge.persistence.api_keys import ApiKeyRecords
from avatarforge.persistence.database import is_sqlite, open_engine, reading
from avatarforge.persistence.upgrade import current, latest
from avatarforge.settings import Settings, SettingsError
from avatarforge.storage import open_storage

PROBE = b"avatarforge doctor was here"


def check_database(settings: Settings) -> Finding:
    """Connect and ask for the version."""
    check = "database"
    if (absent := _absent_file(settings)) is not None:
        return absent
    try:
        url = make_url(settings.database_url)
        shown = url.render_as_string(hide_password=True)
        engine = open_engine(settings.database, settings.database_url)
    except (SettingsError, SQLAlchemyError) as error:
        return failed(
            check, error, "Set AVATARFORGE_DATABASE_URL to mysql+pymysql://user:password@host/name."
        )
    try:
        began = time.perf_counter()
        with reading(engine) as connection:
            question = "SELECT sqlite_version()" if is_sqlite(url) else "SELECT version()"
            version = connection.scalar(text(question))
        took = time.perf_counter() - began
    except DatabaseUnavailable as error:
        return failed(
            check,
            f"{shown} does not answer: {error.reason}",
            "Is the server running, and can this machine reach it? Look at host and port in "
            "AVATARFORGE_DATABASE_URL, and at firewalls.",
        )
    except SQLAlchemyError as error:
        return failed(
            check,
            f"{shown} refuses us: {getattr(error, 'orig', None) or error}",
            "Look at user, password and database name in AVATARFORGE_DATABASE_URL; the user needs all rights "
            "on that database (GRANT ALL ON name.* TO user).",
        )
    finally:
        engine.dispose()
    return Finding(check=check, state=State.OK, found=f"{shown}: {version}, {took * 1000:.0f} ms")


def check_migrations(settings: Settings) -> Finding:
    """Compare the schema with what this release works with."""
    check, wanted = "migrations", latest()
    upgrade = "Run `avatarforge db upgrade`."
    if _absent_file(settings) is not None:
        return Finding(check=check, state=State.ABSENT, found="there is no database yet")
    try:
        found = current(settings.database_url)
    except (AvatarForgeError, SettingsError, SQLAlchemyError) as error:
        return failed(check, f"cannot be read: {error}", "Mend the database first.")
    if found == wanted:
        return Finding(check=check, state=State.OK, found=f"revision {found}")
    if found is None:
        return failed(check, f"the database is empty, {wanted} is wanted", upgrade)
    if found > wanted:
        return failed(
            check,
            f"revision {found} is newer than this release, which wants {wanted}",
            "Install the release that upgraded it, or a later one.",
        )
    return failed(check, f"revision {found}, {wanted} is wanted", upgrade)


def check_keys(settings: Settings) -> Finding:
    """Whether somebody could come in, where API keys are needed."""
    check, required = "API keys", settings.access.required
    if required == "never":
        return Finding(check=check, state=State.ABSENT, found="nobody is asked for one")
    try:
        if _absent_file(settings) is None:
            if current(settings.database_url) != latest():
                return Finding(check=check, state=State.ABSENT, found="looked for once the tables are there")
            if _has_key(settings):
                return Finding(check=check, state=State.OK, found="there is a valid one")
    except (AvatarForgeError, SettingsError, SQLAlchemyError) as error:
        return failed(check, f"cannot be read: {error}", "Mend the database first.")
    make = "`avatarforge keys create NAME --all-customers --admin`"
    if required == "always" or not settings.http.is_local:
        return failed(check, "none is valid: the service would not start", f"Make one: {make}.")
    found = f"none is valid; where others reach the service, or in a cluster, it needs one: {make}"
    return Finding(check=check, state=State.ABSENT, found=found)


def check_storage(settings: Settings) -> Finding:
    """Put, get and delete a small object."""
    check, storage = "storage", open_storage(settings)
    bucket = settings.storage.bucket
    place = str(settings.storage_folder) if bucket is None else f"bucket {bucket}"
    key, step = f"doctor/{uuid4()}", "put"
    try:
        began = time.perf_counter()
        storage.put(key, io.BytesIO(PROBE), "text/plain")
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
        return failed(check, f"{place}: {step} failed: {why}", advice)
    if not same:
        return failed(check, f"{place}: another content came back", "Is a cache between us and the storage?")
    return Finding(check=check, state=State.OK, found=f"{place}: put, get, delete in {took * 1000:.0f} ms")


def check_data_folder(settings: Settings) -> Finding:
    """Room and rights in the folder of the embedded default."""
    check, folder = "data folder", settings.data_dir.resolve()
    there = _nearest(folder)
    if not os.access(there, os.W_OK | os.X_OK):
        return failed(check, f"{there} cannot be written", "Choose another with AVATARFORGE_DATA_DIR.")
    room = os.statvfs(there)
    free = room.f_bavail * room.f_frsize / 2**30
    found = f"{folder}: {free:.1f} GiB free"
    if free < 1:
        return Finding(
            check=check, state=State.WARNING, found=found, advice="Make room, or set AVATARFORGE_DATA_DIR."
        )
    return Finding(check=check, state=State.OK, found=one_line(found))


def _nearest(folder: Path) -> Path:
    """The folder, or the one that it would be made in."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _has_key(settings: Settings) -> bool:
    engine = open_engine(settings.database, settings.database_url)
    try:
        return ApiKeyRecords(engine).has_valid(datetime.now(UTC))
    finally:
        engine.dispose()


def _absent_file(settings: Settings) -> Finding | None:
    """Looking at an SQLite file that is not there would make an empty one."""
    path = settings.data_dir.resolve() / "avatarforge.db"
    if settings.database.url is not None or path.exists():
        return None
    return Finding(check="database", state=State.ABSENT, found=f"{path}: the first start makes it")
