"""The whole service in one process: real record, storage, webhooks and sockets. Only Ray is left out, and the
replicas' generations are written by the test.
"""

import asyncio
import hashlib
import io
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import grpc
import httpx
import uvicorn
from PIL import Image
from ray.exceptions import RayActorError

from avatarforge.access.authorizer import Authorizer
from avatarforge.diffusion.models.catalogue import Catalogue
from avatarforge.domain.errors import StorageUnavailable
from avatarforge.domain.generations import (
    GenerationFailed,
    GenerationFinished,
    GenerationImage,
    GenerationProgress,
    GenerationTask,
    GenerationUpdate,
)
from avatarforge.domain.jobs import AvatarImage, JobError, ProfilePhotoJob
from avatarforge.ingress.app import create_api
from avatarforge.ingress.grpc import JobMethods
from avatarforge.ingress.grpc.serving import add_job_service_to_server
from avatarforge.ingress.live.job_cache import JobCache
from avatarforge.ingress.service import ProfilePhotoService
from avatarforge.persistence import DeletionRepository, DeliveryRepository, JobRepository, open_engine
from avatarforge.persistence.database import meter_engine
from avatarforge.settings import Settings, load_settings
from avatarforge.storage.folder import FolderStorage
from avatarforge.storage.interface import StoredObject
from avatarforge.storage.keys import avatar_key
from avatarforge.storage.metered import MeteredStorage
from avatarforge.telemetry.registry import MetricsRegistry
from avatarforge.tracker.actor import JobTrackerActor
from avatarforge.tracker.client import TrackerClient
from avatarforge.tracker.ports import Ports, RemoteFallback
from avatarforge.tracker.tracker import JobTracker
from avatarforge.webhooks.sender import WebhookSender
from tests.events import Event, EventReader
from tests.factories import an_image, an_outcome
from tests.integration.rest import A_SECRET, a_jpeg, empty_database
from tests.keys import an_authorizer
from tests.twins import Script, ScriptedReplicas
from tests.waiting import wait_until

SECONDS = 10.0
"""How long a test waits for what must come."""


