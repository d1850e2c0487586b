"""The REST calls, good and bad, from the request to what is kept."""

import asyncio
import hashlib
import io
import json
import random
import struct
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
from PIL import Image

from avatarforge.domain.errors import DatabaseUnavailable, StorageUnavailable, TrackerUnavailable
from avatarforge.domain.events import EventKind
from avatarforge.domain.identifiers import new_job_id
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.domain.status import ProcessingStatus
from avatarforge.ingress.schemas import status_message
from avatarforge.ingress.submissions import FIELDS
from avatarforge.ingress.view import LiveJob
from avatarforge.storage.keys import avatar_key
from tests.factories import an_image, an_outcome
from tests.integration.rest import Rest, progressed, running_rest
from tests.waiting import wait_until


@pytest_asyncio.fixture
async def rest(tmp_path: Path) -> AsyncIterator[Rest]:
    async with running_rest(tmp_path) as rest:
        yield rest


# --- pictures and moves ---------------------------------------------------------------------------------


@cache
def a_jpeg(width: int = 96, height: int = 64) -> bytes:
    content = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(content, "JPEG", quality=90)
    return content.getvalue()


@cache
def a_png_bomb(side: int = 30_000) -> bytes:
    """One bit a pixel, all black: some hundred kilobytes that become 112 MB."""
    row = bytes(1 + side // 8)
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(row * 1000) for _ in range(side // 1000)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    )


async def finished(rest: Rest, job: ProfilePhotoJob, avatar: bytes = b"\x89PNG avatar") -> ProfilePhotoJob:
    """The job DONE, its avatar in storage; the view has heard of it."""
    started = rest.tracker.commit(job.started(job.created_at + timedelta(seconds=1)), EventKind.STARTED)
    key = avatar_key(job.customer_id, job.job_id, started.attempt, job.parameters.format)
    rest.storage.put(key, io.BytesIO(avatar), "image/png")
    image = an_image(
        key=key, media_type="image/png", size=len(avatar), sha256=hashlib.sha256(avatar).hexdigest()
    )
    done = started.done(an_outcome(avatar=image), job.created_at + timedelta(seconds=3))
    committed = rest.tracker.commit(done, EventKind.DONE)
    await rest.live.terminal(job.customer_id, job.job_id, 10)
    return committed


def problem(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    document: dict[str, Any] = answer.json()
    assert document["status"] == answer.status_code
    assert set(document) >= {"type", "title", "detail", "instance", "code"}
    return document


# --- uploading ------------------------------------------------------------------------------------------


async def test_an_upload_is_accepted_with_its_status_and_where_to_follow_it(rest: Rest) -> None:
    answer = await rest.post("ana", a_jpeg(), prompt="smiling", style="neon", seed="5", priority="3")

    body = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/customers/ana/photos/{body['jobId']}/status"
    assert (body["status"], body["isTerminal"], body["seed"], body["seq"]) == ("PENDING", False, 5, 1)
    followed = await rest.client.get(answer.headers["location"])
    assert {**followed.json(), "queuePosition": None, "etaSeconds": None} == body


async def test_an_accepted_upload_is_in_the_record_and_in_storage(rest: Rest) -> None:
    job = await rest.submitted(
        "ana", a_jpeg(), style="neon", strength="0.5", priority="3", callbackUrl="https://example.org/hook"
    )

    recorded = rest.records.job("ana", job.job_id)
    assert recorded == job
    assert (recorded.parameters.style, recorded.parameters.strength) == ("neon", 0.5)
    assert (recorded.priority, recorded.callback_url) == (3, "https://example.org/hook")
    content = rest.storage.get(job.original.key)
    assert job.original == an_image(
        key=f"customers/ana/{job.job_id}/original.jpg",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        width=96,
        height=64,
    )
    assert list(rest.photos.upload_folder.iterdir()) == []


async def test_ana_in_capitals_is_another_customer(rest: Rest) -> None:
    await rest.submitted("Ana", a_jpeg())

    assert (await rest.client.get("/customers/Ana")).status_code == 200
    assert problem(await rest.client.get("/customers/ana"))["code"] == "customer_not_found"


REFUSED_PHOTOS: dict[str, tuple[Any, int, str]] = {
    "empty": (lambda: b"", 422, "photo_empty"),
    "text": (lambda: b"I am a portrait, honestly.\n" * 50, 422, "photo_not_an_image"),
    "truncated": (lambda: a_jpeg(640, 480)[:9000], 422, "photo_damaged"),
    "bomb": (a_png_bomb, 422, "photo_dimensions"),
    "tiny": (lambda: a_jpeg(8, 8), 422, "photo_dimensions"),
    "large": (lambda: a_jpeg() + bytes(25 * 1024 * 1024), 413, "photo_too_large"),
}


@pytest.mark.parametrize("name", REFUSED_PHOTOS)
async def test_a_bad_photo_is_refused_and_nothing_is_kept(rest: Rest, name: str) -> None:
    make, status, code = REFUSED_PHOTOS[name]

    answer = await rest.post("ana", make())

    assert (answer.status_code, problem(answer)["code"]) == (status, code)
    assert rest.kept() == []


async def test_an_upload_without_a_photo_is_refused(rest: Rest) -> None:
    answer = await rest.client.post("/customers/ana", files={"picture": ("a.jpg", a_jpeg())})
    without_any = await rest.client.post("/customers/ana", files={"prompt": (None, "smiling")})

    assert answer.status_code == 422
    assert problem(without_any)["code"] == "photo_missing"
    assert rest.kept() == []


async def test_a_body_that_is_no_form_is_refused(rest: Rest) -> None:
    answer = await rest.client.post("/customers/ana", json={"photo": "…"})

    assert (answer.status_code, problem(answer)["code"]) == (415, "unsupported_media_type")


async def test_a_form_that_ends_early_is_refused(rest: Rest) -> None:
    request = rest.client.build_request("POST", "/customers/ana", files={"photo": ("a.jpg", a_jpeg())})
    answer = await rest.client.post(
        "/customers/ana",
        content=request.read()[:-30],
        headers={"Content-Type": request.headers["content-type"]},
    )

    assert (answer.status_code, problem(answer)["code"]) == (400, "malformed_upload")
    assert rest.kept() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("strength", "7"),
        ("seed", str(2**70)),
        ("style", "cubism"),
        ("steps", "many"),
        ("callbackUrl", "javascript:alert(1)"),
        ("priority", "100"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_kept(rest: Rest, field: str, value: str) -> None:
    answer = await rest.post("ana", a_jpeg(), **{field: value})

    told = problem(answer)
    assert (answer.status_code, told["code"]) == (422, "invalid_request")
    assert (told["field"], told["value"]) == (field, value)
    assert value in told["detail"]
    assert told["expected"] in told["detail"]
    assert rest.kept() == []


async def test_a_misspelt_field_is_not_silently_without_effect(rest: Rest) -> None:
    told = problem(await rest.post("ana", a_jpeg(), strenght="0.5"))

    assert told["code"] == "invalid_request"
    assert "strength" in told["detail"]


BAD_IDS = ["a%2Fb", "a%20b", "%C3%A9va", "a" * 500, "-ana", "a%00b", "%2Fphotos", "a%2Fphotos", "a%3Fb"]


@pytest.mark.parametrize("customer_id", BAD_IDS)
@pytest.mark.parametrize(
    ("method", "rest_of_path"), [("POST", ""), ("GET", ""), ("GET", "/photos"), ("GET", "/photos/1/status")]
)
async def test_a_malformed_customer_id_is_refused_by_its_grammar(
    rest: Rest, customer_id: str, method: str, rest_of_path: str
) -> None:
    answer = await rest.client.request(method, f"/customers/{customer_id}{rest_of_path}")

    assert (answer.status_code, problem(answer)["code"]) == (400, "invalid_customer_id")
    assert "1 to 64 characters" in answer.json()["detail"]


async def test_a_malformed_customer_id_is_refused_before_the_body_is_read(rest: Rest) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("somebody reads")
        yield b""

    answer = await rest.client.post("/customers/a%20b", content=body())

    assert answer.status_code == 400


@pytest.mark.parametrize(
    "refusal", [DatabaseUnavailable("gone"), TrackerUnavailable("gone", retry_after=9)], ids=lambda e: e.code
)
async def test_a_submission_that_cannot_be_committed_is_a_503_and_leaves_no_object(
    rest: Rest, refusal: DatabaseUnavailable | TrackerUnavailable
) -> None:
    rest.tracker.refusal = refusal

    answer = await rest.post("ana", a_jpeg())

    assert (answer.status_code, problem(answer)["code"]) == (503, refusal.code)
    assert answer.headers["retry-after"] == str(refusal.retry_after)
    assert "gone" not in answer.text
    assert rest.kept() == []


async def test_an_error_of_the_tracker_that_nobody_expected_leaves_no_object_and_no_traceback(
    rest: Rest,
) -> None:
    rest.tracker.refusal = ZeroDivisionError("secret")  # type: ignore[assignment]  # any error at all

    answer = await rest.post("ana", a_jpeg())

    assert (answer.status_code, problem(answer)["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert rest.kept() == []


async def test_full_storage_is_a_503_of_its_own_code_and_nothing_is_kept(rest: Rest) -> None:
    rest.storage.full = True

    answer = await rest.post("ana", a_jpeg())

    assert (answer.status_code, problem(answer)["code"]) == (503, "storage_full")
    assert "retry-after" in answer.headers
    assert rest.kept() == []


async def test_an_object_that_cannot_be_deleted_again_does_not_hide_why(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(key: str) -> None:
        raise StorageUnavailable("away")

    rest.tracker.refusal = DatabaseUnavailable("gone")
    monkeypatch.setattr(rest.storage, "delete", away)

    assert problem(await rest.post("ana", a_jpeg()))["code"] == "database_unavailable"


async def test_a_client_that_gives_up_during_the_commit_leaves_a_whole_job(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitting, go_on = asyncio.Event(), asyncio.Event()
    submit = rest.tracker.submit

    async def slowly(job: ProfilePhotoJob) -> ProfilePhotoJob:
        submitting.set()
        await go_on.wait()
        return await submit(job)

    monkeypatch.setattr(rest.tracker, "submit", slowly)
    request = asyncio.create_task(rest.post("ana", a_jpeg()))
    await submitting.wait()
    request.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await request

    [job] = rest.records.unfinished(0)
    assert len(rest.storage.get(job.original.key)) == job.original.size


# --- status ---------------------------------------------------------------------------------------------


async def test_a_running_job_shows_its_steps(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg())
    rest.tracker.commit(job.started(job.created_at), EventKind.STARTED)
    progressed(rest, job, 7, 20)

    async def steps() -> Any:
        return (await rest.client.get(f"/customers/ana/photos/{job.job_id}/status")).json()["progress"]

    assert await wait_until(steps) == {"step": 7, "totalSteps": 20}


async def test_a_status_is_the_message_that_every_channel_tells(rest: Rest) -> None:
    job = await finished(rest, await rest.submitted("ana", a_jpeg()))

    answer = await rest.client.get(f"/customers/ana/photos/{job.job_id}/status?waitSeconds=5")

    assert answer.content == status_message(LiveJob(job=job)).json_bytes()


async def test_a_job_that_the_view_has_forgotten_is_read_from_the_database(rest: Rest) -> None:
    job = await finished(rest, await rest.submitted("ana", a_jpeg()))
    async with running_rest(rest.settings.data_dir) as another:
        another.live._shards[0].finished.clear()

        answer = await another.client.get(f"/customers/ana/photos/{job.job_id}/status?waitSeconds=5")

    assert answer.content == status_message(LiveJob(job=job)).json_bytes()


async def test_a_long_poll_is_answered_as_soon_as_the_job_is_done(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg())
    path = f"/customers/ana/photos/{job.job_id}/status?waitSeconds=30"
    waiting = asyncio.create_task(rest.client.get(path))
    await wait_until(lambda: rest.live._waiters)

    began = time.monotonic()
    await finished(rest, job)
    answer = await waiting

    assert answer.json()["status"] == "DONE"
    assert time.monotonic() - began < 2


async def test_a_long_poll_ends_with_its_time(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg())
    began = time.monotonic()

    answer = await rest.client.get(f"/customers/ana/photos/{job.job_id}/status?waitSeconds=0.3")

    assert answer.json()["status"] == "PENDING"
    assert 0.3 <= time.monotonic() - began < 3


async def test_a_long_poll_waits_for_a_job_of_which_the_view_has_not_heard(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg())
    async with running_rest(rest.settings.data_dir) as behind:
        path = f"/customers/ana/photos/{job.job_id}/status?waitSeconds=30"
        waiting = asyncio.create_task(behind.client.get(path))
        started = behind.tracker.commit(job.started(job.created_at), EventKind.STARTED)
        behind.tracker.commit(started.cancelled(job.created_at), EventKind.CANCELLED)

        answer = await asyncio.wait_for(waiting, 10)

    assert answer.json()["status"] == ProcessingStatus.CANCELLED


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ("-1", "waitSeconds is '-1', but it must be a number of seconds from 0 to 60."),
        ("1e9", "waitSeconds is '1e9', but it must be a number of seconds from 0 to 60."),
        ("abc", "waitSeconds is 'abc', but it must be a number."),
        ("nan", "waitSeconds is 'nan', but it must be a number."),
    ],
)
async def test_a_wrong_wait_is_named_with_its_value(rest: Rest, value: str, detail: str) -> None:
    job = await rest.submitted("ana", a_jpeg())

    answer = await rest.client.get(f"/customers/ana/photos/{job.job_id}/status?waitSeconds={value}")

    told = problem(answer)
    assert (answer.status_code, told["code"], told["field"]) == (422, "invalid_request", "waitSeconds")
    assert told["detail"] == detail


@pytest.mark.parametrize("resource", ["status", "status?waitSeconds=5", "original", "generated"])
async def test_a_job_of_another_customer_is_not_found(rest: Rest, resource: str) -> None:
    job = await finished(rest, await rest.submitted("ana", a_jpeg()))
    await rest.submitted("ben", a_jpeg())

    answer = await rest.client.get(f"/customers/ben/photos/{job.job_id}/{resource}")

    assert (answer.status_code, problem(answer)["code"]) == (404, "job_not_found")


@pytest.mark.parametrize("job_id", [new_job_id(), "1", "x" * 3000, "%00"])
async def test_an_unknown_job_is_not_found(rest: Rest, job_id: str) -> None:
    answer = await rest.client.get(f"/customers/ana/photos/{job_id}/status?waitSeconds=30")

    assert (answer.status_code, problem(answer)["code"]) == (404, "job_not_found")
    assert len(answer.content) < 2000


async def test_a_database_that_is_away_is_a_503_for_reads_and_no_trouble_for_live_jobs(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg())
    rest.records.close()
    database = rest.settings.data_dir / "avatarforge.db"
    database.rename(database.with_suffix(".away"))
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.mkdir()

    live = await rest.client.get(f"/customers/ana/photos/{job.job_id}/status")
    recorded = await rest.client.get("/customers/ana/photos")

    assert live.status_code == 200
    assert (recorded.status_code, problem(recorded)["code"]) == (503, "database_unavailable")
    assert recorded.headers["retry-after"]


# --- lists ----------------------------------------------------------------------------------------------


async def test_photos_are_listed_newest_first_by_pages(rest: Rest) -> None:
    jobs = [await rest.submitted("ana", a_jpeg()) for _ in range(5)]
    await rest.submitted("ben", a_jpeg())

    pages, path = [], "/customers/ana/photos?limit=2"
    while path:
        page = (await rest.client.get(path)).json()
        pages.append([photo["jobId"] for photo in page["photos"]])
        path = page["next"]

    newest_first = [job.job_id for job in reversed(jobs)]
    assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]


async def test_customers_are_listed_by_their_ids_with_their_latest_photo(rest: Rest) -> None:
    latest = {}
    for customer_id in ("ben", "Ana", "ana", "ben"):
        latest[customer_id] = (await rest.submitted(customer_id, a_jpeg())).job_id

    pages, path = [], "/customers?limit=2"
    while path:
        page = (await rest.client.get(path)).json()
        pages.append(
            [
                (each["customerId"], each["photoCount"], each["latestPhoto"]["jobId"])
                for each in page["customers"]
            ]
        )
        path = page["next"]

    assert pages == [[("Ana", 1, latest["Ana"]), ("ana", 1, latest["ana"])], [("ben", 2, latest["ben"])]]


async def test_a_customer_is_shown_with_the_latest_state_of_the_photos(rest: Rest) -> None:
    done = await finished(rest, await rest.submitted("ana", a_jpeg()))
    pending = await rest.submitted("ana", a_jpeg())

    body = (await rest.client.get("/customers/ana")).json()

    assert (body["customerId"], body["photoCount"], body["next"]) == ("ana", 2, None)
    assert [(photo["jobId"], photo["status"]) for photo in body["photos"]] == [
        (pending.job_id, "PENDING"),
        (done.job_id, "DONE"),
    ]
    assert body["latestPhoto"] == body["photos"][0]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/customers?limit=0", "limit"),
        ("/customers?limit=201", "limit"),
        ("/customers?after=a%20b", "after"),
        ("/customers/ana/photos?cursor=yesterday", "cursor"),
        ("/customers/ana/photos?limit=ten", "limit"),
    ],
)
async def test_a_wrong_page_is_named(rest: Rest, path: str, field: str) -> None:
    answer = await rest.client.get(path)

    assert (answer.status_code, problem(answer)["field"]) == (422, field)


@pytest.mark.parametrize("path", ["/customers/nobody", "/customers/nobody/photos"])
async def test_an_unknown_customer_is_not_found(rest: Rest, path: str) -> None:
    answer = await rest.client.get(path)

    assert (answer.status_code, problem(answer)["code"]) == (404, "customer_not_found")


async def test_without_customers_the_list_is_empty(rest: Rest) -> None:
    assert (await rest.client.get("/customers")).json() == {"customers": [], "next": None}


# --- images ---------------------------------------------------------------------------------------------


async def test_the_avatar_is_sent_whole_with_its_type_and_tag(rest: Rest) -> None:
    avatar = random.Random(1).randbytes(700_000)
    job = await finished(rest, await rest.submitted("ana", a_jpeg()), avatar)

    answer = await rest.client.get(f"/customers/ana/photos/{job.job_id}/generated")

    assert answer.content == avatar
    assert {
        name: answer.headers[name]
        for name in ("content-type", "content-length", "etag", "x-content-type-options")
    } == {
        "content-type": "image/png",
        "content-length": "700000",
        "etag": f'"{hashlib.sha256(avatar).hexdigest()}"',
        "x-content-type-options": "nosniff",
    }
    assert answer.headers["cache-control"].startswith("private")


@pytest.mark.parametrize("wrapped", ["{}", "W/{}", '"other", {}', "*"])
async def test_a_client_that_has_the_image_is_not_sent_it_again(rest: Rest, wrapped: str) -> None:
    job = await rest.submitted("ana", a_jpeg())
    path = f"/customers/ana/photos/{job.job_id}/original"
    first = await rest.client.get(path)

    again = await rest.client.get(path, headers={"If-None-Match": wrapped.format(first.headers["etag"])})
    other = await rest.client.get(path, headers={"If-None-Match": '"other"'})

    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert (other.status_code, other.content) == (200, first.content)


async def test_there_is_no_avatar_before_the_job_is_done(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg())

    answer = await rest.client.get(f"/customers/ana/photos/{job.job_id}/generated")

    assert (answer.status_code, problem(answer)["code"]) == (404, "image_not_found")


async def test_an_image_that_storage_has_lost_is_not_found(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg())
    rest.storage.delete(job.original.key)

    answer = await rest.client.get(f"/customers/ana/photos/{job.job_id}/original")

    assert (answer.status_code, problem(answer)["code"]) == (404, "image_not_found")


async def test_where_storage_signs_urls_the_client_is_sent_there(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signed(key: str, expires_in: int) -> str:
        return f"https://storage.example/{key}?for={expires_in}"

    monkeypatch.setattr(rest.storage, "signed_url", signed)
    job = await rest.submitted("ana", a_jpeg())

    answer = await rest.client.get(f"/customers/ana/photos/{job.job_id}/original")

    assert answer.status_code == 302
    assert answer.headers["location"] == f"https://storage.example/{job.original.key}?for=300"
    assert "no-store" in answer.headers["cache-control"]


async def test_signed_urls_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_rest(tmp_path, storage={"signed_urls": False}) as rest:
        monkeypatch.setattr(rest.storage, "signed_url", lambda *_: "https://storage.example/")
        job = await rest.submitted("ana", a_jpeg())

        answer = await rest.client.get(f"/customers/ana/photos/{job.job_id}/original")

    assert answer.status_code == 200


# --- models, health, documentation ----------------------------------------------------------------------


async def test_the_model_and_its_styles_are_told(rest: Rest) -> None:
    [model] = (await rest.client.get("/models")).json()["models"]
    styles = (await rest.client.get("/styles")).json()

    assert (model["name"], model["defaults"]["steps"]) == ("avatar-mini", 30)
    assert styles == {"model": "avatar-mini", "styles": model["styles"]}
    assert {"name": "neon", "title": "Neon", "prompt": "neon portrait of a person, {prompt}"} in model[
        "styles"
    ]


async def test_a_replica_whose_parts_answer_is_ready(rest: Rest) -> None:
    answer = await rest.client.get("/readyz")

    body = answer.json()
    assert (answer.status_code, body["ready"]) == (200, True)
    assert {name: part["ok"] for name, part in body["parts"].items()} == {
        "database": True,
        "storage": True,
        "tracker": True,
    }


async def test_a_replica_whose_storage_does_not_answer_is_not_ready_and_says_so(
    rest: Rest,
) -> None:
    rest.storage.folder.write_text("in the way")

    answer = await rest.client.get("/readyz")

    told = problem(answer)
    assert (answer.status_code, told["code"]) == (503, "not_ready")
    assert {name: part["ok"] for name, part in told["parts"].items()} == {
        "database": True,
        "storage": False,
        "tracker": True,
    }
    assert "storage" in told["detail"]
    assert answer.headers["retry-after"]


async def test_a_replica_that_lost_its_tracker_is_not_ready(rest: Rest) -> None:
    await rest.live.stop()
    rest.live._shards[0].heard_at -= 60

    told = problem(await rest.client.get("/readyz"))

    assert told["parts"]["tracker"]["ok"] is False
    assert (await rest.client.get("/healthz")).json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/customers/ana/photos/1/2/3", 404, "not_found"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
        ("PUT", "/customers/ana", 405, "method_not_allowed"),
        ("GET", "/docs/assets/nothing.js", 404, "not_found"),
    ],
)
async def test_an_unknown_call_is_a_problem_too(
    rest: Rest, method: str, path: str, status: int, code: str
) -> None:
    answer = await rest.client.request(method, path)

    assert (answer.status_code, problem(answer)["code"]) == (status, code)
    if status == 405:
        assert answer.headers["allow"]


async def test_the_documentation_loads_nothing_from_elsewhere(rest: Rest) -> None:
    page = (await rest.client.get("/docs")).text
    first_page = (await rest.client.get("/")).text

    assert "https://" not in page + first_page
    assert "/docs/assets/swagger-ui-bundle.js" in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert (await rest.client.get(f"/docs/assets/{asset}")).status_code == 200
    assert "POST /customers/{customerId}" in first_page


async def test_every_call_is_described_with_its_errors(rest: Rest) -> None:
    document = (await rest.client.get("/openapi.json")).json()

    calls = {
        f"{method.upper()} {path}": operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert set(calls) == {
        "POST /customers/{customerId}",
        "GET /customers",
        "GET /customers/{customerId}",
        "GET /customers/{customerId}/photos",
        "GET /customers/{customerId}/photos/{jobId}/status",
        "GET /customers/{customerId}/photos/{jobId}/original",
        "GET /customers/{customerId}/photos/{jobId}/generated",
        "GET /models",
        "GET /styles",
        "GET /healthz",
        "GET /readyz",
    }
    assert all(call["summary"] for call in calls.values())
    upload = calls["POST /customers/{customerId}"]
    assert set(upload["responses"]) == {"202", "400", "413", "415", "422", "503"}
    form = upload["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {
        "photo",
        *FIELDS,
    }
    assert references(document) <= set(document["components"]["schemas"])


def references(value: Any) -> set[str]:
    """Names of the schemas that are referred to anywhere."""
    text = json.dumps(value)
    return {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}


# --- over a socket --------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def address(rest: Rest) -> AsyncIterator[str]:
    """The same application behind a real server."""
    server = uvicorn.Server(
        uvicorn.Config(rest.api, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=2)
    )
    serving = asyncio.create_task(server.serve())
    await wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    await serving


async def test_over_a_socket_a_photo_goes_in_and_comes_out(rest: Rest, address: str) -> None:
    async with httpx.AsyncClient(base_url=address) as client:
        accepted = await client.post("/customers/ana", files={"photo": ("me.jpg", a_jpeg(640, 480))})
        status = await client.get(accepted.headers["location"])
        original = await client.get(status.json()["originalUrl"])

    assert accepted.status_code == 202
    with Image.open(io.BytesIO(original.content)) as image:
        assert image.size == (640, 480)


async def test_over_a_socket_an_encoded_slash_is_refused_by_the_grammar(address: str) -> None:
    async with httpx.AsyncClient(base_url=address) as client:
        answer = await client.get("/customers/a%2Fphotos")

    assert problem(answer)["code"] == "invalid_customer_id"


async def test_over_a_socket_a_large_upload_hears_why_it_is_refused(rest: Rest, address: str) -> None:
    photo = a_jpeg() + bytes(25 * 1024 * 1024)
    async with httpx.AsyncClient(base_url=address, timeout=30) as client:
        answer = await client.post("/customers/ana", files={"photo": ("me.jpg", photo)})

    assert problem(answer)["code"] == "photo_too_large"
    assert rest.kept() == []


async def test_over_a_socket_a_client_that_goes_away_leaves_nothing(rest: Rest, address: str) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
    writer.write(
        b"POST /customers/ana HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n' + bytes(1000)
    )
    await writer.drain()
    await wait_until(rest.photos.upload_folder.exists)
    writer.close()
    await writer.wait_closed()

    await wait_until(lambda: rest.kept() == [])


async def test_a_job_seen_by_the_view_wins_over_an_older_row(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg())
    rest.live.admit(replace(job.started(job.created_at), seq=job.seq + 1))

    body = (await rest.client.get("/customers/ana/photos")).json()

    assert body["photos"][0]["status"] == "PROCESSING"
