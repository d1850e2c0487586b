"""The contract of object storage, over a folder and over a real S3 server."""

import gc
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO, RawIOBase
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import urlsplit

import boto3
import httpx
import pytest

from avatarforge.domain.errors import ObjectNotFound, StorageFull, StorageUnavailable
from avatarforge.settings import Settings, SettingsError, StorageSettings
from avatarforge.storage import ObjectStorage, open_storage
from avatarforge.storage import folder as storage_folder
from avatarforge.storage.folder import INCOMING, STALE_SECONDS, FolderStorage
from avatarforge.storage.s3 import S3Storage
from tests.servers.mariadb import free_port
from tests.servers.pausing import hanging
from tests.servers.s3 import ACCESS_KEY, SECRET_KEY, S3Server

KEY = "customers/ana/0190/original.jpg"


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server) -> Iterator[S3Storage]:
    storage = S3Storage(s3_server.settings(timeout=60))
    yield storage
    for stored in list(storage.list("")):
        storage.delete(stored.key)


@pytest.fixture
def folder(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path / "objects")


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest) -> ObjectStorage:
    return cast(ObjectStorage, request.getfixturevalue(request.param))


def put(storage: ObjectStorage, key: str, content: bytes) -> None:
    storage.put(key, BytesIO(content), "image/jpeg")


def keys(storage: ObjectStorage, prefix: str = "") -> list[str]:
    return [stored.key for stored in storage.list(prefix)]


class Failing(RawIOBase):
    """A source that breaks after its first `good` bytes."""

    def __init__(self, good: int) -> None:
        self.left = good

    def read(self, size: int = -1, /) -> bytes:
        if self.left <= 0:
            raise RuntimeError("the source broke")
        size = min(self.left, size if size >= 0 else self.left)
        self.left -= size
        return b"x" * size


