"""Webhooks over real sockets: what receivers get, and what becomes of deliveries."""

import asyncio
import ssl
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import WebhookVerificationError

from avatarforge import __version__
from avatarforge.domain.deliveries import DeliveryAttempt, DeliveryState, WebhookDelivery
from avatarforge.messages import LiveJob
from avatarforge.persistence import DeliveryRepository, JobRepository, open_engine
from avatarforge.persistence.upgrade import upgrade
from avatarforge.settings import DatabaseSettings, WebhookSettings
from avatarforge.webhooks.address_policy import check_callback_url
from avatarforge.webhooks.pools import ConnectionPools
from avatarforge.webhooks.resolver import Resolver
from avatarforge.webhooks.retry_policy import DEFAULT_RETRY_DELAYS
from avatarforge.webhooks.sender import SenderStatus, WebhookSender
from avatarforge.webhooks.signing import derive_secret, new_secret
from tests.deliveries import MemoryDeliveries, a_finished_job
from tests.jobs import FENCE, a_job, finish, start, submission
from tests.receivers import OK, Answer, Received, Receiver, answer, hang, hang_up, raw
from tests.waiting import wait_until

SECRET = new_secret()


class Clock:
    """The world's time, put forward by the test."""

    def __init__(self) -> None:
        self._ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    def forward(self, by: timedelta) -> None:
        self._ahead += by


