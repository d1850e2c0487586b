"""Loads the parts of a single file, in the layout of Stable Diffusion's first authors.

diffusers converts the names; that each tensor is there, fits and is used is checked here.
"""

import importlib
import inspect
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from avatarforge.diffusion.models.parts import check_keys, load_part
from avatarforge.diffusion.models.weight_files import (
    UnreadableWeights,
    describe_contents,
    read_header,
    unwrap_key,
)
from avatarforge.diffusion.models.weights import read_parts
from avatarforge.domain.errors import ModelUnusable

if TYPE_CHECKING:
    import torch

_OPTIONAL: Final = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that single files never hold, and that a pipeline can do without."""
_PREFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": (
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.transformer.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.model.", "conditioner.embedders.0.model."),
}
_SPLIT: Final = re.compile(r"\.in_proj_(weight|bias)$|text_projection$")
"""OpenCLIP's tensors that become others."""
_UNUSED: Final = re.compile(
    r"(position_ids|logit_scale|attn_mask)$|^(first_stage_model|vae)\.(loss|model_ema)\."
)
"""What training leaves in a part, and making images does not need."""
_V_PREDICTION: Final = "v_pred"
_ZERO_SNR: Final = "ztsnr"
_EDM: Final = "edm_"
"""Marks by which a file says how it was trained: the first two are empty tensors."""


def load_parts_of_file(
    model: str, file: Path, config: Path, dtype: "torch.dtype", *, without: Collection[str] = ()
) -> dict[str, Any]:
    """Load the parts with weights, and the scheduler, which obeys the marks of the file's training.

    `config` is a folder with the parts' configurations, `without` names parts to leave out.
    Optional parts that it lacks are `None`. Raises
    `ModelUnusable` with the part and the tensors that are missing, surplus or of another shape.
    """
    checkpoint = _read_checkpoint(model, file)
    parts: dict[str, Any] = {}
    for name, (library, kind) in read_parts(config).items():
        folder = config / name
        if name in without:
            continue
        if name in _PREFIXES:
            parts[name] = _load_part(model, name, library, kind, folder, checkpoint, dtype)
        elif name in _OPTIONAL and (not folder.is_dir() or _lacks_weights(folder)):
            parts[name] = None
        else:
            parts[name] = load_part(model, folder, library, kind, dtype)
    parts["scheduler"] = _create_scheduler(model, config, checkpoint)
    return {name: part for name, part in parts.items() if part is not None or name in _OPTIONAL}


def load_vae_file(model: str, file: Path, library: str, kind: str, config: Path, dtype: "torch.dtype") -> Any:
    """Load a VAE that is a file of its own, whose names have no prefix, or are diffusers'.

    Raises `ModelUnusable`.
    """
    checkpoint = _read_checkpoint(model, file)
    if any(key.startswith("decoder.up_blocks.") for key in checkpoint):
        with TemporaryDirectory(prefix="avatarforge-") as temporary:
            folder = Path(temporary)
            shutil.copy(config / "config.json", folder)
            (folder / "diffusion_pytorch_model.safetensors").symlink_to(file.resolve())
            return load_part(model, folder, library, kind, dtype, name="vae")
    if not any(key.startswith(_PREFIXES["vae"]) for key in checkpoint):
        checkpoint = {f"{_PREFIXES['vae'][0]}{key}": tensor for key, tensor in checkpoint.items()}
    return _load_part(model, "vae", library, kind, config, checkpoint, dtype)


def _read_checkpoint(model: str, file: Path) -> dict[str, Any]:
    loading: Any = importlib.import_module("diffusers.loaders.single_file_utils")
    if file.suffix == ".safetensors":
        try:
            read_header(file)
        except UnreadableWeights as error:
            raise ModelUnusable(model, f"its file {file.name} {error}") from error
    checkpoint = loading.load_single_file_checkpoint(str(file))
    return {unwrap_key(key): tensor for key, tensor in checkpoint.items()}


def _lacks_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() and not any(folder.glob("*.safetensors"))


