"""What the commands share: two consoles, and errors as one sentence."""

import functools
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ParamSpec

import typer
from rich.console import Console

out = Console(soft_wrap=True)
"""Results."""
err = Console(stderr=True, soft_wrap=True)
"""Everything else: progress, hints, errors."""

FAILURE, USAGE = 1, 2

P = ParamSpec("P")


def errors_in_one_sentence(command: Callable[P, None]) -> Callable[P, None]:
    """Tell expected errors on one line and exit with 1. Anything else is a defect and keeps its trace."""

    @functools.wraps(command)
    def told(*args: P.args, **options: P.kwargs) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except Exception as error:
            if not _is_expected(error):
                raise
            err.print(f"[bold red]Error:[/] {_escaped(str(error))}", highlight=False)
            raise typer.Exit(FAILURE) from error

    return told


def _is_expected(error: Exception) -> bool:
    # Looked up where they already are, so that `--help` need not import them.
    families = (
        ("avatarforge.settings", "SettingsError"),
        ("avatarforge.domain.errors", "AvatarForgeError"),
        ("avatarforge.client", "ClientError"),
        ("avatarforge.cluster.local", "ClusterError"),
        ("avatarforge.cluster.run_folder", "DataFolderInUse"),
        ("avatarforge.cli.photos", "NoSuchPhoto"),
        ("alembic.util.exc", "CommandError"),
    )
    loaded = [getattr(sys.modules[module], name) for module, name in families if module in sys.modules]
    return isinstance(error, (OSError, *loaded))


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


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
