"""Upload a photo by gRPC and follow it to its end.

python examples/grpc_client.py 127.0.0.1:9000 ana avatarforge/samples/portrait.png
"""

import os
import sys
import uuid
from pathlib import Path

import grpc

from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.grpc_generated.profile_photo_job_pb2_grpc import ProfilePhotoJobServiceStub


def main(address: str, customer_id: str, photo: Path) -> None:
    # Where the server asks for API keys; over a network use grpc.secure_channel.
    key = os.environ.get("AVATARFORGE_API_KEY")
    who = [("authorization", f"Bearer {key}")] if key else []
    with grpc.insecure_channel(address) as channel:
        jobs = ProfilePhotoJobServiceStub(channel)
        # Under one idempotency key a request may be sent again, and makes no second job.
        once = [*who, ("idempotency-key", str(uuid.uuid4()))]
        request = pb.SubmitPhotoRequest(customer_id=customer_id, photo=photo.read_bytes(), style="watercolor")
        job = jobs.SubmitPhoto(request, metadata=once, timeout=30)
        follow = pb.StatusStreamRequest(customer_id=customer_id, job_id=job.job_id)
        for job in jobs.StreamStatus(follow, metadata=who, timeout=300):
            print(job.job_id, pb.ProcessingStatus.Name(job.status), f"{job.progress.step} steps", flush=True)
        print(job.generated_url or job.error.message)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