class Clock:
    """The time of day, which a test can put forward."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class AbsentFolder(FolderStorage):
    """A folder that does not answer when the test says so."""

    away = False

    def check(self) -> None:
        self._answer()
        super().check()

    def put(self, key: str, content: BinaryIO, media_type: str) -> None:
        self._answer()
        super().put(key, content, media_type)

    def delete(self, key: str) -> None:
        self._answer()
        super().delete(key)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self._answer()
        return super().list(prefix)

    def _answer(self) -> None:
        if self.away:
            raise StorageUnavailable("switched off by the test")


# --- generations ------------------------------------------------------------------------------------------


@cache
def a_preview() -> bytes:
    """A small picture as replicas make it."""
    content = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(content, "WEBP")
    return content.getvalue()


WITHHELD = GenerationFailed(error=JobError(code="unsafe_content", message="The picture was withheld."))


class Generations:
    """Scripts for `ScriptedReplicas`."""

    def __init__(self, storage: FolderStorage) -> None:
        self._storage = storage
        self.avatar = lambda task: b"\x89PNG avatar of " + task.job_id.encode()
        """The bytes of a task's avatar: no picture, unless a test puts one in its place. Of several each has
        its index behind them."""

    def image(self, task: GenerationTask, index: int) -> AvatarImage:
        """One image of a generation, in storage."""
        several = task.parameters.variants > 1
        avatar = self.avatar(task) + (str(index).encode() if several else b"")
        key = avatar_key(
            task.customer_id, task.job_id, task.attempt, task.parameters.format, index if several else None
        )
        self._storage.put(key, io.BytesIO(avatar), "image/png")
        stored = an_image(
            key=key, media_type="image/png", size=len(avatar), sha256=hashlib.sha256(avatar).hexdigest()
        )
        parameters = task.parameters
        return AvatarImage(index=index, seed=parameters.seed + index, style=parameters.style, stored=stored)

    def publish(self, task: GenerationTask, index: int = 0) -> GenerationFinished:
        """The end of a generation that went well, its last image in storage."""
        image = self.image(task, index)
        outcome = an_outcome(avatar=image.stored)
        return GenerationFinished(outcome=outcome, image=image if task.parameters.variants > 1 else None)

    async def done(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield GenerationProgress(step=1, total_steps=2)
        *others, last = task.missing
        for index in others:
            yield GenerationImage(image=self.image(task, index))
        yield self.publish(task, last)

    async def failing(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        yield WITHHELD

    async def lost(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        """The replica dies, after it has stored its avatar."""
        self.publish(task)
        yield GenerationProgress(step=2, total_steps=2)
        raise ConnectionError("the replica died")

    def puppet(self) -> "Puppet":
        return Puppet(self)


class Puppet:
    """A script whose steps and end come when the test wants them."""

    def __init__(self, generations: Generations) -> None:
        self._generations = generations
        self._updates: asyncio.Queue[GenerationUpdate | int | None] = asyncio.Queue()
        """An index stands for its image, and `None` for the end."""
        self.runs = asyncio.Event()

    async def __call__(self, task: GenerationTask) -> AsyncGenerator[GenerationUpdate, None]:
        self.runs.set()
        missing = list(task.missing)
        while (update := await self._updates.get()) is not None:
            if isinstance(update, int):
                missing.remove(update)
                update = GenerationImage(image=self._generations.image(task, update))
            yield update
        *others, last = missing
        for index in others:
            yield GenerationImage(image=self._generations.image(task, index))
        yield self._generations.publish(task, last)

    def step(self, step: int, total_steps: int = 20, preview: bytes | None = None, index: int = 0) -> None:
        self._updates.put_nowait(
            GenerationProgress(step=step, total_steps=total_steps, preview=preview, preview_index=index)
        )

    def publish(self, index: int) -> None:
        """Make one of several images, but the last."""
        self._updates.put_nowait(index)

    def finish(self) -> None:
        """Make the images that are still missing."""
        self._updates.put_nowait(None)

    def fail(self) -> None:
        self._updates.put_nowait(WITHHELD)


# --- trackers ---------------------------------------------------------------------------------------------


class TrackerHere:
    """A tracker of this process behind what its actor's handle offers: `handle.method.remote(…)`.

    It can be killed, and started again on the same record.
    """

    def __init__(self, make: Callable[[], JobTracker]) -> None:
        self._make = make
        self.tracker: JobTracker | None = None
        self._calls: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        self.tracker = self._make()
        # The real one's answers, without its constructor: that connects to the real world.
        self._actor = object.__new__(JobTrackerActor)
        self._actor._tracker = self.tracker
        await self.tracker.start()

    async def kill(self) -> None:
        """Calls under way are lost, whatever has become of them."""
        tracker, self.tracker = self.tracker, None
        for call in self._calls:
            call.cancel()
        if tracker is not None:
            await tracker.stop()

    def __getattr__(self, method: str) -> "_Method":
        return _Method(self, method)

    async def call(self, method: str, *arguments: Any) -> Any:
        tracker = self.tracker
        if tracker is None:
            raise RayActorError
        call = asyncio.ensure_future(getattr(self._actor, method)(*arguments))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            return await call
        except asyncio.CancelledError:
            if tracker is self.tracker:
                raise
            raise RayActorError from None


@dataclass(frozen=True)
class _Method:
    _actor: TrackerHere
    _name: str

    def remote(self, *arguments: Any) -> Awaitable[Any]:
        return self._actor.call(self._name, *arguments)


# --- streams ----------------------------------------------------------------------------------------------


class EventStream:
    """An open stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._events = _events(response.aiter_lines())

    async def next(self, seconds: float = SECONDS) -> Event:
        """The next event that is no comment."""
        while (event := await self.anything(seconds)).kind == "comment":
            continue
        return event

    async def anything(self, seconds: float = SECONDS) -> Event:
        return await asyncio.wait_for(anext(self._events), seconds)

    async def until(self, *wanted: str) -> list[Event]:
        """Events up to the first of a wanted kind or status."""
        events = [await self.next()]
        while not {events[-1].kind, events[-1].data.get("status")} & set(wanted):
            events.append(await self.next())
        return events

    async def rest(self) -> list[Event]:
        """What comes until the server ends the stream, without comments."""
        async with asyncio.timeout(SECONDS):
            return [event async for event in self._events if event.kind != "comment"]


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    reader = EventReader()
    async for line in lines:
        if (event := reader.read(line)) is not None:
            yield event


