"""Whether clients that are cut again and again miss anything, over killed processes."""

import http.client
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from avatarforge.persistence import JobRepository, open_engine
from avatarforge.settings import DatabaseSettings
from benchmarks import load
from benchmarks.options import Options
from benchmarks.photos import noisy_jpeg
from benchmarks.report import Figure, Report, Table
from benchmarks.service import Service, mariadb, service, wait_until_done

CUSTOMERS = 20
CLIENTS_EACH = 2
FIELDS = {"steps": 2}
"""One step or two: a picture is not what is measured."""
LONGEST = 3.0
"""Seconds after which a client is cut at the latest."""


def run(options: Options) -> Report:
    jobs = options.size(200, 20)
    with mariadb(options.folder / "mariadb") as server:
        url = server.create_database("avatarforge")
        with service(options.folder / "service", {"AVATARFORGE_DATABASE_URL": url}) as running:
            clients = [
                _Client(running.url, f"customer-{number % CUSTOMERS}", random.Random(number))
                for number in range(CUSTOMERS * CLIENTS_EACH)
            ]
            for client in clients:
                client.thread.start()
            for client in clients:
                client.began.wait(60)
            killed = _work(running, jobs)
            records = JobRepository(open_engine(DatabaseSettings(), url))
            logged = _events(records)
            records.close()
            for client in clients:
                client.stop_at(logged[client.customer][-1])
            for client in clients:
                client.thread.join(120)
    stories = [client.compared(logged[client.customer]) for client in clients]
    total = sum(story.expected for story in stories)
    return Report(
        title=f"Resuming: {jobs} jobs, {len(clients)} SSE clients that are cut at random",
        figures=[
            Figure(name="events missed", value=sum(story.missed for story in stories), unit="", wanted="0"),
            Figure(name="events that nobody logged", value=sum(story.strange for story in stories), unit="",
                   wanted="0"),
            Figure(name="events out of order", value=sum(client.disordered for client in clients), unit="",
                   wanted="0"),
            Figure(name="events received, after de-duplication by id", value=total, unit=""),
            Figure(name="of them more than once", value=sum(story.doubled for story in stories), unit=""),
            Figure(name="cuts", value=sum(client.cuts for client in clients), unit=""),
        ],
        conditions={
            "clients": f"{CLIENTS_EACH} for each of {CUSTOMERS} customers, open before the first upload; "
            f"each is cut after at most {LONGEST:g} s and comes back with Last-Event-ID",
            "killed": "tracker and ingress, with SIGKILL, " + " and ".join(killed),
            "compared": "with all events of the customer in the database, MariaDB",
        },
        tables=[
            Table(
                title="What came, by kind",
                columns=("kind", "times"),
                rows=sorted(sum((client.kinds for client in clients), Counter[str]()).items()),
            )
        ],
    )  # fmt: skip


def _work(running: Service, jobs: int) -> list[str]:
    """Upload, kill both on the way, wait for the end; says when they were killed."""
    photo = noisy_jpeg(side=128)
    requests = [
        load.upload(f"/customers/customer-{number % CUSTOMERS}", photo, "image/jpeg", FIELDS)
        for number in range(jobs)
    ]
    replies = load.send(running.url, iter(requests), 4).expect(202).replies
    accepted = [(status["customerId"], status["jobId"]) for status in (reply.json() for reply in replies)]
    killed = []
    for number, (customer_id, job_id) in enumerate(accepted):
        if number == jobs // 3:
            running.actor("JobTracker").kill()
            killed.append(f"after {number} jobs")
        if number == 2 * jobs // 3:
            running.actor("ServeReplica:avatarforge:Ingress").kill()
            killed.append(f"after {number} jobs")
        _wait(running.url, customer_id, job_id)
    return killed


def _wait(url: str, customer_id: str, job_id: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            wait_until_done(url, customer_id, job_id)
            return
        except (OSError, KeyError, ValueError):
            # The ingress is being replaced.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _events(records: JobRepository) -> dict[str, list[int]]:
    """The numbers of each customer's events, in order."""
    logged: dict[str, list[int]] = {}
    after = 0
    while page := records.list_shard_events(0, after, 1000):
        after = page[-1].event.seq
        for change in page:
            logged.setdefault(change.event.customer_id, []).append(change.event.seq)
    return logged


@dataclass(frozen=True, kw_only=True, slots=True)
class _Story:
    """A client's events beside the log's."""

    expected: int
    missed: int
    strange: int
    doubled: int


@dataclass(eq=False)
class _Client:
    """Follows a customer over many short connections."""

    url: str
    customer: str
    randomness: random.Random
    received: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    first: int | None = None
    """The number that the first snapshot stands for."""
    last: int | None = None
    cuts: int = 0
    disordered: int = 0

    def __post_init__(self) -> None:
        self.began = threading.Event()
        self.thread = threading.Thread(target=self._follow, name=self.customer, daemon=True)
        self._until: int | None = None

    def stop_at(self, seq: int) -> None:
        self._until = seq

    def compared(self, logged: list[int]) -> _Story:
        wanted = {seq for seq in logged if seq > (self.first or 0)}
        return _Story(
            expected=len(wanted & self.received.keys()),
            missed=len(wanted - self.received.keys()),
            strange=len(self.received.keys() - wanted),
            doubled=sum(times - 1 for times in self.received.values()),
        )

    def _follow(self) -> None:
        deadline = time.monotonic() + 1800
        while time.monotonic() < deadline and (self._until is None or (self.last or 0) < self._until):
            try:
                self._listen()
            except (OSError, http.client.HTTPException):
                # Cut by us, or by a process that was killed.
                time.sleep(0.05)
            self.cuts += 1

    def _listen(self) -> None:
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=LONGEST)
        try:
            headers = {} if self.last is None else {"Last-Event-ID": str(self.last)}
            connection.request("GET", f"/customers/{self.customer}/photos/stream", headers=headers)
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise http.client.HTTPException(f"answered {answer.status}")
            end = time.monotonic() + self.randomness.uniform(0.1, LONGEST)
            event: dict[str, str] = {}
            while time.monotonic() < end and (line := answer.readline()):
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name:
                    event[name] = value
                else:
                    self._take(event)
                    event = {}
        finally:
            connection.close()

    def _take(self, event: dict[str, str]) -> None:
        kind = event.get("event", "comment")
        self.kinds[kind] += 1
        if "id" not in event:
            return
        seq = int(event["id"])
        if kind in ("snapshot", "reset"):
            self.first = seq if self.first is None else self.first
            self.began.set()
        else:
            self.disordered += seq <= (self.last or 0)
            self.received[seq] += 1
        self.last = seq
