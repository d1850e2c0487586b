"""Loads a manifest's checkpoint as one of diffusers' image-to-image pipelines."""

import gc
import importlib
import inspect
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Final

from avatarforge.diffusion.models.catalogue import (
    FileSource,
    FolderSource,
    HubAddress,
    HubSource,
    Manifest,
    SamplerName,
)
from avatarforge.diffusion.models.loras import merge_loras
from avatarforge.diffusion.models.parts import check_finite, load_part
from avatarforge.diffusion.models.single_file_configs import write_config
from avatarforge.diffusion.models.single_files import load_parts_of_file, load_vae_file
from avatarforge.diffusion.models.textual_inversion import add_embeddings
from avatarforge.diffusion.models.weights import find_missing_part, read_parts
from avatarforge.domain.errors import DeviceLost, ModelUnusable

if TYPE_CHECKING:
    import torch


# What one of them sets, each of them sets: the configuration that it starts from may be another's.
_SCHEDULERS: Mapping[SamplerName, tuple[str, Mapping[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "Euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": False}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {"use_karras_sigmas": False, "clip_sample": False}),
    "DPM++ 2M Karras": (
        "DPMSolverMultistepScheduler",
        {"use_karras_sigmas": True, "algorithm_type": "dpmsolver++"},
    ),
    "DPM++ 2M SDE Karras": (
        "DPMSolverMultistepScheduler",
        {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
    ),
    "UniPC": ("UniPCMultistepScheduler", {"use_karras_sigmas": False}),
    "LCM": ("LCMScheduler", {"clip_sample": False}),
    "TCD": ("TCDScheduler", {"clip_sample": False}),
}


_SPIN_COUNT: Final = "2000"
"""Times that a waiting thread of OpenMP looks again before it sleeps: 20 microseconds by its own estimate."""
_MAX_REASON_LENGTH: Final = 200
_REMOTE_CODE_REASON = (
    "it brings code of its own, which is not run without the setting diffusion.allow_remote_code "
    "(AVATARFORGE_DIFFUSION_ALLOW_REMOTE_CODE)"
)


def import_libraries(threads: int) -> None:
    """Import torch and diffusers, seconds that every model needs. `threads` CPU threads, 0 for one a core.

    OpenMP's threads spin for milliseconds while they wait for each other. Beside another busy process that
    made an image ten times slower on two cores, and sleeping at once made it a fifth slower on idle ones. So
    they spin for a moment, which took some 15 % more CPU where ten others waited for the cores. OpenMP reads
    the variables once, when torch is first imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    # Ray sets it to the actor's logical CPUs, and `set_num_threads` does not undo that for every part of
    # torch: with 1 in here, an image took twice as long on two cores.
    os.environ["OMP_NUM_THREADS"] = str(count_threads(threads))
    import torch

    torch.set_num_threads(count_threads(threads))
    with _silence_libraries():
        # The classes that most manifests name; others share what they import.
        for name in ("img2img", "instruct_pix2pix"):
            importlib.import_module(f"diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_{name}")


def count_threads(configured: int) -> int:
    """Return the configured number, or for 0 the number of cores that this process may use."""
    if configured:
        return configured
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pick_device(configured: str, *, has_gpu: bool) -> str:
    """Return the configured device; for `auto` the GPU if the replica was given one, else the CPU.

    Raises `DeviceLost` if a GPU is meant and torch finds none.
    """
    import torch

    device = configured if configured != "auto" else "cuda" if has_gpu else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # torch leaves it out
            reason = "CUDA_VISIBLE_DEVICES shows none"
        except (RuntimeError, AssertionError) as error:
            reason = _get_first_line(error)
        raise DeviceLost(device, f"a GPU was asked for, and torch finds none: {reason}.")
    return device


def is_offloaded(manifest: Manifest, device: str) -> bool:
    """Return whether parts of the model are on the device only while they are needed."""
    return manifest.offload != "none" and device.startswith("cuda")


def get_free_bytes(device: str) -> int:
    """Return the GPU's bytes available for a model: free ones, and those that torch keeps for later."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_memory() -> None:
    """Collect garbage, and return the GPU memory that torch keeps for later."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pick_dtype(configured: str, manifest: Manifest, device: str) -> "torch.dtype":
    """Return the configured format; for `auto` float32 on a CPU, else the manifest's, bfloat16 or float16.

    `auto` takes bfloat16 only where the GPU computes it in hardware.
    """
    import torch

    name = configured
    if configured == "auto":
        if device == "cpu":
            name = "float32"
        else:
            name = manifest.dtype or ("bfloat16" if device.startswith("cuda") else "float16")
            # A T4 or V100 only imitates it, many times slower.
            if name == "bfloat16" and device.startswith("cuda") and not _has_bfloat16(device):
                name = "float16"
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _has_bfloat16(device: str) -> bool:
    import torch

    return torch.cuda.get_device_capability(device) >= (8, 0)


def load(
    manifest: Manifest,
    device: str,
    dtype: "torch.dtype",
    *,
    allow_pickle: bool = False,
    allow_remote_code: bool = False,
) -> Any:
    """Load the pipeline onto the device, ready to be called. Blocks for seconds, or for a download.

    Reads safetensors only and runs no code that comes with a checkpoint, unless the last two arguments
    allow it. Raises `ModelUnusable`.
    """
    import torch

    manifest.check_files()
    try:
        with _silence_libraries():
            pipeline = _from_source(manifest, dtype, allow_pickle, allow_remote_code)
            if manifest.own_sampler is not None:
                pipeline.scheduler = _create_scheduler(
                    manifest.name, manifest.own_sampler, pipeline.scheduler
                )
            merge_loras(pipeline, manifest)
            add_embeddings(pipeline, manifest)
            _skip_text_layers(pipeline, manifest)
            if is_offloaded(manifest, device):
                # Afterwards the weights are nowhere to be seen; without offloading the GPU reads them faster.
                check_finite(manifest.name, pipeline.components)
                move_to_device(pipeline, manifest, device)
            else:
                move_to_device(pipeline, manifest, device)
                check_finite(manifest.name, pipeline.components)
    except ModelUnusable:
        raise
    # Whatever diffusers, transformers, safetensors or the hub may raise: the checkpoint is at fault.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelUnusable(manifest.name, _REMOTE_CODE_REASON) from error
        raise ModelUnusable(manifest.name, _format_error(error)) from error
    if manifest.safety_checker and getattr(pipeline, "safety_checker", None) is None:
        raise ModelUnusable(
            manifest.name, "its manifest asks for a safety checker, but the checkpoint has none"
        )
    pipeline.set_progress_bar_config(disable=True)
    if device == "cuda" and not is_offloaded(manifest, device):
        # Faster convolutions in half precision on tensor cores; slower in float32 on a CPU.
        for module in pipeline.components.values():
            if isinstance(module, torch.nn.Module):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return pipeline


def move_to_device(pipeline: Any, manifest: Manifest, device: str) -> None:
    """Move it to the device; if offloaded, to the machine's memory, from where accelerate moves its parts."""
    if not is_offloaded(manifest, device):
        pipeline.to(device)
    elif manifest.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_sequential_cpu_offload(device=device)


def describe_kind(pipeline: Any) -> str:
    """Say what checkpoint this is, such as "Stable Diffusion XL, v-prediction"."""
    unet, encoder = getattr(pipeline, "unet", None), getattr(pipeline, "text_encoder", None)
    name = type(pipeline).__name__
    if getattr(pipeline, "text_encoder_2", None) is not None and unet is not None:
        words = ["Stable Diffusion XL" if encoder is not None else "refiner of Stable Diffusion XL"]
    elif unet is not None and encoder is not None:
        # Encoders of text and images have it further inside, if at all.
        width = getattr(encoder.config, "hidden_size", 0)
        words = [{768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}.get(width, name)]
    else:
        words = [name]
    if "InstructPix2Pix" in name:
        words.append("editing")
    if unet is not None and getattr(unet.config, "time_cond_proj_dim", None) is not None:
        words.append("distilled guidance")
    config = getattr(getattr(pipeline, "scheduler", None), "config", {})
    match config.get("prediction_type"):
        case "v_prediction":
            words.append("v-prediction")
        case "sample":
            words.append("predicts the image")
    if config.get("rescale_betas_zero_snr"):
        words.append("zero SNR")
    return ", ".join(words)


def create_schedulers(manifest: Manifest, pipeline: Any) -> dict[str, Any]:
    """Create the schedulers that requests may ask for, by the samplers' names; the model's own if it has one.

    Raises `ModelUnusable` for one that the pipeline cannot use.
    """
    listed: Any = importlib.import_module("diffusers.schedulers").KarrasDiffusionSchedulers
    # Distilled models know the same noise, though diffusers does not list their schedulers.
    alike = {*(each.name for each in listed), "LCMScheduler", "TCDScheduler"}
    schedulers: dict[str, Any] = {}
    for name in manifest.sampler_names:
        own, kind = pipeline.scheduler, type(pipeline).__name__
        if name == manifest.own_sampler:
            schedulers[name] = own
            continue
        schedulers[name] = _create_scheduler(manifest.name, name, own)
        # Latent consistency models have a call that only their own scheduler understands.
        if kind.startswith("LatentConsistency") or type(own).__name__ not in alike:
            raise ModelUnusable(
                manifest.name, f"{kind} cannot use the sampler {name!r} in its manifest's `samplers`"
            )
    return schedulers


def _from_source(
    manifest: Manifest, dtype: "torch.dtype", allow_pickle: bool, allow_remote_code: bool
) -> Any:
    common: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if manifest.safety_checker is False:
        common |= {"safety_checker": None, "requires_safety_checker": False}
    folders = common | {
        # Left open, it takes pickled weights where there are no others.
        "use_safetensors": None if allow_pickle else True,
        "trust_remote_code": allow_remote_code,
    }
    match manifest.source:
        case FileSource(file=file, config=None, prediction_type=prediction_type) as source:
            _require(manifest, file.is_file(), f"the file {file}")
            with TemporaryDirectory(prefix="avatarforge-") as written:
                write_config(manifest.name, file, Path(written), prediction_type)
                with_config = manifest.model_copy(
                    update={"source": source.model_copy(update={"config": Path(written)})}
                )
                return _from_source(with_config, dtype, allow_pickle, allow_remote_code)
        case FileSource(file=file, config=Path() as config, pipeline=name):
            if file.suffix != ".safetensors" and not allow_pickle:
                raise ModelUnusable(
                    manifest.name,
                    f"{file} is not a .safetensors file, and nothing else is read without the setting "
                    "diffusion.allow_pickle (AVATARFORGE_DIFFUSION_ALLOW_PICKLE)",
                )
            _require(manifest, file.is_file(), f"the file {file}")
            _require(manifest, (config / "model_index.json").is_file(), f"{config / 'model_index.json'}")
            parts = load_parts_of_file(manifest.name, file, config, dtype, without=_list_replaced(manifest))
            parts |= _load_vae(manifest, config, dtype)
            return _find_class(manifest, name).from_pretrained(str(config), **folders | parts)
        case FolderSource(folder=folder, pipeline=name):
            # A folder that is absent would be taken for a name on the hub.
            parts = _load_parts(manifest, folder, dtype, None, allow_pickle)
            return _find_class(manifest, name).from_pretrained(str(folder), **folders | parts)
        case HubSource(hub=hub, pipeline=name):
            folder = _download(manifest, hub, folders)
            parts = _load_parts(manifest, folder, dtype, hub.variant, allow_pickle)
            return _find_class(manifest, name).from_pretrained(
                str(folder), variant=hub.variant, **folders | parts
            )


def _load_parts(
    manifest: Manifest, folder: Path, dtype: "torch.dtype", variant: str | None, allow_pickle: bool
) -> dict[str, Any]:
    """Load the parts with weights. Those whose class the checkpoint itself brings are left to diffusers."""
    known: Any = importlib.import_module("diffusers.pipelines")
    missing = find_missing_part(folder, manifest, allow_pickle=allow_pickle)
    if missing is not None:
        raise ModelUnusable(manifest.name, missing)
    replaced = _list_replaced(manifest)
    parts = {
        name: load_part(
            manifest.name, folder / name, library, kind, dtype, variant=variant, allow_pickle=allow_pickle
        )
        for name, (library, kind) in read_parts(folder).items()
        if library in {"diffusers", "transformers"} or hasattr(known, library)
        if name not in replaced
    }
    parts |= _load_vae(manifest, folder, dtype)
    return {name: part for name, part in parts.items() if part is not None}


def _list_replaced(manifest: Manifest) -> set[str]:
    """Return the checkpoint's parts that the manifest does without."""
    return {
        name
        for name, is_replaced in {
            "safety_checker": manifest.safety_checker is False,
            "vae": manifest.vae is not None,
        }.items()
        if is_replaced
    }


def _load_vae(manifest: Manifest, folder: Path, dtype: "torch.dtype") -> dict[str, Any]:
    """Load the manifest's own VAE, if it has one: a file with the configuration of the one in the folder."""
    if manifest.vae is None:
        return {}
    library, kind = read_parts(folder)["vae"]
    if manifest.vae.is_dir():
        _require(manifest, (manifest.vae / "config.json").is_file(), f"{manifest.vae / 'config.json'}")
        kind = json.loads((manifest.vae / "config.json").read_text(encoding="utf-8"))["_class_name"]
        return {"vae": load_part(manifest.name, manifest.vae, library, kind, dtype, name="vae")}
    _require(manifest, manifest.vae.is_file(), f"its VAE {manifest.vae}")
    if manifest.vae.suffix != ".safetensors":
        raise ModelUnusable(manifest.name, f"its VAE {manifest.vae} is not a .safetensors file")
    return {"vae": load_vae_file(manifest.name, manifest.vae, library, kind, folder / "vae", dtype)}


def _skip_text_layers(pipeline: Any, manifest: Manifest) -> None:
    """Cut the text encoder's last layers off: the text is taken from the layer before them."""
    if (skipped := manifest.clip_skip - 1) == 0:
        return
    encoder = getattr(pipeline, "text_encoder", None)
    if encoder is None or getattr(pipeline, "text_encoder_2", None) is not None:
        kind = type(pipeline).__name__
        raise ModelUnusable(manifest.name, f"clip_skip is for models with one text encoder, and no {kind}")
    encoder = getattr(encoder, "text_model", encoder).encoder
    if skipped >= len(encoder.layers):
        reason = (
            f"its text encoder has {len(encoder.layers)} layers: clip_skip {manifest.clip_skip} leaves none"
        )
        raise ModelUnusable(manifest.name, reason)
    encoder.layers = encoder.layers[:-skipped]


def _download(manifest: Manifest, hub: HubAddress, options: Mapping[str, Any]) -> Path:
    """Return the folder in the hub's cache. Files that are there are not fetched again."""
    diffusers = importlib.import_module("diffusers")
    options = {name: value for name, value in options.items() if name not in {"dtype", "local_files_only"}}
    try:
        return Path(
            diffusers.DiffusionPipeline.download(
                hub.repository, revision=hub.revision, variant=hub.variant, **options
            )
        )
    except OSError as error:
        raise ModelUnusable(manifest.name, _explain_download_error(manifest, hub, error)) from error


def _explain_download_error(manifest: Manifest, hub: HubAddress, error: OSError) -> str:
    from huggingface_hub import constants

    checkpoint = f"{hub.repository} at revision {hub.revision}"
    if "safetensors" in str(error):
        return (
            f"{checkpoint} has no safetensors for each of its parts, and pickled weights are not read "
            "without the setting diffusion.allow_pickle (AVATARFORGE_DIFFUSION_ALLOW_PICKLE)"
        )
    return (
        f"{checkpoint} is not, or not whole, in the hub's cache {constants.HF_HUB_CACHE} and cannot be "
        f"fetched from {constants.ENDPOINT} ({_format_root_cause(error)}). Let this machine reach the hub "
        "once: HF_HUB_OFFLINE=1 forbids it, and a gated repository needs HF_TOKEN. Or run `avatarforge "
        f"models check {manifest.name}` on a machine that reaches it, and copy its cache here"
    )


def _create_scheduler(model: str, name: SamplerName, own: Any) -> Any:
    """Create the scheduler of this sampler, with the configuration of the checkpoint's own.

    Raises `ModelUnusable` where that one says of the training what the other cannot follow.
    """
    trained_for = type(own).__name__
    kind, options = _SCHEDULERS[name]
    found = getattr(importlib.import_module("diffusers"), kind)
    needed = [key for key in ("prediction_type", "rescale_betas_zero_snr") if own.config.get(key)]
    is_continuous = own.config.get("timestep_type") == "continuous"
    if trained_for.startswith(("EDM", "FlowMatch")) or own.config.get("use_flow_sigmas") or is_continuous:
        reason = f"its noise is that of {trained_for}{' with continuous timesteps' if is_continuous else ''}"
    elif lacking := [key for key in needed if key not in inspect.signature(found).parameters]:
        reason = f"{kind} has no {lacking[0]}, with which it was trained"
    else:
        return found.from_config(own.config, **options)
    raise ModelUnusable(model, f"the sampler {name!r} of its manifest does not suit it: {reason}")


def _find_class(manifest: Manifest, name: str | None) -> Any:
    """Return diffusers' class of this name; by default the automatic choice, whose import takes longer."""
    diffusers = importlib.import_module("diffusers")
    name = name or "AutoPipelineForImage2Image"
    found = getattr(diffusers, name, None)
    if not isinstance(found, type) or not hasattr(found, "from_pretrained"):
        raise ModelUnusable(manifest.name, f"diffusers {diffusers.__version__} has no pipeline {name!r}")
    return found


def _require(manifest: Manifest, exists: bool, what: str) -> None:
    if not exists:
        raise ModelUnusable(manifest.name, f"{what} is not there")


def _format_root_cause(error: BaseException) -> str:
    """Format the innermost error: the hub's client wraps the network's errors several times."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return _format_error(error)


def _format_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {_get_first_line(error)}"


def _get_first_line(error: BaseException) -> str:
    """Return it, not too long: libraries write whole pages, and lists of all tensors."""
    line = next((line.strip(" .") for line in str(error).splitlines() if line.strip(" .")), "no reason given")
    return shorten(line, _MAX_REASON_LENGTH, placeholder=" …")


@contextmanager
def _silence_libraries() -> Iterator[None]:
    """Turn off the libraries' progress bars and hints; errors are raised anyway."""
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
