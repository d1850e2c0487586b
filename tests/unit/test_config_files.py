"""`serve_config.yaml` and `cluster.yaml`: Ray takes them, and they say what our code understands."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

import avatarforge
from avatarforge import app
from avatarforge.diffusion.models.catalogue import Catalogue
from avatarforge.embedded import arguments_of, read_config
from avatarforge.settings import SettingsError, load_settings

TREE = Path(avatarforge.__file__).parents[1]
SERVE_CONFIG = TREE / "serve_config.yaml"


@pytest.fixture
def deployments() -> dict[str, dict[str, Any]]:
    config = ServeDeploySchema.model_validate(read_config(SERVE_CONFIG))
    given = config.applications[0].model_dump(exclude_unset=True)["deployments"]
    return {deployment["name"]: deployment for deployment in given}


def test_the_serve_config_names_our_builder() -> None:
    config = ServeDeploySchema.model_validate(read_config(SERVE_CONFIG))
    assert [application.import_path for application in config.applications] == ["avatarforge.app:build"]
    assert callable(app.build)


def test_a_file_without_certificates_is_found_by_the_builder(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    with pytest.raises(SettingsError, match=r"webhook.ca_file is '.*ca.pem'"):
        app.build({"webhook": {"ca_file": str(tmp_path / "ca.pem")}})


def test_the_serve_configs_arguments_are_settings() -> None:
    settings = load_settings(arguments_of(read_config(SERVE_CONFIG)), environ={})
    assert settings.diffusion.num_gpus == 1
    assert (settings.http.host, settings.http.port) == ("0.0.0.0", 8000)


def test_a_variable_wins_over_the_serve_config() -> None:
    arguments = arguments_of(read_config(SERVE_CONFIG))
    assert load_settings(arguments, environ={"AVATARFORGE_HTTP_PORT": "8123"}).http.port == 8123


def test_the_serve_config_names_the_deployments_that_the_application_has(
    deployments: dict[str, dict[str, Any]],
) -> None:
    assert set(deployments) == {"Ingress", "StableDiffusion"}
    assert deployments["StableDiffusion"]["ray_actor_options"]["num_gpus"] == 1
    assert deployments["StableDiffusion"]["user_config"]["model"] in Catalogue(None).list_names()


def test_the_cluster_file_is_one_that_ray_up_takes() -> None:
    config = yaml.safe_load((TREE / "cluster.yaml").read_text(encoding="utf-8"))
    validate_config(prepare_config(config))


def test_the_head_runs_no_generation_and_the_workers_have_gpus() -> None:
    types = yaml.safe_load((TREE / "cluster.yaml").read_text(encoding="utf-8"))["available_node_types"]
    assert types["head"]["resources"]["GPU"] == 0
    assert types["gpu"]["resources"]["GPU"] >= 1
