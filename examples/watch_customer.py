"""Follow a customer's jobs by server-sent events, and keep every avatar.

    python examples/watch_customer.py ana avatars

The server may go away and come back meanwhile: nothing is missed.
"""

import asyncio
import sys
from pathlib import Path

from avatarforge.client import AsyncClient, JobChanged, JobProgressed


async def main(customer_id: str, folder: Path) -> None:
    async with AsyncClient(retry_timeout=600) as client:
        async for event in client.watch(customer_id, after=0):
            match event:
                case JobProgressed(job=job) if job.progress is not None:
                    print(f"{job.job_id}  step {job.progress.step} of {job.progress.total_steps}", flush=True)
                case JobChanged(seq=seq, job=job):
                    print(f"{job.job_id}  {job.status} (event {seq})", flush=True)
                    if job.status == "DONE":
                        for image in job.images:
                            avatar = await client.download(job, index=image.index)
                            number = f"-{image.index}" if job.parameters.variants > 1 else ""
                            name = f"{job.job_id}{number}{avatar.suffix}"
                            (folder / name).write_bytes(avatar.content)


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(sys.argv[1], folder))
