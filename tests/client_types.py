"""A program that uses the client, for type checkers: `make check` holds the types to what it says."""

from typing import assert_type

from avatarforge.client import AsyncClient, Client, ImageFile, JobEvent, JobRef, ProfilePhotoJobStatus


def use_client(client: Client) -> None:
    with client as entered:
        assert_type(entered, Client)
    job = assert_type(client.submit("ana", b"", style="neon", strength=0.5), ProfilePhotoJobStatus)
    client.submit("ana", b"", strength="half")  # type: ignore[arg-type]
    client.submit("ana", b"", strenght=0.5)  # type: ignore[call-arg]
    for event in client.watch(job):
        assert_type(event, JobEvent)
    for each in client.list_jobs("ana"):
        assert_type(each, ProfilePhotoJobStatus)
    assert_type(client.download(JobRef("ana", "1"), "square"), ImageFile)


async def use_async_client(client: AsyncClient) -> None:
    async with client as entered:
        assert_type(entered, AsyncClient)
    job = assert_type(await client.submit("ana", b""), ProfilePhotoJobStatus)
    async for event in client.watch(job):
        assert_type(event, JobEvent)
