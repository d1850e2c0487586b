"""Uploads over REST, good and bad, from the request to what is kept."""

import asyncio
import base64
import hashlib
import io
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from avatarforge.cli.photos import SAMPLE
from avatarforge.domain.errors import DatabaseUnavailable, StorageUnavailable, TrackerUnavailable
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.imaging.crop import find_square
from tests import pictures
from tests.factories import an_image
from tests.integration.rest import Rest, a_jpeg, problem
from tests.integration.service import running_service


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


async def test_an_upload_is_accepted_with_its_status_and_where_to_follow_it(rest: Rest) -> None:
    answer = await rest.post("ana", a_jpeg(), prompt="smiling", style="neon", seed="5", priority="3")

    body = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/customers/ana/photos/{body['jobId']}/status"
    assert (body["status"], body["isTerminal"], body["seed"], body["seq"]) == ("PENDING", False, 5, 1)
    followed = await rest.client.get(answer.headers["location"])
    live_only = {"queuePosition": None, "etaSeconds": None}
    assert {**followed.json(), **live_only} == {**body, **live_only}


@pytest.mark.parametrize(("size", "is_on_disk"), [(100_000, False), (700_000, True)])
async def test_an_accepted_upload_is_in_the_record_and_in_storage(
    rest: Rest, size: int, is_on_disk: bool
) -> None:
    photo = pictures.photo(1200, 1000, size)
    job = await rest.submitted(
        "ana", photo, style="neon", guidance="5", priority="3", callbackUrl="https://example.org/hook"
    )

    recorded = rest.records.find_job("ana", job.job_id)
    assert recorded == job
    assert (recorded.parameters.style, recorded.parameters.guidance) == ("neon", 5)
    assert (recorded.priority, recorded.callback_url) == (3, "https://example.org/hook")
    content = rest.storage.get(job.original.key)
    assert job.original == an_image(
        key=f"customers/ana/{job.job_id}/original.jpg",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        width=1200,
        height=1000,
    )
    assert (len(photo) > rest.settings.upload.spool_threshold_bytes) == is_on_disk
    assert rest.photos.upload_folder.exists() == is_on_disk
    assert not is_on_disk or list(rest.photos.upload_folder.iterdir()) == []


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
        ("guidance", "99"),
        ("seed", str(2**70)),
        ("style", "cubism"),
        ("steps", "many"),
        ("callbackUrl", "javascript:alert(1)"),
        ("callbackUrl", "example.org/hook"),
        ("callbackUrl", "file:///etc/passwd"),
        ("callbackUrl", "https://ana:secret@example.org/"),
        ("callbackUrl", "http://127.0.0.1/"),
        ("callbackUrl", "http://[::1]/"),
        ("callbackUrl", "http://[::ffff:127.0.0.1]/"),
        ("callbackUrl", "http://169.254.169.254/latest/meta-data/"),
        ("callbackUrl", "http://2130706433/"),
        ("callbackUrl", "http://0x7f.1/"),
        ("callbackUrl", "http://localhost:8000/"),
        ("priority", "100"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_kept(rest: Rest, field: str, value: str) -> None:
    answer = await rest.post("ana", a_jpeg(), **{field: value})

    told = problem(answer)
    assert (answer.status_code, told["code"]) == (422, "invalid_request")
    assert (told["field"], told["value"]) == (field, value)
    assert value in told["detail"]
    # Facts are cut when they are long.
    assert told["expected"].removesuffix("…") in told["detail"]
    assert rest.kept() == []


async def test_a_misspelt_field_is_not_silently_without_effect(rest: Rest) -> None:
    told = problem(await rest.post("ana", a_jpeg(), strenght="0.5"))

    assert told["code"] == "unknown_field"
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

    [job] = rest.records.list_unfinished(0)
    assert len(rest.storage.get(job.original.key)) == job.original.size


@pytest.mark.parametrize(
    ("header", "status"),
    [("Content-Type: multipart/form-data; boundary=b", b"413"), ("Content-Type: image/jpeg", b"415")],
)
async def test_a_client_that_waits_to_be_asked_for_its_body_is_answered_at_once(
    tmp_path: Path, header: str, status: bytes
) -> None:
    async with running_service(tmp_path) as service:
        address = urlsplit(service.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        request = (
            f"POST /customers/ana HTTP/1.1\r\nHost: {address.netloc}\r\n{header}\r\n"
            "Content-Length: 30000000\r\nExpect: 100-continue\r\n\r\n"
        )
        writer.write(request.encode())
        async with asyncio.timeout(5):
            assert (await reader.readline()).split()[1] == status
        writer.close()
        await writer.wait_closed()


async def look(rest: Rest, photo: bytes, query: str = "", **fields: str) -> httpx.Response:
    return await rest.client.post(f"/crop{query}", files={"photo": ("me.jpg", photo)}, data=fields)


async def test_the_square_is_found_before_sending_and_nothing_is_kept(rest: Rest) -> None:
    wide = Image.new("RGB", (1600, 900), (90, 110, 120))
    with Image.open(SAMPLE) as portrait:
        wide.paste(portrait.convert("RGB").resize((700, 700)), (850, 120))
    expected = find_square(wide)
    answer = await look(rest, pictures.png(wide))
    found = answer.json()
    assert (found["width"], found["height"], found["crop"], found["quarterTurns"]) == (1600, 900, "face", 0)
    square = [found["left"], found["top"], found["side"]]
    assert square == pytest.approx([expected.left, expected.top, expected.side], abs=0.1)
    assert found["preview"] is None

    # As a browser sends a large photo: a small copy, which has the same square within a few pixels.
    copy = (await look(rest, pictures.saved(wide.resize((1024, 576)), "JPEG", quality=85))).json()
    scaled = [copy[name] * 1600 / 1024 for name in ("left", "top", "side")]
    assert scaled == pytest.approx(square, abs=0.03 * expected.side)

    turned = (await look(rest, pictures.png(wide.transpose(Image.Transpose.ROTATE_90)))).json()
    assert (turned["width"], turned["crop"], turned["quarterTurns"]) == (900, "face", 3)
    assert rest.kept() == []


async def test_a_photo_without_a_face_has_its_middle_and_a_wrong_one_is_refused(rest: Rest) -> None:
    found = (await look(rest, a_jpeg(96, 64), "?preview=true")).json()
    preview = base64.b64decode(found.pop("preview").removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(preview)).size == (64, 64)
    middle = {"width": 96, "height": 64, "crop": "centre", "left": 16, "top": 0, "side": 64}
    assert found == {**middle, "quarterTurns": 0}

    told = problem(await look(rest, a_jpeg(), style="neon"))
    assert (told["code"], told["field"]) == ("unknown_field", "style")
    assert problem(await look(rest, b"Dear reader, I am no picture."))["code"] == "photo_not_an_image"
    with ExitStack() as uploads:
        for _ in range(rest.settings.ingress.max_uploads):
            uploads.enter_context(rest.photos.upload_limit.slot())
        assert problem(await look(rest, a_jpeg()))["code"] == "too_many_uploads"
    assert rest.kept() == []
