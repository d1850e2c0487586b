"""One simulation: a world with its weather, from a seed to the end of every promise."""

import asyncio
import gc
import random
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import structlog

from avatarforge.domain.errors import StaleEpoch
from avatarforge.ingress.upload import submit
from avatarforge.persistence import group, jobs, shards
from avatarforge.settings import RemoteSettings, TrackerSettings
from avatarforge.storage.keys import job_prefix
from avatarforge.tracker.ports import Ports, RemoteFallback
from avatarforge.tracker.queue import dispatcher
from avatarforge.tracker.tracker import JobTracker
from tests.simulation.clients import Clients, Ingress, JobIds
from tests.simulation.cluster import Cluster
from tests.simulation.database_server import DatabaseServer
from tests.simulation.loop import START, Process, SimulatedLoop
from tests.simulation.memory_database import MemoryDatabase
from tests.simulation.replicas import ReplicaPool
from tests.simulation.storage import SimulatedStorage
from tests.simulation.trace import Trace
from tests.simulation.weather import Weather
from tests.simulation.webhooks import QuickWebhooks
from tests.simulation.witness import Witness, watched_line

NOON = datetime(2026, 5, 17, 12, tzinfo=UTC)
_NEVER = datetime.max.replace(tzinfo=UTC)
FAR_JUMP = 40 * 86400.0
LONGEST_JUMP = 3 * 3600
"""Seconds that the wall clock is put forward or back at most."""
PATIENCE = 900.0
"""Seconds after the last fault in which every promise has to be kept."""


