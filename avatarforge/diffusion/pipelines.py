"""Loads a manifest's checkpoint as one of diffusers' image-to-image pipelines."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from avatarforge.diffusion.catalogue import FileSource, FolderSource, HubSource, Manifest
from avatarforge.domain.errors import ModelUnusable

if TYPE_CHECKING:
    import torch


def import_libraries(threads: int) -> None:
    """Import torch and diffusers, seconds that every model needs. `threads` CPU threads, 0 for one a core.

    OpenMP's threads spin while they wait for each other. Beside another busy process that made a picture
    ten times slower on two cores; with passive waiting it did not. OpenMP reads the variable once, when
    torch is first imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Ray sets it to the actor's logical CPUs, and `set_num_threads` does not undo that for every part of
    # torch: with 1 in here, a picture took twice as long on two cores.
    os.environ["OMP_NUM_THREADS"] = str(threads or _cores())
    import torch

    torch.set_num_threads(threads or _cores())
    with _quietly():
        # The class that the embedded model names; most others share what it imports.
        importlib.import_module("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img")


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pick_device(wish: str, *, gpu_set_aside: bool) -> str:
    """`wish`, or for `auto` the GPU if one was set aside and is there, else the CPU."""
    import torch

    if wish != "auto":
        return wish
    return "cuda" if gpu_set_aside and torch.cuda.is_available() else "cpu"


def pick_dtype(wish: str, manifest: Manifest, device: str) -> "torch.dtype":
    """`wish`; for `auto` float32 on a CPU, elsewhere the manifest's, else bfloat16 or float16."""
    import torch

    name = wish
    if wish == "auto":
        if device == "cpu":
            name = "float32"
        elif manifest.dtype is not None:
            name = manifest.dtype
        else:
            name = "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported() else "float16"
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def load(manifest: Manifest, device: str, dtype: "torch.dtype") -> Any:
    """The pipeline, on the device, ready to be called. Blocks for seconds.

    Reads safetensors only and runs no code that comes with a checkpoint. Raises `ModelUnusable`.
    """
    import torch

    manifest.check_files()
    try:
        with _quietly():
            pipeline = _from_source(manifest, dtype).to(device)
    except ModelUnusable:
        raise
    # Whatever diffusers, transformers, safetensors or the hub may raise: the checkpoint is at fault.
    except Exception as error:
        raise ModelUnusable(manifest.name, f"{type(error).__name__}: {_first_line(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    if device == "cuda":
        # Faster convolutions in half precision on tensor cores; slower in float32 on a CPU.
        for module in pipeline.components.values():
            if isinstance(module, torch.nn.Module):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return pipeline


def _from_source(manifest: Manifest, dtype: "torch.dtype") -> Any:
    common: dict[str, Any] = {"dtype": dtype}
    match manifest.source:
        case FileSource(file=file, config=config, pipeline=name):
            if file.suffix != ".safetensors":
                raise ModelUnusable(
                    manifest.name, f"{file} is not a .safetensors file, and nothing else is read"
                )
            _must_exist(manifest, file.is_file(), f"the file {file}")
            _must_exist(manifest, (config / "model_index.json").is_file(), f"{config / 'model_index.json'}")
            # Without a folder of configuration diffusers would ask the hub for one.
            return _class(manifest, name).from_single_file(
                str(file), config=str(config), local_files_only=True, **common
            )
        case FolderSource(folder=folder, pipeline=name):
            # A folder that is absent would be taken for a name on the hub.
            _must_exist(manifest, (folder / "model_index.json").is_file(), f"{folder / 'model_index.json'}")
            return _class(manifest, name).from_pretrained(
                str(folder), use_safetensors=True, local_files_only=True, **common
            )
        case HubSource(hub=hub, pipeline=name):
            return _class(manifest, name).from_pretrained(
                hub.repository, revision=hub.revision, use_safetensors=True, **common
            )


def _class(manifest: Manifest, name: str | None) -> Any:
    """diffusers' class of this name; without one the automatic choice, whose import takes longer."""
    diffusers = importlib.import_module("diffusers")
    wanted = name or "AutoPipelineForImage2Image"
    found = getattr(diffusers, wanted, None)
    if not isinstance(found, type) or not hasattr(found, "from_pretrained"):
        raise ModelUnusable(manifest.name, f"diffusers {diffusers.__version__} has no pipeline {wanted!r}")
    return found


def _must_exist(manifest: Manifest, exists: bool, what: str) -> None:
    if not exists:
        raise ModelUnusable(manifest.name, f"{what} is not there")


def _first_line(error: Exception) -> str:
    return next((line.strip(" .") for line in str(error).splitlines() if line.strip(" .")), "no reason given")


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the libraries' progress bars and hints; what goes wrong is raised."""
    import diffusers.utils.logging as diffusers_log
    import transformers.utils.logging as transformers_log

    levels = [(log, log.get_verbosity()) for log in (diffusers_log, transformers_log)]
    for log, _ in levels:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, level in levels:
            log.set_verbosity(level)
