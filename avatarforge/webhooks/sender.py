"""The sender of one shard's webhooks: it keeps those that wait, calls receivers and records the outcomes."""

import asyncio
import heapq
import itertools
import ssl
import sys
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Protocol, TypeVar

import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars

from avatarforge.background import Backoff, BlockingPool, retry
from avatarforge.domain.changes import Fence
from avatarforge.domain.deliveries import DeliveryAttempt, DeliveryState, WebhookDelivery
from avatarforge.domain.errors import DatabaseUnavailable, StaleEpoch
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.messages import PUBLIC_PREFIX, LiveJob
from avatarforge.settings import WebhookSettings
from avatarforge.telemetry import metrics, traces
from avatarforge.telemetry.registry import MetricsRegistry
from avatarforge.webhooks import retry_policy
from avatarforge.webhooks.host_queue import HostQueue, Permit
from avatarforge.webhooks.http_caller import CallResult, HttpCaller
from avatarforge.webhooks.resolver import Resolver
from avatarforge.webhooks.signing import Signer
from avatarforge.webhooks.urls import CallbackUrl, UnusableUrl

log = structlog.get_logger(__name__)

T = TypeVar("T")

_OUTCOMES = {
    DeliveryState.DELIVERED: "delivered",
    DeliveryState.GIVEN_UP: "given_up",
    DeliveryState.PENDING: "failed",
}
"""The name of a call's outcome, by the state in which it left its delivery."""


class Deliveries(Protocol):
    """The sender's part of `persistence.deliveries.DeliveryRepository`. Calls block."""

    def list_pending(self, shard: int) -> list[WebhookDelivery]: ...

    def find_delivery(self, delivery_id: str) -> WebhookDelivery | None: ...

    def record(self, delivery: WebhookDelivery, attempt: DeliveryAttempt, fence: Fence) -> bool: ...

    def list_secret_ids(self, customer_id: str, now: datetime) -> list[str]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SenderStatus:
    """A sender's load."""

    waiting: int
    """Deliveries that are not being called at this moment, whenever they are due."""
    in_flight: int
    """Calls under way, with the recording of their outcome."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A delivery's place in memory. `delivery` is `None` once it is no longer wanted."""

    delivery: WebhookDelivery | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _CallEnd:
    """The end of a call. Without values it was broken off, or its job is erased."""

    next: WebhookDelivery | None = None
    """The delivery as it waits for its next call."""
    answered: bool | None = None
    """Whether the receiver answered; `None` when it was not called to the end."""


class _Schedule:
    """Deliveries that wait, one of each job, in the order in which they are due."""

    MIN_CLOCK_JUMP_SECONDS = 1.0
    """How far the clock is put back at once before that is allowed for."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._waiting: dict[str, _Waiting] = {}
        self._later: list[tuple[float, int, _Waiting]] = []
        """A heap by time; the number keeps what is due together in the order in which it came."""
        self._numbers = itertools.count()
        self._ahead = float("-inf")
        """Seconds from the steady clock to the time of day, when that was last read."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, delivery: WebhookDelivery) -> None:
        """Let the delivery wait, in place of the job's earlier one."""
        self.remove(delivery.job_id)
        # Many deliveries share their address and customer: one copy of each text is enough.
        shared = replace(delivery, url=sys.intern(delivery.url), customer_id=sys.intern(delivery.customer_id))
        waiting = self._waiting[delivery.job_id] = _Waiting(shared)
        due = (delivery.next_at or delivery.created_at).timestamp()
        heapq.heappush(self._later, (due, next(self._numbers), waiting))

    def remove(self, job_id: str) -> None:
        if (waiting := self._waiting.pop(job_id, None)) is not None:
            waiting.delivery = None

    def pop_due(self, now: float) -> _Waiting | None:
        """Return the next that is due; a delivery counts as waiting until it is removed."""
        return heapq.heappop(self._later)[2] if self._later and self._later[0][0] <= now else None

    @property
    def next_at(self) -> float | None:
        """When the next delivery is due, or was: a time of day."""
        return self._later[0][0] if self._later else None

    def allow_for_clock(self, now: float) -> None:
        """Where the time of day was put back, what waits is due as much earlier: pauses stay as they were."""
        ahead = now - asyncio.get_running_loop().time()
        if ahead < self._ahead - self.MIN_CLOCK_JUMP_SECONDS:
            back = self._ahead - ahead
            log.warning("clock was put back", shard=self._shard, seconds=round(back, 1))
            self._later = [(due - back, number, waiting) for due, number, waiting in self._later]
        self._ahead = ahead


