"""`avatarforge up`."""

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
from avatarforge.cli.terminal import err, out, terminating_like_ctrl_c
from avatarforge.cluster import ClusterError
from avatarforge.cluster.timings import Timings
from avatarforge.diffusion.provenance import open_marking
from avatarforge.embedded import Instance, arguments_of, read_config, redeploy, running
from avatarforge.settings import load_settings

LOOK_SECONDS = 0.5
"""Between two looks at the config file."""


def up(*, config: Path | None, options: dict[str, str], timings: bool) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    with terminating_like_ctrl_c():
        # Before the start, which takes seconds: what is saved meanwhile is a change.
        applied = None if config is None else _content(config)
        try:
            with started(config, options) as instance:
                _say_where(instance, timings)
                _serve(config, applied)
        except KeyboardInterrupt:
            err.print("Stopped.")


def _serve(config: Path | None, applied: bytes | None) -> None:
    """Never return. A config file that is changed is applied, as `serve deploy` does it on a cluster."""
    if config is None:
        threading.Event().wait()
        return
    while True:
        content = _content(config)
        if content is not None and content != applied:
            applied = content
            _apply(config)
        time.sleep(LOOK_SECONDS)


def _content(config: Path) -> bytes | None:
    """What the file holds; `None` while it is not there, as in the moment in which it is replaced."""
    try:
        return config.read_bytes()
    except OSError:
        return None


def _apply(config: Path) -> None:
    try:
        redeploy(read_config(config))
    except ClusterError as error:
        err.print(f"[bold red]Not applied:[/] {escape(str(error))}", highlight=False)
    else:
        err.print(f"{escape(str(config))} has changed and was applied.", highlight=False)


@contextmanager
def started(config: Path | None, options: dict[str, str], *, grpc: bool = True) -> Iterator[Instance]:
    """AvatarForge with these settings, and a line that says so while it starts."""
    measured = Timings()
    # Options win over variables, here and in every process that we start.
    with _variables(options):
        parsed = None if config is None else read_config(config)
        settings = load_settings(None if parsed is None else arguments_of(parsed))
        # Replicas find a certificate that cannot sign too, but this terminal would not show it.
        open_marking(settings.provenance)
        with (
            err.status("Starting AvatarForge …") as line,
            running(settings, config=parsed, grpc=grpc, timings=measured) as instance,
        ):
            line.stop()
            yield instance


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set these variables, and put back what they were."""
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


def timings_table(timings: Timings) -> Table:
    """Phases overlap: the start is as long as the last one's end."""
    table = Table("Phase", "from s", "took s", title="Where the start's time went", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for phase in timings.phases:
        table.add_row(phase.name, f"{phase.began:.1f}", f"{phase.took:.1f}")
    return table


def _say_where(instance: Instance, timings: bool) -> None:
    seconds = instance.timings.elapsed
    if timings:
        err.print(timings_table(instance.timings))
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
