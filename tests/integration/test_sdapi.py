"""AUTOMATIC1111's API inward, over real sockets; and one AvatarForge as the fallback of another."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from PIL import Image

from avatarforge.diffusion.engines.batching import BatchingEngine
from avatarforge.diffusion.models.catalogue import Catalogue
from avatarforge.diffusion.models.loader import LoadedModel
from avatarforge.diffusion.remote import CircuitBreaker, RemoteServer, RemoteWorker
from avatarforge.diffusion.remote.messages import read_image
from avatarforge.diffusion.replica.task_worker import GenerationWorker
from avatarforge.domain.errors import RemoteFailed
from avatarforge.domain.generations import GenerationFinished, GenerationTask, GenerationUpdate
from avatarforge.domain.jobs import Crop
from avatarforge.domain.status import ProcessingStatus
from avatarforge.ingress.sdapi.messages import Img2Img
from avatarforge.settings import RemoteSettings
from avatarforge.storage.folder import FolderStorage
from avatarforge.tracker.ports import RemoteFallback
from tests.checkpoints import avatar_mini
from tests.factories import a_manifest, write_model
from tests.generations import portrait_file, serving
from tests.integration.rest import a_jpeg
from tests.integration.service import SECONDS, Replica, Service, a_preview, running_service
from tests.twins import ScriptedReplicas
from tests.waiting import wait_until

IMG2IMG = "/sdapi/v1/img2img"


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    model = write_model(a_manifest(name="avatar-mini"), tmp_path)
    async with running_service(tmp_path, http={"sdapi": True}, diffusion=model) as service:
        yield service


def a_picture(photo: bytes = b"") -> str:
    return base64.b64encode(photo or a_jpeg()).decode()


def a_request(**fields: Any) -> dict[str, Any]:
    return {"init_images": [a_picture()], "prompt": "smiling", "seed": 7} | fields


async def asked(service: Service, **fields: Any) -> httpx.Response:
    return await service.client.post(IMG2IMG, json=a_request(**fields))


def jobs_of(service: Service) -> list[str]:
    return [live.job.job_id for live in service.live.list_unfinished("sdapi")]


async def progress_of(service: Replica, **query: str) -> dict[str, Any]:
    answer = await service.client.get("/sdapi/v1/progress", params=query)
    told: dict[str, Any] = answer.json()
    return told


async def test_a_picture_goes_in_and_an_avatar_comes_out(service: Service) -> None:
    answer = await asked(
        service, negative_prompt="hat", denoising_strength=0.5, steps=20, cfg_scale=4, sampler_name="Euler a"
    )
    assert answer.status_code == 200, answer.text
    told = answer.json()
    [job] = service.records.list_jobs("sdapi", None, 10)
    assert job.outcome is not None
    assert base64.b64decode(told["images"][0]) == service.storage.get(job.outcome.avatar.key)
    wanted = job.parameters
    assert (wanted.prompt, wanted.negative_prompt, wanted.seed) == ("smiling", "hat", 7)
    assert (wanted.strength, wanted.steps, wanted.guidance) == (0.5, 20, 4.0)
    # Two that are each other's fallback would send a job round for ever.
    assert not wanted.allow_remote
    info = json.loads(told["info"])
    assert (info["seed"], info["prompt"], info["sd_model_name"]) == (7, "smiling", "avatar-mini")
    assert told["parameters"]["init_images"] is None
    assert told["parameters"]["steps"] == 20


async def test_what_is_left_out_or_unknown_takes_the_models_own_way(service: Service) -> None:
    answer = await asked(
        service, seed=-1, prompt=None, scheduler="Karras", alwayson_scripts={}, override_settings={"x": 1}
    )
    assert answer.status_code == 200
    [job] = service.records.list_jobs("sdapi", None, 10)
    wanted = job.parameters
    assert (wanted.prompt, wanted.strength, wanted.steps, wanted.guidance) == ("", None, None, None)
    assert wanted.seed >= 0


@pytest.mark.parametrize(
    ("asked_for", "made"), [((64, 128), (64, 128)), ((512, 512), (None, None)), ((100, 100), (None, None))]
)
async def test_a_size_is_made_if_the_model_can_and_a_square_is_else_scaled(
    service: Service, asked_for: tuple[int, int], made: tuple[int | None, int | None]
) -> None:
    service.generations.avatar = lambda task: a_jpeg(128, 128)
    answer = (await asked(service, width=asked_for[0], height=asked_for[1])).json()
    [job] = service.records.list_jobs("sdapi", None, 10)
    assert (job.parameters.width, job.parameters.height) == made
    with Image.open(BytesIO(base64.b64decode(answer["images"][0]))) as image:
        assert image.size == asked_for
    info = json.loads(answer["info"])
    assert (info["width"], info["height"]) == asked_for


async def test_a_data_url_is_taken_and_pictures_can_be_asked_not_to_come_back(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.photos, "stream_image", None)
    picture = "data:image/jpeg;base64," + a_picture()
    answer = await asked(service, init_images=[picture], send_images=False, include_init_images=True)
    assert answer.json()["images"] == []
    assert answer.json()["parameters"]["init_images"] == [picture]


@pytest.mark.parametrize(
    ("fields", "field", "told"),
    [
        ({"steps": "many"}, "steps", "valid integer"),
        ({"steps": 0}, "steps", "whole number from 1 to 150"),
        ({"denoising_strength": 2}, "denoising_strength", "above 0 and up to 1"),
        ({"cfg_scale": 99}, "cfg_scale", "number from 0 to 30"),
        ({"seed": -2}, "seed", "whole number from 0"),
        ({"init_images": None}, "init_images", "a list with one image in base64"),
        ({"init_images": ["a", "b"]}, "init_images", "a list with one image in base64"),
        ({"init_images": ["https://example.org/x.png"]}, "init_images", "an image in base64"),
        ({"mask": "aGk="}, "mask", "null"),
        ({"batch_size": 0}, "batch_size", "1 or more"),
        ({"n_iter": -1}, "n_iter", "1 or more"),
        ({"n_iter": 9}, "n_iter", "less: batch_size times n_iter is 9, and at most 8 are made"),
        ({"batch_size": 4, "n_iter": 3}, "batch_size", "batch_size times n_iter is 12"),
        ({"batch_size": 2, "n_iter": 50}, "n_iter", "batch_size times n_iter is 100"),
        ({"width": 512, "height": 768}, "width", "a multiple of 8 from 64 to 128"),
        ({"width": 512}, "width", "given together with the height"),
        ({"width": 8, "height": 8}, "width", "from 64 to 2048"),
        ({"prompt": "x" * 1001}, "prompt", "at most 1000 characters"),
    ],
)
async def test_a_wrong_value_is_a_422_in_the_apis_shape(
    service: Service, fields: dict[str, Any], field: str, told: str
) -> None:
    answer = await asked(service, **fields)
    assert answer.status_code == 422
    [fault] = answer.json()["detail"]
    assert (fault["loc"], set(fault)) == (["body", field], {"loc", "msg", "type"})
    assert told in fault["msg"]
    assert service.records.list_jobs("sdapi", None, 10) == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff"])
async def test_a_body_that_is_no_object_is_a_422(service: Service, body: bytes) -> None:
    answer = await service.client.post(IMG2IMG, content=body)
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], list)


async def test_what_is_no_picture_is_refused_in_the_apis_shape(service: Service) -> None:
    answer = await asked(service, init_images=[base64.b64encode(b"no picture").decode()])
    assert answer.status_code == 422
    assert set(answer.json()) == {"error", "detail", "body", "errors"}
    assert answer.json()["error"] == "photo_not_an_image"


async def test_a_body_over_the_limit_is_refused(tmp_path: Path) -> None:
    async with running_service(tmp_path, http={"sdapi": True}, upload={"max_bytes": 1000}) as service:
        announced = await service.client.post(IMG2IMG, content=b"x" * 2_000_000)

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b"x" * 100_000

        streamed = await service.client.post(IMG2IMG, content=chunks())
    for answer in (announced, streamed):
        assert (answer.status_code, answer.json()["error"]) == (413, "photo_too_large")


async def test_a_job_that_fails_is_an_error_in_the_apis_shape(service: Service) -> None:
    service.script(service.generations.failing)
    answer = await asked(service)
    assert answer.status_code == 422
    assert answer.json() == {
        "error": "unsafe_content",
        "detail": "The picture was withheld.",
        "body": "",
        "errors": "The picture was withheld.",
    }


async def test_without_its_tracker_the_promise_is_not_given(service: Service) -> None:
    service.storage.away = True
    answer = await asked(service)
    assert (answer.status_code, answer.json()["error"]) == (503, "storage_unavailable")
    assert answer.headers["retry-after"] == "5"


async def test_a_busy_service_says_when_to_come_again(tmp_path: Path) -> None:
    async with running_service(tmp_path, http={"sdapi": True}, ingress={"max_uploads": 1}) as service:
        with service.photos.upload_limit.slot():
            # A client that is still sending reads the answer, too.
            answer = await asked(service, init_images=[a_picture(b"x" * 3_000_000)])
    assert (answer.status_code, answer.json()["error"]) == (429, "too_many_uploads")
    assert answer.headers["retry-after"] == "1"


async def test_progress_is_told_while_a_picture_is_made(service: Service) -> None:
    idle = await progress_of(service)
    assert (idle["progress"], idle["state"]["job_count"]) == (0, 0)
    puppet = service.puppet()
    asking = asyncio.create_task(asked(service, force_task_id="mine"))
    await asyncio.wait_for(puppet.runs.wait(), SECONDS)
    puppet.step(5, 20, a_preview())

    async def running() -> dict[str, Any] | None:
        told = await progress_of(service)
        return told if told["progress"] else None

    told = await wait_until(running)
    assert told is not None
    assert told["progress"] == 0.25
    assert (told["state"]["sampling_step"], told["state"]["sampling_steps"]) == (5, 20)
    assert base64.b64decode(told["current_image"]) == a_preview()
    assert told["current_task"] is None
    mine = await progress_of(service, id_task="mine", skip_current_image="true")
    assert (mine["progress"], mine["current_task"], mine["current_image"]) == (0.25, "mine", None)
    others = await progress_of(service, id_task="another")
    assert (others["state"]["job_count"], others["current_task"]) == (0, None)
    puppet.finish()
    assert (await asking).status_code == 200


async def test_an_interrupt_ends_the_running_picture(service: Service) -> None:
    puppet = service.puppet()
    asking = asyncio.create_task(asked(service))
    await asyncio.wait_for(puppet.runs.wait(), SECONDS)
    assert (await service.client.post("/sdapi/v1/interrupt")).json() == {}
    answer = await asking
    assert (answer.status_code, answer.json()["images"]) == (200, []), "not a step was made"
    assert json.loads(answer.json()["info"])["seed"] == 7
    [job] = service.records.list_jobs("sdapi", None, 10)
    assert job.status is ProcessingStatus.CANCELLED


async def test_an_interrupted_picture_comes_as_far_as_it_got(service: Service) -> None:
    puppet = service.puppet()
    asking = asyncio.create_task(asked(service, width=128, height=128))
    await asyncio.wait_for(puppet.runs.wait(), SECONDS)
    puppet.step(2, preview=a_preview())
    async with service.fresh_replica() as other:
        # Clients are not bound to the replica that waits for their picture.
        for replica in (service, other):
            await wait_until(lambda replica=replica: has_preview(replica))
        await other.client.post("/sdapi/v1/interrupt")
        answer = await asking

    [image] = answer.json()["images"]
    with Image.open(BytesIO(base64.b64decode(image))) as opened:
        assert (opened.format, opened.size) == ("PNG", (128, 128))
    # Another AvatarForge does not take it for its avatar.
    with pytest.raises(RemoteFailed, match="interrupted"):
        read_image(answer.content)


async def has_preview(replica: Replica) -> bool:
    return (await progress_of(replica))["current_image"] is not None


async def test_batches_are_one_job_whose_images_all_come_back(service: Service) -> None:
    answer = (await asked(service, batch_size=2, n_iter=2)).json()
    [job] = service.records.list_jobs("sdapi", None, 10)
    made = [service.storage.get(image.stored.key) for image in job.images]
    info = json.loads(answer["info"])

    assert job.parameters.variants == 4
    assert [base64.b64decode(image) for image in answer["images"]] == made
    assert (info["seed"], info["all_seeds"], info["batch_size"]) == (7, [7, 8, 9, 10], 2)
    assert all(f"Seed: {seed}," in text for seed, text in zip(range(7, 11), info["infotexts"], strict=True))
    assert {len(info[name]) for name in ("all_prompts", "all_negative_prompts", "all_subseeds")} == {4}


async def test_an_interrupted_batch_comes_with_the_images_that_are_there(service: Service) -> None:
    puppet = service.puppet()
    asking = asyncio.create_task(asked(service, batch_size=3))
    puppet.publish(1)
    await wait_until(lambda: any(live.job.images for live in service.live.list_unfinished("sdapi")))
    await service.client.post("/sdapi/v1/interrupt")
    answer = (await asking).json()
    [job] = service.records.list_jobs("sdapi", None, 10)

    assert [base64.b64decode(image) for image in answer["images"]] == [
        service.storage.get(image.stored.key) for image in job.images
    ]
    assert json.loads(answer["info"])["all_seeds"] == [8]


async def test_an_interrupt_by_name_ends_only_that_picture(service: Service) -> None:
    first, second = service.puppet(), service.puppet()
    askings = []
    for name, puppet in (("one", first), ("two", second)):
        askings.append(asyncio.create_task(asked(service, force_task_id=name)))
        await asyncio.wait_for(puppet.runs.wait(), SECONDS)
    await service.client.post("/sdapi/v1/interrupt", params={"id_task": "another"})
    await service.client.post("/sdapi/v1/interrupt", params={"id_task": "two"})
    assert (await askings[1]).json()["images"] == []
    first.finish()
    assert (await askings[0]).status_code == 200


async def test_a_client_that_goes_away_cancels_its_job(service: Service) -> None:
    puppet = service.puppet()
    asking = asyncio.create_task(asked(service))
    await asyncio.wait_for(puppet.runs.wait(), SECONDS)
    [job_id] = jobs_of(service)
    asking.cancel()
    await asyncio.wait({asking})
    await wait_until(lambda: service.recorded(job_id, "sdapi").status is ProcessingStatus.CANCELLED)


async def test_the_model_that_serves_is_listed(service: Service) -> None:
    [model] = (await service.client.get("/sdapi/v1/sd-models")).json()
    assert set(model) == {"title", "model_name", "hash", "sha256", "filename", "config"}
    assert model["title"] == "avatar-mini"
    options = (await service.client.get("/sdapi/v1/options")).json()
    assert options["sd_model_checkpoint"] == "avatar-mini"


async def test_info_has_what_automatic1111_tells(service: Service) -> None:
    answer = await asked(service, styles=["neon", "unknown"])
    info = json.loads(answer.json()["info"])

    # `Processed.js` of AUTOMATIC1111's modules/processing.py.
    assert set(info) >= {
        *("prompt", "all_prompts", "negative_prompt", "all_negative_prompts", "seed", "all_seeds"),
        *("subseed", "all_subseeds", "subseed_strength", "width", "height", "sampler_name", "cfg_scale"),
        *("steps", "batch_size", "restore_faces", "face_restoration_model", "sd_model_name"),
        *("sd_model_hash", "sd_vae_name", "sd_vae_hash", "seed_resize_from_w", "seed_resize_from_h"),
        *("denoising_strength", "extra_generation_params", "index_of_first_image", "infotexts", "styles"),
        *("job_timestamp", "clip_skip", "is_using_inpainting_conditioning", "version"),
    }
    assert (info["steps"], info["cfg_scale"], info["denoising_strength"]) == (25, 3.0, 0.6)
    assert "Steps: 25, Sampler: Default" in info["infotexts"][0]
    assert info["styles"] == ["neon"]


@pytest.mark.parametrize(
    ("fields", "sampler", "told"),
    [
        ({}, None, ("Default", "Automatic")),
        ({"sampler_name": "Default", "scheduler": "Automatic"}, None, ("Default", "Automatic")),
        ({"sampler_name": "Euler a"}, "Euler a", ("Euler a", "Automatic")),
        ({"sampler_name": "euler A", "scheduler": "normal"}, "Euler a", ("Euler a", "Automatic")),
        ({"sampler_name": "DPM++ 2M"}, "DPM++ 2M Karras", ("DPM++ 2M", "Karras")),
        ({"sampler_name": "DPM++ 2M", "scheduler": "karras"}, "DPM++ 2M Karras", ("DPM++ 2M", "Karras")),
        ({"sampler_name": "DPM++ 2M Karras"}, "DPM++ 2M Karras", ("DPM++ 2M", "Karras")),
        ({"sampler_index": "Euler a"}, "Euler a", ("Euler a", "Automatic")),
        ({"sampler_name": "Euler a", "sampler_index": "Heun"}, "Euler a", ("Euler a", "Automatic")),
    ],
)
async def test_a_sampler_and_its_schedule_are_honoured_where_there_is_a_choice(
    tmp_path: Path, fields: dict[str, str], sampler: str | None, told: tuple[str, str]
) -> None:
    async with choosing(tmp_path) as service:
        answer = await asked(service, **fields)
        assert answer.status_code == 200, answer.text
        [job] = service.records.list_jobs("sdapi", None, 10)
    assert job.parameters.sampler == sampler
    info = json.loads(answer.json()["info"])
    assert (info["sampler_name"], info["extra_generation_params"]["Schedule type"]) == told


def test_a_sampler_that_was_not_sent_is_left_open_though_the_models_own_has_a_name() -> None:
    manifest = a_manifest(scheduler="dpm++-2m-karras", samplers=["Euler a"])
    assert Img2Img().read_submission(manifest).parameters.sampler is None
    named = Img2Img(sampler_name="DPM++ 2M").read_submission(manifest)
    assert named.parameters.sampler == "DPM++ 2M Karras"


async def test_a_sampler_that_the_model_has_not_is_refused_with_those_it_has(tmp_path: Path) -> None:
    async with choosing(tmp_path) as service:
        unknown = await asked(service, sampler_name="Heun")
        other = await asked(service, sampler_name="Euler a", scheduler="Karras")
        lists = [(await service.client.get(f"/sdapi/v1/{name}s")).json() for name in ("sampler", "scheduler")]

    [fault] = unknown.json()["detail"]
    assert (unknown.status_code, fault["loc"]) == (422, ["body", "sampler_name"])
    assert fault["msg"] == "'Heun' must be one of Default, Euler a, DPM++ 2M"
    [fault] = other.json()["detail"]
    assert fault["loc"] == ["body", "scheduler"]
    assert fault["msg"] == "'Karras' must be one of Automatic, Uniform, Normal with the sampler Euler a"
    assert [one["name"] for one in lists[0]] == ["Default", "Euler a", "DPM++ 2M"]
    assert [one["label"] for one in lists[1]] == ["Automatic", "Karras"]


def choosing(folder: Path) -> AbstractAsyncContextManager[Service]:
    """A service whose model leaves a choice of samplers."""
    manifest = a_manifest(name="avatar-mini", samplers=["Euler a", "DPM++ 2M Karras"])
    return running_service(folder, http={"sdapi": True}, diffusion=write_model(manifest, folder))


async def test_the_serving_model_may_be_chosen_and_no_other(service: Service) -> None:
    async def choose(content: str) -> httpx.Response:
        return await service.client.post("/sdapi/v1/options", content=content)

    assert (
        await choose('{"sd_model_checkpoint": "avatar-mini", "CLIP_stop_at_last_layers": 2}')
    ).json() is None
    other = await choose('{"sd_model_checkpoint": "other"}')
    assert other.status_code == 422
    assert other.json()["detail"][0]["loc"] == ["body", "sd_model_checkpoint"]
    assert (await choose('{"sd_model_checkpoint": null}')).json() is None
    for no_object in ("[]", "[" * 20_000):
        assert (await choose(no_object)).status_code == 422


async def test_a_picture_from_words_alone_is_refused_with_a_sentence(service: Service) -> None:
    answer = await service.client.post("/sdapi/v1/txt2img", json={"prompt": "a cat"})
    assert (answer.status_code, answer.json()["detail"]) == (
        501,
        "Avatars are made from a photo: use img2img.",
    )


async def test_what_clients_look_up_is_there(service: Service) -> None:
    async def get(name: str) -> Any:
        answer = await service.client.get(f"/sdapi/v1/{name}")
        assert answer.status_code == 200, name
        return answer.json()

    assert [sampler["name"] for sampler in await get("samplers")] == ["Default"]
    assert [schedule["label"] for schedule in await get("schedulers")] == ["Automatic"]
    assert {style["name"] for style in await get("prompt-styles")} >= {"neon"}
    memory = (await get("memory"))["ram"]
    assert memory["free"] + memory["used"] == memory["total"] > 0
    for name in ("scripts", "loras", "sd-vae", "upscalers", "embeddings", "cmd-flags"):
        await get(name)
    assert (await service.client.post("/sdapi/v1/refresh-checkpoints")).json() is None


async def test_the_api_is_off_unless_it_is_switched_on(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        assert (await asked(service)).status_code == 404
        assert (await service.client.get("/sdapi/v1/progress")).status_code == 404


# --- one AvatarForge as the fallback of another -----------------------------------------------------------


@asynccontextmanager
async def a_pair(folder: Path) -> AsyncIterator[tuple[Service, Service]]:
    """An AvatarForge without replicas, and its fallback: another with the carried model."""
    (folder / "outer").mkdir()
    (folder / "inner").mkdir()
    manifest = Catalogue().read("avatar-mini")
    with BatchingEngine(avatar_mini(), "avatar-mini", threads=1) as engine:
        model = LoadedModel(manifest=manifest, engine=engine, dtype="float32", seconds={})
        async with running_service(folder / "inner", http={"sdapi": True}) as inner:
            inner.replicas.script = GenerationWorker(inner.storage, serving(model), 5).generate
            settings = RemoteSettings(
                url=inner.url, policy="local-then-remote", fallback_after_seconds=0, concurrency=4, timeout=60
            )
            server = RemoteServer(settings)
            server.POLL_INTERVAL_SECONDS = 0.05
            worker = RemoteWorker(
                FolderStorage(folder / "outer" / "objects"),
                server,
                CircuitBreaker(3, 30),
                lambda: manifest,
                5,
            )
            remote = RemoteFallback(
                replicas=ScriptedReplicas(slots=4, script=worker.generate), settings=settings
            )
            async with running_service(folder / "outer", remote=remote) as outer:
                # No local replica is there.
                await outer.replicas._slots.acquire()
                await outer.replicas._slots.acquire()
                yield outer, inner
            await server.close()


async def test_one_avatarforge_is_the_fallback_of_another(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (outer, inner):
        fields = {"style": "watercolor", "seed": "3", "steps": "2"}
        job_id = await outer.submitted(photo=portrait_file(), **fields)
        status = await outer.ended(job_id)
        assert (status["status"], status["backend"], status["model"]) == ("DONE", "remote", "avatar-mini")
        [made] = inner.records.list_jobs("sdapi", None, 10)
        assert made.outcome is not None
        # The inner one takes the square as it is, and says so; the outer one has cut it around the face.
        assert (made.outcome.crop, status["crop"]) == (Crop.CENTRE, Crop.FACE)
        assert made.parameters.prompt == Catalogue().read("avatar-mini").build_prompt("watercolor", "")
        recorded = outer.recorded(job_id)
        assert recorded.outcome is not None
        there = pixels(inner.storage.get(made.outcome.avatar.key))
        here = pixels(outer.storage.get(recorded.outcome.avatar.key))
        assert here == there
        # As if it had been made at home: the same seed gives the same picture.
        outer.replicas.script = inner.replicas.script
        assert here == pixels(await made_at_home(outer, inner, job_id))


async def made_at_home(outer: Service, inner: Service, job_id: str) -> bytes:
    """The avatar that the local worker makes of the job's original."""
    job = outer.recorded(job_id)
    original = outer.storage.get(job.original.key)
    inner.storage.put(job.original.key, BytesIO(original), job.original.media_type)
    task = GenerationTask(
        job_id=job_id,
        customer_id=job.customer_id,
        attempt=9,
        original=job.original,
        parameters=job.parameters,
    )
    updates: AsyncGenerator[GenerationUpdate, None] = inner.replicas.script(task)
    [*_, end] = [update async for update in updates]
    assert isinstance(end, GenerationFinished), end
    return inner.storage.get(end.outcome.avatar.key)


