"""Streams of job updates as server-sent events, over real sockets."""

import asyncio
import base64
import io
import random
from datetime import timedelta
from pathlib import Path

import pytest
from PIL import Image

from avatarforge.domain.customers import shard_of
from avatarforge.domain.jobs import new_job_id
from avatarforge.ingress.live.job_cache import JobCache
from avatarforge.ingress.live.streams import JobStreams
from avatarforge.ingress.rest import sse
from avatarforge.tracker.cleanup.retention import ConfirmedClock, EventRetention
from tests.events import Event, subscriber_count
from tests.integration.rest import problem
from tests.integration.service import EventStream, Service, a_preview, running_service
from tests.waiting import wait_until

Told = list[tuple[str, int | None, str | None]]


def told(events: list[Event]) -> Told:
    """Kinds, ids and statuses of what every client hears: steps come or do not."""
    return [event.told for event in events if event.kind != "progress"]


async def whole_story(service: Service) -> Told:
    """Three jobs that went well, all that a client can hear of them."""
    async with service.stream() as stream:
        events = [await stream.next()]
        for _ in range(3):
            await service.submitted()
            events += await stream.until("DONE")
    return told(events)


# --- live -------------------------------------------------------------------------------------------------


async def test_a_stream_begins_with_the_unfinished_jobs(service: Service) -> None:
    await service.ended(await service.submitted())
    running = await service.running()
    await service.submitted("ben")
    await wait_until(lambda: service.live.seq("ana") >= 6)

    async with service.stream() as stream:
        snapshot = await stream.next()

    assert stream.response.headers["content-type"].startswith("text/event-stream")
    assert stream.response.headers["cache-control"] == "no-store"
    assert (snapshot.kind, [photo["jobId"] for photo in snapshot.data["photos"]]) == ("snapshot", [running])
    assert snapshot.id == snapshot.data["seq"] >= service.recorded(running).seq


async def test_every_change_is_told_in_order_under_its_number(service: Service) -> None:
    assert await whole_story(service) == [
        ("snapshot", 0, None),
        *(
            ("status", 3 * job + place, status)
            for job in range(3)
            for place, status in enumerate(("PENDING", "PROCESSING", "DONE"), start=1)
        ),
    ]


async def test_a_status_is_the_message_that_a_read_gives(service: Service) -> None:
    async with service.stream() as stream:
        job_id = await service.submitted()
        events = await stream.until("DONE")

    assert events[-1].data == (await service.get(job_id)).json()
    assert events[-1].id == events[-1].data["seq"]


async def test_steps_are_told_without_a_number_and_with_a_picture_only_when_asked(service: Service) -> None:
    puppet = service.puppet()
    async with service.stream() as plain, service.stream(previews=True) as pictured:
        await service.submitted()
        puppet.step(7, 20, a_preview(), 2)
        [*_, without] = await plain.until("progress")
        [*_, with_picture] = await pictured.until("progress")

    assert (without.id, without.data["progress"]) == (None, {"step": 7, "totalSteps": 20})
    assert "preview" not in without.data
    assert "index" not in without.data
    assert with_picture.data.pop("index") == 2
    kind, _, content = with_picture.data.pop("preview").partition(",")
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("WEBP", (64, 64))
    assert with_picture.data == without.data


async def test_the_stream_of_one_job_tells_of_nothing_else_and_ends_with_it(service: Service) -> None:
    puppet = service.puppet()
    wanted = await service.submitted()
    async with service.stream(jobId=wanted) as stream:
        snapshot = await stream.next()
        await service.ended(await service.submitted())
        puppet.finish()
        events = await stream.rest()

    assert [photo["jobId"] for photo in snapshot.data["photos"]] == [wanted]
    assert {event.data["jobId"] for event in events} == {wanted}
    assert events[-1].data["status"] == "DONE"