# --- the service ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Replica:
    """An ingress replica behind a real socket."""

    client: httpx.AsyncClient
    live: JobCache
    photos: ProfilePhotoService
    authorizer: Authorizer

    @property
    def url(self) -> str:
        return str(self.client.base_url)

    async def post(
        self, customer_id: str = "ana", *, key: str | None = None, photo: bytes = b"", **fields: str
    ) -> httpx.Response:
        return await self.client.post(
            f"/customers/{customer_id}",
            files={"photo": ("portrait.jpg", photo or a_jpeg(), "image/jpeg")},
            data=fields,
            headers={} if key is None else {"Idempotency-Key": key},
        )

    async def submitted(self, customer_id: str = "ana", **fields: str) -> str:
        """The id of a job that was accepted."""
        answer = await self.post(customer_id, **fields)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["jobId"])

    async def get(self, job_id: str, customer_id: str = "ana", **query: object) -> httpx.Response:
        path = f"/customers/{customer_id}/photos/{job_id}/status"
        return await self.client.get(path, params={name: str(value) for name, value in query.items()})

    async def ended(self, job_id: str, customer_id: str = "ana") -> dict[str, Any]:
        """The job's status once it is terminal."""
        status: dict[str, Any] = (await self.get(job_id, customer_id, waitSeconds=SECONDS)).json()
        assert status["isTerminal"], status
        return status

    async def command(
        self, name: str, job_id: str, customer_id: str = "ana", headers: dict[str, str] | None = None
    ) -> httpx.Response:
        return await self.client.post(f"/customers/{customer_id}/photos/{job_id}/{name}", headers=headers)

    async def erase(self, job_id: str, customer_id: str = "ana") -> httpx.Response:
        return await self.client.delete(f"/customers/{customer_id}/photos/{job_id}")

    @asynccontextmanager
    async def stream(
        self, customer_id: str = "ana", *, last_event_id: int | str | None = None, **query: object
    ) -> AsyncIterator[EventStream]:
        headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
        parameters = {name: str(value) for name, value in query.items()}
        path = f"/customers/{customer_id}/photos/stream"
        async with self.client.stream("GET", path, headers=headers, params=parameters) as response:
            yield EventStream(response)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What ingress replicas share."""

    settings: Settings
    records: JobRepository
    deliveries: DeliveryRepository
    storage: AbsentFolder
    trackers: TrackerClient
    clock: Clock


@dataclass(frozen=True, kw_only=True)
class Service(Replica, Parts):
    """All the parts, within reach of the test. It is also its first ingress replica."""

    replicas: ScriptedReplicas
    generations: Generations
    actors: list[TrackerHere]

    def script(self, *scripts: Script) -> None:
        """How the next generations go, one after the other; later ones go well."""
        self.replicas.next_scripts.extend(scripts)

    def puppet(self) -> Puppet:
        """The next generation, to be moved by the test."""
        puppet = self.generations.puppet()
        self.script(puppet)
        return puppet

    async def running(self, customer_id: str = "ana", **fields: str) -> str:
        """The id of a job whose generation runs until it is stopped."""
        puppet = self.puppet()
        job_id = await self.submitted(customer_id, **fields)
        await asyncio.wait_for(puppet.runs.wait(), SECONDS)
        return job_id

    def story(self, job_id: str, customer_id: str = "ana") -> list[tuple[int, str]]:
        """Numbers and kinds of the job's events, from the record."""
        entries = self.records.list_customer_events(customer_id, job_id, 0, 1000)
        return [(entry.event.seq, entry.event.kind.value) for entry in entries]

    def recorded(self, job_id: str, customer_id: str = "ana") -> ProfilePhotoJob:
        job = self.records.find_job(customer_id, job_id)
        assert job is not None
        return job

    def objects(self, job_id: str = "") -> list[str]:
        """Keys in storage; with an id only those of the job."""
        return sorted(stored.key for stored in self.storage.list("") if job_id in stored.key)

    @property
    def running_trackers(self) -> list[JobTracker]:
        return [actor.tracker for actor in self.actors if actor.tracker is not None]

    async def kill_trackers(self) -> None:
        for actor in self.actors:
            await actor.kill()

    async def start_trackers(self) -> None:
        for actor in self.actors:
            await actor.start()

    @asynccontextmanager
    async def fresh_replica(self, port: int = 0) -> AsyncIterator[Replica]:
        """Another ingress replica, which has seen nothing of what went before."""
        async with _ingress(self, port) as replica:
            yield replica