class WebhookSender:
    """Delivers at least once, with the same id and body each time.

    The rows in the database are the truth; what is here can be rebuilt from them. A call whose outcome
    could not be kept, because this process died or was stopped, is made again by the next sender. While the
    database is away calls under way wait with their outcome and none is begun.

    A job ends once, so it has one delivery, and all is kept by the job's id. A waiting delivery takes about
    a kilobyte here: a hundred thousand, three days of a dead receiver with a job every two and a half
    seconds, are a hundred megabytes.
    """

    DATABASE_BACKOFF = Backoff(first=0.1, longest=2.0)
    MAX_SLEEP_SECONDS = 1.0
    """The clock is read again after that long, since clocks are put right now and then."""
    STOP_TIMEOUT_SECONDS = 2.0
    """How long calls under way have to end when the sender is stopped."""
    MAX_DUE_AT_ONCE = 500
    """Deliveries taken up before others have their turn in the event loop, which many would hold up."""
    THREADS = 2
    """For the database: one may write while the other reads, and the tracker's own commits hardly wait."""

    def __init__(
        self,
        records: Deliveries,
        load_job: Callable[[str, str], ProfilePhotoJob | None],
        settings: WebhookSettings,
        shard: int,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[], float] = retry_policy.random_jitter,
        resolver: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
        registry: MetricsRegistry | None = None,
        root_path: str = "",
    ) -> None:
        """`load_job` takes the ids of customer and job, and blocks. Raises `SettingsError` for a secret that
        is none. Without any secret nothing is called, and pending deliveries stay as they are."""
        self._records = records
        self._load_job = load_job
        self._root_path = root_path
        self._shard = shard
        self._now = now
        self._apply_attempt = partial(retry_policy.apply_attempt, jitter=jitter, delays=settings.retry_delays)
        self._signer = Signer(settings.signing_secrets)
        self._caller = HttpCaller(settings, self._signer, resolver or Resolver(), ssl_context)
        self._fence = Fence(shard, 0)
        self._database = BlockingPool(self.THREADS, "webhooks")
        self._schedule = _Schedule(shard)
        self._queue: HostQueue[_Waiting] = HostQueue(
            per_host=settings.per_host, concurrency=settings.concurrency
        )
        self._calls: dict[str, asyncio.Task[_CallEnd]] = {}
        self._asked_again: dict[str, WebhookDelivery] = {}
        """Deliveries that are to be called once more after the call under way."""
        self._is_open = False
        self._timer: asyncio.TimerHandle | None = None
        self._is_database_away = False
        """Whether the database did not answer when it was last asked."""
        self._registry = registry or MetricsRegistry()
        self._registry.register_gauge(metrics.WEBHOOKS_WAITING, self._count_waiting)
        self._registry.register_gauge(metrics.WEBHOOKS_RUNNING, self._calls.__len__)

    # --- starting and stopping ----------------------------------------------------------------------

    async def start(self, fence: Fence) -> None:
        """Take up what is pending, waiting for the database as long as it takes, and begin to deliver.

        What comes of a call is kept only while the fence stands: an outdated sender's calls are made again.
        Nothing may be committed for this shard meanwhile, or it could be called twice.
        """
        for outcome in _OUTCOMES.values():
            self._registry.declare(metrics.WEBHOOK_ATTEMPTS, outcome)
        if not self._signer.can_sign:
            log.info("no webhooks: no secret is set", shard=self._shard)
            return
        self._fence = fence
        pending = await self._call_database(lambda: self._records.list_pending(self._shard))
        for number, delivery in enumerate(pending, 1):
            self._add(delivery)
            if number % self.MAX_DUE_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._is_open = True
        self._advance()
        log.info("webhooks ready", shard=self._shard, pending=len(pending))

    async def stop(self) -> None:
        """End the calls under way, soon, and keep their outcomes. What waits goes on with the next start."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()
        if calls := list(self._calls.values()):
            _, late = await asyncio.wait(calls, timeout=self.STOP_TIMEOUT_SECONDS)
            for call in late:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        await self._caller.close()
        await self._database.close()

    # --- the tracker's part -----------------------------------------------------------------------

    def expect(self, delivery: WebhookDelivery) -> None:
        """A delivery whose row is committed: call it when it is due.

        One that is known already takes the new value, so that it is called again from the first try on.
        After `stop`, or without a secret, its row waits for another sender.
        """
        if self._is_open:
            self._add(delivery)
            self._advance()

    def resume(self, delivery: WebhookDelivery) -> None:
        """A delivery that waits on record: call it when it is due, unless it is being called."""
        if delivery.job_id not in self._calls:
            self.expect(delivery)

    def forget(self, job_id: str) -> None:
        """The job is erased: nothing of it is called any more, and a call under way is broken off."""
        self._asked_again.pop(job_id, None)
        self._schedule.remove(job_id)
        if (call := self._calls.get(job_id)) is not None:
            call.cancel()

    @property
    def status(self) -> SenderStatus:
        return SenderStatus(waiting=self._count_waiting(), in_flight=len(self._calls))

    def _count_waiting(self) -> int:
        return len(self._schedule) + len(self._asked_again)

    # --- waiting --------------------------------------------------------------------------------------

    def _add(self, delivery: WebhookDelivery) -> None:
        if delivery.job_id in self._calls:
            self._asked_again[delivery.job_id] = delivery
        else:
            self._schedule.add(delivery)

    def _advance(self) -> None:
        """Bring what is due to its host, begin the calls that may begin, and look again in time."""
        if not self._is_open:
            return
        now = self._now().timestamp()
        self._schedule.allow_for_clock(now)
        for _ in range(self.MAX_DUE_AT_ONCE):
            waiting = self._schedule.pop_due(now)
            if waiting is None:
                break
            if waiting.delivery is not None:
                self._queue.put(_origin(waiting.delivery.url), waiting)
        while (permit := self._queue.acquire()) is not None:
            self._start_call(permit)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (next_at := self._schedule.next_at) is not None:
            pause = min(max(next_at - now, 0.0), self.MAX_SLEEP_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(pause, self._advance)

    def _start_call(self, permit: Permit[_Waiting]) -> None:
        delivery = permit.item.delivery
        if delivery is None:
            self._queue.release(permit, answered=None)
            return
        self._schedule.remove(delivery.job_id)
        call = asyncio.create_task(self._deliver(delivery), name="webhook")
        self._calls[delivery.job_id] = call
        call.add_done_callback(lambda call: self._end_call(delivery.job_id, permit, call))

    def _end_call(self, job_id: str, permit: Permit[_Waiting], call: "asyncio.Task[_CallEnd]") -> None:
        del self._calls[job_id]
        end = _CallEnd() if call.cancelled() else call.result()
        self._queue.release(permit, answered=end.answered)
        wanted = self._asked_again.pop(job_id, end.next)
        if wanted is not None:
            self._add(wanted)
        self._advance()

    # --- calling --------------------------------------------------------------------------------------

    async def _deliver(self, delivery: WebhookDelivery) -> _CallEnd:
        """Call the receiver once and keep what came of it. Every line of the log names the delivery."""
        with bound_contextvars(
            job_id=delivery.job_id, customer_id=delivery.customer_id, delivery_id=delivery.delivery_id
        ):
            return await self._try_once(delivery)

    async def _try_once(self, delivery: WebhookDelivery) -> _CallEnd:
        answered: bool | None = None
        try:
            loaded = await self._call_database(lambda: self._load(delivery))
            if loaded is None:
                return _CallEnd()
            # This call's task has a context of its own.
            bind_contextvars(**loaded[0].parameters.origin)
            outcome = await self._call(delivery, *loaded)
            answered = outcome.attempt.status is not None
            after = self._apply_attempt(delivery, outcome.attempt, outcome.retry_after)
            # Asked for once more during the call: that must stay on record.
            after = self._asked_again.get(delivery.job_id, after)
            is_kept = await self._keep(after, outcome.attempt)
        except StaleEpoch:
            log.info("webhook left to the shard's new tracker")
            return _CallEnd(answered=answered)
        except Exception as error:
            # The edge of a delivery. It goes on with the schedule, so that what is broken here cannot make
            # us call a receiver without end; the row stays as it is.
            log.error("webhook broke", exc_info=error)
            reason = f"It could not be sent ({type(error).__name__})."
            broken = DeliveryAttempt(at=self._now(), seconds=0, status=None, answer=reason)
            after = self._apply_attempt(delivery, broken)
            is_kept = True
        else:
            self._report(after, outcome.attempt)
        is_wanted = is_kept and after.state is DeliveryState.PENDING
        return _CallEnd(next=after if is_wanted else None, answered=answered)

    def _load(self, delivery: WebhookDelivery) -> tuple[ProfilePhotoJob, list[str]] | None:
        """Return the job and the ids of the receiver's own secrets; `None` if the job is erased."""
        job = self._load_job(delivery.customer_id, delivery.job_id)
        return None if job is None else (job, self._records.list_secret_ids(job.customer_id, self._now()))

    async def _call(
        self, delivery: WebhookDelivery, job: ProfilePhotoJob, secret_ids: Sequence[str]
    ) -> CallResult:
        """Send the message: always the same, since a job that has ended does not change."""
        identity: dict[str, str | int] = {
            "job_id": job.job_id,
            "customer_id": job.customer_id,
            "tries": delivery.tries + 1,
        }
        with traces.span("webhook", job.parameters.traceparent, "client", identity):
            body = copy_context().run(self._encode, job)
            outcome = await self._caller.call(delivery, body, self._now(), secret_ids)
            traces.note({"status": outcome.attempt.status or 0})
        return outcome

    def _encode(self, job: ProfilePhotoJob) -> bytes:
        PUBLIC_PREFIX.set(self._root_path)
        return LiveJob(job=job).to_message().json_bytes()

    async def _keep(self, after: WebhookDelivery, attempt: DeliveryAttempt) -> bool:
        """Record the call, once. False when the delivery is erased."""
        is_repeated = False

        def keep() -> bool:
            nonlocal is_repeated
            # A write that was not answered may have come about.
            if is_repeated and self._records.find_delivery(after.delivery_id) == after:
                return True
            is_repeated = True
            return self._records.record(after, attempt, self._fence)

        return await self._call_database(keep)

    def _report(self, delivery: WebhookDelivery, attempt: DeliveryAttempt) -> None:
        """Count and log what came of a call. The address stays out of it: queries of URLs hold secrets."""
        outcome = _OUTCOMES[delivery.state]
        self._registry.count(metrics.WEBHOOK_ATTEMPTS, outcome)
        self._registry.observe(metrics.WEBHOOK_SECONDS, attempt.seconds)
        event = f"webhook {outcome.replace('_', ' ')}"
        tell = log.warning if delivery.state is DeliveryState.GIVEN_UP else log.info
        tell(
            event,
            tries=delivery.tries,
            status=attempt.status,
            reason=attempt.answer if attempt.status is None else None,
            next_at=delivery.next_at.isoformat() if delivery.next_at else None,
        )

    # --- outages --------------------------------------------------------------------------------------

    async def _call_database(self, call: Callable[[], T]) -> T:
        """Return the call's result; repeat the call until the database answers."""
        result = await retry(
            lambda: self._database.run(call),
            DatabaseUnavailable,
            self.DATABASE_BACKOFF,
            on_error=self._note_outage,
        )
        self._is_database_away = False
        return result

    def _note_outage(self, error: DatabaseUnavailable, delay: float) -> None:
        if not self._is_database_away:
            log.warning("webhooks wait for the database", shard=self._shard, reason=error.reason)
        self._is_database_away = True


def _origin(url: str) -> str:
    try:
        return CallbackUrl.parse(url).origin
    except UnusableUrl:
        # It was checked when it was accepted; should the grammar have become stricter, the call says so.
        return ""
