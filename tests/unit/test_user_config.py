"""A deployment's `user_config`: what is taken of it, and what is left out."""

from typing import Any

import pytest
import structlog

from avatarforge.settings import ScalingSettings
from avatarforge.user_config import UserConfigReader, parse_user_config

SCALING = ScalingSettings(max_replicas=8, target_wait_seconds=30)
MISSPELT = "Nothing reads 'deployments.StableDiffusion.user_config.modle'. Did you mean 'model'?"


def test_targets_are_laid_over_the_settings() -> None:
    user_config = {"model": "sd-turbo", "revision": 2, "scaling": {"target_wait_seconds": 10}}
    config = parse_user_config("Ingress", user_config, SCALING)
    assert (config.model, config.faults) == ("sd-turbo", ())
    assert config.scaling == ScalingSettings(max_replicas=8, target_wait_seconds=10)


@pytest.mark.parametrize("deployment", ["Ingress", "StableDiffusion", "RemoteStableDiffusion"])
def test_a_misspelt_name_is_told_with_the_nearest_and_the_rest_is_taken(deployment: str) -> None:
    config = parse_user_config(deployment, {"modle": "x", "model": "sd-turbo"}, SCALING)
    assert config.model == "sd-turbo"
    assert config.faults == (MISSPELT.replace("StableDiffusion", deployment),)


@pytest.mark.parametrize(
    ("scaling", "told"),
    [
        ({"target_wait_seconds": 0}, "scaling.target_wait_seconds is 0: Input should be greater than 0."),
        ({"min_replicas": 9}, "scaling.max_replicas is 8: Value error, at least scaling.min_replicas"),
        ({"max_replica": 3}, "scaling.max_replica'. Did you mean 'max_replicas'?"),
        ({"max_replicas": "many"}, "scaling.max_replicas is 'many': Input should be a valid integer"),
        ("less", "scaling is 'less', but it holds settings of the group `scaling`, by names."),
    ],
)
def test_impossible_targets_are_told_and_change_nothing(scaling: object, told: str) -> None:
    config = parse_user_config("Ingress", {"scaling": scaling}, SCALING)
    assert config.scaling is None
    [fault] = config.faults
    assert told in fault


def test_a_model_that_is_no_name_is_told_and_left_out() -> None:
    config = parse_user_config("StableDiffusion", {"model": 2}, SCALING)
    assert config.model is None
    assert config.faults == (
        "deployments.StableDiffusion.user_config.model is 2, but it is the name of a model.",
    )


@pytest.mark.parametrize("has_served", [True, False])
def test_a_replica_leaves_a_fault_out_logs_it_and_keeps_it_until_it_is_mended(has_served: bool) -> None:
    reader = UserConfigReader("StableDiffusion", SCALING)
    right: dict[str, Any] = {"model": "sd-turbo"}
    if has_served:
        reader.read(right)
    with structlog.testing.capture_logs() as lines:
        config = reader.read({**right, "modle": "x"})
    assert config.model == "sd-turbo"
    assert [(line["log_level"], line["reason"]) for line in lines] == [("error", MISSPELT)]
    assert reader.faults == (MISSPELT,)

    reader.read(right)
    assert reader.faults == ()
