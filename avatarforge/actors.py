"""The names under which Ray and Serve know our actors and deployments, and what these read of their
configuration."""

import difflib
from collections.abc import Collection, Iterable, Mapping

NAMESPACE = "avatarforge"
APPLICATION = "avatarforge"
"""Name of the Serve application whose replicas generate."""
DEPLOYMENT = "StableDiffusion"
REMOTE_DEPLOYMENT = "RemoteStableDiffusion"
INGRESS_DEPLOYMENT = "Ingress"
USER_CONFIGS: Mapping[str, Collection[str]] = {
    INGRESS_DEPLOYMENT: ("model", "revision", "scaling"),
    DEPLOYMENT: ("model", "revision"),
    REMOTE_DEPLOYMENT: ("model", "revision"),
}
"""The deployments, and what each reads of its `user_config`."""


def describe_unknown_keys(deployment: str, user_config: Iterable[str]) -> list[str]:
    """Return a sentence for each key that the deployment does not read.

    Serve takes a `user_config` as it is, and stops a replica that refuses it.
    """
    known = USER_CONFIGS[deployment]
    return [
        describe_unknown(f"deployments.{deployment}.user_config.{key}", key, known)
        for key in user_config
        if key not in known
    ]


def describe_unknown(path: str, name: str, known: Collection[str]) -> str:
    """Return a sentence about a name in a configuration that nothing reads, with the nearest of the known."""
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(sorted(known))}."
    return f"Nothing reads {path!r}. {hint}"


def tracker_name(shard: int) -> str:
    return f"JobTracker:{shard}"
