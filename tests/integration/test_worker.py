"""A replica's work without Ray: real storage, a tiny checkpoint."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from PIL import Image

from avatarforge.background import Backoff
from avatarforge.diffusion.engines.batching import BatchingEngine
from avatarforge.diffusion.engines.engine import EngineRequest, EngineResult, EngineStep, EngineUpdate
from avatarforge.diffusion.models.loader import LoadedModel
from avatarforge.diffusion.replica import task_worker
from avatarforge.diffusion.replica.task_worker import Generation, GenerationWorker
from avatarforge.domain.errors import (
    DeviceFailed,
    ImageWithheld,
    ModelUnusable,
    SigningFailed,
    StorageUnavailable,
)
from avatarforge.domain.generations import (
    GenerationFailed,
    GenerationFinished,
    GenerationImage,
    GenerationProgress,
)
from avatarforge.domain.jobs import Crop, ImageFormat, JobError, Vary
from avatarforge.imaging.provenance import SOURCE_TYPE, ContentCredentials
from avatarforge.settings import StorageSettings
from avatarforge.storage.folder import FolderStorage
from avatarforge.storage.s3 import S3Storage
from tests.checkpoints import img2img, img2img_manifest
from tests.generations import a_task, all_of, avatars, portrait_file, serving
from tests.waiting import wait_until


class Impatient(GenerationWorker):
    STORAGE_BACKOFF = Backoff(0.01, 15.0, has_jitter=True)


class Flickering(FolderStorage):
    """A folder that does not answer as often as a test says."""

    silences = 0
    puts = 0

    def get(self, key: str) -> bytes:
        self._answer()
        return super().get(key)

    def put(self, key: str, content: BinaryIO, media_type: str) -> None:
        self.puts += 1
        self._answer()
        super().put(key, content, media_type)

    def _answer(self) -> None:
        if self.silences:
            self.silences -= 1
            raise StorageUnavailable("switched off by the test")


@pytest.fixture(scope="module")
def model() -> Iterator[LoadedModel]:
    with BatchingEngine(img2img(), "img2img", threads=1) as engine:
        yield LoadedModel(manifest=img2img_manifest(), engine=engine, dtype="float32", seconds={})


@pytest.fixture
def storage(tmp_path: Path) -> Flickering:
    return Flickering(tmp_path)


@pytest.fixture
def worker(storage: Flickering, model: LoadedModel) -> GenerationWorker:
    return Impatient(storage, serving(model), storage_retry_seconds=5)


@pytest.mark.parametrize("image_format", list(ImageFormat))
async def test_a_photo_becomes_an_avatar_in_storage(
    worker: GenerationWorker, storage: Flickering, image_format: ImageFormat
) -> None:
    task = a_task(storage, style="watercolor", format=image_format)
    *progress, finished = await all_of(worker, task)
    assert isinstance(finished, GenerationFinished)
    outcome = finished.outcome
    extension = "jpg" if image_format is ImageFormat.JPEG else image_format.value
    assert outcome.avatar.key == f"customers/ana/{task.job_id}/avatar-3.{extension}"
    assert (outcome.model, outcome.backend, outcome.crop) == ("img2img", "local", Crop.FACE)
    assert list(outcome.timings) == ["fetch", "encode", "steps", "decode", "upload"]
    assert all(seconds > 0 for seconds in outcome.timings.values())
    content = storage.get(outcome.avatar.key)
    assert (outcome.avatar.size, outcome.avatar.sha256) == (len(content), sha256(content).hexdigest())
    picture = Image.open(BytesIO(content))
    assert (picture.format, picture.size) == (
        image_format.name,
        (outcome.avatar.width, outcome.avatar.height),
    )
    assert outcome.avatar.media_type == image_format.media_type
    assert "exif" not in picture.info
    assert b"a camera's maker" not in content
    assert SOURCE_TYPE.encode() in content
    assert all(isinstance(update, GenerationProgress) for update in progress)


async def test_an_avatar_has_the_size_that_was_asked_for(
    worker: GenerationWorker, storage: Flickering
) -> None:
    [*_, finished] = await all_of(worker, a_task(storage, width=64, height=96))
    assert isinstance(finished, GenerationFinished)
    assert (finished.outcome.avatar.width, finished.outcome.avatar.height) == (64, 96)
    # Another model may serve by now.
    [*_, failed] = await all_of(worker, a_task(storage, width=64, height=512))
    assert isinstance(failed, GenerationFailed)
    assert "height is 512" in failed.error.message


async def test_too_long_a_prompt_is_told_without_the_words_of_its_style(
    worker: GenerationWorker, storage: Flickering
) -> None:
    [*_, failed] = await all_of(worker, a_task(storage, style="neon", prompt="肖" * 1000))
    assert isinstance(failed, GenerationFailed)
    assert failed.error.code == "invalid_request"
    assert re.fullmatch(
        r"prompt is '肖+…, but it must be at most 600 tokens long \(it has 3002\), the words of its style "
        r"included\.",
        failed.error.message,
    )


async def test_progress_rises_and_ends_with_the_last_step(
    worker: GenerationWorker, storage: Flickering
) -> None:
    worker.PROGRESS_INTERVAL_SECONDS = 0.01
    *progress, _ = await all_of(worker, a_task(storage, steps=10))
    steps = [update.step for update in progress if isinstance(update, GenerationProgress)]
    assert steps == [0, *sorted(set(steps))]  # 0 of 0 while it waits, then 0 of 5
    assert progress[-1] == GenerationProgress(step=5, total_steps=5)


async def test_a_fast_engine_is_told_at_most_as_often_as_said_but_for_the_last_step(
    worker: GenerationWorker, storage: Flickering
) -> None:
    worker.PROGRESS_INTERVAL_SECONDS = 60
    *progress, finished = await all_of(worker, a_task(storage, steps=10))
    assert progress == [GenerationProgress(), GenerationProgress(step=5, total_steps=5)]
    assert isinstance(finished, GenerationFinished)


async def test_a_task_that_waits_sends_heartbeats(storage: Flickering, model: LoadedModel) -> None:
    gate = asyncio.Event()

    @asynccontextmanager
    async def models() -> AsyncIterator[LoadedModel]:
        await gate.wait()
        yield model

    worker = GenerationWorker(storage, models, storage_retry_seconds=5)
    worker.PROGRESS_INTERVAL_SECONDS, worker.HEARTBEAT_SECONDS = 0.01, 0.02
    async with aclosing(worker.generate(a_task(storage))) as updates:
        waiting = [await anext(updates) for _ in range(4)]
        gate.set()
        rest = [update async for update in updates]
    assert waiting == [GenerationProgress()] * 4
    assert isinstance(rest[-1], GenerationFinished)


async def test_tasks_side_by_side_all_finish(worker: GenerationWorker, storage: Flickering) -> None:
    tasks = [a_task(storage, seed=seed) for seed in range(3)]
    ends = await asyncio.gather(*(all_of(worker, task) for task in tasks))
    assert all(isinstance(updates[-1], GenerationFinished) for updates in ends)
    assert len(avatars(storage)) == 3


async def test_closing_leaves_nothing_in_storage(
    worker: GenerationWorker, storage: Flickering, model: LoadedModel
) -> None:
    worker.PROGRESS_INTERVAL_SECONDS = 0.01
    async with aclosing(worker.generate(a_task(storage, steps=800, strength=1.0))) as updates:
        async for update in updates:
            assert isinstance(update, GenerationProgress)
            if update.step >= 1:
                break
    # The engine is free again at once: the long picture was stopped, not waited for.
    follower = await asyncio.wait_for(all_of(worker, a_task(storage, steps=2)), 20)
    assert isinstance(follower[-1], GenerationFinished)
    assert avatars(storage) == [follower[-1].outcome.avatar.key]


async def test_an_avatar_that_is_being_written_when_the_task_is_closed_goes_again(
    storage: Flickering, model: LoadedModel
) -> None:
    from threading import Event

    begun, may_end, deleted = Event(), Event(), Event()

    class Slow(Flickering):
        def put(self, key: str, content: BinaryIO, media_type: str) -> None:
            begun.set()
            may_end.wait(10)
            super().put(key, content, media_type)

        def delete(self, key: str) -> None:
            super().delete(key)
            deleted.set()

    worker = GenerationWorker(Slow(storage.folder), serving(model), storage_retry_seconds=5)
    reading = asyncio.create_task(all_of(worker, a_task(storage, steps=2)))
    await wait_until(begun.is_set)
    reading.cancel()
    await asyncio.wait({reading})
    may_end.set()
    await wait_until(deleted.is_set)
    assert avatars(storage) == []


async def test_storage_that_comes_back_is_asked_again(worker: GenerationWorker, storage: Flickering) -> None:
    task = a_task(storage, steps=2)
    storage.silences = 3
    updates = await all_of(worker, task)
    assert isinstance(updates[-1], GenerationFinished)
    assert storage.silences == 0


async def test_storage_that_stays_away_gives_the_task_back(model: LoadedModel, storage: Flickering) -> None:
    # Nothing listens on port 9 of this machine.
    nowhere = S3Storage(StorageSettings(bucket="photos", endpoint_url="http://127.0.0.1:9", timeout=0.5))
    worker = Impatient(nowhere, serving(model), storage_retry_seconds=0.05)
    updates = await all_of(worker, a_task(storage))
    assert isinstance(updates[-1], GenerationFailed)
    assert (updates[-1].error.code, updates[-1].retryable) == ("storage_unavailable", True)


async def test_a_missing_original_fails_for_good(worker: GenerationWorker, storage: Flickering) -> None:
    task = a_task(storage)
    storage.delete(task.original.key)
    updates = await all_of(worker, task)
    assert isinstance(updates[-1], GenerationFailed)
    assert (updates[-1].error.code, updates[-1].retryable) == ("original_missing", False)


async def test_a_damaged_original_fails_for_good(worker: GenerationWorker, storage: Flickering) -> None:
    task = a_task(storage)
    storage.put(task.original.key, BytesIO(portrait_file()[:2000]), "image/jpeg")
    updates = await all_of(worker, task)
    assert isinstance(updates[-1], GenerationFailed)
    assert (updates[-1].error.code, updates[-1].retryable) == ("photo_damaged", False)


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"style": "oil"}, "invalid_request"),
        ({"steps": 2, "strength": 0.1}, "invalid_request"),
        ({"guidance": float("inf")}, "image_not_finite"),
        ({"steps": 5000}, "generation_failed"),
    ],
)
async def test_parameters_that_make_no_image_fail_for_good(
    worker: GenerationWorker, storage: Flickering, parameters: dict[str, Any], code: str
) -> None:
    updates = await all_of(worker, a_task(storage, **parameters))
    assert isinstance(updates[-1], GenerationFailed)
    assert (updates[-1].error.code, updates[-1].retryable) == (code, False)


async def test_one_step_asked_for_at_a_model_without_strength_is_run_by_one_that_has_it(
    worker: GenerationWorker, storage: Flickering
) -> None:
    """Its default strength would leave none of the steps, and the job was promised an avatar."""
    *_, progress, finished = await all_of(worker, a_task(storage, steps=1, strength=None))
    assert isinstance(finished, GenerationFinished)
    assert (progress.step, progress.total_steps) == (1, 1)


async def test_an_avatar_that_cannot_be_signed_is_not_stored_and_the_task_given_back(
    model: LoadedModel, storage: Flickering
) -> None:
    def sign(content: bytes, image_format: ImageFormat) -> bytes:
        raise SigningFailed("no time stamp")

    worker = Impatient(storage, serving(model), 5, ContentCredentials(sign))
    updates = await all_of(worker, a_task(storage, steps=2))
    assert isinstance(updates[-1], GenerationFailed)
    assert (updates[-1].error.code, updates[-1].retryable) == ("signing_failed", True)
    assert avatars(storage) == []


async def test_no_model_fails_the_task_for_good(storage: Flickering) -> None:
    @asynccontextmanager
    async def models() -> AsyncIterator[LoadedModel]:
        raise ModelUnusable("m", "it is broken")
        yield

    updates = await all_of(GenerationWorker(storage, models, storage_retry_seconds=5), a_task(storage))
    message = "The model 'm' cannot be used: it is broken."
    assert updates[-1] == GenerationFailed(error=JobError(code="model_unusable", message=message))


async def test_a_fault_of_ours_gives_the_task_back(storage: Flickering) -> None:
    @asynccontextmanager
    async def models() -> AsyncIterator[LoadedModel]:
        raise ZeroDivisionError
        yield

    updates = await all_of(GenerationWorker(storage, models, storage_retry_seconds=5), a_task(storage))
    assert isinstance(updates[-1], GenerationFailed)
    assert (updates[-1].error.code, updates[-1].retryable) == ("internal_error", True)


# --- several images -----------------------------------------------------------------------------------


async def test_several_images_are_told_as_they_come_and_the_last_one_with_the_end(
    worker: GenerationWorker, storage: Flickering
) -> None:
    worker.PROGRESS_INTERVAL_SECONDS = 0.01
    task = replace(a_task(storage, variants=3, steps=10), missing=(0, 1, 2))
    *updates, end = await all_of(worker, task)
    assert isinstance(end, GenerationFinished)
    assert end.image is not None
    told = [update.image for update in updates if isinstance(update, GenerationImage)]
    images = sorted((*told, end.image), key=lambda image: image.index)
    assert [(image.index, image.seed) for image in images] == [(0, 1), (1, 2), (2, 3)]
    assert end.outcome.avatar == end.image.stored
    assert [image.stored.key.rpartition("/")[2] for image in images] == [
        f"avatar-3-{k}.png" for k in range(3)
    ]
    assert sorted(avatars(storage)) == [image.stored.key for image in images]
    # Each is the one that its seed makes by itself.
    for image in images:
        [*_, alone] = await all_of(worker, a_task(storage, steps=10, seed=image.seed))
        assert isinstance(alone, GenerationFinished)
        assert storage.get(alone.outcome.avatar.key) == storage.get(image.stored.key)
    steps = [update for update in updates if isinstance(update, GenerationProgress)]
    assert steps[-1] == GenerationProgress(step=15, total_steps=15)
    assert [update.step for update in steps] == sorted(update.step for update in steps)


async def test_only_missing_images_are_made_and_the_others_count_as_done(
    worker: GenerationWorker, storage: Flickering
) -> None:
    worker.PROGRESS_INTERVAL_SECONDS = 0.01
    task = replace(a_task(storage, variants=4, steps=10), missing=(1, 3))
    *updates, end = await all_of(worker, task)
    assert isinstance(end, GenerationFinished)
    assert len(avatars(storage)) == 2
    steps = [update for update in updates if isinstance(update, GenerationProgress) and update.total_steps]
    assert {update.total_steps for update in steps} == {20}
    assert (steps[0].step >= 10, steps[-1].step) == (True, 20)


async def test_styles_go_round_from_the_one_that_was_asked_for(
    worker: GenerationWorker, storage: Flickering
) -> None:
    styles = list(img2img_manifest().styles)
    asked = styles[-1]
    count = len(styles) + 1
    task = a_task(storage, variants=count, vary=Vary.STYLE, style=asked, steps=2)
    *updates, end = await all_of(worker, replace(task, missing=tuple(range(count))))
    assert isinstance(end, GenerationFinished)
    assert end.image is not None
    told = [update.image for update in updates if isinstance(update, GenerationImage)]
    images = sorted((*told, end.image), key=lambda image: image.index)
    assert [(image.style, image.seed) for image in images] == [
        *((style, 1) for style in (asked, *styles[:-1])),
        (asked, 2),
    ]


async def test_an_image_that_fails_ends_none_of_the_others(
    worker: GenerationWorker, storage: Flickering, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = BatchingEngine.generate

    async def withholding(self: BatchingEngine, request: EngineRequest) -> AsyncGenerator[EngineUpdate, None]:
        if request.seed == 2:
            raise ImageWithheld("img2img")
        async for update in generate(self, request):
            yield update

    monkeypatch.setattr(BatchingEngine, "generate", withholding)
    task = replace(a_task(storage, variants=3, steps=10), missing=(0, 1, 2))
    *updates, end = await all_of(worker, task)
    told = [update.image.index for update in updates if isinstance(update, GenerationImage)]
    assert sorted(told) == [0, 2]
    assert isinstance(end, GenerationFailed)
    assert (end.error.code, end.retryable) == ("unsafe_content", False)


async def test_what_another_attempt_may_make_comes_before_a_fault_of_the_job(
    worker: GenerationWorker, storage: Flickering, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(self: BatchingEngine, request: EngineRequest) -> AsyncGenerator[EngineUpdate, None]:
        raise ImageWithheld("img2img") if request.seed == 1 else DeviceFailed("cpu", "it is hot")
        yield

    monkeypatch.setattr(BatchingEngine, "generate", failing)
    task = replace(a_task(storage, variants=2), missing=(0, 1))
    [*_, end] = await all_of(worker, task)
    assert isinstance(end, GenerationFailed)
    assert (end.error.code, end.retryable) == ("device_failed", True)


async def test_previews_of_several_images_name_theirs_and_take_turns(
    worker: GenerationWorker, storage: Flickering
) -> None:
    generation = Generation(replace(a_task(storage, variants=2), missing=(0, 1)))
    for index, step, preview in ((0, 1, b"a"), (1, 1, b"b"), (0, 2, b"c")):
        generation.record_step(index, step, 4, preview)
    sent = [generation.add_preview(generation.progress) for _ in range(3)]
    assert [(update.preview, update.preview_index, update.step) for update in sent] == [
        (b"c", 0, 3),
        (b"b", 1, 3),
        (None, 0, 3),
    ]


async def test_every_image_of_a_slow_batch_gets_its_preview_at_each_step(
    worker: GenerationWorker, storage: Flickering, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_step = [asyncio.Event() for _ in range(3)]

    async def stepping(self: BatchingEngine, request: EngineRequest) -> AsyncGenerator[EngineUpdate, None]:
        for step, begins in enumerate(next_step, 1):
            await begins.wait()
            yield EngineStep(step=step, total_steps=3, preview=f"{step}".encode() if step < 3 else None)
        yield EngineResult(image=Image.new("RGB", (8, 8)), timings={})

    monkeypatch.setattr(BatchingEngine, "generate", stepping)
    monkeypatch.setattr(GenerationWorker, "PROGRESS_INTERVAL_SECONDS", 0.01)
    task = replace(a_task(storage, variants=8), missing=tuple(range(8)))
    shown: dict[bytes, set[int]] = {b"1": set(), b"2": set()}
    next_step[0].set()
    async with asyncio.timeout(60), aclosing(worker.generate(task)) as updates:
        async for update in updates:
            if isinstance(update, GenerationProgress) and update.preview is not None:
                shown[update.preview].add(update.preview_index)
                if len(shown[update.preview]) == 8:
                    next_step[int(update.preview)].set()
    assert shown == {b"1": set(range(8)), b"2": set(range(8))}


async def test_a_stored_image_takes_no_turn_of_the_previews(
    worker: GenerationWorker, storage: Flickering
) -> None:
    generation = Generation(replace(a_task(storage, variants=2), missing=(0, 1)))
    for index in (0, 1):
        generation.record_step(index, 3, 4, b"%d" % index)
    generation.finish_image(0)
    assert generation.add_preview(generation.progress).preview == b"1"
    assert not generation.has_preview


async def test_the_photo_of_several_images_is_fetched_and_cropped_once(
    worker: GenerationWorker, storage: Flickering, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = []
    prepare = task_worker._prepare_photo

    def counting(*arguments: Any) -> Any:
        cuts.append(arguments)
        return prepare(*arguments)

    monkeypatch.setattr(task_worker, "_prepare_photo", counting)
    task = replace(a_task(storage, variants=4, steps=2), missing=(0, 1, 2, 3))
    [*_, end] = await all_of(worker, task)
    assert isinstance(end, GenerationFinished)
    assert len(cuts) == 1
