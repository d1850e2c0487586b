"""The consoles, exit codes and error messages that the commands share."""

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

from avatarforge.domain.errors import DatabaseUnavailable, FormattedError, ShardCountChanged, Unavailable
from avatarforge.settings import SettingsError

out = Console(soft_wrap=True)
"""Results."""
err = Console(stderr=True, soft_wrap=True)
"""Everything else: progress, hints, errors."""


class ExitCode(IntEnum):
    """Exit codes, the same for every command. Scripts may rely on them."""

    DONE = 0
    FAILURE = 1
    """The command failed; the sentence on standard error says why."""
    USAGE = 2
    """A command, an option or its value is wrong."""
    API_ERROR = 3
    """The server answered with an error: bad input, no permission, not found, or not in this state."""
    UNREACHABLE = 4
    """No server answers, or it is too busy."""
    NO_AVATAR = 5
    """A job ended without an avatar."""
    STILL_RUNNING = 6
    """A job did not end in the given time; it goes on."""
    INTERRUPTED = 130
    """Ctrl-C, or SIGTERM."""


P = ParamSpec("P")


def report_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Print expected errors as one sentence, and exit with their code. A defect keeps its traceback."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **options: P.kwargs) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except Exception as error:
            if not _is_expected(error):
                raise
            print_error(_format_error(error))
            raise typer.Exit(get_exit_code(error)) from error

    return wrapper


def _format_error(error: Exception) -> str:
    """Return the error's message; that of an outage is for clients and leaves the reason out."""
    if isinstance(error, DatabaseUnavailable) and error.defect:
        return f"The database refuses us: {error.reason}. `avatarforge doctor` shows more."
    if isinstance(error, Unavailable) and not isinstance(error, ShardCountChanged):
        return f"The {error.part} does not answer: {error.reason}. `avatarforge doctor` shows more."
    return str(error)


def print_error(text: str) -> None:
    err.print(f"[bold red]Error:[/] {escape(text)}", highlight=False)


def get_exit_code(error: Exception) -> ExitCode:
    """Return the exit code that scripts get for the error."""
    if isinstance(error, typer.BadParameter):
        return ExitCode.USAGE
    client = sys.modules.get("avatarforge.client")
    if client is None:
        return ExitCode.FAILURE
    if isinstance(error, client.ServerUnreachable | client.ServerBusy):
        return ExitCode.UNREACHABLE
    if isinstance(error, client.APIError):
        return ExitCode.API_ERROR
    if isinstance(error, client.JobFailed):
        return ExitCode.NO_AVATAR
    return ExitCode.STILL_RUNNING if isinstance(error, client.StillRunning) else ExitCode.FAILURE


def confirm(question: str, yes: bool) -> bool:
    """Return whether to go on. Without a terminal, only `--yes` confirms."""
    if yes:
        return True
    if not sys.stdin.isatty():
        print_error(f"{question} Without a terminal, confirm with --yes.")
        return False
    return typer.confirm(question, err=True)


def _is_expected(error: Exception) -> bool:
    # Looked up in the modules that are imported already, so that `--help` need not import them.
    families = (("avatarforge.cluster.local", "ClusterError"), ("alembic.util.exc", "CommandError"))
    loaded = [getattr(sys.modules[module], name) for module, name in families if module in sys.modules]
    return isinstance(error, (OSError, SettingsError, FormattedError, *loaded))


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGINT both raise KeyboardInterrupt, even where a shell had SIGINT ignored."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    # Python's own for SIGINT: `asyncio.run` cancels its task in place of that one alone. An error raised
    # wherever a loop happens to be can be lost in a callback.
    handlers = {signal.SIGTERM: interrupt, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