def _load_part(
    model: str,
    name: str,
    library: str,
    kind: str,
    folder: Path,
    checkpoint: Mapping[str, Any],
    dtype: "torch.dtype",
) -> Any:
    from accelerate import init_empty_weights

    loading: Any = importlib.import_module("diffusers.pipelines.pipeline_loading_utils")
    tools: Any = importlib.import_module("diffusers.models.model_loading_utils")
    found = loading.simple_get_class_obj(library, kind)
    with init_empty_weights():
        if hasattr(found, "load_config"):
            part = found.from_config(found.load_config(str(folder)))
        else:
            part = found(found.config_class.from_pretrained(str(folder)))
    prefix = next((one for one in _PREFIXES[name] if any(key.startswith(one) for key in checkpoint)), None)
    shapes = {key: tuple(tensor.shape) for key, tensor in checkpoint.items()}
    try:
        if prefix is None:
            raise ValueError(f"is not in the file: no name begins with {_PREFIXES[name][0]}")
        converted = _convert(kind, part, prefix, checkpoint)
        # What is looked for in vain is there as nothing.
        converted = {key: tensor for key, tensor in converted.items() if tensor is not None}
        _check(part, prefix, checkpoint, converted)
    except (ValueError, KeyError) as error:
        reason = f"lacks {error.args[0]}" if isinstance(error, KeyError) else str(error)
        contents = describe_contents(shapes) or "of no known kind"
        raise ModelUnusable(model, f"its part {name!r} {reason}: the file is {contents}") from error
    tools.load_model_dict_into_meta(part, converted, dtype=dtype)
    return part.eval()


def _convert(kind: str, part: Any, prefix: str, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part's tensors by diffusers' names. Raises `KeyError` for a missing one."""
    tools: Any = importlib.import_module("diffusers.loaders.single_file_utils")
    own = {key: tensor for key, tensor in checkpoint.items() if key.startswith(prefix)}
    match kind:
        case "UNet2DConditionModel":
            return dict(tools.convert_ldm_unet_checkpoint(own, part.config))
        case "AutoencoderKL":
            return dict(tools.convert_ldm_vae_checkpoint(own, part.config))
        case "CLIPTextModel" | "CLIPTextModelWithProjection":
            if prefix.endswith(".model."):
                converted = tools.convert_open_clip_checkpoint(part, own, prefix=prefix)
            else:
                converted = tools.convert_ldm_clip_checkpoint(own)
            if not hasattr(part, "text_model"):
                # Its layers bear shorter names in newer versions of transformers.
                converted = {key.removeprefix("text_model."): tensor for key, tensor in converted.items()}
            if kind == "CLIPTextModel":
                converted.pop("text_projection.weight", None)
            return dict(converted)
    raise ValueError(f"is a {kind}, which is not read from a single file")


def _check(part: Any, prefix: str, checkpoint: Mapping[str, Any], converted: Mapping[str, Any]) -> None:
    """Raise `ValueError` for the first kind of fault."""
    needed = {key: tensor.shape for key, tensor in part.state_dict().items()}
    # The conversion passes over names that it does not know: what it took is known by its memory.
    taken = {tensor.data_ptr() for tensor in converted.values()}
    tools: Any = importlib.import_module("diffusers.loaders.single_file_utils")
    ignored = set(tools.SD_2_TEXT_ENCODER_KEYS_TO_IGNORE)
    passed_over = [
        key
        for key, tensor in checkpoint.items()
        if key.startswith(prefix)
        and tensor.data_ptr() not in taken
        and key not in ignored
        and not (_SPLIT.search(key) or _UNUSED.search(key))
    ]
    check_keys(
        missing=needed.keys() - converted.keys(),
        surplus=[*passed_over, *(converted.keys() - needed.keys())],
        mismatched=[
            (key, tensor.shape, needed[key])
            for key, tensor in converted.items()
            if key in needed and tensor.shape != needed[key]
        ],
    )


def _create_scheduler(model: str, config: Path, checkpoint: Mapping[str, Any]) -> Any:
    """Create the configured scheduler with what the file's marks say of its training."""
    diffusers = importlib.import_module("diffusers")
    kind = getattr(diffusers, read_parts(config)["scheduler"][1])
    marks: dict[str, Any] = {}
    if _V_PREDICTION in checkpoint:
        marks["prediction_type"] = "v_prediction"
    if _ZERO_SNR in checkpoint:
        marks |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if any(key.startswith(_EDM) for key in checkpoint) and not kind.__name__.startswith("EDM"):
        raise ModelUnusable(model, f"its file is marked as EDM, but its config names {kind.__name__}")
    if lacking := marks.keys() - inspect.signature(kind).parameters.keys():
        raise ModelUnusable(model, f"its file asks for {min(lacking)}, which {kind.__name__} does not have")
    return kind.from_pretrained(str(config / "scheduler"), **marks)
