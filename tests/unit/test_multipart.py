"""Multipart bodies are read as a stream, within limits, and leave no file behind."""

import asyncio
import base64
import gzip
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from avatarforge.domain.errors import (
    AvatarForgeError,
    InvalidRequest,
    MalformedUpload,
    MissingPhoto,
    PhotoTooLarge,
    StorageFull,
    StorageUnavailable,
    UnsupportedContentEncoding,
    UnsupportedMediaType,
)
from avatarforge.ingress.upload import multipart
from avatarforge.ingress.upload.multipart import MAX_FIELD_BYTES, MAX_PARTS, Upload, receive_upload
from avatarforge.settings import UploadSettings
from tests import pictures

LIMITS = UploadSettings(max_bytes=100_000, spool_threshold_bytes=0)
"""All photos lie on disk."""
IN_MEMORY = UploadSettings(max_bytes=100_000, spool_threshold_bytes=1000)
BOUNDARY = "----form7MA4YWxk"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
FORM_HEADERS = Headers({"content-type": FORM})


class Client:
    """A request's body that comes in chunks, and remembers how much of it was taken."""

    def __init__(self, chunks: Iterable[bytes], *, leaves: bool = False, falls_silent: bool = False) -> None:
        self.chunks = list(chunks)
        self.leaves = leaves
        self.falls_silent = falls_silent
        self.taken = 0

    async def stream(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            self.taken += 1
            yield chunk
        if self.leaves:
            raise ClientDisconnect
        if self.falls_silent:
            await asyncio.Event().wait()
        yield b""


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def photo(content: bytes = b"photo", filename: str = "me.jpg") -> bytes:
    return part("photo", content, filename)


def encoded(encoding: str, content: bytes) -> bytes:
    """A photo in a transfer encoding of e-mails."""
    return photo(content).replace(
        b"\r\n\r\n", f"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode(), 1
    )


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


async def received(
    content: bytes | Client,
    folder: Path,
    content_type: str = FORM,
    limits: UploadSettings = LIMITS,
    content_length: int | None = None,
    more_headers: dict[str, str] | None = None,
) -> tuple[bytes, str, dict[str, str]]:
    client = content if isinstance(content, Client) else Client([content])
    headers = Headers({"content-type": content_type, **(more_headers or {})})
    if content_length is not None:
        headers = Headers({**headers, "content-length": str(content_length)})
    async with receive_upload(client.stream(), headers, limits, folder) as upload:
        assert files_in(folder) == []
        return upload.photo.read(), upload.filename, upload.fields


async def refusal(content: bytes | Client, folder: Path, **options: object) -> AvatarForgeError:
    """The error that the upload meets; nothing may be left of it."""
    with pytest.raises(AvatarForgeError) as raised:
        await received(content, folder, **options)  # type: ignore[arg-type]  # the caller's keywords
    assert files_in(folder) == []
    assert open_files_in(folder) == []
    return raised.value


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def open_files_in(folder: Path) -> list[str]:
    """What this process has open in the folder, files without a name included."""
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            targets.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return [target for target in targets if target.startswith(str(folder))]


# --- what is fine ---------------------------------------------------------------------------------------


async def test_photo_and_fields_are_read(tmp_path: Path) -> None:
    content = body(part("prompt", "a knight, größer".encode()), photo(), part("seed", b"7"))
    assert await received(content, tmp_path) == (
        b"photo",
        "me.jpg",
        {"prompt": "a knight, größer", "seed": "7"},
    )
    assert open_files_in(tmp_path) == []


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
async def test_it_does_not_matter_how_the_body_is_cut(tmp_path: Path, size: int) -> None:
    jpeg = pictures.jpeg()[:3000] + b"\r\n--" + BOUNDARY.encode()[:-1] + b"\r\n-- and so on"
    whole = body(part("style", b"neon"), photo(jpeg), part("prompt", b""))
    chunks = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert await received(Client(chunks), tmp_path) == (jpeg, "me.jpg", {"style": "neon", "prompt": ""})


@pytest.mark.parametrize("size", [1, 5, 10_000])
async def test_text_before_the_first_boundary_is_passed_over(tmp_path: Path, size: int) -> None:
    whole = b"This is a message in MIME format.\r\n--" + BOUNDARY.encode()[:-1] + b"\r\n" + body(photo())
    chunks = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert await received(Client(chunks), tmp_path) == (b"photo", "me.jpg", {})


async def test_a_photo_needs_no_file_name(tmp_path: Path) -> None:
    content = pictures.jpeg()
    assert await received(body(part("photo", content)), tmp_path) == (content, "photo", {})


async def test_the_body_of_a_client_that_names_no_file_is_taken(tmp_path: Path) -> None:
    content = (Path(__file__).parents[1] / "photos" / "no-filename.body").read_bytes()
    boundary = content.split(b"\r\n")[0].removeprefix(b"--").decode()
    taken, name, _ = await received(content, tmp_path, f"multipart/form-data; boundary={boundary}")
    assert (taken[:3], name) == (b"\xff\xd8\xff", "photo")


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        ("filename*=UTF-8''Zo%C3%AB.jpg", "Zoë.jpg"),
        ("filename*=\"utf-8'en'Zo%C3%AB.jpg\"", "Zoë.jpg"),
        ("filename*=no-such-thing''Zo%C3%AB.jpg", "photo"),
        ("filename=plain.jpg; filename*=UTF-8''Zo%C3%AB.jpg", "plain.jpg"),
    ],
)
async def test_a_file_name_may_be_encoded(tmp_path: Path, parameter: str, name: str) -> None:
    content = body(photo().replace(b'filename="me.jpg"', parameter.encode()))
    assert await received(content, tmp_path) == (b"photo", name, {})


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
async def test_a_photo_in_base64_is_decoded(tmp_path: Path, size: int) -> None:
    content = pictures.jpeg()
    whole = body(encoded("base64", base64.encodebytes(content).replace(b"\n", b"\r\n")))
    chunks = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert (await received(Client(chunks), tmp_path))[0] == content


