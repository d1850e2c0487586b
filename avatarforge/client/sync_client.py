"""`AsyncClient`, written in `async_client.py`, and `Client`, which `make client` generates from it."""

import time
from collections.abc import Generator
from types import TracebackType
from typing import Any, Literal, Self

import httpx

from avatarforge.client.connection import (
    Backoff,
    Connection,
    ImageFile,
    Job,
    Photo,
    customer_path,
    encode_form,
    job_path,
    load_photo,
    make_key_header,
    parse_response,
    quote_segment,
)
from avatarforge.client.errors import (
    APIError,
    JobFailed,
    NotFound,
    ServerBusy,
    ServerUnreachable,
    StillRunning,
    UnexpectedResponse,
)
from avatarforge.client.events import JobEvent, SSEDecoder, Subscription
from avatarforge.domain.status import ProcessingStatus
from avatarforge.messages import ProfilePhotoJobStatus
from avatarforge.rest_messages import (
    Customer,
    CustomerPage,
    CustomerWithPhotos,
    DeliveryList,
    DeliveryMessage,
    FoundPhotos,
    ImageLinks,
    KeyMessage,
    ModelList,
    PhotoPage,
    StyleList,
)

MAX_HELD_SECONDS = 30.0
"""Longest that `wait` asks the server to hold one response back."""
MAX_SILENCE_SECONDS = 60.0
"""Silence after which an event stream is taken for lost. The server sends a comment every 15 s by default."""
PAGE_SIZE = 100
GATEWAY_ERRORS = (httpx.codes.INTERNAL_SERVER_ERROR, httpx.codes.BAD_GATEWAY, httpx.codes.GATEWAY_TIMEOUT)
"""What a gateway answers also if the server stopped in the middle of its work: nobody knows what was kept."""


