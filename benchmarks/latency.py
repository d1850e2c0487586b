"""From a change of a job to the clients that follow it, by SSE and by gRPC."""

import asyncio
import threading
import time
from datetime import datetime

import grpc

from avatarforge.grpc_generated import profile_photo_job_pb2 as messages
from avatarforge.grpc_generated.profile_photo_job_pb2_grpc import ProfilePhotoJobServiceStub
from benchmarks import waiting_jobs
from benchmarks.event_streams import EventStreams
from benchmarks.options import Options
from benchmarks.report import Figure, Report, Table, percentile
from benchmarks.service import WITHOUT_GENERATION, Service, mariadb, service

A_SECOND = 50
"""Changes."""
CHANNELS = 20
"""Connections that the gRPC streams share."""


def run(options: Options) -> Report:
    subscribers = options.size(1000, 50)
    rounds = options.repeat(3, quick=1)
    with mariadb(options.folder / "mariadb") as server:
        settings = {
            "AVATARFORGE_DATABASE_URL": server.create_database("avatarforge"),
            "AVATARFORGE_INGRESS_MAX_STREAM_SECONDS": "3600",
            **WITHOUT_GENERATION,
        }
        with service(options.folder / "service", settings) as running:
            latencies: dict[str, list[list[float]]] = {"SSE": [], "gRPC": []}
            for turn in range(rounds):
                for channel, measure in (("SSE", _by_sse), ("gRPC", _by_grpc)):
                    customers = [f"{channel}-{turn}-{number}" for number in range(subscribers)]
                    latencies[channel].append(measure(running, customers))
    return Report(
        title=f"Latency: from a change to its follower, {subscribers} followers of as many customers",
        figures=[
            figure
            for channel, turns in latencies.items()
            for figure in _figures(channel, [value for turn in turns for value in turn])
        ],
        conditions={
            "measured": "from the moment in which the tracker decides a cancellation (`finishedAt`, before "
            "its commit) to the arrival at the client, so the commit is part of it",
            "changes": f"{A_SECOND} cancellations a second, one for each customer, through REST",
            "turns": f"{rounds} of each channel, alternating; percentiles over all of them",
            "database": "MariaDB with innodb_flush_log_at_trx_commit=1",
            "clients": f"SSE: plain sockets in one thread; gRPC: grpc.aio, {CHANNELS} connections; all on "
            "the same cores as the service",
            "generation": "off",
        },
        tables=[
            Table(
                title="Milliseconds by turn",
                columns=("channel", "turn", "p50", "p99", "most"),
                rows=[
                    (channel, turn, *(round(1000 * percentile(values, share), 1) for share in (0.5, 0.99, 1)))
                    for channel, turns in latencies.items()
                    for turn, values in enumerate(turns, start=1)
                ],
            )
        ],
    )


def _figures(channel: str, values: list[float]) -> list[Figure]:
    return [
        Figure(name=f"{channel}, p50", value=1000 * percentile(values, 0.5), unit="ms", wanted="≤ 20"),
        Figure(name=f"{channel}, p99", value=1000 * percentile(values, 0.99), unit="ms", wanted="≤ 150"),
        Figure(name=f"{channel}, most", value=1000 * max(values), unit="ms"),
    ]


def _by_sse(running: Service, customers: list[str]) -> list[float]:
    jobs = waiting_jobs.submit(running.url, customers)
    paths = [f"/customers/{customer}/photos/stream" for customer in customers]
    with EventStreams(running.url, paths) as streams:
        streams.wait_for(len(customers), ("snapshot",), 60)
        _cancel(running, customers, jobs)
        changes = streams.wait_for(len(customers), ("status",), 60)
    return [change.at - datetime.fromisoformat(change.json()["finishedAt"]).timestamp() for change in changes]


def _by_grpc(running: Service, customers: list[str]) -> list[float]:
    jobs = waiting_jobs.submit(running.url, customers)
    followers = _GrpcFollowers(running.grpc, customers)
    with_all = threading.Thread(target=followers.run, name="gRPC followers", daemon=True)
    with_all.start()
    if not followers.open.wait(60):
        raise TimeoutError("not every gRPC stream was open after 60 s")
    _cancel(running, customers, jobs)
    with_all.join(60)
    if len(followers.latencies) != len(customers):
        raise TimeoutError(f"{len(followers.latencies)} of {len(customers)} changes came")
    return followers.latencies


def _cancel(running: Service, customers: list[str], jobs: list[str]) -> None:
    rate = waiting_jobs.cancel(running.url, list(zip(customers, jobs, strict=True)), a_second=A_SECOND)
    if rate < 0.95 * A_SECOND:
        raise RuntimeError(f"{rate:.1f} changes a second came about instead of {A_SECOND}")


class _GrpcFollowers:
    """One stream for each customer, until each has told of a terminal state."""

    def __init__(self, address: str, customers: list[str]) -> None:
        self._address = address
        self._customers = customers
        self._opened: set[str] = set()
        self.open = threading.Event()
        """Every stream has told the job that waits."""
        self.latencies: list[float] = []

    def run(self) -> None:
        asyncio.run(self._follow_all())

    async def _follow_all(self) -> None:
        channels = [
            grpc.aio.insecure_channel(self._address, options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(CHANNELS)
        ]
        stubs = [ProfilePhotoJobServiceStub(channel) for channel in channels]
        followers = (
            self._follow(stubs[number % CHANNELS], customer)
            for number, customer in enumerate(self._customers)
        )
        await asyncio.gather(*followers)
        for channel in channels:
            await channel.close()

    async def _follow(self, stub: ProfilePhotoJobServiceStub, customer: str) -> None:
        stream = stub.StreamStatus(messages.StatusStreamRequest(customer_id=customer))
        async for status in stream:
            at = time.time()
            if status.is_terminal:
                finished = status.finished_at.seconds + status.finished_at.nanos / 1e9
                self.latencies.append(at - finished)
                stream.cancel()
                return
            self._opened.add(customer)
            if len(self._opened) == len(self._customers):
                self.open.set()
