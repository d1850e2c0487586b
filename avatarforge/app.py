"""Settings in, Serve application out: what `serve_config.yaml` names as `avatarforge.app:build`."""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from avatarforge.autoscaling.policy import PATH
from avatarforge.diffusion.remote.deployment import RemoteStableDiffusion
from avatarforge.diffusion.replica.deployment import StableDiffusion
from avatarforge.ingress.deployment import Ingress
from avatarforge.settings import Settings, load_settings
from avatarforge.webhooks.http_caller import create_ssl_context
from avatarforge.webhooks.signing import Signer

PATIENCE = 120
"""Seconds of silence after which a replica is replaced: one that computes on all cores may answer late."""


def build(arguments: dict[str, Any]) -> Application:
    """The application for these arguments, with the environment's settings laid over them.

    Raises `SettingsError`.
    """
    settings = load_settings(arguments)
    # A bad secret or file is found here, not inside an actor.
    Signer(settings.webhook.signing_secrets)
    create_ssl_context(settings.webhook)
    plain = settings.as_arguments()
    backends = [_stable_diffusion(settings).bind(plain)]
    if settings.remote.url is not None:
        backends.append(_remote_stable_diffusion(settings).bind(plain))
    return _ingress(settings).bind(plain, *backends)


def _ingress(settings: Settings) -> "serve.Deployment":
    return serve.deployment(
        name="Ingress",
        num_replicas=settings.ingress.replicas,
        max_ongoing_requests=settings.ingress.max_ongoing_requests,
        ray_actor_options={"num_cpus": settings.ingress.num_cpus},
        user_config={"model": settings.diffusion.model},
        graceful_shutdown_wait_loop_s=1,
        health_check_timeout_s=PATIENCE,
    )(Ingress)


def _stable_diffusion(settings: Settings) -> "serve.Deployment":
    return serve.deployment(
        name="StableDiffusion",
        **_replicas(settings),
        # What the engine denoises at once; the others are fetched, cropped and stored meanwhile.
        max_ongoing_requests=settings.diffusion.max_batch + settings.diffusion.prefetch,
        ray_actor_options={"num_cpus": settings.diffusion.num_cpus, "num_gpus": settings.diffusion.num_gpus},
        user_config={"model": settings.diffusion.model},
        # A replica is replaced after three failures in a row, soon enough for a job's second attempt.
        health_check_period_s=2,
        health_check_timeout_s=PATIENCE,
    )(StableDiffusion)


def _replicas(settings: Settings) -> dict[str, Any]:
    """A fixed number, or what lets Serve ask our policy for it."""
    scaling = settings.scaling
    if not scaling.enabled:
        return {"num_replicas": settings.diffusion.replicas}
    policy = AutoscalingPolicy(  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        policy_function=PATH, policy_kwargs={"shards": settings.tracker.shards}
    )
    return {
        "autoscaling_config": AutoscalingConfig(
            # The least is the policy's, which hears of another one without a restart.
            min_replicas=0,
            initial_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            # What is held for some time is held by the policy.
            upscale_delay_s=0,
            downscale_delay_s=0,
            # For Serve's own rule, while the trackers are silent.
            target_ongoing_requests=settings.diffusion.max_batch,
            policy=policy,
        )
    }


def _remote_stable_diffusion(settings: Settings) -> "serve.Deployment":
    return serve.deployment(
        name="RemoteStableDiffusion",
        max_ongoing_requests=settings.remote.concurrency,
        ray_actor_options={"num_cpus": settings.remote.num_cpus, "num_gpus": 0},
        user_config={"model": settings.diffusion.model},
        health_check_timeout_s=PATIENCE,
    )(RemoteStableDiffusion)
