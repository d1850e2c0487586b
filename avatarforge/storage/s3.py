"""Object storage in an S3 bucket, Amazon's or a compatible server's."""

import io
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from shutil import copyfileobj
from typing import TYPE_CHECKING, BinaryIO, cast

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import CredentialProvider, Credentials, ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ClientError

from avatarforge.domain.errors import AvatarForgeError, ObjectNotFound, StorageFull, StorageUnavailable
from avatarforge.secret_file import SecretFile
from avatarforge.settings import SettingsError, StorageSettings
from avatarforge.storage.interface import StoredObject
from avatarforge.storage.keys import validate_key, validate_prefix

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

ATTEMPTS = 2
"""Tries of one request, each as long as the time-out: an upload waits for this, so few."""

_ABSENT = {"NoSuchKey", "404", "NotFound"}
# The names that MinIO, Ceph and Amazon give to "no room"; 507 is WebDAV's and others'.
_FULL = {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientCapacity"}


class S3Storage:
    """`ObjectStorage` over one bucket, which must exist. Threads may share it: it has one client."""

    def __init__(self, settings: StorageSettings) -> None:
        if settings.bucket is None:
            raise ValueError("storage.bucket is not set")
        self._settings = settings
        self._bucket = settings.bucket
        self._credentials = None if settings.credentials_file is None else _FileCredentials(settings)
        self._lock = threading.Lock()
        self._clients: dict[str | None, S3Client] = {}
        # A client takes some 15 MB and a seventh of a second: better now than in the middle of the work. If
        # none can be made (an unknown region or profile, a host that is none), each call says why.
        with suppress(StorageUnavailable), _translate_errors():
            self._client()

    def put(self, key: str, content: BinaryIO, media_type: str) -> None:
        validate_key(key)
        with closing(_Rest(content)) as rest:
            try:
                with _translate_errors(key):
                    # One request, so that S3 shows the object whole or not at all.
                    self._client().put_object(
                        Bucket=self._bucket, Key=key, Body=cast(BinaryIO, rest), ContentType=media_type
                    )
            except AvatarForgeError as error:
                if rest.failure is not None:
                    raise rest.failure from error
                raise

    def get(self, key: str) -> bytes:
        validate_key(key)
        with _translate_errors(key), closing(self._open(key)) as body:
            return body.read()

    def stream(self, key: str, chunk_size: int = 256 * 1024, part: range | None = None) -> Generator[bytes]:
        validate_key(key)
        with _translate_errors(key):
            chunks = _chunks(self._open(key, part), chunk_size)
        # Started here, so that the connection goes back to the pool even if nobody takes a chunk.
        next(chunks)
        return chunks

    def delete(self, key: str) -> None:
        validate_key(key)
        try:
            with _translate_errors(key):
                self._client().delete_object(Bucket=self._bucket, Key=key)
        except ObjectNotFound:
            # Amazon answers 204 here, some compatible servers 404.
            return

    def list(self, prefix: str) -> Iterator[StoredObject]:
        validate_prefix(prefix)
        with _translate_errors():
            pages = self._client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=prefix):
                for entry in page.get("Contents", ()):
                    yield StoredObject(
                        key=entry["Key"], size=entry["Size"], modified_at=entry["LastModified"]
                    )

    def sign_url(self, key: str, expires_in: int) -> str | None:
        """A URL at `public_endpoint_url`, made without asking the server."""
        validate_key(key)
        endpoint = self._settings.public_endpoint_url or self._settings.endpoint_url
        with _translate_errors(key):
            return self._client(endpoint).generate_presigned_url(
                "get_object", Params={"Bucket": self._bucket, "Key": key}, ExpiresIn=expires_in
            )

    def check(self) -> None:
        with _translate_errors():
            self._client().head_bucket(Bucket=self._bucket)

    def _open(self, key: str, part: range | None = None) -> "StreamingBody":
        client, bucket = self._client(), self._bucket
        if part is None:
            return client.get_object(Bucket=bucket, Key=key)["Body"]
        return client.get_object(Bucket=bucket, Key=key, Range=f"bytes={part.start}-{part.stop - 1}")["Body"]

    def _client(self, endpoint: str | None = None) -> "S3Client":
        """The process's client for the endpoint, made when it is first wanted. boto3 makes them unguarded."""
        endpoint = endpoint or self._settings.endpoint_url
        client = self._clients.get(endpoint)
        if client is None:
            with self._lock:
                client = self._clients.get(endpoint)
                if client is None:
                    client = self._clients[endpoint] = _connect(self._settings, endpoint, self._credentials)
        return client


