"""One change, told to many clients of one customer."""

from datetime import datetime

from benchmarks import waiting_jobs
from benchmarks.event_streams import EventStreams
from benchmarks.options import Options
from benchmarks.report import Figure, Report, Table, percentile
from benchmarks.service import WITHOUT_GENERATION, Service, service

CUSTOMER = "popular"


def run(options: Options) -> Report:
    clients = options.size(1000, 50)
    rounds = options.repeat(10, quick=2)
    settings = {"AVATARFORGE_INGRESS_MAX_STREAM_SECONDS": "3600", **WITHOUT_GENERATION}
    with service(options.folder / "service", settings) as running:
        turns = [_turn(running, clients) for _ in range(rounds)]
        answers = _answers(running, clients)
    last = [max(turn) for turn in turns]
    return Report(
        title=f"Fan-out: one change, {clients} SSE clients of one customer",
        figures=[
            Figure(name="until all have it, median", value=1000 * percentile(last, 0.5), unit="ms"),
            Figure(name="until all have it, most", value=1000 * max(last), unit="ms", wanted="≤ 500"),
            Figure(name="feed answers that tell the change", value=answers, unit="", wanted="1 a replica"),
        ],
        conditions={
            "measured": "from the moment in which the tracker decides a cancellation, before its commit, to "
            "the last client's receipt",
            "turns": rounds,
            "feed answers": "the tracker's own count over a change with all clients; the least of three, "
            "since it also answers every two seconds when there is nothing to tell",
            "database": "SQLite",
            "ingress replicas": 1,
        },
        tables=[
            Table(
                title="Milliseconds by turn",
                columns=("turn", "first client", "p50", "last client"),
                rows=[
                    (
                        number,
                        *(round(1000 * value, 1) for value in (min(turn), percentile(turn, 0.5), max(turn))),
                    )
                    for number, turn in enumerate(turns, start=1)
                ],
            )
        ],
    )


def _turn(running: Service, clients: int) -> list[float]:
    """Seconds to each client."""
    [job] = waiting_jobs.submit(running.url, [CUSTOMER])
    with EventStreams(running.url, [f"/customers/{CUSTOMER}/photos/stream"] * clients) as streams:
        streams.wait_for(clients, ("snapshot",), 60)
        waiting_jobs.cancel(running.url, [(CUSTOMER, job)], a_second=1)
        changes = streams.wait_for(clients, ("status",), 60)
    return [change.at - datetime.fromisoformat(change.json()["finishedAt"]).timestamp() for change in changes]


def _answers(running: Service, clients: int) -> float:
    """Answers of the feed that one change takes, with all clients listening.

    A subscriber that has no news is answered every two seconds, so the least of some tries counts.
    """
    fewest = float("inf")
    for _ in range(3):
        [job] = waiting_jobs.submit(running.url, [CUSTOMER])
        with EventStreams(running.url, [f"/customers/{CUSTOMER}/photos/stream"] * clients) as streams:
            streams.wait_for(clients, ("snapshot",), 60)
            before = running.tracker()["feedReads"]
            waiting_jobs.cancel(running.url, [(CUSTOMER, job)], a_second=1)
            streams.wait_for(clients, ("status",), 60)
            fewest = min(fewest, running.tracker()["feedReads"] - before)
    return fewest
