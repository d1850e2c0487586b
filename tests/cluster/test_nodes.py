"""Several nodes: what happens to jobs while workers die, replicas come and go, and versions change."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.photos import noisy_jpeg
from tests.chaos.conftest import IS_LONG, JOBS, assert_recovered, models_folder, told
from tests.chaos.crowd import RECOVERED, STARTED_AGAIN, now
from tests.cluster.nodes import Nodes, running_nodes
from tests.servers.redis import PASSWORD, RedisServer

BACKLOG = 24
"""Jobs that wait or run at any moment until another replica is there."""
BACKLOG_STEPS = 2 if IS_LONG else 40
"""Some seconds of work in all."""

pytestmark = pytest.mark.timeout(400)


def on_cpu() -> dict[str, object]:
    """The replicas' settings. Ray counts GPUs that are not there."""
    models = models_folder()
    return {
        "num_gpus": 1,
        "num_cpus": 1,
        "device": "cpu",
        "threads": 1,
        "models_dir": None if models is None else str(models),
    }


@pytest.fixture(scope="module")
def photo() -> bytes:
    return noisy_jpeg(20_000, 256)


# First, and so before the other tests' nodes, which would take their share of the cores.
def test_a_head_that_is_killed_comes_back_with_what_it_knew(tmp_path: Path, photo: bytes) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        variables = {"RAY_REDIS_ADDRESS": redis.address, "RAY_REDIS_PASSWORD": PASSWORD}
        with running_nodes(tmp_path / "nodes", workers=1, variables=variables, diffusion=on_cpu()) as nodes:
            nodes.until(lambda: len(nodes.replicas()) == 1, 60, "a replica runs")
            before = nodes.replicas()
            # The last uploads come after the head's end, however fast the others are.
            crowd = nodes.crowd(photo, JOBS, pause=1.0)
            crowd.start()
            crowd.await_accepted(JOBS // 2)
            nodes.call("kill_head")
            started_at = now()
            nodes.start_head()
            nodes.until(nodes.is_ready, 120, "the service is ready again")
            crowd.finish()
            fault = "kill -9 the head"
            assert_recovered(nodes.outcome(crowd), fault, "work after its start", started_at, STARTED_AGAIN)
            nodes.until(nodes.replicas, 60, "Serve knows its replicas again")
            assert nodes.replicas() == before, "the worker's replica outlived the head"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two workers, each with two GPUs; as many replicas as the backlog asks for."""
    with running_nodes(
        tmp_path_factory.mktemp("nodes"),
        workers=2,
        diffusion=on_cpu(),
        scaling={
            "enabled": True,
            "min_replicas": 1,
            "max_replicas": 3,
            "target_wait_seconds": 1,
            "cold_start_seconds": 5,
            "scale_down_seconds": 5,
        },
    ) as running:
        running.until(lambda: len(running.replicas()) == 1, 60, "one replica runs")
        yield running


def aim(nodes: Nodes, **targets: int) -> None:
    """Change the targets of autoscaling by the running configuration."""
    nodes.deploy(Ingress={"user_config": {"model": "avatar-mini", "scaling": targets}})


def test_the_tracker_lives_on_the_head(nodes: Nodes) -> None:
    assert nodes.call("tracker_node") == "head"


def test_a_backlog_makes_replicas_come_and_its_end_makes_them_go(nodes: Nodes, photo: bytes) -> None:
    # For as long as replicas need to start, on any machine.
    crowd = nodes.crowd(photo, 10_000, threads=BACKLOG, steps=BACKLOG_STEPS, awaits_ends=True)
    crowd.start()
    nodes.until(lambda: len(nodes.replicas()) > 1, 120, "a second replica comes")
    crowd.stop()
    crowd.finish()
    nodes.outcome(crowd).await_ends()
    nodes.outcome(crowd).assert_all_done()
    assert not crowd.refusals
    nodes.until(lambda: len(nodes.replicas()) == 1, 90, "the others go again")


def test_targets_change_while_everything_runs(nodes: Nodes, photo: bytes) -> None:
    """Scale 1 → 3 → 1, by the running configuration: nothing is refused and no replica starts anew."""
    ingress, [replica] = nodes.replicas("Ingress"), nodes.replicas()
    crowd = nodes.crowd(photo, 2 * JOBS, pause=0.2)
    crowd.start()
    aim(nodes, min_replicas=3)
    nodes.until(lambda: len(nodes.replicas()) == 3, 120, "three replicas run")
    assert replica in nodes.replicas()
    aim(nodes, min_replicas=1)
    crowd.finish()
    nodes.outcome(crowd).await_ends()
    nodes.until(lambda: len(nodes.replicas()) == 1, 120, "one replica is left")
    nodes.outcome(crowd).assert_all_done()
    assert not crowd.refusals
    assert nodes.replicas("Ingress") == ingress


@pytest.mark.skipif(not IS_LONG, reason="the last replica goes after minutes: `make chaos`")
def test_the_last_replica_goes_and_the_next_job_brings_one_back(nodes: Nodes, photo: bytes) -> None:
    aim(nodes, min_replicas=0)
    nodes.until(lambda: not nodes.replicas(), 150, "no replica is left")
    crowd = nodes.crowd(photo, 2)
    crowd.start()
    crowd.finish()
    nodes.outcome(crowd).await_ends()
    nodes.outcome(crowd).assert_all_done()
    aim(nodes, min_replicas=1)
    nodes.until(lambda: len(nodes.replicas()) == 1, 60, "one replica stays")


def test_a_new_version_rolls_out_and_refuses_nothing(nodes: Nodes, photo: bytes) -> None:
    before = {**nodes.replicas("Ingress"), **nodes.replicas()}
    # Forty jobs are under way at any moment of a long run.
    under_way = {"threads": 40, "awaits_ends": True} if IS_LONG else {}
    crowd = nodes.crowd(photo, 2 * JOBS, pause=0.5, **under_way)
    crowd.start()
    crowd.await_accepted(JOBS // 2)
    deployed_at = now()
    nodes.deploy(
        Ingress={"ray_actor_options": {"num_cpus": 0.2}},
        StableDiffusion={"ray_actor_options": {"num_cpus": 0.5, "num_gpus": 1}},
    )

    def is_replaced() -> bool:
        ingress, generating = nodes.replicas("Ingress"), nodes.replicas()
        return len(ingress) == 2 and bool(generating) and not before.keys() & {*ingress, *generating}

    nodes.until(is_replaced, 150, "every replica is a new one")
    crowd.finish()
    outcome = nodes.outcome(crowd)
    outcome.await_ends()
    outcome.assert_all_done()
    assert not crowd.refusals
    told("new version", "jobs started again", len(outcome.started_again(deployed_at)), "")


def test_jobs_of_a_worker_that_is_killed_are_done_by_another(nodes: Nodes, photo: bytes) -> None:
    if IS_LONG:
        aim(nodes, min_replicas=2)
        nodes.until(lambda: len(set(nodes.replicas().values())) == 2, 120, "both workers have a replica")
    crowd = nodes.crowd(photo, 2 * JOBS, pause=0.3)
    crowd.start()
    crowd.await_accepted(JOBS)
    fault, outcome = "kill -9 a worker node", nodes.outcome(crowd)
    nodes.until(lambda: outcome.done() >= JOBS // 4, 60, "pictures are being made")
    worker = next(iter(nodes.replicas().values()))
    nodes.call("kill_worker", name=worker)
    killed_at = now()
    crowd.finish()
    assert_recovered(outcome, fault, "work again after", killed_at, RECOVERED)
    again = outcome.started_again(killed_at)
    # A short run may kill a worker that has just finished what it had.
    assert again or not IS_LONG
    if again:
        told(fault, "a job of its started again after", min(again), "s")
