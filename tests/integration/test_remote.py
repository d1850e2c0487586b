"""The remote backend against a server that speaks the real API, over real sockets."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image, ImageOps
from starlette.responses import JSONResponse, PlainTextResponse, Response

from avatarforge.diffusion.remote import CircuitBreaker, RemoteServer, RemoteWorker
from avatarforge.domain.generations import (
    GenerationFailed,
    GenerationFinished,
    GenerationImage,
    GenerationProgress,
    GenerationUpdate,
)
from avatarforge.domain.jobs import Crop
from avatarforge.settings import RemoteSettings, SettingsError
from avatarforge.storage.folder import FolderStorage
from tests.factories import a_manifest
from tests.generations import a_task, avatars
from tests.remote_server import (
    MODEL,
    Answer,
    RemoteServerTwin,
    answering,
    cut,
    http_exception,
    never,
    out_of_memory,
    proxy_page,
    remote_server,
    serving,
)
from tests.waiting import wait_until

MANIFEST = a_manifest()


class Bench:
    """Workers for a server; each has its own connections and breaker."""

    def __init__(self, twin: RemoteServerTwin, url: str, storage: FolderStorage) -> None:
        self.twin = twin
        self.url = url
        self.storage = storage
        self.servers: list[RemoteServer] = []
        self.manifest = MANIFEST

    def worker(self, **settings: Any) -> RemoteWorker:
        remote = RemoteSettings(**{"url": self.url} | settings)
        server = RemoteServer(remote)
        server.POLL_INTERVAL_SECONDS = 0.02
        self.servers.append(server)
        breaker = CircuitBreaker(remote.breaker_threshold, remote.breaker_reset_seconds)
        worker = RemoteWorker(
            self.storage, server, breaker, lambda: self.manifest, storage_retry_seconds=1, model=remote.model
        )
        worker.PROGRESS = 0.02
        return worker

    async def updates(self, worker: RemoteWorker | None = None, **wanted: Any) -> list[GenerationUpdate]:
        task = a_task(self.storage, **wanted)
        return [update async for update in (worker or self.worker()).generate(task)]

    async def failure(self, worker: RemoteWorker | None = None, **wanted: Any) -> GenerationFailed:
        end = (await self.updates(worker, **wanted))[-1]
        assert isinstance(end, GenerationFailed), end
        return end


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with remote_server() as (twin, url):
        bench = Bench(twin, url, FolderStorage(tmp_path))
        yield bench
        for server in bench.servers:
            await server.close()


async def test_several_images_are_asked_for_one_by_one_and_told_as_they_come(bench: Bench) -> None:
    task = replace(a_task(bench.storage, variants=3, seed=7), missing=(0, 2))
    worker = bench.worker()
    *updates, finished = [update async for update in worker.generate(task)]
    assert isinstance(finished, GenerationFinished)
    assert finished.image is not None
    told = [update.image for update in updates if isinstance(update, GenerationImage)]
    assert sorted((image.index, image.seed) for image in (*told, finished.image)) == [(0, 7), (2, 9)]
    assert sorted(asked["seed"] for asked in bench.twin.requests) == [7, 9]


async def test_a_photo_becomes_an_avatar_through_the_server(bench: Bench) -> None:
    [*_, finished] = await bench.updates(style="watercolor", prompt="smiling", negative_prompt="hat", seed=7)
    assert isinstance(finished, GenerationFinished)
    outcome = finished.outcome
    assert (outcome.backend, outcome.model, outcome.crop) == ("remote", MODEL, Crop.FACE)
    assert list(outcome.timings) == ["fetch", "steps", "upload"]
    [asked] = bench.twin.requests
    assert len(asked.pop("init_images")) == 1
    assert asked.pop("force_task_id").startswith("task(")
    assert asked == {
        "prompt": MANIFEST.build_prompt("watercolor", "smiling"),
        "negative_prompt": "hat",
        "seed": 7,
        "denoising_strength": 0.5,
        "steps": 6,
        "cfg_scale": MANIFEST.defaults.guidance,
        "width": MANIFEST.size,
        "height": MANIFEST.size,
        "batch_size": 1,
        "n_iter": 1,
    }


async def test_for_a_model_that_edits_both_dials_are_sent_and_the_server_takes_its_own(bench: Bench) -> None:
    bench.manifest = a_manifest(family="instruct-pix2pix")
    await bench.updates(image_guidance=1.5)
    [asked] = bench.twin.requests
    assert (asked["image_cfg_scale"], asked["denoising_strength"]) == (1.5, 0.75)


async def test_the_avatar_is_the_picture_that_the_server_made(bench: Bench) -> None:
    [*_, finished] = await bench.updates()
    assert isinstance(finished, GenerationFinished)
    with Image.open(BytesIO(bench.storage.get(finished.outcome.avatar.key))) as image:
        avatar = image.convert("RGB")
    with Image.open(BytesIO(base64.b64decode(bench.twin.requests[0]["init_images"][0]))) as sent:
        assert avatar.tobytes() == ImageOps.invert(sent.convert("RGB")).tobytes()


async def test_a_configured_checkpoint_and_sampler_are_asked_for(bench: Bench) -> None:
    worker = bench.worker(model="realistic.safetensors", sampler="Euler a")
    await bench.updates(worker)
    [asked] = bench.twin.requests
    assert asked["override_settings"] == {"sd_model_checkpoint": "realistic.safetensors"}
    assert asked["override_settings_restore_afterwards"] is False
    assert asked["sampler_name"] == "Euler a"


@pytest.mark.parametrize("own", [{}, {"scheduler": "euler"}], ids=["another", "the model's own"])
async def test_the_sampler_of_an_upload_goes_before_the_configured_one(
    bench: Bench, own: dict[str, str]
) -> None:
    bench.manifest = a_manifest(samplers=["Euler"], **own)
    await bench.updates(bench.worker(sampler="Euler a"), sampler="Euler")
    [asked] = bench.twin.requests
    assert asked["sampler_name"] == "Euler"


async def test_a_server_that_names_no_model_leaves_the_configured_one_on_record(bench: Bench) -> None:
    [*_, made] = await bench.updates()
    assert isinstance(made, GenerationFinished)
    picture = base64.b64encode(bench.storage.get(made.outcome.avatar.key)).decode()
    for info in ("{}", "no JSON", None):
        bench.twin.next_answers.append(answering(JSONResponse({"images": [picture], "info": info})))
        [*_, end] = await bench.updates(bench.worker(model="ours"))
        assert isinstance(end, GenerationFinished)
        assert end.outcome.model == "ours"


async def test_the_servers_steps_are_told(bench: Bench) -> None:
    bench.twin.step_seconds = 0.05
    *progress, finished = await bench.updates(steps=10, strength=1.0)
    assert isinstance(finished, GenerationFinished)
    steps = [update.step for update in progress if isinstance(update, GenerationProgress)]
    assert steps == sorted(steps)
    assert max(steps) > 2
    assert progress[-1].total_steps == 10


async def test_a_cancelled_task_interrupts_the_server_and_leaves_nothing(bench: Bench) -> None:
    bench.twin.step_seconds = 0.05
    worker = bench.worker()
    async with aclosing(worker.generate(a_task(bench.storage, steps=100, strength=1.0))) as updates:
        async for update in updates:
            if isinstance(update, GenerationProgress) and update.step >= 1:
                break
    assert bench.twin.interrupts == 1
    await wait_until(lambda: not bench.twin.busy)
    assert avatars(bench.storage) == []


async def test_a_task_that_waits_in_the_server_does_not_interrupt_the_one_before_it(bench: Bench) -> None:
    bench.twin.step_seconds = 0.05
    worker = bench.worker(concurrency=2)
    first = asyncio.create_task(bench.updates(worker, steps=40, strength=1.0))
    await wait_until(lambda: bench.twin.busy)
    second = asyncio.create_task(bench.updates(worker))
    await wait_until(lambda: len(bench.twin.requests) == 2)
    second.cancel()
    await asyncio.wait({second})
    assert isinstance((await first)[-1], GenerationFinished)
    assert bench.twin.interrupts == 0


async def test_a_shared_server_is_not_interrupted_where_that_is_switched_off(bench: Bench) -> None:
    bench.twin.step_seconds = 0.02
    worker = bench.worker(interrupt=False)
    making = asyncio.create_task(bench.updates(worker, steps=20, strength=1.0))
    await wait_until(lambda: bench.twin.busy)
    making.cancel()
    await asyncio.wait({making})
    await wait_until(lambda: bench.twin.made)
    assert bench.twin.interrupts == 0


async def test_no_more_pictures_are_asked_for_than_configured(bench: Bench) -> None:
    bench.twin.step_seconds = 0.02
    worker = bench.worker(concurrency=1)
    makings = [asyncio.create_task(bench.updates(worker)) for _ in range(3)]
    most = 0
    while not all(making.done() for making in makings):
        most = max(most, len(bench.twin.requests) - bench.twin.made)
        await asyncio.wait(makings, timeout=0.005)
    assert most == 1


@pytest.mark.parametrize(
    ("answer", "code", "told"),
    [
        (out_of_memory(), "remote_failed", "500, OutOfMemoryError: CUDA out of memory."),
        (cut, "remote_failed", "the connection broke"),
        (answering(JSONResponse({"images": [], "info": ""})), "remote_failed", "holds no image"),
        (answering(JSONResponse({"images": ["?"], "info": ""})), "remote_failed", "cannot be read"),
        (answering(JSONResponse({"images": ["aGk="], "info": ""})), "remote_failed", "cannot be read"),
        (proxy_page(504), "remote_failed", "a page titled '504 Bad Gateway'"),
        (proxy_page(502), "remote_unavailable", "a page titled '502 Bad Gateway'"),
        (proxy_page(200), "remote_unavailable", "a page titled '200 Bad Gateway'"),
        (answering(JSONResponse({"detail": "Not Found"}, 404)), "remote_unavailable", "Not Found"),
        (answering(PlainTextResponse("busy", 429)), "remote_unavailable", "429, 'busy'"),
        (answering(http_exception(404, "Init image not found")), "remote_refused", "Init image not found"),
        (answering(http_exception(400, "Sampler not found")), "remote_refused", "HTTPException: Sampler"),
    ],
)
async def test_each_error_says_whether_another_attempt_makes_sense(
    bench: Bench, answer: Answer, code: str, told: str
) -> None:
    bench.twin.next_answers.append(answer)
    failure = await bench.failure()
    assert (failure.error.code, failure.retryable) == (code, code != "remote_refused")
    assert told in failure.error.message
    assert (failure.away_seconds is not None) == (code == "remote_unavailable")


async def test_half_of_a_surrogate_pair_is_replaced_in_what_a_server_says(bench: Bench) -> None:
    detail = {"detail": "bad \ud800"}
    bench.twin.next_answers.append(answering(Response(json.dumps(detail), 400)))
    assert "bad ?" in (await bench.failure()).error.message

    picture = BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    answer = {
        "images": [base64.b64encode(picture.getvalue()).decode()],
        "info": json.dumps({"sd_model_name": "x\ud800"}, ensure_ascii=False),
    }
    bench.twin.next_answers.append(answering(Response(json.dumps(answer))))
    [*_, finished] = await bench.updates()
    assert isinstance(finished, GenerationFinished)
    assert finished.outcome.model == "x?"


async def test_a_422_names_the_field(bench: Bench) -> None:
    failure = await bench.failure(steps=1.5)
    assert failure.error.message.endswith("'422, steps: value is not a valid integer'.")


async def test_a_busy_servers_own_pause_is_kept_to(bench: Bench) -> None:
    bench.twin.next_answers.append(answering(PlainTextResponse("", 503, {"Retry-After": "17"})))
    assert (await bench.failure()).away_seconds == 17


async def test_a_server_that_takes_too_long_is_given_up_and_interrupted(bench: Bench) -> None:
    bench.twin.step_seconds = 0.05
    failure = await bench.failure(bench.worker(timeout=0.3), steps=100, strength=1.0)
    assert failure.error.message == "The remote server failed: 'no image within 0.3 seconds'."
    assert bench.twin.interrupts == 1


async def test_a_server_that_says_nothing_is_given_up(bench: Bench) -> None:
    bench.twin.next_answers.append(never)
    failure = await bench.failure(bench.worker(timeout=0.2))
    assert (failure.error.code, failure.retryable) == ("remote_failed", True)


async def test_a_server_that_is_not_there_was_not_asked(bench: Bench) -> None:
    # Nothing listens on port 9 of this machine.
    failure = await bench.failure(bench.worker(url="http://127.0.0.1:9"))
    assert (failure.error.code, failure.retryable) == ("remote_unavailable", True)
    assert failure.away_seconds == 1


async def test_an_answer_without_end_is_given_up(bench: Bench) -> None:
    worker = bench.worker()
    bench.servers[-1].MAX_RESPONSE_BYTES = 1000
    assert "larger than 1000 bytes" in (await bench.failure(worker)).error.message


async def test_after_so_many_failures_the_server_is_left_alone(bench: Bench) -> None:
    worker = bench.worker(breaker_threshold=2, breaker_reset_seconds=60)
    bench.twin.next_answers.extend([out_of_memory(), out_of_memory()])
    for _ in range(2):
        assert (await bench.failure(worker)).error.code == "remote_failed"
    failure = await bench.failure(worker)
    assert failure.error.code == "remote_unavailable"
    assert failure.away_seconds is not None
    assert 50 < failure.away_seconds <= 60
    assert len(bench.twin.requests) == 2


async def test_a_photo_that_may_not_leave_is_not_sent_even_if_it_comes_here(bench: Bench) -> None:
    failure = await bench.failure(allow_remote=False)
    assert failure.error.code == "remote_refused"
    assert bench.twin.requests == []


async def test_the_password_is_sent_and_a_wrong_one_is_named(bench: Bench) -> None:
    bench.twin.password = "s3cret"
    [*_, end] = await bench.updates(bench.worker(username="api", password="s3cret"))
    assert isinstance(end, GenerationFinished)
    assert "Not authenticated" in (await bench.failure()).error.message
    wrong = await bench.failure(bench.worker(username="api", password="wrong"))
    assert "401, HTTPException: Incorrect username or password" in wrong.error.message
    assert "wrong" not in wrong.error.message


async def test_a_certificate_is_checked(bench: Bench, tmp_path: Path) -> None:
    certificate = a_certificate(tmp_path)
    async with serving(bench.twin.app(), certificate=certificate) as url:
        trusting = bench.worker(url=url, ca_file=certificate[0])
        [*_, end] = await bench.updates(trusting)
        assert isinstance(end, GenerationFinished)
        failure = await bench.failure(bench.worker(url=url))
    assert "CERTIFICATE_VERIFY_FAILED" in failure.error.message


@pytest.mark.parametrize("text", [None, "no certificate"])
async def test_certificates_that_cannot_be_read_are_named(tmp_path: Path, text: str | None) -> None:
    ca_file = tmp_path / "ca.pem"
    if text is not None:
        ca_file.write_text(text)
    with pytest.raises(SettingsError, match=r"remote.ca_file is '.*ca.pem'"):
        RemoteServer(RemoteSettings(url="https://host", ca_file=ca_file))


def a_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files
