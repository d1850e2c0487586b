"""What the commands share: two consoles, exit codes, and errors as one sentence."""

import functools
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import ParamSpec

import typer
from rich.console import Console
from rich.markup import escape

out = Console(soft_wrap=True)
"""Results."""
err = Console(stderr=True, soft_wrap=True)
"""Everything else: progress, hints, errors."""


class Exit(IntEnum):
    """Exit codes, the same for every command. Scripts may rely on them."""

    DONE = 0
    FAILURE = 1
    """What was asked for did not work; the sentence on standard error says why."""
    USAGE = 2
    """A command, an option or its value is wrong."""
    REFUSED = 3
    """The server refused: bad input, no permission, nothing there, or not in this state."""
    UNREACHABLE = 4
    """No server answers, or it is too busy."""
    NO_AVATAR = 5
    """A job ended without an avatar."""
    STILL_RUNNING = 6
    """A job did not end in the time that was given; it goes on."""
    INTERRUPTED = 130
    """Ctrl-C, or SIGTERM."""


FAILURE = Exit.FAILURE

P = ParamSpec("P")


def errors_in_one_sentence(command: Callable[P, None]) -> Callable[P, None]:
    """Tell expected errors in one sentence, and exit with their code. A defect keeps its trace."""

    @functools.wraps(command)
    def told(*args: P.args, **options: P.kwargs) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None
        except Exception as error:
            if not _is_expected(error):
                raise
            tell_error(_sentence(error))
            raise typer.Exit(exit_code(error)) from error

    return told


def _sentence(error: Exception) -> str:
    """The error's own words; those of an outage are for clients and leave out why."""
    errors = sys.modules.get("avatarforge.domain.errors")
    if errors is not None and isinstance(error, errors.Unavailable):
        return f"The {error.part} does not answer: {error.reason}. `avatarforge doctor` tells more."
    return str(error)


def tell_error(text: str) -> None:
    err.print(f"[bold red]Error:[/] {escape(text)}", highlight=False)


def exit_code(error: Exception) -> Exit:
    """What the error means for scripts."""
    client = sys.modules.get("avatarforge.client")
    if client is None:
        return Exit.FAILURE
    if isinstance(error, client.ServerUnreachable | client.TryLater):
        return Exit.UNREACHABLE
    if isinstance(error, client.Refused):
        return Exit.REFUSED
    if isinstance(error, client.JobFailed):
        return Exit.NO_AVATAR
    return Exit.STILL_RUNNING if isinstance(error, client.StillRunning) else Exit.FAILURE


def confirmed(question: str, yes: bool) -> bool:
    """Whether to go on. Where nobody can be asked, only `--yes` says so."""
    if yes:
        return True
    if not sys.stdin.isatty():
        tell_error(f"{question} Say --yes where nobody can be asked.")
        return False
    return typer.confirm(question, err=True)


def _is_expected(error: Exception) -> bool:
    # Looked up where they already are, so that `--help` need not import them.
    families = (
        ("avatarforge.settings", "SettingsError"),
        ("avatarforge.domain.errors", "AvatarForgeError"),
        ("avatarforge.client.errors", "ClientError"),
        ("avatarforge.cluster.local", "ClusterError"),
        ("avatarforge.cluster.run_folder", "DataFolderInUse"),
        ("avatarforge.cli.photos", "NoSuchPhoto"),
        ("avatarforge.development.servers", "ServerDidNotStart"),
        ("alembic.util.exc", "CommandError"),
    )
    loaded = [getattr(sys.modules[module], name) for module, name in families if module in sys.modules]
    return isinstance(error, (OSError, *loaded))


@contextmanager
def terminating_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM and SIGINT both raise KeyboardInterrupt, even where a shell had SIGINT ignored."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
