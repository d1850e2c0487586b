"""What a tracker tells the autoscaling policy, and that the policy understands it."""

from pathlib import Path

import pytest
from ray.serve.config import AutoscalingConfig

from avatarforge.app import build
from avatarforge.autoscaling.backlog_poller import BacklogAggregator
from avatarforge.autoscaling.policy import PATH
from avatarforge.domain.changes import NewJob
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.settings import ScalingSettings, SettingsError, load_settings
from tests.factories import a_job
from tests.tracker_bench import Bench, silent
from tests.twins import ScriptedReplicas
from tests.waiting import wait_until


async def test_accepted_and_finished_jobs_are_counted_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    tracker = await bench.start()
    jobs = [a_job() for _ in range(3)]
    for job in await tracker.submissions.submit([NewJob(job=job) for job in jobs]):
        assert isinstance(job, ProfilePhotoJob)
        await bench.ended(job)
    await tracker.submissions.submit([NewJob(job=jobs[0])])
    told = tracker.describe()
    assert (told["accepted"], told["localFinished"], told["localRunning"]) == (3, 3, 0)
    await tracker.stop()


async def test_the_policy_reads_what_a_tracker_with_waiting_jobs_tells(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.replicas = ScriptedReplicas(slots=1, script=silent)
    tracker = await bench.start()
    await tracker.submissions.submit([NewJob(job=a_job()) for _ in range(4)])
    await wait_until(lambda: tracker.describe()["localRunning"] == 1)
    told = {**tracker.describe(), "scaling": ScalingSettings(max_replicas=7).model_dump()}
    counts = BacklogAggregator().add([told], at=0)
    assert (counts.waiting, counts.running, counts.backlog_seconds) == (3, 1, None)
    assert counts.targets.max_replicas == 7
    await tracker.stop()


def replicas_of(**arguments: object) -> tuple[int | None, AutoscalingConfig | None]:
    """How many Stable Diffusion replicas Serve is told to run, or how it is told to find out."""
    application = build({"log": {"level": "ERROR"}, **arguments})
    [backend] = application._bound_deployment.init_args[1:]
    config = backend._bound_deployment._deployment_config
    return config.num_replicas, config.autoscaling_config


def test_by_default_the_number_of_replicas_is_fixed() -> None:
    assert replicas_of(diffusion={"replicas": 3}) == (3, None)


def test_with_scaling_serve_asks_our_policy_within_the_bounds() -> None:
    scaling = {"enabled": True, "min_replicas": 2, "max_replicas": 9}
    _, config = replicas_of(scaling=scaling, tracker={"shards": 3})
    assert config is not None
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (0, 2, 9)
    assert config.policy.policy_function == PATH
    assert config.policy.policy_kwargs == {"shards": 3}
    # Whatever is held is held by the policy.
    assert (config.upscale_delay_s, config.downscale_delay_s) == (0, 0)


def test_a_least_above_the_most_is_refused_with_both_values() -> None:
    with pytest.raises(SettingsError, match=r"at least scaling\.min_replicas, which is 5"):
        load_settings({"scaling": {"min_replicas": 5, "max_replicas": 4}}, environ={})
