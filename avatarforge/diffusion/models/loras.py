"""Merges LoRA adapters into a pipeline's weights, once, at loading: a step then costs what it did before.

An adapter holds two narrow matrices A and B of rank r for a layer, whose weight becomes
W + weight * alpha / r * B A (https://arxiv.org/abs/2106.09685). diffusers reads the file, whatever
trainer has written it; only for adding it asks for another library, whose import would cost every start.
"""

import importlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from avatarforge.diffusion.models.catalogue import Lora, Manifest
from avatarforge.domain.errors import ModelUnusable

if TYPE_CHECKING:
    from torch import Tensor

_PARTS: Final = ("unet", "text_encoder", "text_encoder_2")


def merge_loras(pipeline: Any, manifest: Manifest) -> None:
    """Merge all of the manifest's adapters. Raises `ModelUnusable` for one that does not fit."""
    for lora in manifest.loras:
        if lora.file.suffix != ".safetensors" or not lora.file.is_file():
            raise ModelUnusable(manifest.name, f"its LoRA {lora.file} is no .safetensors file that is there")
        if not hasattr(pipeline, "lora_state_dict"):
            kind = type(pipeline).__name__
            raise ModelUnusable(manifest.name, f"its LoRA {lora.file} cannot be added to a {kind}")
        try:
            changed = _merge(pipeline, lora)
        # A file may hold anything: whatever is raised, it does not fit.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ModelUnusable(
                manifest.name, f"its LoRA {lora.file} does not fit the model ({reason})"
            ) from error
        if changed == 0:
            raise ModelUnusable(
                manifest.name, f"its LoRA {lora.file} holds nothing for any layer of the model"
            )


def _merge(pipeline: Any, lora: Lora) -> int:
    """Merge one adapter, and return how many layers were changed."""
    import torch

    weights, alphas = pipeline.lora_state_dict(
        str(lora.file.parent),
        weight_name=lora.file.name,
        use_safetensors=True,
        local_files_only=True,
        unet_config=pipeline.unet.config,
    )[:2]
    changed = 0
    for part in _PARTS:
        module, matrices = getattr(pipeline, part, None), _select_part(weights, part)
        if module is None or not matrices:
            continue
        scales = {
            _get_layer_key(key): float(alpha) for key, alpha in _select_part(alphas or {}, part).items()
        }
        for layer, down, up in _pair_matrices(matrices, part):
            rank = len(matrices[down])
            change = matrices[up].flatten(1).float() @ matrices[down].flatten(1).float()
            change *= lora.weight * scales.get(_get_layer_key(down), rank) / rank
            if not hasattr(module, "text_model"):
                # Its layers bear shorter names in newer versions of transformers.
                layer = layer.removeprefix("text_model.")
            with torch.no_grad():
                weight = module.get_submodule(layer).weight
                weight += change.reshape(weight.shape).to(weight)
            changed += 1
    return changed


def _select_part(values: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Select the values whose keys begin with the part's name, and strip it from the keys."""
    return {
        key.removeprefix(f"{part}."): value for key, value in values.items() if key.startswith(f"{part}.")
    }


def _pair_matrices(weights: Mapping[str, "Tensor"], part: str) -> Iterator[tuple[str, str, str]]:
    """Yield each layer with the keys of its A and B. Raises `ValueError` for other kinds of adapters."""
    tools: Any = importlib.import_module("diffusers.utils")
    # The conversions only change names, so names can be sent through them as values.
    names: Any = {key: key for key in weights}
    if part == "unet":
        names = tools.convert_unet_state_dict_to_peft(names)
    else:
        names = tools.convert_state_dict_to_peft(tools.convert_state_dict_to_diffusers(names))
    if others := [key for key in names if not key.endswith((".lora_A.weight", ".lora_B.weight"))]:
        raise ValueError(f"{others[0]} is not of a plain LoRA")
    for key, down in names.items():
        if key.endswith(".lora_A.weight"):
            layer = key.removesuffix(".lora_A.weight")
            yield layer, down, names[f"{layer}.lora_B.weight"]


def _get_layer_key(key: str) -> str:
    """Return what the keys of an alpha and of its A have in common."""
    return re.split(r"[._]lora[._]|\.alpha$", key)[0]
