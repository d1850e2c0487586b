"""Checks of this machine: GPU, checkpoint, ports."""

import socket

import httpx

from avatarforge.diagnosis.findings import Finding, State, make_failure
from avatarforge.diffusion.models.catalogue import Catalogue
from avatarforge.diffusion.models.weights import find_weights
from avatarforge.domain.errors import ModelUnusable
from avatarforge.settings import Settings


def check_gpu(settings: Settings, wanted: bool | None) -> Finding:
    """Look for a GPU where one is `wanted`; `None`: where the settings want one."""
    if wanted is None:
        wanted = settings.diffusion.num_gpus > 0 or settings.diffusion.device == "cuda"
    if not wanted:
        return Finding(State.ABSENT, "not asked for")
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return make_failure(
            f"torch {torch.__version__} is built for the CPU",
            "Install a build of torch for CUDA, or set AVATARFORGE_DIFFUSION_NUM_GPUS=0 to run on the CPU.",
        )
    if not torch.cuda.is_available():
        return make_failure(
            "torch finds none",
            "Does `nvidia-smi` show one? A container needs NVIDIA's toolkit. On a CPU head use --no-gpu.",
        )
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    found = ", ".join(f"{device.name} {device.total_memory / 2**30:.0f} GiB" for device in devices)
    return Finding(State.OK, found)


def check_model(settings: Settings) -> Finding:
    """Read the manifest, look for the weights, and compare those files that have a digest."""
    name = settings.diffusion.model
    try:
        manifest = Catalogue(settings.diffusion.models_dir).read(name)
        weights = find_weights(manifest)
        if weights.kind == "hub" and weights.missing:
            return Finding(
                State.WARNING,
                f"{name}: {weights.missing}",
                "The first load fetches it from the hub. `avatarforge models check NAME` does so now.",
            )
        if weights.missing:
            return make_failure(f"{name}: {weights.missing}", "Put the weights where the manifest says.")
        manifest.check_files()
    except ModelUnusable as error:
        return make_failure(
            error,
            "`avatarforge models list` shows what there is; AVATARFORGE_DIFFUSION_MODEL names one of them.",
        )
    return Finding(State.OK, f"{name}: {weights.place}")


def check_port(settings: Settings, name: str, port: int) -> Finding:
    """Check whether something listens there, and whether it is us."""
    host = settings.http.host
    variable = "AVATARFORGE_HTTP_PORT" if name == "REST" else "AVATARFORGE_GRPC_PORT"
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        with socket.create_connection((reached, port), timeout=3):
            pass
    except OSError:
        return Finding(State.OK, f"{port} on {host} is free")
    if name == "REST" and (version := _our_health(reached, port)) is not None:
        return Finding(State.OK, f"AvatarForge answers on {port}: {version}")
    if name == "gRPC" and _our_health(reached, settings.http.port) is not None:
        return Finding(State.OK, f"AvatarForge listens on {port}")
    return Finding(
        State.WARNING,
        f"{port} on {host} is used by another program",
        f"Stop that one, or choose another with {variable}.",
    )


def _our_health(host: str, port: int) -> str | None:
    """Ask an AvatarForge there for its description; `None` if there is none."""
    address = f"[{host}]" if ":" in host else host
    try:
        answer = httpx.get(f"http://{address}:{port}/readyz", timeout=5, trust_env=False)
    except httpx.HTTPError:
        return None
    if answer.status_code == httpx.codes.OK:
        return "ready"
    is_ours = answer.headers.get("content-type", "").startswith("application/problem+json")
    return "not ready" if is_ours else None