class Client:
    """A client of one AvatarForge server. Close it, or use `with`.

    While the server is busy or does not answer, a method sends its request again, where that is safe, for up
    to `retry_timeout`; then it raises `ServerBusy` or `ServerUnreachable`. It raises the other kinds of
    `APIError`, and `UnexpectedResponse`, at once.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 30,
        retry_timeout: float = 30,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Open a client; nothing is sent yet. Raises `ValueError` if the URL or the key is not valid.

        Args:
            url: The server, by default the variable AVATARFORGE_URL or else http://127.0.0.1:8000.
            api_key: By default the variable AVATARFORGE_API_KEY.
            timeout: Seconds that one response may take.
            retry_timeout: Seconds during which requests are sent again; 0 sends each once.
            transport: For tests, and for proxies and certificates of your own.
        """
        self._connection = Connection(url, api_key, timeout, retry_timeout)
        self._http = httpx.Client(transport=transport, **self._connection.build_httpx_options())

    @property
    def url(self) -> str:
        """The server's URL, without a slash at its end."""
        return self._connection.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- one job -------------------------------------------------------------------------------------------

    def submit(
        self,
        customer_id: str,
        photo: Photo,
        *,
        style: str | None = None,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        strength: float | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        image_guidance: float | None = None,
        sampler: str | None = None,
        width: int | None = None,
        height: int | None = None,
        seed: int | None = None,
        format: Literal["png", "webp", "jpeg"] | None = None,
        priority: int | None = None,
        callback_url: str | None = None,
        allow_remote: bool | None = None,
        crop_to_face: bool | None = None,
        timeout_seconds: float | None = None,
        start_timeout_seconds: float | None = None,
        variants: int | None = None,
        vary: Literal["seed", "style"] | None = None,
        idempotency_key: str | None = None,
    ) -> ProfilePhotoJobStatus:
        """Upload a photo, and return the accepted job.

        The upload is sent again under one idempotency key, so that it makes one job. What is `None` is up to
        the server and its model. Raises `OSError` if the photo's file cannot be read.

        Args:
            customer_id: Whose photo it is.
            photo: A path, the file's bytes, or an open file.
            style: A name of `list_styles`.
            prompt: What to see in the avatar.
            negative_prompt: What not to see in it.
            strength: 0 to 1: how far the avatar may leave the photo, if the model's `dials` name it.
            steps: Steps of the sampler.
            guidance: How closely the prompt is followed.
            image_guidance: 1 to 5: how closely the photo is followed, if the model's `dials` name it.
            sampler: One of the model's `samplers`, such as `Euler a`.
            width: The avatar's width in pixels, a multiple of 8, with a height; by default the model's size.
            height: Its height.
            seed: The same seed makes the same avatar.
            format: The avatar's file format.
            priority: -10 to 10; higher goes first.
            callback_url: Called when the job has ended; see `verify_webhook`.
            allow_remote: Whether the photo may go to another server, if this one uses one.
            crop_to_face: Crop the photo around the face; `False` takes one of the same proportions as it is.
            timeout_seconds: Seconds after which the server gives the job up.
            start_timeout_seconds: The same for a job that has not been started.
            variants: 1 to 8: how many images to make; the job's `images` tells of each.
            vary: How they differ: by `seed`, or by `style`, each the next of the model's.
            idempotency_key: A key of your own, if your program may be started again meanwhile.
        """
        form = encode_form(
            style=style,
            prompt=prompt,
            negative_prompt=negative_prompt,
            strength=strength,
            steps=steps,
            guidance=guidance,
            image_guidance=image_guidance,
            sampler=sampler,
            width=width,
            height=height,
            seed=seed,
            format=format,
            priority=priority,
            callback_url=callback_url,
            allow_remote=allow_remote,
            crop_to_face=crop_to_face,
            timeout_seconds=timeout_seconds,
            start_timeout_seconds=start_timeout_seconds,
            variants=variants,
            vary=vary,
        )
        response = self._request(
            "POST",
            customer_path(customer_id),
            headers=make_key_header(idempotency_key),
            data=form,
            files={"photo": load_photo(photo)},
        )
        return parse_response(ProfilePhotoJobStatus, response)

    def get_status(
        self, job: Job, *, wait_seconds: float = 0, after: int | None = None
    ) -> ProfilePhotoJobStatus:
        """Return the job as it is now.

        Args:
            wait_seconds: Let the server hold its response back for up to so long, until the job is terminal.
            after: With `wait_seconds`: or until the job's `seq` is above this.
        """
        params = {"waitSeconds": f"{wait_seconds:g}"} if wait_seconds or after is not None else {}
        if after is not None:
            params["after"] = str(after)
        response = self._request(
            "GET", job_path(job, "status"), params=params or None, held_seconds=wait_seconds
        )
        return parse_response(ProfilePhotoJobStatus, response)

    def wait(self, job: Job, *, seconds: float = 600) -> ProfilePhotoJobStatus:
        """Wait until the job is DONE, and return it.

        Raises `JobFailed` if it ends otherwise, and `StillRunning` if it has not ended after `seconds`.
        """
        deadline = time.monotonic() + seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            latest = self.get_status(job, wait_seconds=round(min(left, MAX_HELD_SECONDS), 2))
            if latest.status is ProcessingStatus.DONE:
                return latest
            if latest.is_terminal:
                raise JobFailed(latest)
            if time.monotonic() >= deadline:
                raise StillRunning(latest, seconds)

    def watch(
        self, target: str | Job, *, after: int | None = None, previews: bool = False
    ) -> Generator[JobEvent]:
        """Yield what happens to a customer's jobs, without end; or to one job, until it ends or is erased.

        The first event is a `Snapshot`; with `after` it is the first change above that `seq`. If the
        connection is lost or the server ends the stream, it is resumed after the last `seq`: no change is
        missed or yielded twice. If the server's log no longer reaches back so far, a `Snapshot` with `reset`
        stands for what was missed. Raises `ServerUnreachable` and `ServerBusy` if there was no connection for
        `retry_timeout`.

        Args:
            target: The customer's id, or the job.
            after: The `seq` of the last change that is already known.
            previews: Send small images of unfinished avatars with `JobProgressed`.
        """
        subscription, backoff = Subscription(target, after, previews), Backoff(self._connection.retry_timeout)
        while True:
            error: ServerUnreachable | ServerBusy
            try:
                with self._http.stream(
                    **subscription.build_request(),
                    timeout=self._connection.build_timeouts(MAX_SILENCE_SECONDS),
                ) as response:
                    if not response.is_success:
                        response.read()
                        raise APIError.from_response(response)
                    if response.status_code == httpx.codes.NO_CONTENT:
                        return
                    kind = response.headers.get("content-type", "")
                    if not kind.startswith("text/event-stream"):
                        raise UnexpectedResponse(str(response.url), f"it sends no event stream, but {kind!r}")
                    decoder = SSEDecoder()
                    for chunk in response.iter_bytes():
                        # A connection that carried nothing does not count as a success.
                        backoff.reset()
                        for received in decoder.feed(chunk):
                            if (event := subscription.receive(received, self.url)) is not None:
                                yield event
                            if subscription.is_erased:
                                return
                if subscription.is_finished:
                    return
                error = ServerUnreachable(self.url, "it ends every stream")
            except httpx.TransportError as lost:
                error = self._connection.translate_error(lost)
            except httpx.RequestError as unreadable:
                raise UnexpectedResponse(self.url, str(unreadable)) from unreadable
            except ServerBusy as busy:
                error = busy
            time.sleep(backoff.next_delay(error))

    def cancel(self, job: Job) -> ProfilePhotoJobStatus:
        """End a job that waits or runs. Raises `Conflict` if it has ended otherwise already."""
        return parse_response(ProfilePhotoJobStatus, self._request("POST", job_path(job, "cancel")))

    def retry(self, job: Job) -> ProfilePhotoJobStatus:
        """Make a new job with the photo and parameters of a finished one. Raises `Conflict` if it goes on."""
        response = self._request("POST", job_path(job, "retry"), headers=make_key_header())
        return parse_response(ProfilePhotoJobStatus, response)

    def keep(self, job: Job, index: int) -> ProfilePhotoJobStatus:
        """Choose which of the job's images is kept: `download` returns that one from then on. It may be
        chosen anew. Raises `InvalidRequest` for an image that is not there (yet)."""
        response = self._request("PUT", job_path(job, "kept"), json={"index": index})
        return parse_response(ProfilePhotoJobStatus, response)

    def erase(self, job: Job) -> None:
        """Remove the job with its images and webhooks."""
        self._request("DELETE", job_path(job))

    def download(
        self,
        job: Job,
        kind: Literal["generated", "original", "square"] = "generated",
        *,
        index: int | None = None,
    ) -> ImageFile:
        """Return the avatar, the photo as it was uploaded, or the square of it that the avatar is made from.

        Of several avatars it is the one of this `index` in the job's `images`; without an index, once the job
        is DONE, the one that is kept, or else the first. Raises `NotFound` while there is none.
        """
        resource: str = "original?square=true" if kind == "square" else kind
        if index is not None:
            if kind != "generated":
                raise ValueError(f"index={index!r} is for 'generated' images, not for {kind!r}.")
            resource = f"generated/{index}"
        response = self._request("GET", job_path(job, resource))
        media_type = response.headers.get("content-type", "").partition(";")[0].strip()
        return ImageFile(content=response.content, media_type=media_type)

    def get_links(self, job: Job, *, expires_seconds: int | None = None) -> ImageLinks:
        """Return URLs of the job's images that need no key for a while, such as for an `<img>`.

        They work for `expires_seconds`, as many as the server allows (a week, unless it is set to less); by
        default as long as the server is set to, which is the most for the original.
        """
        query = {} if expires_seconds is None else {"expiresSeconds": expires_seconds}
        return parse_response(ImageLinks, self._request("GET", job_path(job, "links"), params=query))

    def list_deliveries(self, job: Job) -> tuple[DeliveryMessage, ...]:
        """Return the job's webhooks with every attempt and its response."""
        response = self._request("GET", job_path(job, "deliveries"))
        return parse_response(DeliveryList, response).deliveries

    def redeliver(self, job: Job, delivery_id: str) -> DeliveryMessage:
        """Send a webhook again, whether it has arrived or was given up."""
        path = job_path(job, f"deliveries/{quote_segment(delivery_id)}/redeliver")
        return parse_response(DeliveryMessage, self._request("POST", path, headers=make_key_header()))

    # --- customers -----------------------------------------------------------------------------------------

    def list_customers(self) -> Generator[Customer]:
        """Yield every customer, in the order of their ids."""
        path: str | None = f"/customers?limit={PAGE_SIZE}"
        while path is not None:
            page = parse_response(CustomerPage, self._request("GET", path))
            yield from page.customers
            path = self._connection.strip_prefix(page.next)

    def get_customer(self, customer_id: str) -> CustomerWithPhotos:
        """Return a customer with the newest photos."""
        return parse_response(CustomerWithPhotos, self._request("GET", customer_path(customer_id)))

    def list_jobs(self, customer_id: str) -> Generator[ProfilePhotoJobStatus]:
        """Yield every job of the customer, newest first."""
        path: str | None = f"{customer_path(customer_id)}/photos?limit={PAGE_SIZE}"
        while path is not None:
            page = parse_response(PhotoPage, self._request("GET", path))
            yield from page.photos
            path = self._connection.strip_prefix(page.next)

    def find_jobs(self, id_prefix: str) -> tuple[ProfilePhotoJobStatus, ...]:
        """Return the jobs whose ids begin so, whichever customer's: at most ten, oldest first.

        For admin keys of every customer. The prefix has 8 characters at least.
        """
        response = self._request("GET", "/photos", params={"idPrefix": id_prefix})
        return parse_response(FoundPhotos, response).photos

    def erase_customer(self, customer_id: str) -> None:
        """Remove the customer with every job and every image."""
        self._request("DELETE", customer_path(customer_id))

    # --- the server ----------------------------------------------------------------------------------------

    def get_key(self) -> KeyMessage:
        """Return what the client's key may do: for which customers, and whether it administers."""
        return parse_response(KeyMessage, self._request("GET", "/keys/self"))

    def list_models(self) -> ModelList:
        """Return the models that avatars are made with, and the one that each replica serves at present."""
        return parse_response(ModelList, self._request("GET", "/models"))

    def list_styles(self) -> StyleList:
        """Return the styles that `submit` takes."""
        return parse_response(StyleList, self._request("GET", "/styles"))

    def ping(self) -> None:
        """Send one request. Raises `ServerUnreachable` if nothing answers."""
        self._send("GET", "/healthz")

    def is_ready(self) -> bool:
        """Send one request, and return whether an AvatarForge answers that can accept jobs now."""
        try:
            return (self._send("GET", "/readyz")).is_success
        except ServerUnreachable:
            return False

    # --- requests ------------------------------------------------------------------------------------------

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Return a successful response, after as many tries as the retry timeout allows. Each sends the same
        idempotency key, where repeating the request would do something twice."""
        backoff, was_lost = Backoff(self._connection.retry_timeout), False
        while True:
            try:
                response = self._send(method, path, **arguments)
                if response.is_success:
                    return response
                failure = APIError.from_response(response)
                if was_lost and method == "DELETE" and isinstance(failure, NotFound):
                    # Erased by the try whose response was lost.
                    return response
                raise failure
            except ServerUnreachable as error:
                was_lost, delay = True, backoff.next_delay(error)
            except ServerBusy as error:
                is_unknown = error.status in GATEWAY_ERRORS
                was_lost, delay = was_lost or is_unknown, backoff.next_delay(error)
            time.sleep(delay)

    def _send(self, method: str, path: str, *, held_seconds: float = 0, **arguments: Any) -> httpx.Response:
        """Send a request once. Raises `ServerUnreachable`."""
        timeouts = self._connection.build_timeouts(held_seconds)
        try:
            return self._http.request(method, path, timeout=timeouts, **arguments)
        except httpx.TransportError as error:
            raise self._connection.translate_error(error) from error
        except httpx.RequestError as error:
            # Redirects without end, or a body that cannot be decoded.
            raise UnexpectedResponse(self.url, str(error)) from error