class _FileCredentials(Credentials):
    """The access key of a file. Every request is signed with the one that the file has then."""

    SETTING = "storage.credentials_file (AVATARFORGE_STORAGE_CREDENTIALS_FILE)"

    def __init__(self, settings: StorageSettings) -> None:
        """Raises `SettingsError` if the file does not have two lines."""
        assert settings.credentials_file is not None, "asked by whoever makes it"
        self._file = SecretFile(settings.credentials_file, self.SETTING)
        if len(self._file.read()) != 2:
            raise SettingsError(
                f"The setting {self.SETTING} names the file {str(settings.credentials_file)!r}, which must "
                "have two lines: the access key and its secret."
            )
        super().__init__(*self._file.read())

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        lines = self._file.read()
        if len(lines) == 2:
            # Otherwise whoever writes it is in the middle of that.
            self.access_key, self.secret_key = lines
        return ReadOnlyCredentials(self.access_key, self.secret_key, None)


class _FileProvider(CredentialProvider):
    """Gives boto3 our own credentials in place of those that it would find."""

    METHOD = "avatarforge"

    def __init__(self, credentials: Credentials) -> None:
        super().__init__()
        self._credentials = credentials

    def load(self) -> Credentials:
        return self._credentials


def _connect(settings: StorageSettings, endpoint: str | None, credentials: Credentials | None) -> "S3Client":
    key, secret = settings.access_key_id, settings.secret_access_key
    config = Config(
        signature_version="s3v4",
        connect_timeout=settings.timeout,
        read_timeout=settings.timeout,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=64,
        # A compatible server seldom has a DNS name for each bucket.
        s3={"addressing_style": "path" if endpoint else "auto"},
        # Compatible servers may not know Amazon's checksum trailers; the signature covers the body.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = botocore.session.get_session()
    if credentials is not None:
        session.get_component("credential_provider").insert_before("env", _FileProvider(credentials))
    try:
        return boto3.session.Session(botocore_session=session).client(
            "s3",
            endpoint_url=endpoint,
            region_name=settings.region,
            aws_access_key_id=key.get_secret_value() if key else None,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=config,
        )
    except ValueError as error:
        # botocore's own for a host that it does not like, such as one with an underscore.
        raise StorageUnavailable(str(error)) from error


@contextmanager
def _translate_errors(key: str | None = None) -> Iterator[None]:
    """boto's errors as ours; with a `key`, what is absent is `ObjectNotFound`."""
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if key is not None and code in _ABSENT:
            raise ObjectNotFound(key) from error
        if code in _FULL or status == 507:
            raise StorageFull(str(error)) from error
        raise StorageUnavailable(str(error)) from error
    except BotoCoreError as error:
        raise StorageUnavailable(str(error)) from error


def _chunks(body: "StreamingBody", size: int) -> Generator[bytes]:
    with closing(body):
        yield b""
        with _translate_errors():
            yield from body.iter_chunks(size)


class _Rest(io.RawIOBase):
    """The rest of a file, as a file that begins at 0 and remembers why reading failed.

    boto rewinds to 0 before it repeats a request, and wraps what the source raises as its own.
    """

    def __init__(self, content: BinaryIO) -> None:
        self._spool: BinaryIO | None = None
        if not content.seekable():
            spool = tempfile.SpooledTemporaryFile(max_size=1024 * 1024)  # noqa: SIM115  # `close` closes it
            self._spool = cast(BinaryIO, spool)
            copyfileobj(content, self._spool)
            self._spool.seek(0)
        self._content = self._spool or content
        self._start = self._content.tell()
        self.failure: BaseException | None = None

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        try:
            return self._content.read(size)
        except BaseException as error:
            self.failure = error
            raise

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET:
            offset += self._start
        return self._content.seek(offset, whence) - self._start

    def tell(self) -> int:
        return self._content.tell() - self._start
