"""`avatarforge up`."""

import os
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table

from avatarforge.cli.photos import SAMPLE
from avatarforge.cli.terminal import err, out, terminating_like_ctrl_c
from avatarforge.cluster.timings import Timings
from avatarforge.diffusion.provenance import open_marking
from avatarforge.embedded import Instance, arguments_of, read_config, running
from avatarforge.settings import load_settings


def up(*, config: Path | None, options: dict[str, str], timings: bool) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    with terminating_like_ctrl_c():
        try:
            with started(config, options) as instance:
                _say_where(instance, timings)
                threading.Event().wait()
        except KeyboardInterrupt:
            err.print("Stopped.")


@contextmanager
def started(config: Path | None, options: dict[str, str], *, grpc: bool = True) -> Iterator[Instance]:
    """AvatarForge with these settings, and a line that says so while it starts."""
    measured = Timings()
    # Options win over variables, here and in every process that we start.
    os.environ.update(options)
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
    out.print(f"REST       {instance.url}")
    out.print(f"gRPC       {instance.grpc_address}")
    out.print(f"API docs   {instance.url}/docs")
    out.print(f"Webhooks   {instance.signing}")
    out.print("Try it:")
    out.print(f"  curl -F photo=@{shlex.quote(str(SAMPLE))} {instance.url}/customers/me", highlight=False)
