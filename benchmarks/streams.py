"""What open streams cost that have nothing to tell."""

import time

from benchmarks.event_streams import EventStreams
from benchmarks.options import Options
from benchmarks.report import Figure, Report, Table, percentile
from benchmarks.service import WITHOUT_GENERATION, service

HEARTBEAT = 15.0


def run(options: Options) -> Report:
    clients = options.size(5000, 200)
    watched = options.size(60, 20)
    settings = {
        "AVATARFORGE_INGRESS_HEARTBEAT_SECONDS": str(HEARTBEAT),
        "AVATARFORGE_INGRESS_MAX_STREAM_SECONDS": "3600",
        **WITHOUT_GENERATION,
    }
    with service(options.folder / "service", settings) as running:
        ingress = running.actor("ServeReplica:avatarforge:Ingress")
        _warm_up(running.url)
        before = ingress.memory_full_info().uss
        paths = [f"/customers/customer-{number}/photos/stream" for number in range(clients)]
        with EventStreams(running.url, paths) as streams:
            streams.wait_for(clients, ("snapshot",), 120)
            cpu, begun = ingress.cpu_times(), time.monotonic()
            time.sleep(watched)
            after = ingress.memory_full_info().uss
            used = ingress.cpu_times()
            seconds = time.monotonic() - begun
            late = _lateness(streams, clients)
            cut = len(streams.closed)
    share = (used.user + used.system - cpu.user - cpu.system) / seconds
    return Report(
        title=f"Open streams: {clients} idle SSE clients on one ingress replica",
        figures=[
            Figure(
                name="memory of a stream", value=(after - before) / clients / 1000, unit="KB", wanted="≤ 60"
            ),
            Figure(name="heartbeats, late by p99", value=percentile(late, 0.99), unit="s", wanted="on time"),
            Figure(name="heartbeats, late by at most", value=max(late), unit="s"),
            Figure(name="streams that were cut", value=cut, unit="", wanted="0"),
            Figure(name="CPU of the ingress", value=100 * share, unit="% of a core"),
        ],
        conditions={
            "memory": "growth of the ingress process' own memory (USS), each client a customer of its own",
            "heartbeat": f"a comment after {HEARTBEAT:g} s of silence; late is what a pause took beyond that",
            "watched": f"{watched} s, with all streams open",
        },
        tables=[
            Table(
                title="Memory of the ingress process",
                columns=("when", "MB"),
                rows=[("before", round(before / 1e6, 1)), ("all streams open", round(after / 1e6, 1))],
            )
        ],
    )


def _warm_up(url: str) -> None:
    """Code that is imported by the first stream is no stream's cost."""
    with EventStreams(url, ["/customers/warm-up/photos/stream"] * 20) as streams:
        streams.wait_for(20, ("snapshot",), 30)


def _lateness(streams: EventStreams, clients: int) -> list[float]:
    """Seconds by which each pause between two signs of life was longer than the heartbeat."""
    heard: dict[int, float] = {}
    late = []
    for event in streams.events:
        if event.client in heard and event.kind == "comment":
            late.append(max(0.0, event.at - heard[event.client] - HEARTBEAT))
        heard[event.client] = event.at
    silent = [time.time() - at - HEARTBEAT for at in heard.values()]
    if len(late) < clients:
        raise RuntimeError(f"only {len(late)} heartbeats came for {clients} clients")
    return late + [seconds for seconds in silent if seconds > 0]
