"""`docs/operations.md`: every block works on MariaDB and S3, and what is backed up is restored elsewhere.

In a short run only what is backed up, restored and rotated: each command takes a second or more to start.
"""

import re
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import yaml

from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.persistence.upgrade import upgrade
from tests.chaos.conftest import IS_LONG
from tests.chaos.sites import OPERATIONS, Site, list_blocks, open_sites
from tests.jobs import a_job, submission
from tests.terminal import TREE


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    with open_sites(tmp_path) as both:
        yield both


def keep_a_job(site: Site) -> ProfilePhotoJob:
    job, records = a_job(), site.records()
    site.storage().put(job.original.key, BytesIO(b"photo"), "image/jpeg")
    records.commit(0, records.claim_shard(0), [submission(job)])
    found = records.find_job(job.customer_id, job.job_id)
    records.close()
    assert found is not None
    return found


@pytest.mark.timeout(600)
def test_what_the_page_says_works_and_a_lost_site_is_restored_elsewhere(sites: tuple[Site, Site]) -> None:
    here, elsewhere = sites
    blocks = list_blocks()

    def run(site: Site, heading: str) -> None:
        for block in blocks.pop(heading):
            site.terminal.run(block)

    if IS_LONG:
        run(here, "Install")
        run(here, "Upgrade")
        run(here, "Follow a job")
    else:
        upgrade(here.url)
    job = keep_a_job(here)
    run(here, "Back up")
    dump = here.terminal.folder / "avatarforge.sql"
    run(here, "Rotate secrets")
    assert here.password.read_text() == "second\n"
    records = here.records()
    assert records.find_job(job.customer_id, job.job_id) == job
    records.close()
    here.mariadb.stop()
    here.s3.stop()

    shutil.copy(dump, elsewhere.terminal.folder)
    run(elsewhere, "Restore")
    records = elsewhere.records()
    assert records.find_job(job.customer_id, job.job_id) == job
    assert [change.event.seq for change in records.list_shard_events(0, 0, 10)] == [job.seq]
    assert elsewhere.storage().get(job.original.key) == b"photo"
    records.close()
    assert blocks == {} or not IS_LONG, "all were run"


def test_every_alert_has_its_advice() -> None:
    rules = yaml.safe_load((TREE / "deploy" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    listed = re.findall(r"^\| `(AvatarForge\w+)` \|", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == alerts