class Sparing(BytesIO):
    """A source that gives at most 10 KB at a time, as sockets and pipes do."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(10_000 if size is None or size < 0 else min(size, 10_000))


# --- what both promise ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_what_was_put_is_got(storage: ObjectStorage, size: int) -> None:
    content = random.Random(size).randbytes(size)
    put(storage, KEY, content)
    assert storage.get(KEY) == content


def test_what_was_put_is_streamed_in_chunks(storage: ObjectStorage) -> None:
    content = random.Random(1).randbytes(250_000)
    put(storage, KEY, content)
    chunks = list(storage.stream(KEY, chunk_size=100_000))
    assert [len(chunk) for chunk in chunks] == [100_000, 100_000, 50_000]
    assert b"".join(chunks) == content


@pytest.mark.parametrize("part", [range(250_000), range(120_000, 230_001), range(1), range(249_999, 250_000)])
def test_a_part_is_streamed_without_what_stands_before_and_behind(
    storage: ObjectStorage, part: range
) -> None:
    content = random.Random(1).randbytes(250_000)
    put(storage, KEY, content)
    chunks = list(storage.stream(KEY, chunk_size=100_000, part=part))
    assert b"".join(chunks) == content[part.start : part.stop]
    assert max(map(len, chunks)) <= 100_000


def test_a_stream_that_nobody_reads_may_be_dropped(storage: ObjectStorage) -> None:
    put(storage, KEY, b"photo")
    chunks = storage.stream(KEY)
    # A file that was left open would be a ResourceWarning, and with that a failure.
    del chunks
    gc.collect()


def test_only_what_is_left_to_read_is_put(storage: ObjectStorage) -> None:
    source = BytesIO(b"header|photo")
    source.seek(7)
    storage.put(KEY, source, "image/jpeg")
    assert storage.get(KEY) == b"photo"


def test_a_source_that_cannot_seek_is_put(storage: ObjectStorage) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as sink:
        sink.write(b"photo")
    with os.fdopen(reading, "rb") as source:
        storage.put(KEY, source, "image/jpeg")
    assert storage.get(KEY) == b"photo"


def test_a_source_that_gives_little_at_a_time_is_put_whole(storage: ObjectStorage) -> None:
    content = random.Random(1).randbytes(100_000)
    storage.put(KEY, cast(BinaryIO, Sparing(content)), "image/jpeg")
    assert storage.get(KEY) == content


def test_a_second_put_replaces_the_first(storage: ObjectStorage) -> None:
    put(storage, KEY, b"a long first one")
    put(storage, KEY, b"second")
    assert storage.get(KEY) == b"second"
    assert keys(storage) == [KEY]


def test_an_absent_object_is_not_found(storage: ObjectStorage) -> None:
    put(storage, KEY, b"photo")
    for absent in ("customers/ana/0190/avatar-1.png", "customers/ana", "customers/ana/0190/original.jpg/x"):
        with pytest.raises(ObjectNotFound) as raised:
            storage.get(absent)
        assert raised.value.key == absent


def test_streaming_an_absent_object_fails_at_the_call(storage: ObjectStorage) -> None:
    with pytest.raises(ObjectNotFound):
        storage.stream(KEY)


def test_a_deleted_object_is_gone(storage: ObjectStorage) -> None:
    put(storage, KEY, b"photo")
    put(storage, "customers/ana/0190/avatar-1.png", b"avatar")
    storage.delete(KEY)
    with pytest.raises(ObjectNotFound):
        storage.get(KEY)
    assert keys(storage) == ["customers/ana/0190/avatar-1.png"]


def test_deleting_an_absent_object_is_no_error(storage: ObjectStorage) -> None:
    storage.delete(KEY)


def test_a_listing_has_keys_sizes_and_times(storage: ObjectStorage) -> None:
    before = time.time() - 2
    put(storage, KEY, b"photo")
    (stored,) = storage.list("customers/")
    assert (stored.key, stored.size) == (KEY, 5)
    assert before <= stored.modified_at.timestamp() <= time.time() + 2


def test_a_listing_is_in_key_order_and_of_the_prefix_only(storage: ObjectStorage) -> None:
    put_keys = ["a/b/2", "a/b/1", "a/b-c/1", "a/b.d", "a/b0", "ab/1", "b/1"]
    for key in put_keys:
        put(storage, key, b"")
    assert keys(storage) == sorted(put_keys)
    assert keys(storage, "a/") == ["a/b-c/1", "a/b.d", "a/b/1", "a/b/2", "a/b0"]
    assert keys(storage, "a/b/") == ["a/b/1", "a/b/2"]
    assert keys(storage, "a/b") == ["a/b-c/1", "a/b.d", "a/b/1", "a/b/2", "a/b0"]
    assert keys(storage, "a/x") == keys(storage, "nothing/here/") == []


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "..", "a/../b", "a/./b", "ä", "a b", "a\\b", "a\0", "a\n", "x" * 1025]
)
def test_a_key_outside_the_grammar_is_refused(storage: ObjectStorage, key: str) -> None:
    for call in (
        lambda: put(storage, key, b""),
        lambda: storage.get(key),
        lambda: storage.stream(key),
        lambda: storage.delete(key),
    ):
        with pytest.raises(ValueError, match="is not an object key"):
            call()


@pytest.mark.parametrize("prefix", ["/", "../", "a/../", "a//"])
def test_a_prefix_outside_the_grammar_is_refused(storage: ObjectStorage, prefix: str) -> None:
    with pytest.raises(ValueError, match="beginning of an object key"):
        list(storage.list(prefix))


def test_a_source_that_breaks_leaves_nothing(storage: ObjectStorage) -> None:
    with pytest.raises(RuntimeError, match="the source broke"):
        storage.put(KEY, cast(BinaryIO, Failing(1_000_000)), "image/jpeg")
    assert keys(storage) == []


def test_a_source_that_breaks_leaves_the_object_before_it(storage: ObjectStorage) -> None:
    put(storage, KEY, b"first")
    with pytest.raises(RuntimeError, match="the source broke"):
        storage.put(KEY, cast(BinaryIO, Failing(1_000_000)), "image/jpeg")
    assert storage.get(KEY) == b"first"


def test_many_threads_put_and_delete_at_once(storage: ObjectStorage) -> None:
    def one_life(number: int) -> bytes:
        key = f"customers/ana/{number % 4}/{number}"
        put(storage, key, b"%d" % number)
        content = storage.get(key)
        storage.delete(key)
        return content

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(one_life, range(48))) == [b"%d" % number for number in range(48)]
    assert keys(storage) == []


def test_a_storage_that_answers_passes_the_check(storage: ObjectStorage) -> None:
    storage.check()


def every_call_fails(storage: ObjectStorage, wanted: type[StorageUnavailable]) -> None:
    for call in (
        lambda: put(storage, KEY, b"photo"),
        lambda: storage.get(KEY),
        lambda: storage.stream(KEY),
        lambda: storage.delete(KEY),
        lambda: list(storage.list("")),
        storage.check,
    ):
        with pytest.raises(StorageUnavailable) as raised:
            call()
        assert type(raised.value) is wanted


# --- S3 -------------------------------------------------------------------------------------------------


def test_an_access_key_is_rotated_in_its_file(tmp_path: Path) -> None:
    first, second = (ACCESS_KEY, SECRET_KEY), ("rotated", "only-for-tests-too")
    file = tmp_path / "credentials"
    file.write_text("\n".join(first))
    server = S3Server(tmp_path)
    server.keys.append(second)
    with server:
        settings = server.settings(access_key_id=None, secret_access_key=None, credentials_file=file)
        storage = S3Storage(settings)
        storage.put(KEY, BytesIO(b"photo"), "image/png")
        file.write_text("rotated")
        assert storage.get(KEY) == b"photo", "half of it is written"
        file.write_text("\n".join(second))
        signed = storage.sign_url(KEY, 60)
        server.stop()
        server.keys.remove(first)
        server.start()
        assert storage.get(KEY) == b"photo"
        assert signed is not None
        assert httpx.get(signed).content == b"photo"
        file.write_text("\n".join(first))
        with pytest.raises(StorageUnavailable):
            storage.get(KEY)


def test_a_file_without_an_access_key_is_told_with_the_setting(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("only-one\n")
    with pytest.raises(SettingsError, match=r"AVATARFORGE_STORAGE_CREDENTIALS_FILE.* two lines"):
        S3Storage(StorageSettings(bucket="avatars", credentials_file=file))


def test_a_listing_goes_beyond_one_page(tmp_path: Path) -> None:
    server = S3Server(tmp_path)
    many = tmp_path / "buckets" / server.bucket / "many"
    many.mkdir(parents=True)
    for number in range(1010):
        (many / f"{number:04}").touch()
    with server:
        listed = keys(S3Storage(server.settings(timeout=60)), "many/")
    assert listed == [f"many/{number:04}" for number in range(1010)]


def test_a_signed_url_lets_anyone_fetch_the_object(s3: S3Storage) -> None:
    put(s3, KEY, b"photo")
    url = s3.sign_url(KEY, 60)
    assert url is not None
    answer = httpx.get(url, trust_env=False)
    assert (answer.status_code, answer.content) == (200, b"photo")
    assert answer.headers["content-type"] == "image/jpeg"


def test_a_signed_url_is_for_its_key_only(s3: S3Storage) -> None:
    put(s3, KEY, b"photo")
    put(s3, "customers/ben/0191/original.jpg", b"another")
    url = s3.sign_url(KEY, 60)
    assert url is not None
    other = httpx.get(url.replace("ana/0190", "ben/0191"), trust_env=False)
    assert other.status_code == 403


def test_a_signed_url_ends_after_its_time(s3: S3Storage) -> None:
    put(s3, KEY, b"photo")
    url = s3.sign_url(KEY, 1)
    assert url is not None
    deadline = time.monotonic() + 15
    while (status := httpx.get(url, trust_env=False).status_code) == 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    # Amazon says 403, rclone 400.
    assert status in {400, 403}


def test_a_signed_url_has_the_public_address(s3_server: S3Server) -> None:
    storage = S3Storage(s3_server.settings(public_endpoint_url=f"http://localhost:{s3_server.port}"))
    put(storage, KEY, b"photo")
    url = storage.sign_url(KEY, 60)
    assert url is not None
    assert urlsplit(url).netloc == f"localhost:{s3_server.port}"
    assert httpx.get(url, trust_env=False).content == b"photo"
    storage.delete(KEY)


def test_a_server_that_is_down_is_unavailable(tmp_path: Path) -> None:
    server = S3Server(tmp_path)
    every_call_fails(S3Storage(server.settings(timeout=1)), StorageUnavailable)


def test_a_server_that_comes_back_is_used_again(tmp_path: Path) -> None:
    with S3Server(tmp_path) as server:
        storage = S3Storage(server.settings(timeout=30))
        put(storage, KEY, b"photo")
        server.stop()
        with pytest.raises(StorageUnavailable):
            storage.get(KEY)
        server.start()
        assert storage.get(KEY) == b"photo"


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with S3Server(tmp_path) as server:
        storage = S3Storage(server.settings(timeout=0.3))
        storage.check()
        process = server._process
        assert process is not None
        began = time.monotonic()
        with hanging(process.pid), pytest.raises(StorageUnavailable):
            storage.check()
        assert time.monotonic() - began < 10


def test_a_bucket_that_is_not_there_is_unavailable(s3_server: S3Server) -> None:
    storage = S3Storage(s3_server.settings(bucket="elsewhere"))
    for call in (lambda: storage.get(KEY), lambda: list(storage.list("")), storage.check):
        with pytest.raises(StorageUnavailable):
            call()


def test_wrong_keys_are_unavailable(s3_server: S3Server) -> None:
    every_call_fails(S3Storage(s3_server.settings(secret_access_key="wrong")), StorageUnavailable)


@contextmanager
def answering(status: int, code: str) -> Iterator[str]:
    """The URL of a server that answers every request with this S3 error."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_DELETE = do_HEAD = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "wanted"),
    [
        (503, "SlowDown", StorageUnavailable),
        (500, "InternalError", StorageUnavailable),
        (403, "AccessDenied", StorageUnavailable),
        (507, "XMinioStorageFull", StorageFull),
        (403, "QuotaExceeded", StorageFull),
    ],
)
def test_an_error_of_the_server_is_told_as_ours(
    s3_server: S3Server, status: int, code: str, wanted: type[StorageUnavailable]
) -> None:
    with answering(status, code) as url:
        storage = S3Storage(s3_server.settings(endpoint_url=url))
        with pytest.raises(StorageUnavailable) as raised:
            put(storage, KEY, b"photo")
    assert type(raised.value) is wanted


