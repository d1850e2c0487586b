"""The Serve config file, such as `serve_config.yaml`: read, and checked whole before it starts anything.

Serve passes over names that it does not know, so that a misspelt one would change nothing and say nothing.
"""

import difflib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from avatarforge.cluster import ClusterError
from avatarforge.settings import ScalingSettings, Settings
from avatarforge.user_config import USER_CONFIGS, describe_unknown, parse_user_config

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

Config = dict[str, Any]
"""What a Serve config file holds."""

BUILDER = "avatarforge.app:build"


def read_config(path: Path) -> Config:
    """A Serve config file as it is written. Raises `ClusterError` when it is none.

    Ray's own check of it comes later: importing Ray's schemas would fix Ray's variables too early.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClusterError(f"The Serve config file {path} cannot be read: {error}") from error
    if not isinstance(config, dict) or not config.get("applications"):
        names = map(str, config if isinstance(config, dict) else ())
        near = difflib.get_close_matches("applications", names, n=1)
        hint = f" Did you mean 'applications' by {near[0]!r}?" if near else ""
        raise ClusterError(f"{path} is not a Serve config file: it names no applications.{hint}")
    return config


def arguments_of(config: Config) -> dict[str, Any]:
    """The first application's arguments, with the file's addresses: what `load_settings` takes."""
    arguments = {}
    for group, names in (("http", ("host", "port")), ("grpc", ("port",))):
        options = config.get(f"{group}_options") or {}
        if address := {name: options[name] for name in names if name in options}:
            arguments[group] = address
    return {**arguments, **(config["applications"][0].get("args") or {})}


def validate_config(config: Config, settings: Settings) -> "ServeDeploySchema":
    """Return the config as Serve takes it. Raises `ClusterError`, with what is unknown or impossible.

    `settings` are those of its arguments.
    """
    # Not above: importing Ray's schemas fixes Ray's variables.
    from ray.serve.schema import ServeDeploySchema

    if unknown := list(_find_unknown(config, ServeDeploySchema, "")):
        raise ClusterError(f"The Serve config file is wrong: {' '.join(unknown)}")
    try:
        schema = ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        raise ClusterError(f"The Serve config file is wrong: {error}") from error
    for application in config["applications"]:
        if application.get("import_path") == BUILDER:
            _check_deployments(application.get("deployments") or (), settings.scaling)
    return schema


def _find_unknown(value: object, model: type[BaseModel], path: str) -> Iterator[str]:
    """Yield a sentence for each name that the model, or one below it, does not have."""
    if isinstance(value, list):
        for place, item in enumerate(value):
            yield from _find_unknown(item, model, f"{path}[{place}]")
    elif isinstance(value, dict):
        for name, below in value.items():
            here = f"{path}.{name}".lstrip(".")
            field = model.model_fields.get(name)
            if field is None:
                yield describe_unknown(here, name, model.model_fields)
            elif (inner := _find_model(field.annotation)) is not None:
                yield from _find_unknown(below, inner, here)


def _find_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _find_model(part)) is not None), None)


def _check_deployments(deployments: Collection[Mapping[str, Any]], scaling: ScalingSettings) -> None:
    for deployment in deployments:
        name = deployment["name"]
        if name not in USER_CONFIGS:
            raise ClusterError(describe_unknown(f"deployments.{name}", name, USER_CONFIGS))
        if faults := parse_user_config(name, deployment.get("user_config") or {}, scaling).faults:
            raise ClusterError(f"The Serve config file is wrong: {' '.join(faults)}")