@pytest.mark.parametrize("text", [b"/9j/4", b"/9j/4=AA", b"=", b"/9j*"])
async def test_broken_base64_is_named(tmp_path: Path, text: bytes) -> None:
    error = await refusal(body(encoded("Base64", text)), tmp_path)
    assert isinstance(error, MalformedUpload)
    assert "base64 of 'photo'" in str(error)


async def test_a_packed_body_is_refused(tmp_path: Path) -> None:
    error = await refusal(gzip.compress(body(photo())), tmp_path, more_headers={"content-encoding": "gzip"})
    assert isinstance(error, UnsupportedContentEncoding)
    assert "'gzip'" in str(error)


async def test_a_client_that_waits_to_be_asked_is_refused_unread(tmp_path: Path) -> None:
    client = Client([body(photo())], falls_silent=True)
    waiting = {"expect": "100-Continue"}
    error = await refusal(client, tmp_path, content_length=10_000_000, more_headers=waiting)
    assert isinstance(error, PhotoTooLarge)
    assert client.taken == 0


async def test_what_a_real_client_writes_is_read(tmp_path: Path) -> None:
    content = pictures.photo(size=50_000)
    request = httpx.Request(
        "POST", "http://a/", files={"photo": ("Zoë.jpg", content, "image/jpeg")}, data={"seed": "1"}
    )
    assert await received(request.read(), tmp_path, request.headers["content-type"]) == (
        content,
        "Zoë.jpg",
        {"seed": "1"},
    )


async def test_a_photo_of_exactly_the_limit_is_taken(tmp_path: Path) -> None:
    content = pictures.noise(LIMITS.max_bytes)
    assert (await received(body(photo(content)), tmp_path))[0] == content


async def test_an_empty_photo_is_for_the_examination_to_refuse(tmp_path: Path) -> None:
    assert (await received(body(photo(b"")), tmp_path))[0] == b""


async def test_the_folder_is_made_where_it_is_absent(tmp_path: Path) -> None:
    assert (await received(body(photo()), tmp_path / "new"))[0] == b"photo"


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "image/jpeg",
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/mixed; boundary=a",
    ],
)
async def test_another_content_type_is_refused(tmp_path: Path, content_type: str) -> None:
    error = await refusal(body(photo()), tmp_path, content_type=content_type)
    assert isinstance(error, UnsupportedMediaType)
    assert error.content_type == content_type


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", f"multipart/form-data; boundary={'b' * 500}"]
)
async def test_a_content_type_without_a_boundary_that_may_be_is_refused(
    tmp_path: Path, content_type: str
) -> None:
    assert isinstance(await refusal(body(photo()), tmp_path, content_type=content_type), MalformedUpload)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no multipart at all",
        body(photo())[:-4],
        body(photo())[:-30],
        photo(),
        b"--another\r\n\r\n--another--\r\n",
        f"--{BOUNDARY}\r\nContent-Disposition: form-data\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode(),
        f"--{BOUNDARY}\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode(),
        f"--{BOUNDARY}\r\nBad Header: x\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode(),
        f"--{BOUNDARY}\r\nX-Long: {'x' * 5000}\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode(),
    ],
)
async def test_a_broken_or_unended_body_is_refused(tmp_path: Path, content: bytes) -> None:
    assert isinstance(await refusal(content, tmp_path), MalformedUpload)