def test_threads_share_one_client(s3_server: S3Server) -> None:
    storage = S3Storage(s3_server.settings())
    with ThreadPoolExecutor(16) as threads:
        clients = set(threads.map(lambda _: id(storage._client("http://s3.example")), range(64)))
    assert len(clients) == 1


# --- the folder -----------------------------------------------------------------------------------------


def test_a_folder_has_no_signed_urls(folder: FolderStorage) -> None:
    put(folder, KEY, b"photo")
    assert folder.sign_url(KEY, 60) is None


def test_deleting_removes_empty_parents_and_nothing_else(folder: FolderStorage) -> None:
    put(folder, "customers/ana/1/original.jpg", b"")
    put(folder, "customers/ben/2/original.jpg", b"")
    folder.delete("customers/ana/1/original.jpg")
    assert not (folder.folder / "customers/ana").exists()
    assert keys(folder) == ["customers/ben/2/original.jpg"]
    folder.delete("customers/ben/2/original.jpg")
    assert folder.folder.is_dir()
    assert not (folder.folder / "customers").exists()


def test_a_put_that_breaks_leaves_no_file_at_all(folder: FolderStorage) -> None:
    with pytest.raises(RuntimeError):
        folder.put(KEY, cast(BinaryIO, Failing(1_000_000)), "image/jpeg")
    assert [path for path in folder.folder.rglob("*") if path.is_file()] == []


