"""From a photo to an avatar, through real sockets."""

import io
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from PIL import Image

from avatarforge.domain.jobs import is_job_id
from tests.acceptance.conftest import Installation, submitted


def ended(client: httpx.Client, accepted: httpx.Response) -> dict[str, object]:
    """The job's status once it is terminal."""
    assert accepted.status_code == 202, accepted.text
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        status: dict[str, object] = client.get(
            accepted.headers["location"], params={"waitSeconds": 30}
        ).json()
        if status["isTerminal"]:
            return status
    raise AssertionError(f"not terminal in time: {status}")


def test_a_photo_becomes_an_avatar(installation: Installation, client: httpx.Client, portrait: bytes) -> None:
    accepted = submitted(client, "ana", portrait, style="watercolor", seed="7", steps="2", format="webp")
    body = accepted.json()
    assert accepted.status_code == 202
    assert is_job_id(body["jobId"])
    assert accepted.headers["location"] == f"/customers/ana/photos/{body['jobId']}/status"
    assert (body["status"], body["attempt"], body["seed"]) == ("PENDING", 0, 7)

    status = ended(client, accepted)
    job = installation.records.find_job("ana", body["jobId"])
    assert job is not None
    assert job.parameters.request_id == accepted.headers["x-request-id"]
    assert (status["status"], status["attempt"], status["error"]) == ("DONE", 1, None)
    assert (status["model"], status["backend"], status["crop"]) == ("avatar-mini", "local", "face")
    assert set(status["timings"]) == {"queued", "fetch", "encode", "steps", "decode", "upload"}  # type: ignore[call-overload]

    redirect = client.get(str(status["generatedUrl"]))
    assert redirect.status_code == 302
    avatar = httpx.get(redirect.headers["location"])
    assert avatar.headers["content-type"] == "image/webp"
    picture = Image.open(io.BytesIO(avatar.content))
    assert (picture.format, picture.size) == ("WEBP", (256, 256))
    assert picture.convert("L").getextrema()[1] - picture.convert("L").getextrema()[0] > 50


def test_the_same_seed_makes_the_same_avatar(client: httpx.Client, portrait: bytes) -> None:
    pictures = []
    for _ in range(2):
        status = ended(client, submitted(client, "twins", portrait, style="neon", seed="11", steps="2"))
        pictures.append(client.get(str(status["generatedUrl"]), follow_redirects=True).content)
    assert pictures[0] == pictures[1]


def test_the_original_comes_back_without_metadata(client: httpx.Client, portrait: bytes) -> None:
    photo = Image.open(io.BytesIO(portrait)).convert("RGB")
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    upload = io.BytesIO()
    photo.save(upload, "JPEG", quality=90, exif=exif)
    accepted = submitted(client, "private", upload.getvalue(), steps="1")
    original = client.get(accepted.json()["originalUrl"], follow_redirects=True)
    assert b"taken at home" in upload.getvalue()
    assert b"taken at home" not in original.content
    assert Image.open(io.BytesIO(original.content)).tobytes() == Image.open(upload).tobytes()


def test_customers_and_their_jobs_are_listed(client: httpx.Client, portrait: bytes) -> None:
    first = ended(client, submitted(client, "lister", portrait, steps="1"))
    second = ended(client, submitted(client, "lister", portrait, steps="1"))
    listed = client.get("/customers/lister/photos").json()
    assert [job["jobId"] for job in listed["photos"]] == [second["jobId"], first["jobId"]]
    assert "lister" in [entry["customerId"] for entry in client.get("/customers").json()["customers"]]
    assert client.get("/customers/lister").json()["customerId"] == "lister"


def test_a_waiting_client_hears_of_the_end_at_once(client: httpx.Client, portrait: bytes) -> None:
    accepted = submitted(client, "waiter", portrait, steps="2")
    status = client.get(accepted.headers["location"], params={"waitSeconds": 60}).json()
    heard_at = datetime.now(UTC)
    assert status["status"] == "DONE"
    assert heard_at - datetime.fromisoformat(status["finishedAt"]) < timedelta(seconds=1)


def test_nothing_of_an_upload_stays_in_the_upload_folder(
    client: httpx.Client, installation: Installation, portrait: bytes
) -> None:
    ended(client, submitted(client, "tidy", portrait, steps="1"))
    assert submitted(client, "tidy", portrait[: len(portrait) // 2]).status_code == 422
    assert list((installation.service.data_dir / "uploads").iterdir()) == []
    # On Linux uploads have no name; what is left of them would be an open file.
    [ingress] = installation.service.processes("ray::ServeReplica:avatarforge:Ingress")
    held = [str(link.readlink()) for link in Path(f"/proc/{ingress.pid}/fd").iterdir() if link.is_symlink()]
    assert len(held) > 0
    assert [path for path in held if "/uploads/" in path] == []


@pytest.mark.parametrize(
    ("path", "photo", "fields", "status", "code"),
    [
        ("/customers/ana", None, {}, 422, "photo_missing"),
        ("/customers/ana", b"", {}, 422, "photo_empty"),
        ("/customers/ana", b"hello, I am a text", {}, 422, "photo_not_an_image"),
        ("/customers/ana", "portrait", {"guidance": "99"}, 422, "invalid_request"),
        ("/customers/ana", "portrait", {"seed": str(2**70)}, 422, "invalid_request"),
        ("/customers/ana", "portrait", {"style": "cubism"}, 422, "invalid_request"),
        ("/customers/a%20b", "portrait", {}, 400, "invalid_customer_id"),
        ("/customers/" + "x" * 500, "portrait", {}, 400, "invalid_customer_id"),
    ],
)
def test_a_bad_upload_gets_a_clear_problem_and_nothing_is_kept(
    client: httpx.Client,
    installation: Installation,
    portrait: bytes,
    path: str,
    photo: bytes | str | None,
    fields: dict[str, str],
    status: int,
    code: str,
) -> None:
    before = [entry.key for entry in installation.storage.list("")]
    content = portrait if photo == "portrait" else photo
    files = {"style": (None, b"neon")} if content is None else {"photo": ("photo.jpg", content)}
    refused = client.post(path, files=files, data=fields)
    assert (refused.status_code, refused.json()["code"]) == (status, code), refused.text
    assert refused.headers["content-type"] == "application/problem+json"
    assert [entry.key for entry in installation.storage.list("")] == before


def test_an_upload_over_the_limit_is_refused(client: httpx.Client, portrait: bytes) -> None:
    refused = submitted(client, "big", portrait + b"\x00" * (25 * 1024 * 1024))
    assert (refused.status_code, refused.json()["code"]) == (413, "photo_too_large")


def test_a_job_of_another_customer_is_not_found(client: httpx.Client, portrait: bytes) -> None:
    job_id = submitted(client, "owner", portrait, steps="1").json()["jobId"]
    refused = client.get(f"/customers/thief/photos/{job_id}/status")
    assert (refused.status_code, refused.json()["code"]) == (404, "job_not_found")


def test_customer_ids_differ_by_case(client: httpx.Client, portrait: bytes) -> None:
    job_id = submitted(client, "Eva", portrait, steps="1").json()["jobId"]
    assert client.get(f"/customers/Eva/photos/{job_id}/status").status_code == 200
    assert client.get(f"/customers/eva/photos/{job_id}/status").status_code == 404