async def test_the_stream_of_a_job_that_has_ended_says_so_and_ends(service: Service) -> None:
    job_id = await service.submitted()
    await service.ended(job_id)

    async with service.stream(jobId=job_id) as stream:
        [snapshot] = await stream.rest()

    assert [photo["status"] for photo in snapshot.data["photos"]] == ["DONE"]


async def test_an_erased_job_is_told_as_its_ids_and_ends_its_stream(service: Service) -> None:
    job_id = await service.running()
    async with service.stream() as stream, service.stream(jobId=job_id) as stream_of_job:
        await stream.next()
        await stream_of_job.next()
        await service.erase(job_id)
        [*_, last] = await stream.until("erased")
        events = await stream_of_job.rest()

    number = service.story(job_id)[-1][0]
    assert last == Event(kind="erased", id=number, data={"jobId": job_id, "customerId": "ana", "seq": number})
    assert events[-1] == last


async def test_customers_of_different_shards_hear_of_their_own_jobs(tmp_path: Path) -> None:
    customers = ["ana", next(name for name in ("ben", "cleo", "dora", "emil") if shard_of(name, 2) == 1)]
    assert [shard_of(name, 2) for name in customers] == [0, 1]
    async with running_service(tmp_path, tracker={"shards": 2}) as service:
        async with service.stream(customers[0]) as one, service.stream(customers[1]) as other:
            for customer_id in [*customers, *customers]:
                await service.ended(await service.submitted(customer_id), customer_id)
            heard = [[*await stream.until("DONE"), *await stream.until("DONE")] for stream in (one, other)]
        async with service.fresh_replica() as fresh, fresh.stream(customers[1], last_event_id=0) as again:
            replayed = [*await again.until("DONE"), *await again.until("DONE")]

    for customer_id, events in zip(customers, heard, strict=True):
        changes = [event for event in events if event.kind == "status"]
        assert [event.data["customerId"] for event in changes] == [customer_id] * 6
        ids = [event.id or 0 for event in changes]
        assert ids == sorted(set(ids))
    assert told(replayed) == told(heard[1])[1:]


# --- coming back ------------------------------------------------------------------------------------------


async def test_a_client_that_comes_back_hears_exactly_what_it_missed(service: Service) -> None:
    story = await whole_story(service)

    for seen in (0, 1, 5, 8):
        async with service.stream(last_event_id=seen) as stream:
            missed = [await stream.next() for _ in range(9 - seen)]
        assert told(missed) == story[1 + seen :]


async def test_the_number_may_also_stand_in_the_url_and_the_newer_one_counts(service: Service) -> None:
    story = await whole_story(service)

    async with service.stream(after=7) as by_url, service.stream(after=1, last_event_id=8) as by_both:
        assert told([await by_url.next(), await by_url.next()]) == story[-2:]
        assert told([await by_both.next()]) == story[-1:]


async def test_a_replica_that_has_seen_nothing_tells_it_from_the_record(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobStreams, "PAGE_SIZE", 2)
    async with service.stream() as stream:
        for _ in range(2):
            await service.ended(await service.submitted())
        heard = [event for event in [*await stream.until("DONE"), *await stream.until("DONE")] if event.id]

    async with service.fresh_replica() as fresh, fresh.stream(last_event_id=1) as again:
        replayed = [await again.next() for _ in range(5)]
        await service.ended(await service.submitted())
        live = await again.until("DONE")

    assert [event.data["seq"] for event in replayed] == [2, 3, 4, 5, 6]
    assert told(replayed) == told(heard)[1:]
    assert told(live) == [("status", 7, "PENDING"), ("status", 8, "PROCESSING"), ("status", 9, "DONE")]


async def test_what_a_replica_no_longer_keeps_comes_from_the_record(tmp_path: Path) -> None:
    async with running_service(tmp_path, ingress={"recent_events": 2}) as service:
        story = await whole_story(service)
        assert service.live.recent_changes("ana", 1) is None
        async with service.stream(last_event_id=1) as stream:
            assert told([await stream.next() for _ in range(8)]) == story[2:]