@asynccontextmanager
async def running_service(
    folder: Path, *, remote: RemoteFallback | None = None, **arguments: Any
) -> AsyncIterator[Service]:
    """`arguments` are groups of settings."""
    arguments["webhook"] = {"secrets": A_SECRET, "allow_private": True, **arguments.get("webhook", {})}
    settings = load_settings({"data_dir": str(folder), **arguments}, environ={})
    (folder / "avatarforge.db").write_bytes(empty_database())
    engine = open_engine(settings.database, settings.database_url)
    records, deliveries, clock = JobRepository(engine), DeliveryRepository(engine), Clock()
    # The database is on the same machine.
    records.read_clock = clock  # type: ignore[method-assign]
    storage = AbsentFolder(settings.storage_folder)
    generations = Generations(storage)
    replicas = ScriptedReplicas(script=generations.done)
    broken: list[Exception] = []

    def tracker(shard: int) -> JobTracker:
        registry = MetricsRegistry()
        meter_engine(engine, registry, "tracker")
        ports = Ports(
            store=records,
            deletions=DeletionRepository(engine),
            deliveries=deliveries,
            storage=MeteredStorage(storage, registry, "tracker"),
            webhooks=WebhookSender(
                deliveries, records.find_job, settings.webhook, shard, now=clock, registry=registry
            ),
            replicas=replicas,
            remote=remote,
        )
        return JobTracker(
            shard, settings.tracker, ports, registry=registry, on_broken=broken.append, now=clock
        )

    actors = [TrackerHere(partial(tracker, shard)) for shard in range(settings.tracker.shards)]
    parts = Parts(
        settings=settings,
        records=records,
        deliveries=deliveries,
        storage=storage,
        trackers=TrackerClient(actors, retry_timeout=SECONDS),
        clock=clock,
    )
    try:
        for actor in actors:
            await actor.start()
        async with _ingress(parts) as replica:
            yield Service(
                **vars(replica), **vars(parts), replicas=replicas, generations=generations, actors=actors
            )
    finally:
        await parts.trackers.close()
        for actor in actors:
            await actor.kill()
        records.close()
    assert broken == []


@asynccontextmanager
async def _ingress(parts: Parts, port: int = 0) -> AsyncIterator[Replica]:
    live, registry = JobCache(parts.trackers, parts.settings.ingress), MetricsRegistry()
    photos = ProfilePhotoService(
        parts.settings,
        parts.records,
        MeteredStorage(parts.storage, registry, "ingress"),
        parts.trackers,
        live,
        Catalogue(parts.settings.diffusion.models_dir),
        parts.deliveries,
        parts.clock,
        registry,
    )
    authorizer = an_authorizer(parts.settings, parts.clock)
    config = uvicorn.Config(
        create_api(photos, authorizer),
        port=port,
        log_config=None,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    live.start()
    photos.metrics_endpoint.start()
    serving = asyncio.create_task(server.serve())
    try:
        await wait_until(lambda: server.started and live.lag < SECONDS)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Replica(client=client, live=live, photos=photos, authorizer=authorizer)
    finally:
        server.should_exit = True
        await serving
        await photos.close()
        await photos.metrics_endpoint.stop()
        await live.stop()


@asynccontextmanager
async def serving_grpc(service: Service) -> AsyncIterator[str]:
    """Where the service talks gRPC."""
    server = grpc.aio.server()
    add_job_service_to_server(JobMethods(service.photos, service.authorizer), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)
