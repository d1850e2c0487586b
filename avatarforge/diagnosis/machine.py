"""What is on this machine: GPU, checkpoint, ports."""

import socket

import httpx

from avatarforge.diagnosis.findings import Finding, State, failed
from avatarforge.diffusion.catalogue import Catalogue
from avatarforge.diffusion.weights import weights_of
from avatarforge.domain.errors import ModelUnusable
from avatarforge.settings import Settings


def check_gpu(settings: Settings, wanted: bool | None) -> Finding:
    """Look for a GPU where one is `wanted`; `None`: where the settings want one."""
    check = "GPU"
    if wanted is None:
        wanted = settings.diffusion.num_gpus > 0 or settings.diffusion.device == "cuda"
    if not wanted:
        return Finding(check=check, state=State.ABSENT, found="not asked for")
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return failed(
            check,
            f"torch {torch.__version__} is built for the CPU",
            "Install a build of torch for CUDA, or set AVATARFORGE_DIFFUSION_NUM_GPUS=0 to run on the CPU.",
        )
    if not torch.cuda.is_available():
        return failed(
            check,
            "torch finds none",
            "Does `nvidia-smi` show one? A container needs NVIDIA's toolkit. On a CPU head use --no-gpu.",
        )
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    found = ", ".join(f"{device.name} {device.total_memory / 2**30:.0f} GiB" for device in devices)
    return Finding(check=check, state=State.OK, found=found)


def check_model(settings: Settings) -> Finding:
    """Read the manifest, look for the weights, and compare those files that have a digest."""
    check, name = "model", settings.diffusion.model
    try:
        manifest = Catalogue(settings.diffusion.models_dir).manifest(name)
        weights = weights_of(manifest)
        if weights.kind == "hub" and weights.missing:
            return Finding(
                check=check,
                state=State.WARNING,
                found=f"{name}: {weights.missing}",
                advice="The first load fetches it from the hub. `avatarforge models check NAME` does so now.",
            )
        if weights.missing:
            return failed(check, f"{name}: {weights.missing}", "Put the weights where the manifest says.")
        manifest.check_files()
    except ModelUnusable as error:
        return failed(
            check,
            error,
            "`avatarforge models list` shows what there is; AVATARFORGE_DIFFUSION_MODEL names one of them.",
        )
    return Finding(check=check, state=State.OK, found=f"{name}: {weights.place}")


def check_port(settings: Settings, name: str, port: int) -> Finding:
    """See whether something listens there, and whether it is us."""
    check, host = f"{name} port", settings.http.host
    variable = "AVATARFORGE_HTTP_PORT" if name == "REST" else "AVATARFORGE_GRPC_PORT"
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        with socket.create_connection((reached, port), timeout=3):
            pass
    except OSError:
        return Finding(check=check, state=State.OK, found=f"{port} on {host} is free")
    if name == "REST" and (version := _our_health(reached, port)) is not None:
        return Finding(check=check, state=State.OK, found=f"AvatarForge answers on {port}: {version}")
    if name == "gRPC" and _our_health(reached, settings.http.port) is not None:
        return Finding(check=check, state=State.OK, found=f"AvatarForge listens on {port}")
    return Finding(
        check=check,
        state=State.WARNING,
        found=f"{port} on {host} is used by another program",
        advice=f"Stop that one, or choose another with {variable}.",
    )


def _our_health(host: str, port: int) -> str | None:
    """What an AvatarForge there says of itself, `None` if there is none."""
    address = f"[{host}]" if ":" in host else host
    try:
        answer = httpx.get(f"http://{address}:{port}/readyz", timeout=5, trust_env=False)
    except httpx.HTTPError:
        return None
    if answer.status_code == httpx.codes.OK:
        return "ready"
    is_ours = answer.headers.get("content-type", "").startswith("application/problem+json")
    return "not ready" if is_ours else None
