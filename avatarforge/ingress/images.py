"""Answers that are images: a redirect to storage where it signs URLs, else the bytes."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from avatarforge.ingress.service import ImageKind, ProfilePhotos


async def image_response(
    request: Request, photos: ProfilePhotos, customer_id: str, job_id: str, kind: ImageKind
) -> Response:
    """The image of the job, or 304 for a client that has it. An image never changes under its URL."""
    image = await photos.image(customer_id, job_id, kind)
    headers = {"ETag": f'"{image.sha256}"', "Cache-Control": "private, max-age=3600"}
    if _has(request.headers.get("if-none-match", ""), image.sha256):
        return Response(status_code=304, headers=headers)
    url = await photos.signed_url(image)
    if url is not None:
        # The signature runs out, so the redirect must be asked for each time.
        return RedirectResponse(url, 302, {"Cache-Control": "private, no-store"})
    return StreamingResponse(
        await photos.chunks(job_id, kind, image),
        media_type=image.media_type,
        headers={
            **headers,
            "Content-Length": str(image.size),
            "Content-Disposition": f'inline; filename="{image.key.rpartition("/")[2]}"',
        },
    )


def _has(if_none_match: str, etag: str) -> bool:
    """Whether the header names the tag; weak tags count (RFC 9110, section 13.1.2)."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or f'"{etag}"' in tags
