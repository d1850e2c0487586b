"""The figures of `avatarforge bench`."""

import json

from avatarforge.cli.bench import Measurement, build_report
from avatarforge.client import ProfilePhotoJobStatus
from avatarforge.messages import LiveJob
from tests.factories import a_job, an_outcome


def measured(accepted: float, ended: float, attempt: int = 1) -> Measurement:
    job = a_job(outcome=an_outcome(), attempt=attempt, timings={"steps": ended / 2})
    message = ProfilePhotoJobStatus.model_validate(json.loads(LiveJob(job=job).to_message().json_bytes()))
    return Measurement(accepted=accepted, ended=ended, job=message)


def test_percentiles_are_values_that_were_measured() -> None:
    report = build_report([measured(n / 100, float(n)) for n in range(1, 101)], 20.0, 8, "http://forge")
    assert report["uploadToAvatar"] == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
    assert report["uploadToAccepted"]["p99"] == 0.99
    assert report["denoising"]["max"] == 50.0
    assert (report["avatarsPerSecond"], report["photos"]) == (5.0, 100)


def test_with_one_photo_every_percentile_is_that_one_and_repetitions_are_told() -> None:
    report = build_report([measured(0.1, 2.0, attempt=2)], 2.0, 1, "http://forge")
    assert set(report["uploadToAvatar"].values()) == {2.0}
    assert report["repeated"] == 1
