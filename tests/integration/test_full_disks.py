"""A full disk: clear refusals, nothing lost, and on it goes once there is room.

Skipped where no file system may be mounted.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.photos import noisy_jpeg
from tests.disks import filled, mounted
from tests.integration.rest import problem
from tests.integration.service import running_service
from tests.waiting import wait_until

MOST_UPLOADS = 60
"""That a full database may take before it refuses one: in pages that it has, and in its journal."""


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """One for each kind of data; the database's holds the others' folders."""
    with ExitStack() as stack:
        yield {
            "database": stack.enter_context(mounted(tmp_path / "data", 8)),
            "objects": stack.enter_context(mounted(tmp_path / "data" / "objects", 64)),
            "uploads": stack.enter_context(mounted(tmp_path / "data" / "uploads", 4)),
        }


@pytest.mark.parametrize(
    ("kind", "refusal"),
    [
        ("database", (503, "database_unavailable")),
        ("objects", (503, "storage_full")),
        ("uploads", (503, "storage_full")),
    ],
)
async def test_a_full_disk_refuses_uploads_loses_no_job_and_is_over_once_there_is_room(
    disks: dict[str, Path], kind: str, refusal: tuple[int, str]
) -> None:
    # Large enough to be spooled.
    photo = noisy_jpeg(1_500_000, 2048)
    async with running_service(disks["database"], tracker={"commit_timeout_seconds": 1}) as service:
        accepted = [await service.submitted()]
        await service.ended(accepted[0])
        with filled(disks[kind]):
            for _ in range(MOST_UPLOADS):
                answer = await service.post(photo=photo)
                if answer.status_code != 202:
                    break
                accepted.append(answer.json()["jobId"])
            assert (answer.status_code, problem(answer)["code"]) == refusal
            assert answer.headers["retry-after"]
            assert not [path.name for path in disks["uploads"].iterdir() if path.name != "filler"]
            kept = {key.split("/")[2] for key in service.objects() if key.startswith("customers/")}
            assert kept <= {*accepted}

        async def is_over() -> bool:
            again = await service.post(photo=photo)
            accepted.extend([again.json()["jobId"]] if again.status_code == 202 else [])
            return again.status_code == 202

        await wait_until(is_over, deadline=30)
        assert {(await service.ended(job_id))["status"] for job_id in accepted} == {"DONE"}
