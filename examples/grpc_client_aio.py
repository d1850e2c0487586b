"""Upload many photos by gRPC at once and wait for all of them, in one event loop.

python examples/grpc_client_aio.py 127.0.0.1:9000 ana avatarforge/samples/portrait.png me.jpg you.jpg
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.grpc_generated.profile_photo_job_pb2_grpc import ProfilePhotoJobServiceStub


async def pieces_of(customer_id: str, photo: Path) -> AsyncIterator[pb.SubmitPhotoRequest]:
    """The photo as `UploadPhoto` takes it, whatever its size; the fields come first."""
    yield pb.SubmitPhotoRequest(customer_id=customer_id)
    with photo.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, 64 * 1024):
            yield pb.SubmitPhotoRequest(photo=piece)


async def main(address: str, customer_id: str, photos: list[Path]) -> None:
    # Where the server asks for API keys; over a network use grpc.aio.secure_channel.
    key = os.environ.get("AVATARFORGE_API_KEY")
    who = [("authorization", f"Bearer {key}")] if key else []
    async with grpc.aio.insecure_channel(address) as channel:
        jobs = ProfilePhotoJobServiceStub(channel)

        async def avatar_of(photo: Path) -> pb.ProfilePhotoJobStatus:
            job = await jobs.UploadPhoto(pieces_of(customer_id, photo), metadata=who, timeout=60)
            while not job.is_terminal:
                waiting = pb.JobStatusRequest(customer_id=customer_id, job_id=job.job_id, wait_seconds=60)
                job = await jobs.GetStatus(waiting, metadata=who, timeout=90)
            return job

        for job in await asyncio.gather(*map(avatar_of, photos)):
            print(job.job_id, pb.ProcessingStatus.Name(job.status), job.generated_url or job.error.message)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], [Path(photo) for photo in sys.argv[3:]]))
