"""The names under which Ray and Serve know our actors and deployments."""

NAMESPACE = "avatarforge"
APPLICATION = "avatarforge"
"""Name of the Serve application whose replicas generate."""
DEPLOYMENT = "StableDiffusion"
REMOTE_DEPLOYMENT = "RemoteStableDiffusion"
INGRESS_DEPLOYMENT = "Ingress"


def tracker_name(shard: int) -> str:
    return f"JobTracker:{shard}"
