"""Answers that are images: a redirect to storage where it signs URLs, else the bytes."""

from collections.abc import Generator
from contextlib import closing
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.types import Send

from avatarforge.ingress.service import ImageKind, ProfilePhotos


async def image_response(
    request: Request,
    photos: ProfilePhotos,
    customer_id: str,
    job_id: str,
    kind: ImageKind,
    *,
    redirect: bool = True,
) -> Response:
    """The image of the job, or 304 for a client that has it. An image never changes under its URL.

    Without `redirect` the bytes are always passed through: pages may load pictures from their own host only.
    """
    image = await photos.image(customer_id, job_id, kind)
    headers = {"ETag": f'"{image.sha256}"', "Cache-Control": "private, max-age=3600"}
    if _has(request.headers.get("if-none-match", ""), image.sha256):
        return Response(status_code=304, headers=headers)
    url = await photos.signed_url(image) if redirect else None
    if url is not None:
        # The signature runs out, so the redirect must be asked for each time.
        return RedirectResponse(url, 302, {"Cache-Control": "private, no-store"})
    return _PassedThrough(
        await photos.chunks(job_id, kind, image),
        media_type=image.media_type,
        headers={
            **headers,
            "Content-Length": str(image.size),
            "Content-Disposition": f'inline; filename="{image.key.rpartition("/")[2]}"',
        },
    )


async def square_response(request: Request, photos: ProfilePhotos, customer_id: str, job_id: str) -> Response:
    """The square of the job's photo that its avatar is made from, to be laid beside it; or 304."""
    image = await photos.image(customer_id, job_id, ImageKind.ORIGINAL)
    etag = f"{image.sha256}-square"
    headers = {"ETag": f'"{etag}"', "Cache-Control": "private, max-age=3600"}
    if _has(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    return Response(await photos.square(customer_id, job_id), media_type="image/jpeg", headers=headers)


class _PassedThrough(StreamingResponse):
    """Gives the file or the connection back at once when the client goes away in the middle."""

    def __init__(self, chunks: Generator[bytes], **arguments: Any) -> None:
        super().__init__(chunks, **arguments)
        self._chunks = chunks

    async def stream_response(self, send: Send) -> None:
        with closing(self._chunks):
            await super().stream_response(send)


def _has(if_none_match: str, etag: str) -> bool:
    """Whether the header names the tag; weak tags count (RFC 9110, section 13.1.2)."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or f'"{etag}"' in tags