def test_a_process_killed_in_a_put_leaves_no_object_and_its_leftover_is_swept(folder: FolderStorage) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from avatarforge.storage.folder import FolderStorage

class Deadly:
    chunks = [b"x" * 100_000]
    def read(self, size):
        if self.chunks:
            return self.chunks.pop()
        os.kill(os.getpid(), signal.SIGKILL)

FolderStorage(Path(sys.argv[1])).put(sys.argv[2], Deadly(), "image/jpeg")
"""
    done = subprocess.run([sys.executable, "-c", script, str(folder.folder), KEY], check=False)
    assert done.returncode == -signal.SIGKILL
    (leftover,) = (folder.folder / INCOMING).iterdir()
    assert keys(folder) == []

    FolderStorage(folder.folder)
    assert leftover.exists(), "it may be another process's upload"

    long_ago = time.time() - STALE_SECONDS - 1
    os.utime(leftover, (long_ago, long_ago))
    FolderStorage(folder.folder)
    assert not leftover.exists()


def test_a_folder_that_is_no_folder_is_unavailable(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path / "objects")
    (tmp_path / "objects").write_text("not a folder")
    for call in (lambda: put(storage, KEY, b"photo"), storage.check):
        with pytest.raises(StorageUnavailable):
            call()


def test_a_folder_that_leads_nowhere_is_unavailable(folder: FolderStorage, tmp_path: Path) -> None:
    folder.folder.mkdir(exist_ok=True)
    (folder.folder / "customers").symlink_to(tmp_path / "not mounted")
    with pytest.raises(StorageUnavailable):
        put(folder, KEY, b"photo")


def test_every_new_folder_entry_on_the_way_to_an_object_is_made_durable(
    folder: FolderStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(storage_folder, "_sync", lambda path: synced.append(str(path)))
    root = str(folder.folder)

    put(folder, "customers/ana/1/original.jpg", b"photo")
    # `root` exists: what is written has lain in it.
    assert synced == [f"{root}/customers/ana/1", f"{root}/customers/ana", f"{root}/customers", root]

    synced.clear()
    put(folder, "customers/ana/2/original.jpg", b"photo")
    assert synced == [f"{root}/customers/ana/2", f"{root}/customers/ana"]

    synced.clear()
    put(folder, "customers/ana/2/avatar-1.png", b"avatar")
    assert synced == [f"{root}/customers/ana/2"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1024 * 1024) as disk:
        storage = FolderStorage(disk / "objects")
        put(storage, KEY, b"x" * 300_000)
        with pytest.raises(StorageFull):
            put(storage, "customers/ben/0191/original.jpg", b"x" * 2_000_000)
        assert [path.name for path in disk.rglob("*") if path.is_file()] == ["original.jpg"]
        assert keys(storage) == [KEY]
        put(storage, "customers/ben/0191/original.jpg", b"x" * 300_000)


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """A folder that takes `size` bytes: a file system of its own where one may be mounted, else a limit."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield path
        finally:
            subprocess.run(["umount", str(path)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield path
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- which one ------------------------------------------------------------------------------------------


def test_without_a_bucket_objects_lie_in_the_data_folder(tmp_path: Path) -> None:
    storage = open_storage(Settings(data_dir=tmp_path))
    put(storage, KEY, b"photo")
    assert (tmp_path / "objects" / KEY).read_bytes() == b"photo"


def test_with_a_bucket_objects_lie_in_s3(s3_server: S3Server, s3: S3Storage) -> None:
    put(open_storage(Settings(storage=s3_server.settings())), KEY, b"photo")
    assert s3.get(KEY) == b"photo"


def test_s3_is_opened_without_asking_it() -> None:
    nowhere = StorageSettings(bucket="avatars", endpoint_url=f"http://127.0.0.1:{free_port()}")
    assert isinstance(open_storage(Settings(storage=nowhere)), S3Storage)


def test_s3_has_its_client_before_the_first_call(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(Settings(storage=s3_server.settings()))
    monkeypatch.setattr(boto3.session, "Session", None)
    storage.check()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"region": "no such region"}, "no such region"), ({"endpoint_url": "http://a_host:9000"}, "a_host")],
)
def test_s3_that_cannot_be_called_says_so_at_each_call(wrong: dict[str, str], told: str) -> None:
    storage = open_storage(Settings(storage=StorageSettings(bucket="avatars", **wrong)))
    for _ in range(2):
        with pytest.raises(StorageUnavailable) as caught:
            storage.check()
        assert told in caught.value.reason


def test_a_folders_objects_are_for_this_user_alone(tmp_path: Path) -> None:
    FolderStorage(tmp_path / "made" / "objects").put("customers/ana/me.png", BytesIO(b"photo"), "image/png")

    made = list((tmp_path / "made" / "objects").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in made if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in made if path.is_dir()} == {0o700}