async def test_a_stream_goes_on_over_the_death_of_the_tracker(service: Service) -> None:
    running = await service.running()
    async with service.stream() as stream:
        await stream.next()
        await service.kill_trackers()
        await service.start_trackers()
        await service.ended(running)
        events = told(await stream.until("DONE"))

    assert events == [("status", 3, "PENDING"), ("status", 4, "PROCESSING"), ("status", 5, "DONE")]


async def test_what_was_missed_over_the_death_of_the_tracker_is_told(service: Service) -> None:
    running = await service.running()
    await service.kill_trackers()
    await service.start_trackers()
    await service.ended(running)

    async with service.stream(last_event_id=1) as stream:
        events = told(await stream.until("DONE"))
    async with service.fresh_replica() as fresh, fresh.stream(last_event_id=1) as again:
        assert told(await again.until("DONE")) == events

    assert [number for _, number, _ in events] == [2, 3, 4, 5]


async def test_a_client_that_is_cut_again_and_again_misses_nothing(tmp_path: Path) -> None:
    chance, heard = random.Random(5), [0]
    async with running_service(tmp_path, ingress={"heartbeat_seconds": 0.05}) as service:
        work = asyncio.create_task(all_ended(service, 20))
        while not work.done() or heard[-1] < service.records.get_latest_seq(0):
            async with service.stream(last_event_id=heard[-1]) as stream:
                for _ in range(chance.randint(1, 6)):
                    event = await stream.anything()
                    if event.id is not None:
                        heard.append(event.id)
            if chance.random() < 0.1:
                await service.kill_trackers()
                await service.start_trackers()
        await work
        log = service.records.list_customer_events("ana", None, 0, 1000)

    assert heard[1:] == [entry.event.seq for entry in log]
    assert [entry.event.kind.value for entry in log].count("done") == 20


async def all_ended(service: Service, jobs: int) -> None:
    for _ in range(jobs):
        job_id = await service.submitted()
        await wait_until(lambda job_id=job_id: service.recorded(job_id).status.is_terminal)


async def test_a_browser_that_heard_of_the_end_is_told_not_to_come_back(service: Service) -> None:
    job_id = await service.submitted()
    end = (await service.ended(job_id))["seq"]

    async with service.stream(jobId=job_id, last_event_id=end) as stream:
        assert (stream.response.status_code, await stream.rest()) == (204, [])


async def test_the_last_event_is_told_to_one_who_missed_it_and_ends_the_stream(service: Service) -> None:
    job_id = await service.submitted()
    end = (await service.ended(job_id))["seq"]

    async with service.stream(jobId=job_id, last_event_id=end - 1) as stream:
        assert told(await stream.rest()) == [("status", end, "DONE")]


async def test_one_who_was_away_hears_of_an_erased_job_only_that_it_is_erased(service: Service) -> None:
    kept = await service.submitted()
    await service.ended(kept)
    erased = await service.submitted()
    await service.ended(erased)
    await service.erase(erased)

    async with service.fresh_replica() as fresh:
        for replica in (service, fresh):
            async with replica.stream(last_event_id=3) as stream:
                assert told([await stream.next()]) == [("erased", 7, None)]
            async with replica.stream(jobId=erased, last_event_id=3) as stream:
                assert told(await stream.rest()) == [("erased", 7, None)]


async def test_where_the_log_was_pruned_a_new_snapshot_stands_for_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ConfirmedClock, "CONFIRMATION_DELAY_SECONDS", 0.05)
    monkeypatch.setattr(EventRetention, "INTERVAL_SECONDS", 0.05)
    async with running_service(tmp_path) as service:
        await check_that_a_new_snapshot_stands_for_what_is_lost(service)