def pixels(file: bytes) -> bytes:
    with Image.open(BytesIO(file)) as image:
        return image.convert("RGB").tobytes()


async def test_cancelling_at_home_stops_the_fallback_too(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (outer, inner):
        job_id = await outer.submitted(photo=portrait_file(), steps="150")

        async def told() -> bool:
            progress = (await outer.get(job_id)).json()["progress"]
            return bool(progress and progress["step"])

        await wait_until(told)
        await outer.command("cancel", job_id)
        [there] = inner.records.list_jobs("sdapi", None, 9)
        await wait_until(lambda: inner.recorded(there.job_id, "sdapi").status is ProcessingStatus.CANCELLED)


async def test_a_photo_that_may_not_leave_the_house_does_not(tmp_path: Path) -> None:
    async with a_pair(tmp_path) as (outer, inner):
        staying = await outer.submitted(photo=portrait_file(), allowRemote="false")
        leaving = await outer.submitted(photo=portrait_file(), steps="4")
        assert (await outer.ended(leaving))["backend"] == "remote"
        assert (await outer.get(staying)).json()["status"] == "PENDING"
        outer.replicas._slots.release()
        assert (await outer.ended(staying))["backend"] == "local"
        assert len(inner.records.list_jobs("sdapi", None, 9)) == 1
