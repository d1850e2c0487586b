"""One call of a receiver, from the request to what is kept of its answer."""

import asyncio
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import httpcore

from avatarforge import __version__
from avatarforge.domain.deliveries import DeliveryAttempt, WebhookDelivery
from avatarforge.settings import WebhookSettings
from avatarforge.telemetry import traces
from avatarforge.webhooks.connections import Connections
from avatarforge.webhooks.dialling import CheckedBackend
from avatarforge.webhooks.names import Names
from avatarforge.webhooks.schedule import patience_asked
from avatarforge.webhooks.signing import Signer
from avatarforge.webhooks.urls import CallbackUrl, UnusableUrl

_FAILURES = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)


_MOST_KEPT = 4096
"""Bytes of an answer's body that are kept."""
_MOST_REASON = 300
"""Characters of what went wrong that are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallOutcome:
    """How a call went."""

    attempt: DeliveryAttempt
    patience: timedelta | None
    """How long the receiver wants to be left alone."""


@dataclass(slots=True)
class _Answer:
    """As much of the answer as has come."""

    status: int | None = None
    retry_after: str | None = None
    body: bytes = b""

    @property
    def text(self) -> str:
        # Not every database takes the character 0.
        return self.body.decode("utf-8", "replace").replace("\0", "\ufffd")


class Caller:
    """Calls receivers over HTTP/1.1. Follows no redirect, knows no proxy, keeps no cookie.

    A call ends after `timeout` seconds whatever the receiver does. Once the status has come it counts, even
    if the rest of the answer is endless or breaks off: the receiver has heard the message.
    """

    CONNECT_LIMIT = 5.0
    """Seconds for name look-up and connection, and again for TLS."""

    def __init__(
        self,
        settings: WebhookSettings,
        signer: Signer,
        names: Names,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """`ssl_context`: by default one that trusts what Mozilla trusts."""
        self._timeout = settings.timeout
        self._signer = signer
        trusted = ssl_context or httpcore.default_ssl_context()
        backend = CheckedBackend(names, allow_private=settings.allow_private)
        self._connections = Connections(
            lambda: httpcore.AsyncConnectionPool(
                ssl_context=trusted,
                max_connections=settings.per_host,
                keepalive_expiry=Connections.KEPT,
                network_backend=backend,
            )
        )

    async def call(self, delivery: WebhookDelivery, body: bytes, at: datetime) -> CallOutcome:
        """Send the body to the delivery's address. Every failure is an outcome; nothing is raised."""
        began = time.monotonic()
        answer = _Answer()
        failure = await self._exchange(delivery, body, int(at.timestamp()), answer)
        seconds = time.monotonic() - began
        patience = None
        if answer.status is not None:
            ended = at + timedelta(seconds=seconds)
            patience = patience_asked(answer.status, answer.retry_after, ended)
        attempt = DeliveryAttempt(
            at=at,
            seconds=round(seconds, 3),
            status=answer.status,
            answer=answer.text if answer.status is not None else failure,
        )
        return CallOutcome(attempt=attempt, patience=patience)

    async def close(self) -> None:
        """Close the connections."""
        await self._connections.close()

    async def _exchange(self, delivery: WebhookDelivery, body: bytes, timestamp: int, answer: _Answer) -> str:
        """Fill the answer in as it comes. Returns what went wrong, in words."""
        try:
            url = CallbackUrl.parsed(delivery.url)
            request = self._request(url, delivery.delivery_id, timestamp, body)
            async with asyncio.timeout(self._timeout), self._connections.to(url.origin) as pool:
                await _receive(pool, request, answer)
        except UnusableUrl as error:
            return f"The address is not {error}."
        except TimeoutError:
            return f"No answer within {self._timeout:g} s."
        except _FAILURES as error:
            # Errors of the protocol may quote all that came.
            reason = (str(error) or type(error).__name__)[:_MOST_REASON]
            return f"The call failed: {reason.removesuffix('.')}."
        return ""

    def _request(self, url: CallbackUrl, delivery_id: str, timestamp: int, body: bytes) -> httpcore.Request:
        return httpcore.Request(
            "POST",
            httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target),
            headers=[
                ("host", url.authority),
                ("user-agent", f"AvatarForge/{__version__}"),
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                *self._signer.headers(delivery_id, timestamp, body),
                *_trace_headers(),
            ],
            content=body,
            extensions={
                # Certificates have names without the dot that may end them in a URL.
                "sni_hostname": url.host.removesuffix("."),
                "timeout": {
                    "connect": min(self.CONNECT_LIMIT, self._timeout),
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


async def _receive(pool: httpcore.AsyncConnectionPool, request: httpcore.Request, answer: _Answer) -> None:
    response = await pool.handle_async_request(request)
    try:
        answer.status = response.status
        answer.retry_after = _header(response.headers, b"retry-after")
        # Read to its end, which `AnswerStream` keeps near, so that the connection can be used again.
        async for piece in response.aiter_stream():
            answer.body = (answer.body + piece)[:_MOST_KEPT]
    finally:
        await response.aclose()