async def test_too_many_headers_are_refused(tmp_path: Path) -> None:
    content = f"--{BOUNDARY}\r\n".encode() + b"X-Many: x\r\n" * 20 + b"\r\n"
    assert isinstance(await refusal(content, tmp_path), MalformedUpload)


async def test_a_client_that_goes_away_is_refused(tmp_path: Path) -> None:
    error = await refusal(Client([body(photo())[:40]], leaves=True), tmp_path)
    assert isinstance(error, MalformedUpload)
    assert "went away" in str(error)


async def test_a_client_that_falls_silent_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multipart, "IDLE_TIMEOUT_SECONDS", 0.05)
    error = await refusal(Client([body(photo())[:40]], falls_silent=True), tmp_path)
    assert isinstance(error, MalformedUpload)
    assert "nothing came" in str(error)


@pytest.mark.parametrize("content", [body(), body(part("seed", b"1"))])
async def test_an_upload_without_a_photo_is_refused(tmp_path: Path, content: bytes) -> None:
    assert isinstance(await refusal(content, tmp_path), MissingPhoto)


@pytest.mark.parametrize(
    ("content", "name", "hint"),
    [
        (body(photo(), photo()), "photo", "once"),
        (body(photo(), part("seed", b"1"), part("seed", b"2")), "seed", "once"),
        (body(photo(), part("promt", b"x")), "promt", "did you mean prompt?"),
        (body(part("photo", b"me.jpg")), "photo", "did you mean photo=@me.jpg?"),
        (body(encoded("quoted-printable", b"x")), "Content-Transfer-Encoding", "or base64"),
        (body(part("foto", b"x", "me.jpg")), "foto", "did you mean photo?"),
        (body(photo(), part("prompt", b"x", "prompt.txt")), "prompt", "plain field"),
        (body(photo(), part("prompt", b"\xff\xfe")), "prompt", "UTF-8"),
        (body(photo(), part("prompt", b"x" * (MAX_FIELD_BYTES + 1))), "prompt", str(MAX_FIELD_BYTES)),
    ],
)
async def test_a_wrong_field_is_named(tmp_path: Path, content: bytes, name: str, hint: str) -> None:
    error = await refusal(content, tmp_path)
    assert isinstance(error, InvalidRequest)
    assert error.name == name
    assert hint in str(error)


async def test_too_many_parts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(f"field{number}" for number in range(MAX_PARTS))
    monkeypatch.setattr(multipart, "FORM_NAMES", dict(zip(names, names, strict=True)))
    error = await refusal(body(photo(), *(part(name, b"") for name in names)), tmp_path)
    assert isinstance(error, MalformedUpload)
    assert "parts" in str(error)


# --- too much -------------------------------------------------------------------------------------------


async def test_a_photo_over_the_limit_is_refused_and_the_rest_is_drained(tmp_path: Path) -> None:
    client = Client([photo(pictures.noise(LIMITS.max_bytes + 1)), *[b"x" * 65536] * 20])
    error = await refusal(client, tmp_path)
    assert isinstance(error, PhotoTooLarge)
    assert error.limit == LIMITS.max_bytes
    assert client.taken == 21


async def test_draining_ends_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "MAX_DRAIN_BYTES", 10 * 65536)
    client = Client([photo(pictures.noise(LIMITS.max_bytes + 1)), *[b"x" * 65536] * 100])
    assert isinstance(await refusal(client, tmp_path), PhotoTooLarge)
    assert client.taken == 12


async def test_draining_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "DRAIN_TIMEOUT_SECONDS", 0.05)
    client = Client([photo(pictures.noise(LIMITS.max_bytes + 1))], falls_silent=True)
    assert isinstance(await refusal(client, tmp_path), PhotoTooLarge)


async def test_a_body_that_announces_too_much_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    client = Client([b"no multipart at all"])
    error = await refusal(client, tmp_path, content_length=25_000_000)
    assert isinstance(error, PhotoTooLarge)


async def test_a_body_that_announces_more_than_is_drained_is_not_read_at_all(tmp_path: Path) -> None:
    client = Client([photo()])
    assert isinstance(await refusal(client, tmp_path, content_length=10**12), PhotoTooLarge)
    assert client.taken == 0