class Simulation:
    """`run` raises the first violation. All that happens depends on the seed alone."""

    def __init__(self, seed: int, make_database: Callable[[], Any] = MemoryDatabase) -> None:
        self.chance = Random(seed)
        self.weather = Weather.drawn(self.chance)
        self.loop = SimulatedLoop(self.chance)
        self.loop.thread_delay = self._thread_delay
        self.trace = Trace(self.loop.time)
        self._jumped = 0.0
        self._called: dict[str, int] = {}
        self._is_calm = False
        self._processes: list[Process] = []
        self._rivals: list[Cluster] = []
        self.storage = SimulatedStorage(self.weather, self.chance, self.trace, self._server_time)
        self.database = make_database()
        self.database.now = self._server_time
        self.witness = Witness(
            self.database,
            self.storage.objects,
            self.storage.undeleted,
            self.trace,
            self._complain,
            self.loop.time,
        )
        self._server = DatabaseServer(
            self.loop, self.database, self.weather, self.chance, self.trace, self.witness.written
        )
        self._pools = [self._pool("local"), *([self._pool("remote")] if self.weather.remote else [])]

    def run(self) -> None:
        """Raises `Violation`, `Unhandled` or `Stuck`."""
        self.trace.note("world", str(self.weather))
        with self._surroundings():
            try:
                self.loop.run(self._lived())
            finally:
                self.loop.failure = None
                self.loop.steps = 0
                self.loop.run(self.loop.bury(self._processes))
                self.loop.close()

    # --- a life -------------------------------------------------------------------------------------

    async def _lived(self) -> None:
        self.cluster = Cluster(
            self.loop,
            self.weather.shards,
            self._make_tracker,
            self.chance,
            self.trace,
            self._died,
            self.witness.violated,
        )
        self.ingresses = [self._ingress(number) for number in range(self.weather.ingresses)]
        self.clients = Clients(self.loop, self.weather, self.chance, self.trace, self.witness, self.ingresses)
        self.clients.begin()
        self._plan_faults()
        await asyncio.sleep(self.weather.seconds)
        self._calm_down()
        await self._settled()
        self._check_the_end()
        self.trace.note("world", "every promise is kept")

    async def _settled(self) -> None:
        """Return when nothing is left to do. Complains of what is not done in time."""
        ends = self.loop.time() + PATIENCE
        while left := self._left():
            if self.loop.time() > ends:
                self.witness.violated(f"{PATIENCE:g} s after the last fault: {left}")
            await asyncio.sleep(2)

    def _left(self) -> str | None:
        """What is still to come."""
        if open_promises := self.witness.open_promises():
            return f"{open_promises} have not ended"
        if not self._uploads_are_done():
            return "clients have no answer"
        if kept := self.witness.refused_and_kept():
            return f"{kept} were refused with 503 and are on record"
        if any(rival.alive for rival in self._rivals):
            return "another cluster is there"
        for life in self.cluster.alive:
            if life.tracker is not None and (figures := life.tracker.describe())["unfinished"]:
                return f"{life.process.name} has {figures}"
        if not all(pool.is_idle for pool in self._pools):
            return "a slot is held"
        for follower in self.clients.followers:
            if follower.seen < self.witness.latest_of(follower.customer_id):
                return f"a follower of {follower.customer_id} has come to {follower.seen}"
        return None

    def _uploads_are_done(self) -> bool:
        followers = len(self.clients.followers)
        return sum(not task.done() for task in self.clients.acting) == followers

    def _check_the_end(self) -> None:
        for follower in self.clients.followers:
            self.witness.followed(follower.customer_id, follower.seqs, follower.excused_up_to)
        for job_id, customer_id in self.witness.promised.items():
            job = self.database.find_job(customer_id, job_id)
            if job is None:
                self._check_erased(customer_id, job_id)
                continue
            if gone := {image.stored.key for image in job.images} - set(self.storage.objects):
                self.witness.violated(f"images of {job_id} are gone: {gone}")
            # What the client keeps it may say after the end.
            if job.callback_url is not None and self._called.get(job_id) != self.witness.ended[job_id]:
                self.witness.violated(f"nobody was told of the end of {job_id}")

    def _check_erased(self, customer_id: str, job_id: str) -> None:
        if not self.witness.is_erased(job_id):
            self.witness.violated(f"{job_id} was promised and is not on record")
        prefix = job_prefix(customer_id, job_id)
        left = [key for key in self.storage.objects if key.startswith(prefix)]
        if left and not any(self.database.list_due(shard, _NEVER, 1) for shard in range(self.weather.shards)):
            self.witness.violated(f"{left} stay for ever")

    # --- faults -------------------------------------------------------------------------------------

    def _plan_faults(self) -> None:
        weather = self.weather
        plans: list[tuple[int, Callable[[], None]]] = [
            (weather.outages, self._database_outage),
            (weather.storage_outages, self._storage_outage),
            (weather.kills, self._kill_tracker),
            (weather.twins, self._start_twin),
            (weather.rivals, self._start_rival),
            (weather.ingress_kills, self._kill_ingress),
            (weather.replica_kills, lambda: self.chance.choice(self._pools).kill_one()),
            (weather.drains, lambda: self.chance.choice(self._pools).drain_one()),
            (weather.clock_jumps, self._jump),
            (weather.far_jumps, self._jump_far),
        ]
        for count, fault in plans:
            for _ in range(count):
                self.loop.call_outside(self.chance.uniform(0, weather.seconds * 0.9), fault)

    def _calm_down(self) -> None:
        self.trace.note("world", "all is calm")
        self._is_calm = self._server.is_calm = self.storage.is_calm = True
        self._server.come_back()
        self.storage.is_down = False
        for pool in self._pools:
            pool.is_calm = True

    def _database_outage(self) -> None:
        if self._server.is_down:
            return
        self.trace.note("world", "the database goes away")
        self._server.go_down()
        self.loop.call_outside(self.chance.choice((0.2, 3, 20)), self._server.come_back)

    def _storage_outage(self) -> None:
        self.trace.note("world", "storage goes away")
        self.storage.is_down = True
        self.loop.call_outside(self.chance.choice((0.2, 3, 20)), setattr, self.storage, "is_down", False)

    def _kill_tracker(self) -> None:
        if lives := self.cluster.alive:
            self.cluster.kill(self.chance.choice(lives))

    def _start_twin(self) -> None:
        """The cluster believes the tracker dead and starts another; the old one goes on for a while."""
        if lives := self.cluster.alive:
            old = self.chance.choice(lives)
            self.cluster.start(old.shard)
            self.loop.call_outside(self.chance.uniform(0, 25), self.cluster.kill, old)

    def _start_rival(self) -> None:
        """Another cluster starts on the same database, as an upgrade may do it. Nobody sends it requests."""
        rival = Cluster(
            self.loop,
            self.weather.shards,
            self._make_tracker,
            self.chance,
            self.trace,
            self._died,
            self.witness.violated,
            f"rival {len(self._rivals) + 1}",
        )
        self._rivals.append(rival)
        self.loop.call_outside(self.chance.uniform(1, 40), rival.end)

    def _kill_ingress(self) -> None:
        number = self.chance.randrange(len(self.ingresses))
        old = self.ingresses[number]
        self.trace.note("world", f"{old.process.name} dies")
        self.loop.kill(old.process)
        self._server.died(old.process)
        self.ingresses[number] = self._ingress(number)

    def _jump(self) -> None:
        self._jumped = self.chance.uniform(-LONGEST_JUMP, LONGEST_JUMP)
        self.trace.note("world", f"the clock shows {self.now():%H:%M:%S}")

    def _jump_far(self) -> None:
        before, self._jumped = self._jumped, FAR_JUMP
        self.trace.note("world", f"the clock shows {self.now():%d %B}")
        self.loop.call_outside(60, setattr, self, "_jumped", before)

    def _died(self, process: Process) -> None:
        self._server.died(process)
        for pool in self._pools:
            pool.died(process)

    # --- parts --------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The wall clock."""
        return NOON + timedelta(seconds=self.loop.time() - START + self._jumped)

    def _server_time(self) -> datetime:
        """What servers' clocks show, which nobody puts forward or back."""
        return NOON + timedelta(seconds=self.loop.time() - START)

    def _make_tracker(
        self, shard: int, process: Process, on_broken: Callable[[Exception], None], cluster_id: str
    ) -> JobTracker:
        self._processes.append(process)
        records = self._server.client()
        local, *others = self._pools
        weather = self.weather
        settings = TrackerSettings(
            shards=weather.shards,
            lease_seconds=weather.lease_seconds,
            max_commit_batch=weather.max_commit_batch,
            commit_timeout_seconds=weather.commit_timeout_seconds,
            recent_events=weather.recent_events,
            job_retention_days=30,
        )
        policy = RemoteSettings(
            url="https://remote.example", policy="local-then-remote", overflow_after_seconds=5
        )
        return JobTracker(
            shard,
            settings,
            Ports(
                store=records,
                deletions=records,
                deliveries=records,
                storage=self.storage,
                webhooks=QuickWebhooks(records, shard, self._called),
                replicas=local,
                remote=RemoteFallback(replicas=others[0], settings=policy) if others else None,
            ),
            on_broken=on_broken,
            cluster_id=cluster_id,
            now=self.now,
        )

    def _ingress(self, number: int) -> Ingress:
        name = f"ingress {number}.{len(self._processes)}"
        ingress = Ingress(
            name,
            self.loop,
            self.cluster,
            self.storage,
            self._server.client(),
            self.weather,
            self.chance,
            self.witness,
            self.now,
        )
        self._processes.append(ingress.process)
        return ingress

    def _pool(self, name: str) -> ReplicaPool:
        return ReplicaPool(name, self.loop, self.storage, self.weather, self.chance, self.trace)

    def _thread_delay(self) -> float:
        if not self._is_calm and self.chance.random() < self.weather.slow_calls:
            return self.chance.uniform(0, 1)
        return self.chance.uniform(0, 0.001)

    # --- surroundings -------------------------------------------------------------------------------

    def _complain(self, violation: Exception) -> None:
        self.loop.failure = self.loop.failure or violation

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        """What the code under test takes from its surroundings, from here instead; put back in the end."""
        log, state, line, ids = (
            structlog.get_config(), random.getstate(), dispatcher.FairQueue, submit.new_job_id,
        )  # fmt: skip
        clock = shards.read_clock
        structlog.configure(
            processors=[self._note_log], logger_factory=structlog.ReturnLoggerFactory(), wrapper_class=None
        )
        random.seed(self.chance.random())
        dispatcher.FairQueue = watched_line(self.witness, fits_vary=self.weather.remote)
        submit.new_job_id = JobIds(self.now)
        group.read_clock = shards.read_clock = jobs.read_clock = lambda _: self._server_time()
        was_collecting = gc.isenabled()
        # When garbage is collected must not depend on what ran before.
        gc.disable()
        try:
            yield
        finally:
            structlog.configure(**log)
            random.setstate(state)
            dispatcher.FairQueue = line
            submit.new_job_id = ids
            group.read_clock = shards.read_clock = jobs.read_clock = clock
            if was_collecting:
                gc.enable()

    def _note_log(self, logger: Any, level: str, event: MutableMapping[str, Any]) -> str:
        told = [f"{name}={event[name]}" for name in ("job_id", "reason", "shard") if name in event]
        error = sys.exc_info()[1] if event.get("exc_info") is True else event.get("exc_info")
        if isinstance(error, BaseException):
            told.append(repr(error))
        self.trace.note(self.loop.current_process().name, f"{level}: {event['event']} {' '.join(told)}")
        if event["event"] in FAULTS_OF_OURS and not _is_expected(error):
            self.witness.violated(f"{event['event']}: {error!r}")
        raise structlog.DropEvent


FAULTS_OF_OURS = frozenset({"feed broke", "task broke", "submission broke", "command broke", "job broke"})
"""Logged where an error is caught that nobody had expected."""


def _is_expected(error: object) -> bool:
    """Whether a tracker was overtaken, or lost its race for an idempotency key: its client is told 503."""
    return isinstance(error, StaleEpoch) or "idempotency_keys" in str(error)
