"""The webhooks of one shard: what waits, what is called now, and what comes of it."""

import asyncio
import heapq
import itertools
import ssl
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol, TypeVar

import structlog

from avatarforge.domain.changes import Fence
from avatarforge.domain.deliveries import DeliveryAttempt, DeliveryState, WebhookDelivery
from avatarforge.domain.errors import DatabaseUnavailable, Overtaken
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.messages import job_message
from avatarforge.settings import WebhookSettings
from avatarforge.telemetry import metrics, traces
from avatarforge.telemetry.figures import Figures
from avatarforge.telemetry.logs import about
from avatarforge.webhooks import schedule
from avatarforge.webhooks.calling import Caller, CallOutcome
from avatarforge.webhooks.names import Names
from avatarforge.webhooks.signing import Signer
from avatarforge.webhooks.turns import Turn, Turns
from avatarforge.webhooks.urls import CallbackUrl, UnusableUrl

log = structlog.get_logger(__name__)

T = TypeVar("T")

_OUTCOMES = {
    DeliveryState.DELIVERED: "delivered",
    DeliveryState.GIVEN_UP: "given_up",
    DeliveryState.PENDING: "failed",
}
"""What a call that left its delivery so is called."""


class Deliveries(Protocol):
    """What the sender needs of the database; `persistence.deliveries.DeliveryRecords` keeps it. Blocks."""

    def pending(self, shard: int) -> list[WebhookDelivery]: ...

    def delivery(self, delivery_id: str) -> WebhookDelivery | None: ...

    def record(self, delivery: WebhookDelivery, attempt: DeliveryAttempt, fence: Fence) -> bool: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SenderStatus:
    """How much a sender has to do."""

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
    """What a call leaves behind. By itself: it was broken off, or its job is erased."""

    next: WebhookDelivery | None = None
    """The delivery as it waits for its next call."""
    answered: bool | None = None
    """Whether the receiver answered; `None` when it was not called to the end."""


