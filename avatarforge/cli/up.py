"""`avatarforge up`: serve until Ctrl-C."""

import os
import shlex
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from avatarforge.cli.photos import SAMPLE
from avatarforge.cli.terminal import err, interrupt_on_signals, out
from avatarforge.cluster import ClusterError
from avatarforge.cluster.timings import Timings
from avatarforge.embedded import Instance, redeploy, run_locally
from avatarforge.imaging.provenance import open_content_credentials
from avatarforge.serve_config import arguments_of, read_config
from avatarforge.settings import SettingsError, load_settings

CONFIG_POLL_SECONDS = 0.5
STARTING = "Starting AvatarForge …"


def up(*, config: Path | None, options: dict[str, str], timings: bool) -> None:
    with interrupt_on_signals():
        # Read before the start, which takes seconds: what is saved meanwhile is a change.
        applied = None if config is None else _read_config(config)
        try:
            with start(config, options) as instance:
                _print_addresses(instance, timings)
                _apply_changes(config, applied)
        except KeyboardInterrupt:
            err.print("Stopped.")


def _apply_changes(config: Path | None, applied: bytes | None) -> None:
    """Apply the config file whenever it changes, as `serve deploy` does on a cluster. Never returns."""
    if config is None:
        threading.Event().wait()
        return
    while True:
        content = _read_config(config)
        if content is not None and content != applied:
            applied = content
            _apply(config)
        time.sleep(CONFIG_POLL_SECONDS)


def _read_config(config: Path) -> bytes | None:
    """Return the file's content; `None` while it is missing, such as while it is replaced."""
    try:
        return config.read_bytes()
    except OSError:
        return None


def _apply(config: Path) -> None:
    try:
        redeploy(read_config(config))
    except (ClusterError, SettingsError) as error:
        err.print(f"[bold red]Not applied:[/] {escape(str(error))}", highlight=False)
    else:
        err.print(f"{escape(str(config))} has changed and was applied.", highlight=False)


@contextmanager
def start(config: Path | None, options: dict[str, str], *, grpc: bool = True) -> Iterator[Instance]:
    """Run AvatarForge with these settings for the length of a block, with a status line while it starts."""
    timings = Timings()
    # Options win over variables, here and in every process that we start.
    with _set_variables(options):
        parsed = None if config is None else read_config(config)
        settings = load_settings(None if parsed is None else arguments_of(parsed))
        # Replicas find a certificate that cannot sign too, but this terminal would not show it.
        open_content_credentials(settings.provenance)
        with err.status(STARTING) as line:

            def say(sentence: str) -> None:
                if err.is_terminal:
                    line.update(f"{STARTING} {escape(sentence)}")
                else:
                    err.print(escape(sentence), highlight=False)

            with run_locally(settings, config=parsed, grpc=grpc, timings=timings, on_waiting=say) as instance:
                line.stop()
                yield instance


@contextmanager
def _set_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set these environment variables, and restore them at the end."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _create_timings_table(timings: Timings) -> Table:
    # Phases overlap: the start takes until the end of the last one.
    table = Table("Phase", "from s", "took s", title="Where the start's time went", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for phase in timings.phases:
        table.add_row(phase.name, f"{phase.began:.1f}", f"{phase.took:.1f}")
    return table


def _print_addresses(instance: Instance, timings: bool) -> None:
    seconds = instance.timings.total_seconds
    if timings:
        err.print(_create_timings_table(instance.timings))
    err.print(f"[bold green]AvatarForge is ready[/] after {seconds:.1f} s. Ctrl-C stops it.")
    out.print(f"Studio     {instance.url}/")
    out.print(f"REST       {instance.url}")
    out.print(f"gRPC       {instance.grpc_address}")
    out.print(f"API docs   {instance.url}/docs")
    out.print(f"Webhooks   {instance.signing}")
    key = ""
    if instance.needs_keys:
        out.print("Requests need an API key: `avatarforge keys create` makes one.")
        key = '-H "Authorization: Bearer $AVATARFORGE_API_KEY" '
    out.print("Try it:")
    sample = shlex.quote(str(SAMPLE))
    out.print(f"  curl {key}-F photo=@{sample} {instance.url}/customers/me", highlight=False, soft_wrap=True)
