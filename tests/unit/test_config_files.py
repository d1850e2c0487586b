"""`serve_config.yaml`, `cluster.yaml` and the Makefile: Ray, our code and make take what they say."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler._private.util import validate_config as validate_cluster
from ray.serve.schema import ServeDeploySchema

import avatarforge
from avatarforge import app
from avatarforge.cluster import ClusterError
from avatarforge.diffusion.models.catalogue import Catalogue
from avatarforge.serve_config import BUILDER, arguments_of, read_config, validate_config
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


def paths(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each name in the file."""
    if isinstance(node, dict):
        for name, below in node.items():
            yield (*at, name)
            yield from paths(below, (*at, name))
    elif isinstance(node, list):
        for place, below in enumerate(node):
            yield from paths(below, (*at, place))


NAMES = list(paths(yaml.safe_load(SERVE_CONFIG.read_text(encoding="utf-8"))))


def check(file: Path) -> None:
    """What `avatarforge doctor --config` and `up --config` do first."""
    content = read_config(file)
    validate_config(content, load_settings(arguments_of(content), environ={}))


@pytest.mark.parametrize("path", NAMES, ids=[".".join(map(str, path[2:] or path)) for path in NAMES])
def test_a_misspelt_name_anywhere_in_the_serve_config_is_refused_and_named(
    path: tuple[Any, ...], tmp_path: Path
) -> None:
    config = yaml.safe_load(SERVE_CONFIG.read_text())
    node = config
    for part in path[:-1]:
        node = node[part]
    misspelt = path[-1] + path[-1][-1]
    node[misspelt] = node.pop(path[-1])
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(config))
    with pytest.raises((ClusterError, SettingsError)) as refused:
        check(wrong)
    assert f"{misspelt}'" in str(refused.value)
    assert f"Did you mean '{path[-1]}'" in str(refused.value) or f".{path[-1]}'?" in str(refused.value)


@pytest.mark.parametrize(
    ("deployment", "told"),
    [
        ({"name": "Ingres"}, "Nothing reads 'deployments.Ingres'. Did you mean 'Ingress'?"),
        ({"name": "Ingress", "user_config": {"scaling": {"max_replicas": -1}}}, "scaling.max_replicas is -1"),
        ({"name": "Ingress", "user_config": {"scaling": {"max_replicas": 2}}}, "scaling.max_replicas is 2"),
        ({"name": "Ingress", "user_config": {"scaling": 3}}, "scaling is 3, but it holds settings"),
        ({"name": "StableDiffusion", "user_config": {"scaling": {}}}, "StableDiffusion.user_config.scaling"),
    ],
)
def test_what_a_deployment_cannot_have_is_refused(deployment: dict[str, Any], told: str) -> None:
    config = {"applications": [{"import_path": BUILDER, "deployments": [deployment]}]}
    settings = load_settings({"scaling": {"min_replicas": 3}}, environ={})
    with pytest.raises(ClusterError, match=re.escape(told)):
        validate_config(config, settings)


def test_the_cluster_file_is_one_that_ray_up_takes() -> None:
    config = yaml.safe_load((TREE / "cluster.yaml").read_text(encoding="utf-8"))
    validate_cluster(prepare_config(config))


def test_the_head_runs_no_generation_and_the_workers_have_gpus() -> None:
    types = yaml.safe_load((TREE / "cluster.yaml").read_text(encoding="utf-8"))["available_node_types"]
    assert types["head"]["resources"]["GPU"] == 0
    assert types["gpu"]["resources"]["GPU"] >= 1


@pytest.mark.parametrize(("target", "is_for_developers"), [("demo", False), ("up", False), ("format", True)])
def test_make_installs_the_developers_tools_only_where_they_are_needed(
    target: str, is_for_developers: bool, tmp_path: Path
) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(TREE / name, tmp_path)
    said = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "-e ." in said.stdout
    assert ("[dev]" in said.stdout) is is_for_developers
