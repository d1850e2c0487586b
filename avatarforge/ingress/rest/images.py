"""Responses that are images: a redirect to storage where it signs URLs, else the bytes."""

import re
from collections.abc import Generator
from contextlib import closing
from datetime import UTC
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.types import Send

from avatarforge.ingress.service import FoundImage, ImageKind, ProfilePhotoService

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class ImageAnswer:
    """The answer to a request for a job's image (RFC 9110, sections 13 and 14)."""

    def __init__(
        self, request: Request, photos: ProfilePhotoService, customer_id: str, job_id: str, *, download: bool
    ) -> None:
        """With `download` browsers save it as a file in place of showing it."""
        self._headers = request.headers
        self._photos = photos
        self._customer_id, self._job_id = customer_id, job_id
        self._download = download

    async def original(self, *, redirect: bool) -> Response:
        """Answer with the photo, as `_image` does."""
        found = await self._photos.original(self._customer_id, self._job_id)
        return await self._image(ImageKind.ORIGINAL, found, f"photo-{self._job_id}", redirect)

    async def avatar(self, index: int | None = None, *, redirect: bool) -> Response:
        """Answer with one of the job's avatars, as `_image` does."""
        found = await self._photos.avatar(self._customer_id, self._job_id, index)
        name = f"avatar-{self._job_id}" if index is None else f"avatar-{self._job_id}-{index}"
        return await self._image(ImageKind.GENERATED, found, name, redirect)

    async def _image(self, kind: ImageKind, found: FoundImage, name: str, redirect: bool) -> Response:
        """Answer with the image or a part of it, or 304 for a client that has it.

        Without `redirect` the bytes are always passed through: pages may load images from their own host
        only.
        """
        image = found.stored
        headers = self._describe(found, image.sha256)
        if self._is_known(headers):
            return Response(status_code=304, headers=headers)
        passes_through = self._download or not redirect
        if not passes_through and (url := await self._photos.sign_url(image)) is not None:
            # The signature runs out, so the redirect must be asked for each time.
            return RedirectResponse(url, 302, {"Cache-Control": "private, no-store"})
        wanted = self._find_range(image.size, headers)
        chunks = await self._photos.stream_image(self._job_id, kind, image, wanted)
        suffix = image.key.rpartition(".")[2]
        headers |= {"Accept-Ranges": "bytes", "Content-Disposition": self._disposition(f"{name}.{suffix}")}
        if wanted is None:
            headers["Content-Length"] = str(image.size)
            return _ImageStream(chunks, media_type=image.media_type, headers=headers)
        headers["Content-Length"] = str(len(wanted))
        headers["Content-Range"] = f"bytes {wanted[0]}-{wanted[-1]}/{image.size}"
        return _ImageStream(chunks, status_code=206, media_type=image.media_type, headers=headers)

    async def square(self) -> Response:
        """Answer with the square of the photo that the avatar is made from, to be laid beside it; or 304."""
        photo = await self._photos.original(self._customer_id, self._job_id)
        headers = self._describe(photo, f"{photo.stored.sha256}-square")
        if self._is_known(headers):
            return Response(status_code=304, headers=headers)
        headers["Content-Disposition"] = self._disposition(f"square-{self._job_id}.jpg")
        content = await self._photos.crop_original(self._customer_id, self._job_id)
        return Response(content, media_type="image/jpeg", headers=headers)

    def _describe(self, found: FoundImage, etag: str) -> dict[str, str]:
        headers = {"ETag": f'"{etag}"'}
        if found.may_change:
            # Without a date: another image that takes its place is not younger.
            return {**headers, "Cache-Control": "private, no-cache"}
        modified = format_datetime(found.made_at.astimezone(UTC), usegmt=True)
        return {**headers, "Last-Modified": modified, "Cache-Control": "private, max-age=3600"}

    def _disposition(self, filename: str) -> str:
        return f'{"attachment" if self._download else "inline"}; filename="{filename}"'

    def _is_known(self, headers: dict[str, str]) -> bool:
        """Tell whether the client has the image. Weak tags count, and a date only where no tag is sent."""
        if (if_none_match := self._headers.get("if-none-match")) is not None:
            tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
            return "*" in tags or headers["ETag"] in tags
        try:
            since = parsedate_to_datetime(self._headers.get("if-modified-since", ""))
            return parsedate_to_datetime(headers.get("Last-Modified", "")) <= since
        except (TypeError, ValueError, OverflowError):
            return False

    def _find_range(self, size: int, headers: dict[str, str]) -> range | None:
        """Return the bytes that are asked for; `None` for all, also where several ranges are asked for.

        Raises `HTTPException` (416) for a range that the image does not have.
        """
        validators = headers["ETag"], headers.get("Last-Modified")
        if self._headers.get("if-range", headers["ETag"]) not in validators:
            return None
        found = _RANGE.fullmatch(self._headers.get("range", "").replace(" ", ""))
        if found is None or not (found[1] or found[2]):
            return None
        first = int(found[1]) if found[1] else max(0, size - int(found[2]))
        last = min(int(found[2]), size - 1) if found[1] and found[2] else size - 1
        if found[1] and found[2] and int(found[2]) < first:
            return None
        if first >= size:
            detail = f"The image has {size} bytes, and none from {first} on."
            raise HTTPException(416, detail, headers={"Content-Range": f"bytes */{size}"})
        return range(first, last + 1)


class _ImageStream(StreamingResponse):
    """Gives the file or the connection back at once when the client goes away in the middle."""

    def __init__(self, chunks: Generator[bytes], **arguments: Any) -> None:
        super().__init__(chunks, **arguments)
        self._chunks = chunks

    async def stream_response(self, send: Send) -> None:
        with closing(self._chunks):
            await super().stream_response(send)
