"""Lists and images over REST."""

import asyncio
import hashlib
import random
import threading
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.integration.rest import Rest, a_jpeg, finished, problem, running_rest
from tests.waiting import wait_until


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


async def test_photos_of_all_customers_are_found_by_the_beginning_of_their_ids(rest: Rest) -> None:
    first, second = await rest.submitted("ana", a_jpeg()), await rest.submitted("ben", a_jpeg())
    rest.live.put(replace(second.start(second.created_at), seq=second.seq + 1))

    async def found(prefix: str) -> list[tuple[str, str]]:
        answer = await rest.client.get("/photos", params={"idPrefix": prefix})
        return [(photo["jobId"], photo["status"]) for photo in answer.json()["photos"]]

    assert await found(first.job_id) == [(first.job_id, "PENDING")]
    assert await found(second.job_id[:-1]) == [(second.job_id, "PROCESSING")]
    assert await found(first.job_id[:8]) == [(first.job_id, "PENDING"), (second.job_id, "PROCESSING")]
    for wrong in ("", "019a", "%" * 8, first.job_id + "0"):
        refused = await rest.client.get("/photos", params={"idPrefix": wrong})
        assert (refused.status_code, problem(refused)["field"]) == (422, "idPrefix"), wrong
        assert "8 to 36 hex digits" in problem(refused)["detail"]


async def test_without_customers_the_list_is_empty(rest: Rest) -> None:
    assert (await rest.client.get("/customers")).json() == {"customers": [], "next": None}


async def test_a_job_seen_by_the_view_wins_over_an_older_row(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg())
    rest.live.put(replace(job.start(job.created_at), seq=job.seq + 1))

    body = (await rest.client.get("/customers/ana/photos")).json()

    assert body["photos"][0]["status"] == "PROCESSING"


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


async def test_a_part_of_an_image_may_be_asked_for(rest: Rest) -> None:
    avatar = random.Random(1).randbytes(700_000)
    job = await finished(rest, await rest.submitted("ana", a_jpeg()), avatar)
    path = f"/customers/ana/photos/{job.job_id}/generated"
    whole = await rest.client.get(path)

    async def part(wanted: str, **headers: str) -> tuple[int, str | None, bytes]:
        answer = await rest.client.get(path, headers={"Range": wanted, **headers})
        return answer.status_code, answer.headers.get("content-range"), answer.content

    assert whole.headers["accept-ranges"] == "bytes"
    assert await part("bytes=0-9") == (206, "bytes 0-9/700000", avatar[:10])
    assert await part("bytes=300000-") == (206, "bytes 300000-699999/700000", avatar[300_000:])
    assert await part("bytes=-5") == (206, "bytes 699995-699999/700000", avatar[-5:])
    assert await part("bytes=699999-999999") == (206, "bytes 699999-699999/700000", avatar[-1:])
    assert (await part("bytes=700000-"))[:2] == (416, "bytes */700000")
    for whole_too in ("bytes=5-2", "bytes=0-1,4-5", "lines=1-2", "bytes=-"):
        assert await part(whole_too) == (200, None, avatar)
    etag, modified = whole.headers["etag"], whole.headers["last-modified"]
    assert (await part("bytes=0-0", **{"If-Range": etag}))[0] == 206
    assert (await part("bytes=0-0", **{"If-Range": modified}))[0] == 206
    assert (await part("bytes=0-0", **{"If-Range": '"other"'}))[0] == 200


async def test_squares_of_photos_to_send_do_not_wait_for_originals_from_storage(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await rest.submitted("ana", a_jpeg())
    path, arrived = f"/customers/ana/photos/{job.job_id}/original?square=true", threading.Event()
    reads, get = [], rest.storage.get

    def get_late(key: str) -> bytes:
        reads.append(key)
        arrived.wait()
        return get(key)

    monkeypatch.setattr(rest.storage, "get", get_late)
    squares = [asyncio.create_task(rest.client.get(path)) for _ in range(2)]
    try:
        await wait_until(lambda: len(reads) == 2)
        found = await asyncio.wait_for(rest.client.post("/crop", files={"photo": ("a.jpg", a_jpeg())}), 20)
    finally:
        arrived.set()
        answers = await asyncio.gather(*squares)
    assert [found.status_code, *(answer.status_code for answer in answers)] == [200, 200, 200]


async def test_an_image_tells_when_it_was_made_and_its_files_name(rest: Rest) -> None:
    job = await finished(rest, await rest.submitted("ana", a_jpeg()), b"avatar")
    path = f"/customers/ana/photos/{job.job_id}"
    shown = await rest.client.get(f"{path}/generated")
    saved = await rest.client.get(f"{path}/generated?download=true")
    square = await rest.client.get(f"{path}/original?square=true&download=true")

    assert job.finished_at is not None
    modified = shown.headers["last-modified"]
    assert parsedate_to_datetime(modified) == job.finished_at.replace(microsecond=0)
    again = await rest.client.get(f"{path}/generated", headers={"If-Modified-Since": modified})
    earlier = await rest.client.get(
        f"{path}/generated", headers={"If-Modified-Since": "Thu, 01 Jan 2015 00:00:00 GMT"}
    )
    assert (again.status_code, earlier.status_code) == (304, 200)
    for no_date in ("yesterday", "Mon, 01 Jan 99999999999 00:00:00 GMT"):
        unread = await rest.client.get(f"{path}/generated", headers={"If-Modified-Since": no_date})
        assert unread.status_code == 200
    name = f'filename="avatar-{job.job_id}.png"'
    assert shown.headers["content-disposition"] == f"inline; {name}"
    assert saved.headers["content-disposition"] == f"attachment; {name}"
    assert square.headers["content-disposition"] == f'attachment; filename="square-{job.job_id}.jpg"'


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

    monkeypatch.setattr(rest.storage, "sign_url", signed)
    job = await rest.submitted("ana", a_jpeg())

    answer = await rest.client.get(f"/customers/ana/photos/{job.job_id}/original")

    assert answer.status_code == 302
    assert answer.headers["location"] == f"https://storage.example/{job.original.key}?for=300"
    assert "no-store" in answer.headers["cache-control"]


async def test_signed_urls_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_rest(tmp_path, storage={"signed_urls": False}) as rest:
        monkeypatch.setattr(rest.storage, "sign_url", lambda *_: "https://storage.example/")
        job = await rest.submitted("ana", a_jpeg())

        answer = await rest.client.get(f"/customers/ana/photos/{job.job_id}/original")

    assert answer.status_code == 200


async def test_without_keys_everybody_may_do_everything(rest: Rest) -> None:
    told = (await rest.client.get("/keys/self")).json()
    nobody = {"keyId": None, "name": None, "expiresAt": None}
    assert told == {**nobody, "customers": ["*"], "isAdmin": True}


async def test_the_service_tells_how_long_photos_are_kept(rest: Rest) -> None:
    assert (await rest.client.get("/about")).json() == {
        "jobRetentionDays": None,
        "termsUrl": None,
        "maxLinkSeconds": None,
    }
