"""Webhooks to receivers that fail, hang and redirect, over a killed tracker."""

import asyncio
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from itertools import cycle
from typing import Any

from standardwebhooks import Webhook

from avatarforge.webhooks.signing import new_secret
from benchmarks import load, waiting_jobs
from benchmarks.options import Options
from benchmarks.photos import noisy_jpeg
from benchmarks.report import Figure, Report, Table, percentile
from benchmarks.service import WITHOUT_GENERATION, Service, mariadb, service
from tests.receivers import OK, Answer, Received, Receiver, answer, hang

FAILING = 0.3
"""Share of calls that the good receiver refuses."""
PAUSES = "1, 2, 4, 8, 16, 32, 64, 128, 256"
"""Between calls, in place of three days."""
A_SECOND = 50
"""Jobs that end."""


def run(options: Options) -> Report:
    jobs = options.size(500, 40)
    secret = new_secret()
    receivers = _Receivers(secret)
    with mariadb(options.folder / "mariadb") as server, receivers:
        settings = {
            "AVATARFORGE_DATABASE_URL": server.create_database("avatarforge"),
            "AVATARFORGE_WEBHOOK_SECRETS": secret,
            "AVATARFORGE_WEBHOOK_ALLOW_PRIVATE": "true",
            "AVATARFORGE_WEBHOOK_RETRY_DELAYS_SECONDS": PAUSES,
            "AVATARFORGE_WEBHOOK_TIMEOUT": "5",
            **WITHOUT_GENERATION,
        }
        with service(options.folder / "service", settings) as running:
            good, others = _submit(running, receivers, jobs)
            _end(running, [*good, *others])
            seconds = _until_delivered(receivers, {job_id for _, job_id in good})
            delivered = _delivered(running, good)
    first = [receivers.first_call[job_id] for _, job_id in good]
    return Report(
        title=f"Webhooks: {jobs} jobs, a receiver that fails {FAILING:.0%} of calls, one that hangs, one "
        "that redirects, a killed tracker",
        figures=[
            Figure(name="good ones delivered", value=len(receivers.accepted), unit=f"of {len(good)}",
                   wanted="all"),
            Figure(name="of them on record as delivered", value=delivered, unit=f"of {len(good)}"),
            Figure(name="bad signatures", value=receivers.unverified, unit="", wanted="0"),
            Figure(name="calls to the redirect's target", value=receivers.target_calls, unit="", wanted="0"),
            Figure(name="from a job's end to its first call, p50", value=percentile(first, 0.5), unit="s"),
            Figure(name="from a job's end to its first call, p99", value=percentile(first, 0.99), unit="s",
                   wanted="not delayed by the one that hangs"),
            Figure(name="until the last good one was there", value=seconds, unit="s"),
        ],
        conditions={
            "jobs": f"{A_SECOND} a second are cancelled; nine of ten call the good receiver, the others the "
            "one that hangs and the one that redirects, in turns",
            "killed": "the tracker, with SIGKILL, when half of the jobs have ended",
            "pauses": f"{PAUSES} s in place of three days; a call may take 5 s",
            "database": "MariaDB with innodb_flush_log_at_trx_commit=1",
            "verified": "each body with the standardwebhooks package",
        },
        tables=[
            Table(
                title="Calls",
                columns=("receiver", "calls"),
                rows=sorted(receivers.calls.items()),
            )
        ],
    )  # fmt: skip


def _submit(running: Service, receivers: "_Receivers", jobs: int) -> tuple[list[tuple[str, str]], ...]:
    """Jobs with callback URLs: those of the good receiver, and the others."""
    photo = noisy_jpeg(side=64)
    bad = cycle((receivers.hanging_url, receivers.redirecting_url))
    urls = [receivers.good_url if number % 10 else next(bad) for number in range(jobs)]
    requests = [
        load.upload(f"/customers/customer-{number}", photo, "image/jpeg", {"callbackUrl": url})
        for number, url in enumerate(urls)
    ]
    replies = load.send(running.url, iter(requests), 4).expect(202).replies
    good, others = [], []
    for status in (reply.json() for reply in replies):
        kind = good if status["callbackUrl"] == receivers.good_url else others
        kind.append((status["customerId"], status["jobId"]))
    return good, others


def _end(running: Service, jobs: list[tuple[str, str]]) -> None:
    """Cancel all, and kill the tracker half-way."""
    random.Random(1).shuffle(jobs)
    half = len(jobs) // 2
    waiting_jobs.cancel(running.url, jobs[:half], a_second=A_SECOND)
    running.actor("JobTracker").kill()
    waiting_jobs.cancel(running.url, jobs[half:], a_second=A_SECOND, patience=60)


def _until_delivered(receivers: "_Receivers", wanted: set[str], seconds: float = 900) -> float:
    begun = time.monotonic()
    while not wanted <= receivers.accepted and time.monotonic() - begun < seconds:
        time.sleep(0.1)
    return time.monotonic() - begun


def _delivered(running: Service, jobs: list[tuple[str, str]]) -> int:
    """Deliveries that the service itself says have arrived."""
    requests = [load.get(f"/customers/{customer}/photos/{job}/deliveries") for customer, job in jobs]
    time.sleep(1)  # The last outcome is written after its call.
    replies = load.send(running.url, iter(requests), 8).expect(200).replies
    states = Counter(delivery["state"] for reply in replies for delivery in reply.json()["deliveries"])
    return states["DELIVERED"]


@dataclass(eq=False)
class _Receivers:
    """The three, in an event loop of their own."""

    secret: str
    accepted: set[str] = field(default_factory=set)
    """Jobs whose webhook was answered with 200."""
    first_call: dict[str, float] = field(default_factory=dict)
    """Seconds from a job's end to the first call for it."""
    calls: Counter[str] = field(default_factory=Counter)
    unverified: int = 0
    target_calls: int = 0

    def __enter__(self) -> "_Receivers":
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="receivers")
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        randomness = random.Random(2)
        target = Receiver(answer=self._counted("target", OK))
        async with target.serving():
            redirect = answer(302, location=target.url())
            good = Receiver(answer=self._good(randomness))
            hanging = Receiver(answer=self._counted("hanging", hang))
            redirecting = Receiver(answer=self._counted("redirecting", redirect))
            async with good.serving(), hanging.serving(), redirecting.serving():
                self.good_url, self.hanging_url = good.url(), hanging.url()
                self.redirecting_url = redirecting.url()
                self._ready.set()
                await self._stop.wait()
                self.target_calls = self.calls["target"]

    def _counted(self, name: str, respond: Answer) -> Answer:
        async def counted(received: Received, writer: asyncio.StreamWriter) -> None:
            self.calls[name] += 1
            await respond(received, writer)

        return counted

    def _good(self, randomness: random.Random) -> Answer:
        async def good(received: Received, writer: asyncio.StreamWriter) -> None:
            try:
                message: dict[str, Any] = Webhook(self.secret).verify(received.body, received.headers)
            except Exception:
                # Whatever the package finds wrong with it.
                self.unverified += 1
                return
            job_id = message["jobId"]
            ended = datetime.fromisoformat(message["finishedAt"]).timestamp()
            self.first_call.setdefault(job_id, time.time() - ended)
            refused = randomness.random() < FAILING
            self.calls["good, refused" if refused else "good, accepted"] += 1
            if not refused:
                self.accepted.add(job_id)
            await (answer(500) if refused else OK)(received, writer)

        return good
