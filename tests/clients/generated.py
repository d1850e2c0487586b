"""Uploads, follows and downloads with what openapi-python-client generated."""

import sys
from io import BytesIO
from pathlib import Path

from forge_client import Client
from forge_client.api.images import get_avatar
from forge_client.api.photos import get_status, submit_photo
from forge_client.models import SubmitPhotoBody
from forge_client.types import File

url, photo = sys.argv[1:]
with Client(base_url=url, raise_on_unexpected_status=True) as client:
    body = SubmitPhotoBody(photo=File(BytesIO(Path(photo).read_bytes()), "me.jpg"), prompt="smiling", seed=5)
    job = submit_photo.sync("ana", client=client, body=body)
    job = get_status.sync("ana", job.job_id, client=client, wait_seconds=30)
    avatar = get_avatar.sync("ana", job.job_id, client=client)
print(job.status, job.seed, len(avatar.payload.read()))