class Bench:
    """Senders over one record, and receivers."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.records = MemoryDeliveries()
        self.clock = Clock()

    async def receiver(self, tls: ssl.SSLContext | None = None, **scripted: Any) -> Receiver:
        return await self._stack.enter_async_context(Receiver(**scripted).serving(tls))

    async def sender(
        self,
        resolver: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
        root_path: str = "",
        **settings: Any,
    ) -> WebhookSender:
        defaults = {"secrets": SECRET, "allow_private": True, "timeout": 5}
        sender = WebhookSender(
            self.records,
            self.records.find_job,
            WebhookSettings.model_validate(defaults | settings),
            0,
            now=self.clock.now,
            jitter=lambda: 1,
            resolver=resolver,
            ssl_context=ssl_context,
            root_path=root_path,
        )
        sender.MAX_SLEEP_SECONDS = 0.01
        sender.MAX_DUE_AT_ONCE = 5
        sender.STOP_TIMEOUT_SECONDS = 0.5
        await sender.start(FENCE)
        self._stack.push_async_callback(sender.stop)
        return sender

    def state(self, delivery: WebhookDelivery) -> WebhookDelivery:
        return self.records.deliveries[delivery.delivery_id]

    def attempts(self, delivery: WebhookDelivery) -> list[DeliveryAttempt]:
        return self.records.attempts[delivery.delivery_id]

    async def delivered(self, *deliveries: WebhookDelivery, deadline: float = 10) -> None:
        await wait_until(
            lambda: all(self.state(each).state is DeliveryState.DELIVERED for each in deliveries), deadline
        )

    async def tried(self, delivery: WebhookDelivery, times: int = 1) -> DeliveryAttempt:
        """The call of this number, once it is recorded."""
        await wait_until(lambda: len(self.attempts(delivery)) >= times)
        return self.attempts(delivery)[times - 1]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        yield Bench(stack)


# --- what receivers get -------------------------------------------------------------------------------


async def test_a_receiver_with_a_secret_of_its_own_can_verify_with_that(bench: Bench) -> None:
    receiver = await bench.receiver()
    sender = await bench.sender()
    bench.records.secret_ids = {"ana": ["of-ana"], "ben": ["of-ben"]}
    delivery = bench.records.ended(receiver.url("/hook"), a_finished_job("ana"))
    sender.expect(delivery)
    await bench.delivered(delivery)
    [received] = receiver.received
    assert received.verified(derive_secret(SECRET, "of-ana"))
    with pytest.raises(WebhookVerificationError):
        received.verified(derive_secret(SECRET, "of-ben"))


async def test_a_receiver_gets_the_jobs_status_signed(bench: Bench) -> None:
    receiver = await bench.receiver()
    sender = await bench.sender()
    job = a_finished_job("ana")
    delivery = bench.records.ended(receiver.url("/hook?token=%20x"), job)

    sender.expect(delivery)
    await bench.delivered(delivery)

    [received] = receiver.received
    assert (received.method, received.target) == ("POST", "/hook?token=%20x")
    assert received.body == LiveJob(job=job).to_message().json_bytes()
    assert received.verified(SECRET)["jobId"] == job.job_id
    assert received.webhook_id == delivery.delivery_id
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert received.headers["content-type"] == "application/json"
    assert received.headers["user-agent"] == f"AvatarForge/{__version__}"
    [attempt] = bench.attempts(delivery)
    assert (attempt.status, attempt.answer) == (200, "thank you")
    assert 0 <= attempt.seconds < 5
    await wait_until(lambda: sender.status == SenderStatus(waiting=0, in_flight=0))


async def test_while_secrets_are_rotated_receivers_of_both_verify(bench: Bench) -> None:
    new = new_secret()
    receiver = await bench.receiver()
    sender = await bench.sender(secrets=f"{SECRET},{new}")
    delivery = bench.records.ended(receiver.url())

    sender.expect(delivery)
    await bench.delivered(delivery)

    [received] = receiver.received
    assert received.verified(SECRET) == received.verified(new)


async def test_every_call_has_the_same_id_and_body_and_its_own_time(bench: Bench) -> None:
    receiver = await bench.receiver(next_answers=deque_of(answer(500), hang_up))
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())

    sender.expect(delivery)
    await bench.tried(delivery, 1)
    bench.clock.forward(DEFAULT_RETRY_DELAYS[0])
    await bench.tried(delivery, 2)
    bench.clock.forward(DEFAULT_RETRY_DELAYS[1])
    await bench.delivered(delivery)

    assert len({received.webhook_id for received in receiver.received}) == 1
    assert len({received.body for received in receiver.received}) == 1
    times = [int(received.headers["webhook-timestamp"]) for received in receiver.received]
    assert times[1] - times[0] >= 5
    assert times[2] - times[1] >= 300
    assert [attempt.status for attempt in bench.attempts(delivery)] == [500, None, 200]


async def test_a_connection_is_used_again(bench: Bench) -> None:
    receiver = await bench.receiver()
    sender = await bench.sender(per_host=1)
    deliveries = [bench.records.ended(receiver.url()) for _ in range(20)]

    for delivery in deliveries:
        sender.expect(delivery)
    await bench.delivered(*deliveries)

    assert receiver.connections == 1


async def test_connections_that_nobody_uses_are_closed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConnectionPools, "MAX_IDLE_SECONDS", 0.05)
    receiver = await bench.receiver()
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())

    sender.expect(delivery)
    await bench.delivered(delivery)

    await wait_until(lambda: receiver.live == 0)


async def test_connections_to_so_many_hosts_only_stay_open(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ConnectionPools, "MAX_IDLE_HOSTS", 2)
    receivers = [await bench.receiver() for _ in range(5)]
    sender = await bench.sender()
    deliveries = [bench.records.ended(receiver.url()) for receiver in receivers]

    for delivery in deliveries:
        sender.expect(delivery)
    await bench.delivered(*deliveries)

    await wait_until(lambda: sum(receiver.live for receiver in receivers) == 2)


async def test_a_receiver_with_tls_is_called_by_its_name_at_the_checked_address(
    bench: Bench, tmp_path: Path
) -> None:
    certificate, key = await a_certificate("hooks.example", tmp_path)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    asked_for: list[str | None] = []
    serving.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    receiver = await bench.receiver(serving)
    sender = await bench.sender(Resolver(lambda host: ["127.0.0.1"]), ca_file=certificate)
    good = bench.records.ended(f"https://hooks.example:{receiver.port}/hook")
    dotted = bench.records.ended(f"https://hooks.example.:{receiver.port}/hook")
    stranger = bench.records.ended(f"https://other.example:{receiver.port}/hook")

    for delivery in (good, dotted, stranger):
        sender.expect(delivery)
    await bench.delivered(good, dotted)

    hosts = {received.headers["host"] for received in receiver.received}
    assert hosts == {f"hooks.example:{receiver.port}", f"hooks.example.:{receiver.port}"}
    assert set(asked_for) == {"hooks.example", "other.example"}
    failed = await bench.tried(stranger)
    assert failed.status is None
    assert "certificate" in failed.answer.lower()


async def test_below_a_proxys_path_webhooks_tell_addresses_that_begin_with_it(bench: Bench) -> None:
    receiver = await bench.receiver()
    sender = await bench.sender(root_path="/avatars")
    delivery = bench.records.ended(receiver.url())

    sender.expect(delivery)
    await bench.delivered(delivery)

    [message] = receiver.messages
    assert message["originalUrl"].startswith("/avatars/customers/")


async def test_a_receiver_is_called_over_ipv6(bench: Bench) -> None:
    receiver = await bench.receiver(host="::1")
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())

    sender.expect(delivery)
    await bench.delivered(delivery)

    assert receiver.received[0].headers["host"] == f"[::1]:{receiver.port}"


# --- answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_and_is_not_followed(bench: Bench, status: int) -> None:
    target = await bench.receiver()
    receiver = await bench.receiver(answer=answer(status, location=target.url()))
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())

    sender.expect(delivery)
    attempt = await bench.tried(delivery)

    assert attempt.status == status
    assert bench.state(delivery).next_at == ended(attempt) + DEFAULT_RETRY_DELAYS[0]
    assert target.connections == 0


async def test_gone_ends_a_delivery(bench: Bench) -> None:
    receiver = await bench.receiver(answer=answer(410, b"no more, please"))
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())

    sender.expect(delivery)
    attempt = await bench.tried(delivery)

    assert attempt.answer == "no more, please"
    assert bench.state(delivery).state is DeliveryState.GIVEN_UP
    await wait_until(lambda: sender.status == SenderStatus(waiting=0, in_flight=0))


@pytest.mark.parametrize("status", [429, 503])
async def test_a_receiver_that_asks_for_patience_is_left_alone(bench: Bench, status: int) -> None:
    receiver = await bench.receiver(next_answers=deque_of(answer(status, retry_after="3600")))
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())

    sender.expect(delivery)
    first = await bench.tried(delivery)
    assert bench.state(delivery).next_at == ended(first) + timedelta(hours=1)
    bench.clock.forward(timedelta(minutes=59))
    beside = bench.records.ended(receiver.url("/beside"))
    sender.expect(beside)
    await bench.delivered(beside)
    assert len(bench.attempts(delivery)) == 1
    bench.clock.forward(timedelta(minutes=2))
    await bench.delivered(delivery)


async def test_a_delivery_is_given_up_after_ten_calls(bench: Bench) -> None:
    receiver = await bench.receiver(answer=answer(500))
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())

    sender.expect(delivery)
    for number, pause in enumerate(DEFAULT_RETRY_DELAYS, 1):
        await bench.tried(delivery, number)
        bench.clock.forward(pause)
    await bench.tried(delivery, 10)

    assert bench.state(delivery).state is DeliveryState.GIVEN_UP
    await wait_until(lambda: sender.status == SenderStatus(waiting=0, in_flight=0))
    assert len(receiver.received) == 10


async def test_an_answer_of_any_length_is_kept_by_its_beginning(bench: Bench) -> None:
    receiver = await bench.receiver(answer=answer(200, "é".encode() * 5000 + b"\0"))
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())

    sender.expect(delivery)
    await bench.delivered(delivery)

    [attempt] = bench.attempts(delivery)
    assert attempt.answer == "é" * 2048


@pytest.mark.parametrize(
    ("endless", "status"),
    [
        # Bodies without an end: the status has come, so the message has.
        (raw(b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 8192] * 100), 200),
        (raw(b"HTTP/1.1 500 No\r\nContent-Length: 999999999\r\n\r\n", *[b"x" * 65536] * 100), 500),
        # Headers and interim answers without an end.
        (raw(b"HTTP/1.1 200 OK\r\nX: ", *[b"x" * 8192] * 100), None),
        (raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 100, repeat=True), None),
        # No HTTP at all.
        (raw(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"), None),
        (raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"), None),
        (raw(b"HTTP/1.1 999999 Huge\r\n\r\n"), None),
        (raw(b"\0" * 100_000), None),
    ],
)
async def test_an_endless_or_broken_answer_ends_soon(bench: Bench, endless: Any, status: int | None) -> None:
    receiver = await bench.receiver(answer=endless)
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())

    sender.expect(delivery)
    attempt = await bench.tried(delivery)

    assert attempt.status == status
    assert attempt.seconds < 3
    assert len(attempt.answer) <= (4096 if status else 350)
    await wait_until(lambda: receiver.open == 0, what="the connection is closed")


@pytest.mark.parametrize(
    ("dripping", "status"),
    [
        (raw(b"HTTP/1.1 200 OK\r\nX: ", *[b"x"] * 1000, pause=0.05), None),
        (raw(b"HTTP/1.1 204 OK\r\n", pause=60), None),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", *[b"x"] * 1000, pause=0.05), 200),
        (raw(b"HTTP/1.1 503 No\r\nContent-Length: 1000\r\n\r\n", *[b"x"] * 1000, pause=0.05), 503),
    ],
)
async def test_a_dripping_answer_ends_by_the_time_limit(
    bench: Bench, dripping: Any, status: int | None
) -> None:
    receiver = await bench.receiver(answer=dripping)
    sender = await bench.sender(timeout=0.5)
    delivery = bench.records.ended(receiver.url())

    sender.expect(delivery)
    attempt = await bench.tried(delivery)

    assert attempt.status == status
    assert 0.4 < attempt.seconds < 2
    if status is None:
        assert attempt.answer == "No answer within 0.5 s."


async def test_a_receiver_that_hangs_up_is_tried_again(bench: Bench) -> None:
    receiver = await bench.receiver(next_answers=deque_of(hang_up))
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())

    sender.expect(delivery)
    attempt = await bench.tried(delivery)

    assert attempt.status is None
    assert attempt.answer == "The call failed: Server disconnected without sending a response."


async def test_a_receiver_that_is_not_there_is_tried_again(bench: Bench) -> None:
    async with Receiver().serving() as gone:
        url = gone.url()
    sender = await bench.sender()
    delivery = bench.records.ended(url)

    sender.expect(delivery)
    attempt = await bench.tried(delivery)

    assert attempt.status is None
    assert attempt.answer == f"The call failed: no connection to 127.0.0.1, port {gone.port}."
    assert bench.state(delivery).state is DeliveryState.PENDING


# --- addresses ----------------------------------------------------------------------------------------


async def test_a_name_that_leads_elsewhere_after_its_check_is_not_called(bench: Bench) -> None:
    receiver = await bench.receiver()
    addresses = ["8.8.8.8"]
    resolver = Resolver(lambda host: addresses)
    url = f"http://rebinding.example:{receiver.port}/"
    await check_callback_url(url, WebhookSettings.model_validate({"secrets": SECRET}), resolver)
    addresses[:] = ["127.0.0.1"]
    sender = await bench.sender(resolver, allow_private=False)
    delivery = bench.records.ended(url)

    sender.expect(delivery)
    attempt = await bench.tried(delivery)

    assert attempt.status is None
    assert "rebinding.example leads to 127.0.0.1, which is not a public address" in attempt.answer
    assert receiver.connections == 0


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"]
)
async def test_no_spelling_of_a_private_address_is_called(bench: Bench, host: str) -> None:
    receiver = await bench.receiver(host="::1" if host == "[::1]" else "127.0.0.1")
    sender = await bench.sender(allow_private=False)
    delivery = bench.records.ended(f"http://{host}:{receiver.port}/")

    sender.expect(delivery)
    attempt = await bench.tried(delivery)

    assert "which is not a public address" in attempt.answer
    assert receiver.connections == 0


async def test_a_redirect_into_a_private_network_leads_nowhere(bench: Bench) -> None:
    inside = await bench.receiver()
    outside = await bench.receiver(answer=answer(307, location=inside.url("/metadata")))
    sender = await bench.sender()
    delivery = bench.records.ended(outside.url())

    sender.expect(delivery)
    await bench.tried(delivery)

    assert inside.connections == 0


async def test_the_proxy_of_the_environment_is_not_used(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, receiver = await bench.receiver(), await bench.receiver()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url("/"))
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())

    sender.expect(delivery)
    await bench.delivered(delivery)

    assert proxy.connections == 0


async def test_the_next_address_is_dialled_when_one_does_not_answer(bench: Bench) -> None:
    receiver = await bench.receiver()
    sender = await bench.sender(Resolver(lambda host: ["::1", "127.0.0.1"]))
    delivery = bench.records.ended(f"http://two.example:{receiver.port}/")

    sender.expect(delivery)

    await bench.delivered(delivery)


async def test_a_dead_name_server_of_one_host_delays_no_other(bench: Bench) -> None:
    receiver = await bench.receiver()
    test_is_over = threading.Event()

    def resolve(host: str) -> Sequence[str]:
        if host == "lost.example":
            test_is_over.wait(60)
        return ["127.0.0.1"]

    sender = await bench.sender(Resolver(resolve), timeout=30)
    lost = [bench.records.ended(f"http://lost.example:{receiver.port}/lost") for _ in range(50)]
    good = [bench.records.ended(f"http://good.example:{receiver.port}/good") for _ in range(50)]
    try:
        for delivery in [*lost, *good]:
            sender.expect(delivery)
        await bench.delivered(*good, deadline=4)
        failed = await bench.tried(lost[0])
    finally:
        test_is_over.set()

    assert failed.answer == "The call failed: lost.example has no address: no answer within 5 s."


# --- many ---------------------------------------------------------------------------------------------


async def test_a_hanging_receiver_delays_no_other(bench: Bench) -> None:
    hanging, good = await bench.receiver(answer=hang), await bench.receiver()
    sender = await bench.sender(timeout=30, per_host=4, concurrency=8)
    # Both have answered before.
    hanging.next_answers.append(OK)
    known = [bench.records.ended(receiver.url()) for receiver in (hanging, good)]
    for delivery in known:
        sender.expect(delivery)
    await bench.delivered(*known)
    stuck = [bench.records.ended(hanging.url()) for _ in range(2000)]
    for delivery in stuck:
        sender.expect(delivery)
    await wait_until(lambda: hanging.open == 4)

    deliveries = [bench.records.ended(good.url()) for _ in range(100)]
    for delivery in deliveries:
        sender.expect(delivery)
    await bench.delivered(*deliveries, deadline=20)

    assert hanging.most_open == 4
    assert good.most_open <= 4
    # What is on record as delivered leaves its place a moment later.
    await wait_until(lambda: sender.status == SenderStatus(waiting=1996, in_flight=4))


async def test_many_hanging_receivers_leave_room_for_those_that_answer(bench: Bench) -> None:
    hanging = [await bench.receiver(answer=hang) for _ in range(8)]
    good = await bench.receiver()
    sender = await bench.sender(timeout=0.5, per_host=2, concurrency=8)
    for receiver in hanging:
        for _ in range(50):
            sender.expect(bench.records.ended(receiver.url()))
    # Each has been tried and found silent; from now on they have a quarter of the calls.
    await wait_until(lambda: all(receiver.connections >= 2 for receiver in hanging))
    await wait_until(lambda: sum(receiver.open for receiver in hanging) <= 2)

    deliveries = [bench.records.ended(good.url()) for _ in range(50)]
    for delivery in deliveries:
        sender.expect(delivery)
    await bench.delivered(*deliveries, deadline=5)


async def test_a_receiver_that_was_silent_gets_all_once_it_answers(bench: Bench) -> None:
    receiver = await bench.receiver(answer=hang)
    sender = await bench.sender(timeout=0.3)
    deliveries = [bench.records.ended(receiver.url()) for _ in range(40)]
    for delivery in deliveries:
        sender.expect(delivery)
    await wait_until(lambda: receiver.connections >= 4)

    receiver.answer = OK
    await wait_until(lambda: len(receiver.received) >= 40)
    bench.clock.forward(timedelta(seconds=10))

    await bench.delivered(*deliveries)


# --- restarts, outages, erasure -----------------------------------------------------------------------


async def test_a_new_sender_goes_on_with_what_is_pending(bench: Bench) -> None:
    receiver = await bench.receiver(answer=hang)
    first = await bench.sender()
    deliveries = [bench.records.ended(receiver.url()) for _ in range(10)]
    for delivery in deliveries:
        first.expect(delivery)
    await wait_until(lambda: receiver.open == 1)
    await first.stop()

    receiver.answer = OK
    await bench.sender()
    await bench.delivered(*deliveries)

    ids = {received.webhook_id for received in receiver.received}
    assert ids == {delivery.delivery_id for delivery in deliveries}


async def test_a_sender_takes_up_more_than_fits_at_once(bench: Bench) -> None:
    receivers = [await bench.receiver() for _ in range(3)]
    deliveries = [bench.records.ended(receivers[number % 3].url()) for number in range(60)]

    await bench.sender()

    await bench.delivered(*deliveries)


async def test_a_restart_keeps_the_schedule(bench: Bench) -> None:
    receiver = await bench.receiver(answer=answer(500))
    first = await bench.sender()
    delivery = bench.records.ended(receiver.url())
    first.expect(delivery)
    await bench.tried(delivery)
    await first.stop()

    receiver.answer = OK
    second = await bench.sender()
    await wait_until(lambda: second.status.waiting == 1)
    assert len(receiver.received) == 1
    bench.clock.forward(DEFAULT_RETRY_DELAYS[0])
    await bench.delivered(delivery)

    assert bench.state(delivery).tries == 2


async def test_a_stop_lets_a_call_under_way_end(bench: Bench) -> None:
    receiver = await bench.receiver(
        answer=raw(b"HTTP/1.1 200 OK\r\n", b"Content-Length: 0\r\n\r\n", pause=0.1)
    )
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())
    sender.expect(delivery)
    await wait_until(lambda: receiver.received)

    await sender.stop()

    assert bench.state(delivery).state is DeliveryState.DELIVERED


async def test_what_is_expected_after_the_stop_is_left_to_the_next_sender(bench: Bench) -> None:
    receiver = await bench.receiver()
    sender = await bench.sender()
    await sender.stop()
    delivery = bench.records.ended(receiver.url())

    sender.expect(delivery)
    await bench.sender()
    await bench.delivered(delivery)

    assert len(receiver.received) == 1


async def test_a_start_waits_for_the_database(bench: Bench) -> None:
    receiver = await bench.receiver()
    delivery = bench.records.ended(receiver.url())
    bench.records.down = True
    starting = asyncio.create_task(bench.sender())
    await wait_until(lambda: bench.records.refused >= 2)
    assert not starting.done()

    bench.records.down = False
    await starting
    await bench.delivered(delivery)

    assert len(receiver.received) == 1


async def test_an_outage_during_a_call_loses_nothing(bench: Bench) -> None:
    receiver = await bench.receiver()
    sender = await bench.sender()
    delivery, next_one = bench.records.ended(receiver.url()), bench.records.ended(receiver.url())

    async def go_away(received: Received, writer: asyncio.StreamWriter) -> None:
        bench.records.down = True
        await OK(received, writer)

    receiver.next_answers.append(go_away)
    sender.expect(delivery)
    await wait_until(lambda: receiver.received and bench.records.down)
    sender.expect(next_one)
    assert sender.status.in_flight >= 1
    bench.records.down = False

    await bench.delivered(delivery, next_one)
    assert len(receiver.received) == 2


async def test_a_write_whose_answer_was_lost_is_not_repeated(bench: Bench) -> None:
    receiver = await bench.receiver()
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())
    bench.records.lose_answers = 1

    sender.expect(delivery)
    await wait_until(lambda: sender.status == SenderStatus(waiting=0, in_flight=0) and receiver.received)

    assert len(bench.attempts(delivery)) == 1
    assert len(receiver.received) == 1


async def test_nothing_is_called_for_an_erased_job(bench: Bench) -> None:
    receiver = await bench.receiver(answer=answer(500))
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())
    sender.expect(delivery)
    await bench.tried(delivery)
    await wait_until(lambda: sender.status.waiting == 1)

    bench.records.erase(delivery.job_id)
    sender.forget(delivery.job_id)
    assert sender.status == SenderStatus(waiting=0, in_flight=0)
    bench.clock.forward(timedelta(days=1))
    beside = bench.records.ended(receiver.url("/beside"))
    sender.expect(beside)
    await bench.tried(beside)

    assert [received.target for received in receiver.received] == ["/hook", "/beside"]


async def test_erasing_a_job_breaks_off_a_call_under_way(bench: Bench) -> None:
    receiver = await bench.receiver(answer=hang)
    sender = await bench.sender(timeout=30)
    delivery = bench.records.ended(receiver.url())
    sender.expect(delivery)
    await wait_until(lambda: receiver.open == 1)

    bench.records.erase(delivery.job_id)
    sender.forget(delivery.job_id)

    await wait_until(lambda: receiver.open == 0)
    await wait_until(lambda: sender.status == SenderStatus(waiting=0, in_flight=0))


async def test_a_job_that_was_erased_unheard_is_not_called(bench: Bench) -> None:
    receiver = await bench.receiver()
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())
    bench.records.erase(delivery.job_id)

    sender.expect(delivery)
    await wait_until(lambda: sender.status == SenderStatus(waiting=0, in_flight=0))

    assert receiver.connections == 0


# --- sending again ------------------------------------------------------------------------------------


async def test_a_delivery_is_sent_again_when_asked_for(bench: Bench) -> None:
    receiver = await bench.receiver(next_answers=deque_of(answer(410)))
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())
    sender.expect(delivery)
    await bench.tried(delivery)
    assert bench.state(delivery).state is DeliveryState.GIVEN_UP

    sender.expect(asked_again(bench, delivery))
    await bench.delivered(delivery)

    assert [received.webhook_id for received in receiver.received] == [delivery.delivery_id] * 2


async def test_asking_again_does_not_wait_for_the_schedule_and_begins_anew(bench: Bench) -> None:
    receiver = await bench.receiver(answer=answer(500))
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())
    sender.expect(delivery)
    await bench.tried(delivery)

    sender.expect(asked_again(bench, delivery))
    await bench.tried(delivery, 2)

    assert bench.state(delivery).tries == 1
    await wait_until(lambda: sender.status == SenderStatus(waiting=1, in_flight=0))


async def test_a_delivery_that_waits_is_resumed_and_one_under_way_is_left_to_its_call(bench: Bench) -> None:
    go_on = asyncio.Event()

    async def wait_for_the_test(received: Received, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await OK(received, writer)

    receiver = await bench.receiver(next_answers=deque_of(wait_for_the_test))
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())
    sender.resume(delivery)
    await wait_until(lambda: receiver.received)

    sender.resume(delivery)
    go_on.set()
    await bench.delivered(delivery)

    await wait_until(lambda: sender.status == SenderStatus(waiting=0, in_flight=0))
    assert len(receiver.received) == 1


async def test_asking_again_during_a_call_calls_once_more_after_it(bench: Bench) -> None:
    go_on = asyncio.Event()

    async def wait_for_the_test(received: Received, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await OK(received, writer)

    receiver = await bench.receiver(next_answers=deque_of(wait_for_the_test))
    sender = await bench.sender()
    delivery = bench.records.ended(receiver.url())
    sender.expect(delivery)
    await wait_until(lambda: receiver.received)

    sender.expect(asked_again(bench, delivery))
    go_on.set()
    await bench.tried(delivery, 2)

    await bench.delivered(delivery)
    assert receiver.most_open == 1


async def test_without_a_secret_nothing_is_called_and_rows_stay(bench: Bench) -> None:
    receiver = await bench.receiver()
    delivery = bench.records.ended(receiver.url())
    silent = await bench.sender(secrets=None)

    silent.expect(delivery)

    assert silent.status == SenderStatus(waiting=0, in_flight=0)
    await silent.stop()
    assert receiver.connections == 0
    assert bench.state(delivery).state is DeliveryState.PENDING


async def test_a_job_that_cannot_be_read_holds_up_nothing(bench: Bench) -> None:
    receiver = await bench.receiver()
    sender = await bench.sender()
    broken, good = bench.records.ended(receiver.url()), bench.records.ended(receiver.url())
    bench.records.jobs[broken.job_id] = None  # type: ignore[assignment]  # erased only in this table

    sender.expect(broken)
    sender.expect(good)

    await bench.delivered(good)


async def test_a_clock_that_is_put_back_postpones_no_call(bench: Bench) -> None:
    receiver = await bench.receiver(next_answers=deque_of(answer(500, b"later")))
    delivery = bench.records.ended(receiver.url())
    await bench.sender(retry_delays_seconds="1")
    await bench.tried(delivery)
    bench.clock.forward(timedelta(days=-2))
    await bench.delivered(delivery)


# --- the real record ----------------------------------------------------------------------------------


async def test_deliveries_go_through_the_real_record(bench: Bench, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'webhooks.db'}"
    await asyncio.to_thread(upgrade, url)
    engine = open_engine(DatabaseSettings(), url)
    jobs, deliveries = JobRepository(engine), DeliveryRepository(engine)
    receiver = await bench.receiver(next_answers=deque_of(answer(500, b"try later")))
    job = finished_in(jobs, receiver.url())
    settings = WebhookSettings.model_validate({"secrets": SECRET, "allow_private": True})

    def a_sender() -> WebhookSender:
        return WebhookSender(deliveries, jobs.find_job, settings, 0, now=bench.clock.now, jitter=lambda: 1)

    first = a_sender()
    await first.start(FENCE)
    await wait_until(lambda: deliveries.list_reports("ana", job)[0].attempts)
    await first.stop()
    bench.clock.forward(timedelta(minutes=1))
    second = a_sender()
    await second.start(FENCE)
    await wait_until(lambda: not deliveries.list_pending(0))
    await second.stop()
    jobs.close()

    [report] = deliveries.list_reports("ana", job)
    assert report.delivery.state is DeliveryState.DELIVERED
    assert report.delivery.tries == 2
    assert [(attempt.status, attempt.answer) for attempt in report.attempts] == [
        (500, "try later"),
        (200, "thank you"),
    ]
    assert receiver.messages[0] == receiver.messages[1]
    assert receiver.messages[0]["seq"] == report.delivery.seq
    jobs.close()


# --- helpers ------------------------------------------------------------------------------------------


def deque_of(*answers: Answer) -> deque[Answer]:
    return deque(answers)


def ended(attempt: DeliveryAttempt) -> datetime:
    return attempt.at + timedelta(seconds=attempt.seconds)


def asked_again(bench: Bench, delivery: WebhookDelivery) -> WebhookDelivery:
    again = bench.records.reschedule(
        delivery.customer_id, delivery.job_id, delivery.delivery_id, bench.clock.now(), FENCE
    )
    assert again is not None
    return again


def finished_in(records: JobRepository, url: str) -> str:
    """The id of a job that is DONE in this record and wants to be told of."""
    epoch = records.claim_shard(0)
    submitted = submission(a_job(callback_url=url, created_at=datetime.now(UTC)))
    started = start(submitted.job)
    records.commit(0, epoch, [submitted, started, finish(started.job)])
    return submitted.job.job_id


async def a_certificate(name: str, folder: Path) -> tuple[Path, Path]:
    """A certificate that vouches for itself, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    made = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", f"/CN={name}"),
        *("-addext", f"subjectAltName=DNS:{name}"),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await made.wait() == 0
    return certificate, key