async def check_that_a_new_snapshot_stands_for_what_is_lost(service: Service) -> None:
    await service.ended(await service.submitted())
    running = await service.running()
    service.clock.ahead = timedelta(days=40)
    await service.erase(await service.submitted("ben"), "ben")
    await wait_until(lambda: service.records.get_log_bounds(0).pruned_seq >= 5)

    async with service.fresh_replica() as fresh:
        async with fresh.stream(last_event_id=2) as stream:
            reset = await stream.next()
        assert reset.id is not None
        async with fresh.stream(last_event_id=reset.id) as again:
            assert (await again.anything()).kind == "comment"

    assert (reset.kind, [photo["jobId"] for photo in reset.data["photos"]]) == ("reset", [running])
    assert reset.id >= service.records.get_log_bounds(0).pruned_seq


# --- slow clients, silence and the end ------------------------------------------------------------------


async def filled(service: Service, stream: EventStream) -> None:
    """Tell the stream more than its client, who reads no more, has room for."""
    puppet = service.puppet()
    await stream.next()
    job_id = await service.submitted()
    preview = random.Random(1).randbytes(1_000_000)

    def shown() -> int:
        live = service.live.get("ana", job_id)
        return 0 if live is None or live.progress is None else live.progress.step

    for step in range(1, 17):
        puppet.step(step, 20, preview)
        await wait_until(lambda step=step: shown() == step, what="the step is shown")


async def test_a_client_that_does_not_read_is_told_that_it_was_too_slow_and_can_resume(
    tmp_path: Path,
) -> None:
    async with running_service(tmp_path, ingress={"stream_buffer": 2}) as service:
        async with service.stream(previews=True) as stream:
            await filled(service, stream)
            for _ in range(3):
                await service.ended(await service.submitted())
            events = await stream.rest()
        last = events[-1]
        async with service.stream(last_event_id=last.data["seq"]) as again:
            missed = [await again.next() for _ in range(11 - last.data["seq"])]

    assert last.kind == "overflow"
    assert last.id is None, "an id of its own would make a browser skip what it missed"
    heard = [event.id for event in events if event.kind == "status"]
    assert heard + [event.id for event in missed if event.kind == "status"] == list(range(1, 12))


async def test_a_client_that_never_reads_is_not_kept_for_ever(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "SEND_TIMEOUT_SECONDS", 0.5)
    async with service.stream(previews=True) as stream:
        await filled(service, stream)
        await wait_until(lambda: subscriber_count(service.live) == 0)


async def test_every_blank_line_ends_an_event_with_data(tmp_path: Path) -> None:
    # Some clients take any other block for an event without data.
    quick = {"heartbeat_seconds": 0.05, "max_stream_seconds": 1}
    async with running_service(tmp_path, ingress=quick) as service:
        await service.submitted()
        answer = await service.client.get("/customers/ana/photos/stream", headers={"Last-Event-ID": "0"})
    assert "\n:\n" in answer.text, "heartbeats"
    assert answer.text.count("retry: ") == 1
    blocks = [block for block in answer.text.split("\n\n") if block.strip(":\n")]
    assert blocks[0].startswith("retry: 1000\n")
    assert all("\ndata: " in block for block in blocks)


async def test_below_a_proxys_path_events_tell_addresses_that_begin_with_it(tmp_path: Path) -> None:
    http = {"trusted_proxies": "127.0.0.1"}
    async with running_service(tmp_path, http=http) as service:
        end = (await service.ended(await service.submitted()))["seq"]
        told = []
        for headers in ({}, {"X-Forwarded-Prefix": "/avatars"}):
            service.client.headers.update(headers)
            async with service.stream(last_event_id=0) as stream:
                told.append((await stream.until("DONE"))[-1].data["generatedUrl"])

    assert told[1] == f"/avatars{told[0]}", end


async def test_a_silent_stream_is_kept_alive_with_comments(tmp_path: Path) -> None:
    quick = {"heartbeat_seconds": 0.1}
    async with running_service(tmp_path, ingress=quick) as service, service.stream() as stream:
        kinds = [(await stream.anything(2)).kind for _ in range(4)]

    assert kinds == ["snapshot", "comment", "comment", "comment"]