class WebhookSender:
    """Delivers at least once, with the same id and body each time.

    The rows in the database are the truth; what is here can be rebuilt from them. A call whose outcome
    could not be kept, because this process died or was stopped, is made again by the next sender. While the
    database is away calls under way wait with their outcome and none is begun.

    A job ends once, so it has one delivery, and all is kept by the job's id. A waiting delivery takes about
    a kilobyte here: a hundred thousand, three days of a dead receiver with a job every two and a half
    seconds, are a hundred megabytes.
    """

    FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
    """Seconds between two attempts to reach the database."""
    LOOK = 1.0
    """Seconds after which the clock is read again at the latest, since clocks are put right now and then."""
    LEAST_JUMP = 1.0
    """Seconds that the clock is put back at once before that is allowed for."""
    GRACE = 2.0
    """Seconds that calls under way have to end when the sender is stopped."""
    MOVED_AT_ONCE = 500
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
        jitter: Callable[[], float] = schedule.jittered,
        names: Names | None = None,
        ssl_context: ssl.SSLContext | None = None,
        figures: Figures | None = None,
    ) -> None:
        """`load_job` takes the ids of customer and job, and blocks. Raises `SettingsError` for a secret that
        is none. Without any secret nothing is called, and pending deliveries stay as they are."""
        self._records = records
        self._load_job = load_job
        self._settings = settings
        self._shard = shard
        self._now = now
        self._jitter = jitter
        self._pauses = settings.pauses_after_failure()
        self._names = names or Names()
        self._ssl_context = ssl_context
        self._signer = Signer(settings.signing_secrets())
        self._caller: Caller | None = None
        self._fence = Fence(shard, 0)
        self._threads = ThreadPoolExecutor(self.THREADS, thread_name_prefix="webhooks")
        self._waiting: dict[str, _Waiting] = {}
        self._later: list[tuple[float, int, _Waiting]] = []
        """A heap by time; the number keeps what is due together in the order in which it came."""
        self._numbers = itertools.count()
        self._turns: Turns[_Waiting] = Turns(per_host=settings.per_host, concurrency=settings.concurrency)
        self._calls: dict[str, asyncio.Task[_CallEnd]] = {}
        self._asked_again: dict[str, WebhookDelivery] = {}
        """Deliveries that are to be called once more after the call under way."""
        self._ahead = float("-inf")
        """Seconds from the steady clock to the time of day, when that was last read."""
        self._is_open = False
        self._timer: asyncio.TimerHandle | None = None
        self._is_away = False
        """Whether the database did not answer when it was last asked."""
        self._figures = figures or Figures()
        self._figures.watch(metrics.WEBHOOKS_WAITING, lambda: self.status.waiting)
        self._figures.watch(metrics.WEBHOOKS_RUNNING, lambda: self.status.in_flight)

    # --- starting and stopping ----------------------------------------------------------------------

    async def start(self, fence: Fence) -> None:
        """Take up what is pending, waiting for the database as long as it takes, and begin to deliver.

        What comes of a call is kept only while the fence stands: an overtaken sender's calls are made again.
        Nothing may be committed for this shard meanwhile, or it could be called twice.
        """
        if not self._signer.can_sign:
            log.info("no webhooks: no secret is set", shard=self._shard)
            return
        self._fence = fence
        self._caller = Caller(self._settings, self._signer, self._names, self._ssl_context)
        pending = await self._persistently(lambda: self._records.pending(self._shard))
        for number, delivery in enumerate(pending, 1):
            self._add(delivery)
            if number % self.MOVED_AT_ONCE == 0:
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
            _, late = await asyncio.wait(calls, timeout=self.GRACE)
            for call in late:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        if self._caller is not None:
            await self._caller.close()
        await asyncio.to_thread(self._threads.shutdown)

    # --- what the tracker tells ---------------------------------------------------------------------

    def expect(self, delivery: WebhookDelivery) -> None:
        """A delivery whose row is committed: call it when it is due.

        One that is known already takes the new value, so that it is called again from the first try on.
        After `stop`, or without a secret, its row waits for another sender.
        """
        if self._is_open:
            self._add(delivery)
            self._advance()

    def forget(self, job_id: str) -> None:
        """The job is erased: nothing of it is called any more, and a call under way is broken off."""
        self._asked_again.pop(job_id, None)
        if (waiting := self._waiting.pop(job_id, None)) is not None:
            waiting.delivery = None
        if (call := self._calls.get(job_id)) is not None:
            call.cancel()

    @property
    def status(self) -> SenderStatus:
        """How much there is to do."""
        return SenderStatus(waiting=len(self._waiting) + len(self._asked_again), in_flight=len(self._calls))

    # --- waiting --------------------------------------------------------------------------------------

    def _add(self, delivery: WebhookDelivery) -> None:
        if delivery.job_id in self._calls:
            self._asked_again[delivery.job_id] = delivery
            return
        if (known := self._waiting.get(delivery.job_id)) is not None:
            known.delivery = None
        # Many deliveries share their address and customer: one copy of each text is enough.
        shared = replace(delivery, url=sys.intern(delivery.url), customer_id=sys.intern(delivery.customer_id))
        waiting = self._waiting[delivery.job_id] = _Waiting(shared)
        due = (delivery.next_at or delivery.created_at).timestamp()
        heapq.heappush(self._later, (due, next(self._numbers), waiting))

    def _advance(self) -> None:
        """Bring what is due to its host, begin the calls that may begin, and look again in time."""
        if not self._is_open:
            return
        now = self._now().timestamp()
        self._allow_for_clock(now)
        for _ in range(self.MOVED_AT_ONCE):
            if not self._later or self._later[0][0] > now:
                break
            waiting = heapq.heappop(self._later)[2]
            if waiting.delivery is not None:
                self._turns.put(_origin(waiting.delivery.url), waiting)
        while (turn := self._turns.take()) is not None:
            self._begin(turn)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._later:
            pause = min(max(self._later[0][0] - now, 0.0), self.LOOK)
            self._timer = asyncio.get_running_loop().call_later(pause, self._advance)

    def _allow_for_clock(self, now: float) -> None:
        """Where the time of day was put back, what waits is due as much earlier: pauses stay as they were."""
        ahead = now - asyncio.get_running_loop().time()
        if ahead < self._ahead - self.LEAST_JUMP:
            back = self._ahead - ahead
            log.warning("clock was put back", shard=self._shard, seconds=round(back, 1))
            self._later = [(due - back, number, waiting) for due, number, waiting in self._later]
        self._ahead = ahead

    def _begin(self, turn: Turn[_Waiting]) -> None:
        delivery = turn.item.delivery
        if delivery is None:
            self._turns.done(turn, answered=None)
            return
        del self._waiting[delivery.job_id]
        call = asyncio.create_task(self._deliver(delivery), name="webhook")
        self._calls[delivery.job_id] = call
        call.add_done_callback(lambda call: self._ended(delivery.job_id, turn, call))

    def _ended(self, job_id: str, turn: Turn[_Waiting], call: "asyncio.Task[_CallEnd]") -> None:
        del self._calls[job_id]
        end = _CallEnd() if call.cancelled() else call.result()
        self._turns.done(turn, answered=end.answered)
        wanted = self._asked_again.pop(job_id, end.next)
        if wanted is not None:
            self._add(wanted)
        self._advance()

    # --- calling --------------------------------------------------------------------------------------

    async def _deliver(self, delivery: WebhookDelivery) -> _CallEnd:
        """Call the receiver once and keep what came of it. Every line of the log names the delivery."""
        with about(
            job_id=delivery.job_id, customer_id=delivery.customer_id, delivery_id=delivery.delivery_id
        ):
            return await self._delivered(delivery)

    async def _delivered(self, delivery: WebhookDelivery) -> _CallEnd:
        answered: bool | None = None
        try:
            job = await self._persistently(lambda: self._load_job(delivery.customer_id, delivery.job_id))
            if job is None:
                return _CallEnd()
            outcome = await self._called(delivery, job)
            answered = outcome.attempt.status is not None
            after = schedule.after(delivery, outcome.attempt, outcome.patience, self._jitter, self._pauses)
            # Asked for once more during the call: that must stay on record.
            after = self._asked_again.get(delivery.job_id, after)
            is_kept = await self._keep(after, outcome.attempt)
        except Overtaken:
            log.info("webhook left to the shard's new tracker")
            return _CallEnd(answered=answered)
        except Exception as error:
            # The edge of a delivery. It goes on with the schedule, so that what is broken here cannot make
            # us call a receiver without end; the row stays as it is.
            log.error("webhook broke", exc_info=error)
            reason = f"It could not be sent ({type(error).__name__})."
            broken = DeliveryAttempt(at=self._now(), seconds=0, status=None, answer=reason)
            after = schedule.after(delivery, broken, jitter=self._jitter, pauses=self._pauses)
            is_kept = True
        else:
            self._tell(after, outcome.attempt)
        is_wanted = is_kept and after.state is DeliveryState.PENDING
        return _CallEnd(next=after if is_wanted else None, answered=answered)

    async def _called(self, delivery: WebhookDelivery, job: ProfilePhotoJob) -> CallOutcome:
        """Send the message: always the same, since a job that has ended does not change."""
        assert self._caller is not None, "set before anything is delivered"
        identity: dict[str, str | int] = {
            "job_id": job.job_id,
            "customer_id": job.customer_id,
            "tries": delivery.tries + 1,
        }
        with traces.span("webhook", job.parameters.traceparent, "client", identity):
            outcome = await self._caller.call(delivery, job_message(job).json_bytes(), self._now())
            traces.note({"status": outcome.attempt.status or 0})
        return outcome

    async def _keep(self, after: WebhookDelivery, attempt: DeliveryAttempt) -> bool:
        """Record the call, once. False when the delivery is erased."""
        is_repeated = False

        def keep() -> bool:
            nonlocal is_repeated
            # A write that was not answered may have come about.
            if is_repeated and self._records.delivery(after.delivery_id) == after:
                return True
            is_repeated = True
            return self._records.record(after, attempt, self._fence)

        return await self._persistently(keep)

    def _tell(self, delivery: WebhookDelivery, attempt: DeliveryAttempt) -> None:
        """Count and log what came of a call. The address stays out of it: queries of URLs hold secrets."""
        outcome = _OUTCOMES[delivery.state]
        self._figures.count(metrics.WEBHOOK_CALLS, outcome)
        self._figures.observe(metrics.WEBHOOK_SECONDS, attempt.seconds)
        event = f"webhook {outcome.replace('_', ' ')}"
        if delivery.state is DeliveryState.DELIVERED:
            log.debug(event, tries=delivery.tries)
            return
        tell = log.warning if delivery.state is DeliveryState.GIVEN_UP else log.info
        tell(
            event,
            tries=delivery.tries,
            status=attempt.status,
            reason=attempt.answer if attempt.status is None else None,
            next_at=delivery.next_at.isoformat() if delivery.next_at else None,
        )

    # --- outages --------------------------------------------------------------------------------------

    async def _persistently(self, call: Callable[[], T]) -> T:
        """The call's result, made in a thread until the database answers."""
        pause = self.FIRST_PAUSE
        while True:
            try:
                result = await asyncio.get_running_loop().run_in_executor(self._threads, call)
            except DatabaseUnavailable as error:
                if not self._is_away:
                    log.warning("webhooks wait for the database", shard=self._shard, reason=error.reason)
                self._is_away = True
            else:
                self._is_away = False
                return result
            await asyncio.sleep(pause)
            pause = min(2 * pause, self.LONGEST_PAUSE)


def _origin(url: str) -> str:
    try:
        return CallbackUrl.parsed(url).origin
    except UnusableUrl:
        # It was checked when it was accepted; should the grammar have become stricter, the call says so.
        return ""
