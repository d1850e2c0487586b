"""One call of a receiver, from the request to what is kept of its response."""

import asyncio
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import httpcore

from avatarforge import __version__
from avatarforge.domain.deliveries import DeliveryAttempt, WebhookDelivery
from avatarforge.settings import WebhookSettings, load_ca_file
from avatarforge.telemetry import traces
from avatarforge.webhooks.network_backend import CheckedBackend
from avatarforge.webhooks.pools import ConnectionPools
from avatarforge.webhooks.resolver import Resolver
from avatarforge.webhooks.retry_policy import parse_retry_after
from avatarforge.webhooks.signing import Signer
from avatarforge.webhooks.urls import CallbackUrl, UnusableUrl

Headers = Sequence[tuple[str, str]]

_TRANSPORT_ERRORS = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)

_MAX_BODY_BYTES = 4096
"""Bytes of an answer's body that are kept."""
_MAX_REASON_LENGTH = 300
"""Characters of what went wrong that are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallResult:
    """The outcome of a call."""

    attempt: DeliveryAttempt
    retry_after: timedelta | None
    """How long the receiver wants to be left alone."""


@dataclass(slots=True)
class _Response:
    """The part of the response that has come."""

    status: int | None = None
    retry_after: str | None = None
    body: bytes = b""

    @property
    def text(self) -> str:
        # Not every database takes the character 0.
        return self.body.decode("utf-8", "replace").replace("\0", "\ufffd")


def create_ssl_context(settings: WebhookSettings) -> ssl.SSLContext:
    """Return one that trusts what `ca_file` holds, or else what Mozilla trusts. Raises `SettingsError`."""
    if settings.ca_file is None:
        return httpcore.default_ssl_context()
    return load_ca_file(settings.ca_file, "webhook.ca_file")


class HttpCaller:
    """Calls receivers over HTTP/1.1. Follows no redirect, knows no proxy, keeps no cookie.

    A call ends after `timeout` seconds whatever the receiver does. Once the status has come it counts, even
    if the rest of the response is endless or breaks off: the receiver has heard the message.
    """

    CONNECT_TIMEOUT_SECONDS = 5.0
    """For name look-up and connection, and again for TLS."""

    def __init__(
        self,
        settings: WebhookSettings,
        signer: Signer,
        resolver: Resolver,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """`ssl_context`: by default what `create_ssl_context` makes of the settings."""
        self._timeout = settings.timeout
        self._signer = signer
        trusted = ssl_context or create_ssl_context(settings)
        backend = CheckedBackend(resolver, allow_private=settings.allow_private)
        self._pools = ConnectionPools(
            lambda: httpcore.AsyncConnectionPool(
                ssl_context=trusted,
                max_connections=settings.per_host,
                keepalive_expiry=ConnectionPools.MAX_IDLE_SECONDS,
                network_backend=backend,
            )
        )

    async def call(
        self, delivery: WebhookDelivery, body: bytes, at: datetime, secret_ids: Sequence[str] = ()
    ) -> CallResult:
        """Send the body to the delivery's address. Every failure is an outcome; nothing is raised.

        `secret_ids`: of the receiver's own secrets, which sign it too."""
        began = time.monotonic()
        response = _Response()
        signed = self._signer.headers(delivery.delivery_id, int(at.timestamp()), body, secret_ids)
        failure = await self._exchange(delivery, body, signed, response)
        seconds = time.monotonic() - began
        retry_after = None
        if response.status is not None:
            ended = at + timedelta(seconds=seconds)
            retry_after = parse_retry_after(response.status, response.retry_after, ended)
        attempt = DeliveryAttempt(
            at=at,
            seconds=round(seconds, 3),
            status=response.status,
            answer=response.text if response.status is not None else failure,
        )
        return CallResult(attempt=attempt, retry_after=retry_after)

    async def close(self) -> None:
        await self._pools.close()

    async def _exchange(
        self, delivery: WebhookDelivery, body: bytes, signed: Headers, response: _Response
    ) -> str:
        """Fill the response in as it comes. Returns what went wrong, in words."""
        try:
            url = CallbackUrl.parse(delivery.url)
            request = self._build_request(url, signed, body)
            async with asyncio.timeout(self._timeout), self._pools.pool_for(url.origin) as pool:
                await _receive(pool, request, response)
        except UnusableUrl as error:
            return f"The address is not {error}."
        except TimeoutError:
            return f"No answer within {self._timeout:g} s."
        except _TRANSPORT_ERRORS as error:
            # Errors of the protocol may quote all that came.
            reason = (str(error) or type(error).__name__)[:_MAX_REASON_LENGTH]
            return f"The call failed: {reason.removesuffix('.')}."
        return ""

    def _build_request(self, url: CallbackUrl, signed: Headers, body: bytes) -> httpcore.Request:
        return httpcore.Request(
            "POST",
            httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target),
            headers=[
                ("host", url.authority),
                ("user-agent", f"AvatarForge/{__version__}"),
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                *signed,
                *_trace_headers(),
            ],
            content=body,
            extensions={
                # Certificates have names without the dot that may end them in a URL.
                "sni_hostname": url.host.removesuffix("."),
                "timeout": {
                    "connect": min(self.CONNECT_TIMEOUT_SECONDS, self._timeout),
                    "read": self._timeout,
                    "write": self._timeout,
                    "pool": self._timeout,
                },
            },
        )


def _trace_headers() -> list[tuple[str, str]]:
    """The call's place in a trace, for a receiver that goes on with it."""
    traceparent = traces.traceparent()
    return [] if traceparent is None else [("traceparent", traceparent)]


def _header(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in headers if key.lower() == name), None)


async def _receive(
    pool: httpcore.AsyncConnectionPool, request: httpcore.Request, received: _Response
) -> None:
    response = await pool.handle_async_request(request)
    try:
        received.status = response.status
        received.retry_after = _header(response.headers, b"retry-after")
        # Read to its end, which `ResponseStream` keeps near, so that the connection can be used again.
        async for piece in response.aiter_stream():
            received.body = (received.body + piece)[:_MAX_BODY_BYTES]
    finally:
        await response.aclose()
