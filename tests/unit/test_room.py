"""Room for pixels, and how many of them a photo needs."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from io import BytesIO

import pytest
from PIL import Image

from avatarforge.ingress.photos import pixels_to_decode
from avatarforge.ingress.room import Room
from avatarforge.settings import UploadSettings


class Visitor:
    """Somebody who wants room, and leaves when told so."""

    def __init__(self, room: Room, pixels: int) -> None:
        self.is_in = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit(room, pixels))

    async def _visit(self, room: Room, pixels: int) -> None:
        async with room.taken(pixels):
            self.is_in = True
            await self._leave.wait()

    async def leave(self) -> None:
        self._leave.set()
        await self.task


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_finds_no_room_waits_and_small_ones_do_not_overtake() -> None:
    room = Room(100)
    first, large, small = (Visitor(room, pixels) for pixels in (60, 80, 10))
    await settled()
    assert [visitor.is_in for visitor in (first, large, small)] == [True, False, False]
    await first.leave()
    await settled()
    assert (large.is_in, small.is_in) == (True, True)
    await large.leave()
    await small.leave()


async def test_what_is_larger_than_the_room_takes_all_of_it() -> None:
    room = Room(100)
    small, giant = Visitor(room, 1), Visitor(room, 1000)
    await settled()
    assert (small.is_in, giant.is_in) == (True, False)
    await small.leave()
    await settled()
    assert giant.is_in
    await giant.leave()


async def test_what_needs_no_room_never_waits() -> None:
    room = Room(100)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(room.taken(100))
        waiting = Visitor(room, 50)
        await settled()
        async with asyncio.timeout(1):
            await stack.enter_async_context(room.taken(0))
        assert not waiting.is_in
    await waiting.leave()


async def test_who_gives_up_waiting_lets_the_next_one_in() -> None:
    room = Room(100)
    first, impatient, last = (Visitor(room, pixels) for pixels in (100, 100, 40))
    await settled()
    impatient.task.cancel()
    await settled()
    await first.leave()
    await settled()
    assert last.is_in
    await last.leave()
    async with asyncio.timeout(1), room.taken(100):
        assert impatient.task.cancelled()


async def test_who_gives_up_in_the_moment_of_being_let_in_leaves_the_room() -> None:
    room = Room(100)
    first, second = Visitor(room, 100), Visitor(room, 100)
    await settled()
    first._leave.set()
    await asyncio.sleep(0)
    second.task.cancel()
    await settled()
    async with asyncio.timeout(1), room.taken(100):
        assert not second.is_in


def a_picture(kind: str, width: int, height: int) -> bytes:
    content = BytesIO()
    Image.new("RGB", (width, height)).save(content, kind)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "pixels"),
    [
        (lambda: a_picture("PNG", 50, 40), 2000),
        (lambda: a_picture("WEBP", 50, 40), 2000),
        (lambda: a_picture("GIF", 50, 40), 2000),
        (lambda: a_picture("JPEG", 50, 40), 0),
        (lambda: a_picture("PNG", 200, 200), 0),
        (lambda: b"\x89PNG\r\n\x1a\n broken", 0),
        (lambda: b"GIF89a", 0),
        (lambda: b"", 0),
    ],
    ids=["png", "webp", "gif", "jpeg", "refused for its size", "broken png", "broken gif", "empty"],
)
def test_only_photos_that_are_decoded_need_room(content: Callable[[], bytes], pixels: int) -> None:
    file = BytesIO(content())
    assert pixels_to_decode(file, UploadSettings(max_pixels=10_000)) == pixels