async def test_one_who_has_missed_nothing_is_answered_at_once(service: Service) -> None:
    await service.ended(await service.submitted())

    async with asyncio.timeout(2), service.stream(last_event_id=3) as stream:
        assert (await stream.anything()).kind == "comment"


async def test_a_stream_ends_by_itself_after_its_time(tmp_path: Path) -> None:
    async with running_service(tmp_path, ingress={"max_stream_seconds": 1}) as service:
        async with service.stream() as stream:
            assert told(await stream.rest()) == [("snapshot", 0, None)]
        await wait_until(lambda: subscriber_count(service.live) == 0)


async def test_a_client_that_goes_away_leaves_no_subscriber(service: Service) -> None:
    async with service.stream() as stream, service.stream("ben") as other:
        await stream.next()
        await other.next()
        assert subscriber_count(service.live) == 2

    # Long before a heartbeat would find out.
    await wait_until(lambda: subscriber_count(service.live) == 0)


async def test_many_clients_of_a_customer_cost_the_tracker_no_more_than_one(service: Service) -> None:
    def answers() -> int:
        return sum(actor.describe()["feedReads"] for actor in service.running_trackers)

    async with asyncio.TaskGroup() as group:
        ready = asyncio.Barrier(51)

        async def client() -> list[Event]:
            async with service.stream() as stream:
                await stream.next()
                await ready.wait()
                return await stream.until("DONE")

        clients = [group.create_task(client()) for _ in range(50)]
        await ready.wait()
        before = answers()
        await service.submitted()

    assert answers() - before < 10
    assert len({tuple(told(client.result())) for client in clients}) == 1


# --- bad input --------------------------------------------------------------------------------------------


async def test_a_wrong_number_is_named_with_its_value(service: Service) -> None:
    await service.ended(await service.submitted())
    path = "/customers/ana/photos/stream"

    for value in ("abc", "-5", "1.5", "\u0663", "9" * 30, "4"):
        by_url = await service.client.get(path, params={"after": value})
        by_header = await service.client.get(path, headers=[(b"Last-Event-ID", value.encode())])
        for answer, name in ((by_url, "after"), (by_header, "Last-Event-ID")):
            document = problem(answer)
            assert (answer.status_code, document["code"]) == (422, "invalid_request")
            assert name in document["detail"]
            # Headers are Latin-1.
            sent = value if name == "after" else value.encode().decode("latin-1")
            assert str(document["value"]) == sent

    assert subscriber_count(service.live) == 0


async def test_the_stream_of_an_unknown_job_is_not_found(service: Service) -> None:
    await service.ended(await service.submitted())

    for job_id in (new_job_id(), "1", "x" * 3000):
        for last_event_id in (None, 3):
            async with service.stream(jobId=job_id, last_event_id=last_event_id) as stream:
                await stream.response.aread()
            assert (stream.response.status_code, problem(stream.response)["code"]) == (404, "job_not_found")


async def test_the_stream_of_another_customers_job_is_not_found(service: Service) -> None:
    job_id = await service.running()

    answer = await service.client.get("/customers/ben/photos/stream", params={"jobId": job_id})

    assert (answer.status_code, problem(answer)["code"]) == (404, "job_not_found")


async def test_the_stream_of_a_malformed_customer_is_refused(service: Service) -> None:
    answer = await service.client.get("/customers/a%20b/photos/stream")

    assert (answer.status_code, problem(answer)["code"]) == (400, "invalid_customer_id")


async def test_a_replica_that_no_tracker_has_answered_yet_says_so(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobCache, "FIRST_READ_TIMEOUT_SECONDS", 0.1)
    service.live._shards[0].known.clear()
    await service.kill_trackers()

    answer = await service.client.get("/customers/ana/photos/stream")

    assert (answer.status_code, problem(answer)["code"]) == (503, "tracker_unavailable")
    assert answer.headers["retry-after"]
