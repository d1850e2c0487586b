"""The `user_config` of a deployment: what it may hold, and what becomes of one that is wrong."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from avatarforge.actors import DEPLOYMENT, INGRESS_DEPLOYMENT, REMOTE_DEPLOYMENT
from avatarforge.settings import ScalingSettings

log = structlog.get_logger(__name__)

USER_CONFIGS: Mapping[str, Collection[str]] = {
    INGRESS_DEPLOYMENT: ("model", "revision", "scaling"),
    DEPLOYMENT: ("model", "revision"),
    REMOTE_DEPLOYMENT: ("model", "revision"),
}
"""The deployments, and what each reads of its `user_config`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserConfig:
    """The values that a deployment takes from its `user_config`; those that are `None` stay as they were."""

    model: str | None
    scaling: ScalingSettings | None
    faults: tuple[str, ...]
    """A sentence for each name that nothing reads and each impossible value. These are left out above."""


def parse_user_config(
    deployment: str, user_config: Mapping[str, object], scaling: ScalingSettings
) -> UserConfig:
    """Parse what Serve takes as it is. `scaling` holds where `user_config` names nothing else."""
    known = USER_CONFIGS[deployment]
    path = f"deployments.{deployment}.user_config"
    faults = [describe_unknown(f"{path}.{key}", key, known) for key in user_config if key not in known]
    model = user_config.get("model")
    if model is not None and not isinstance(model, str):
        faults.append(f"{path}.model is {model!r}, but it is the name of a model.")
        model = None
    targets = None
    if "scaling" in known and (changes := user_config.get("scaling")) is not None:
        if scaling_faults := list(_find_scaling_faults(changes, scaling, f"{path}.scaling")):
            faults += scaling_faults
        elif isinstance(changes, Mapping):
            targets = ScalingSettings.model_validate({**scaling.model_dump(), **changes})
    return UserConfig(model=model, scaling=targets, faults=tuple(faults))


def describe_unknown(path: str, name: str, known: Collection[str]) -> str:
    """Return a sentence about a name in a configuration that nothing reads, with the nearest of the known."""
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(sorted(known))}."
    return f"Nothing reads {path!r}. {hint}"


def _find_scaling_faults(changes: object, scaling: ScalingSettings, path: str) -> Iterator[str]:
    if not isinstance(changes, Mapping):
        yield f"{path} is {changes!r}, but it holds settings of the group `scaling`, by names."
        return
    known = ScalingSettings.model_fields
    if unknown := [name for name in changes if name not in known]:
        yield from (describe_unknown(f"{path}.{name}", name, known) for name in unknown)
        return
    try:
        ScalingSettings.model_validate({**scaling.model_dump(), **changes})
    except ValidationError as error:
        for fault in error.errors():
            place = ".".join(map(str, fault["loc"]))
            yield f"{path}.{place} is {fault['input']!r}: {fault['msg']}."


class UserConfigReader:
    """Reads each `user_config` that a replica is given, and keeps what is wrong with the newest.

    A fault is left out, never raised: Serve stops a replica whose `reconfigure` raises and, after a few of
    them, replaces no replica that dies until the next deployment. A misspelt name must not stop a service.
    """

    def __init__(self, deployment: str, scaling: ScalingSettings) -> None:
        self._deployment = deployment
        self._scaling = scaling
        self.faults: tuple[str, ...] = ()
        """Those of the newest `user_config`."""

    def read(self, user_config: Mapping[str, object]) -> UserConfig:
        """Return what can be used of it, and log the rest."""
        config = parse_user_config(self._deployment, user_config, self._scaling)
        for fault in config.faults:
            log.error("user_config is wrong", deployment=self._deployment, reason=fault)
        self.faults = config.faults
        return config
