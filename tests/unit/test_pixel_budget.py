"""Room for pixels, and how many of them a photo needs."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from io import BytesIO

import pytest
from PIL import Image

from avatarforge.domain.errors import InvalidUpload
from avatarforge.ingress.limits import PixelBudget
from avatarforge.ingress.upload.inspect import UndecodedPhoto, inspect_photo
from avatarforge.settings import UploadSettings


class Visitor:
    """Somebody who wants budget, and leaves when told so."""

    def __init__(self, budget: PixelBudget, pixels: int) -> None:
        self.is_in = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit(budget, pixels))

    async def _visit(self, budget: PixelBudget, pixels: int) -> None:
        async with budget.reserve(pixels):
            self.is_in = True
            await self._leave.wait()

    async def leave(self) -> None:
        self._leave.set()
        await self.task


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_finds_no_room_waits_and_small_ones_do_not_overtake() -> None:
    budget = PixelBudget(100)
    first, large, small = (Visitor(budget, pixels) for pixels in (60, 80, 10))
    await settled()
    assert [visitor.is_in for visitor in (first, large, small)] == [True, False, False]
    await first.leave()
    await settled()
    assert (large.is_in, small.is_in) == (True, True)
    await large.leave()
    await small.leave()


async def test_what_is_larger_than_the_room_takes_all_of_it() -> None:
    budget = PixelBudget(100)
    small, giant = Visitor(budget, 1), Visitor(budget, 1000)
    await settled()
    assert (small.is_in, giant.is_in) == (True, False)
    await small.leave()
    await settled()
    assert giant.is_in
    await giant.leave()


async def test_what_needs_no_room_never_waits() -> None:
    budget = PixelBudget(100)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(budget.reserve(100))
        waiting = Visitor(budget, 50)
        await settled()
        async with asyncio.timeout(1):
            await stack.enter_async_context(budget.reserve(0))
        assert not waiting.is_in
    await waiting.leave()


async def test_who_gives_up_waiting_lets_the_next_one_in() -> None:
    budget = PixelBudget(100)
    first, impatient, last = (Visitor(budget, pixels) for pixels in (100, 100, 40))
    await settled()
    impatient.task.cancel()
    await settled()
    await first.leave()
    await settled()
    assert last.is_in
    await last.leave()
    async with asyncio.timeout(1), budget.reserve(100):
        assert impatient.task.cancelled()


async def test_who_gives_up_in_the_moment_of_being_let_in_leaves_the_room() -> None:
    budget = PixelBudget(100)
    first, second = Visitor(budget, 100), Visitor(budget, 100)
    await settled()
    first._leave.set()
    await asyncio.sleep(0)
    second.task.cancel()
    await settled()
    async with asyncio.timeout(1), budget.reserve(100):
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
        (lambda: a_picture("JPEG", 50, 40)[:-2], 2000),
        (lambda: a_picture("PNG", 200, 200), None),
        (lambda: b"\x89PNG\r\n\x1a\n broken", None),
        (lambda: b"GIF89a", None),
        (lambda: b"", None),
    ],
    ids=[
        *("png", "webp", "gif", "jpeg", "jpeg without its end", "refused for its size", "broken png"),
        *("broken gif", "empty"),
    ],
)
def test_only_photos_that_are_decoded_need_room(content: Callable[[], bytes], pixels: int | None) -> None:
    file, limits = BytesIO(content()), UploadSettings(max_pixels=10_000)
    if pixels is None:
        with pytest.raises(InvalidUpload):
            inspect_photo(file, "photo", limits)
        return
    photo = inspect_photo(file, "photo", limits)
    assert (photo.pixels if isinstance(photo, UndecodedPhoto) else 0) == pixels