async def test_endless_bytes_around_the_parts_are_refused(tmp_path: Path) -> None:
    client = Client([body(photo()), *[b"x" * 65536] * 100])
    assert isinstance(await refusal(client, tmp_path), PhotoTooLarge)


async def test_the_photo_is_never_whole_in_memory(tmp_path: Path) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield photo()[:-7]
        for number in range(320):
            yield pictures.noise(65536 + number % 2)
        yield body(b"\r\n")

    tracemalloc.start()
    try:
        limits = UploadSettings(max_bytes=64 * 1024 * 1024)
        async with receive_upload(stream(), FORM_HEADERS, limits, tmp_path) as upload:
            assert upload.photo.seek(0, os.SEEK_END) == 320 * 65536 + 160
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()


# --- the file -------------------------------------------------------------------------------------------


async def test_the_file_is_gone_when_the_context_ends(tmp_path: Path) -> None:
    async with receive_upload(Client([body(photo())]).stream(), FORM_HEADERS, LIMITS, tmp_path) as upload:
        assert open_files_in(tmp_path) != []
    assert open_files_in(tmp_path) == []
    assert upload.photo.closed


async def test_the_file_is_gone_when_the_caller_fails(tmp_path: Path) -> None:
    async def failing() -> Upload:
        async with receive_upload(Client([body(photo())]).stream(), FORM_HEADERS, LIMITS, tmp_path):
            raise RuntimeError("no database")

    with pytest.raises(RuntimeError):
        await failing()
    assert open_files_in(tmp_path) == []


async def test_the_file_is_gone_when_the_request_is_cancelled(tmp_path: Path) -> None:
    client = Client([body(photo())[:60]], falls_silent=True)
    task = asyncio.create_task(received(client, tmp_path))
    while not open_files_in(tmp_path):  # noqa: ASYNC110  # the file is made within the first turns
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert open_files_in(tmp_path) == []


@pytest.mark.parametrize("size", [0, 999, 1000, 1001, 50_000])
@pytest.mark.parametrize("chunk", [100, 7000])
async def test_a_small_photo_needs_no_file_and_a_larger_one_comes_whole(
    tmp_path: Path, size: int, chunk: int
) -> None:
    content = pictures.noise(size)
    whole = body(photo(content))
    client = Client(whole[at : at + chunk] for at in range(0, len(whole), chunk))
    async with receive_upload(client.stream(), FORM_HEADERS, IN_MEMORY, tmp_path) as upload:
        assert bool(open_files_in(tmp_path)) == (size > 1000)
        assert upload.photo.read() == content
    assert open_files_in(tmp_path) == []
    assert upload.photo.closed


async def test_a_photo_that_grows_too_large_for_memory_leaves_no_file_when_it_is_refused(
    tmp_path: Path,
) -> None:
    error = await refusal(Client([photo(pictures.noise(2000))]), tmp_path, limits=IN_MEMORY)
    assert isinstance(error, MalformedUpload)


def test_the_file_is_gone_when_the_process_is_killed(tmp_path: Path) -> None:
    script = """
import asyncio, os, signal, sys
from pathlib import Path
from starlette.datastructures import Headers
from avatarforge.ingress.upload.multipart import receive_upload
from avatarforge.settings import UploadSettings

async def stream():
    yield sys.argv[2].encode()
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    settings = UploadSettings(spool_threshold_bytes=0)
    async with receive_upload(stream(), Headers({"content-type": sys.argv[3]}), settings, Path(sys.argv[1])):
        pass

asyncio.run(main())
"""
    arguments = [str(tmp_path), photo(b"half a photo").decode(), FORM]
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limits", ["LIMITS", "IN_MEMORY"])
def test_a_full_disk_is_told(tmp_path: Path, limits: str) -> None:
    # In a process of its own: the limit on files' sizes holds for all that a process writes.
    script = """
import asyncio, resource, sys
from pathlib import Path
from avatarforge.domain.errors import StorageFull
from tests.unit import test_multipart
from tests.unit.test_multipart import body, photo, refusal

resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
limits = getattr(test_multipart, sys.argv[2])
error = asyncio.run(refusal(body(photo(b"x" * 50_000)), Path(sys.argv[1]), limits=limits))
assert type(error) is StorageFull, error
"""
    command = [sys.executable, "-c", script, str(tmp_path), limits]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("limits", [LIMITS, IN_MEMORY])
async def test_a_folder_that_cannot_be_is_told(tmp_path: Path, limits: UploadSettings) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageUnavailable) as raised:
        await received(body(photo(bytes(2000))), tmp_path / "file", limits=limits)
    assert not isinstance(raised.value, StorageFull)
