"""gRPC from Node."""

import json
from pathlib import Path

import avatarforge
from tests.clients.runs import HERE, run
from tests.integration.rest import a_jpeg
from tests.integration.service import running_service, serving_grpc

PROTO = Path(avatarforge.__file__).parents[1] / "proto" / "profile_photo_job.proto"


async def test_a_node_client_submits_follows_and_is_refused(tmp_path: Path) -> None:
    photo = tmp_path / "me.jpg"
    photo.write_bytes(a_jpeg())
    async with running_service(tmp_path) as service, serving_grpc(service) as address:
        told = json.loads(await run("node", HERE / "grpc-client.mjs", address, photo, PROTO))

    assert told.pop("statuses")[-1] == "DONE"
    assert told == {"seed": 5, "refused": "NOT_FOUND", "code": "job_not_found"}
