"""Merges LoRA adapters and their relatives into a pipeline's weights at loading: a step costs what it did.

An adapter holds small matrices by which a layer's weight W changes: LoRA a product B A
(https://arxiv.org/abs/2106.09685), LoHa the elementwise product of two such, LoKr a Kronecker product
(https://arxiv.org/abs/2309.14859); DoRA besides sets the length of W's rows
(https://arxiv.org/abs/2402.09353). peft, which does this for diffusers, would cost every start its import,
and knows fewer spellings.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from avatarforge.diffusion.models.catalogue import Lora, Manifest
from avatarforge.diffusion.models.parts import list_keys
from avatarforge.diffusion.models.weight_files import describe_contents, read_header
from avatarforge.domain.errors import ModelUnusable

if TYPE_CHECKING:
    from torch import Tensor

_PREFIXES: Final[Mapping[str, str]] = {
    # The first that matches counts.
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "unet.": "unet",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
}
_TENSORS: Final = re.compile(
    r"[._](?:lora[._]|lora_linear_layer\.)(?P<lora>down|up|mid|A|B)(?:\.default)?\.weight$"
    r"|\.lora_(?P<magnitude>magnitude_vector)(?:\.default)?(?:\.weight)?$"
    r"|\.(?P<other>alpha|dora_scale|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)$"
)
"""What follows the layer's name in a tensor's, in the spellings of kohya, diffusers, peft and LyCORIS."""
_SPELLINGS: Final = {"A": "down", "B": "up", "magnitude_vector": "magnitude"}
_METADATA: Final = "lora_adapter_metadata"


def merge_loras(pipeline: Any, manifest: Manifest) -> None:
    """Merge all of the manifest's adapters. Raises `ModelUnusable` for one that does not fit."""
    for lora in manifest.loras:
        name = f"its LoRA {lora.file.name}"
        if lora.file.suffix != ".safetensors" or not lora.file.is_file():
            raise ModelUnusable(manifest.name, f"its LoRA {lora.file} is no .safetensors file that is there")
        try:
            _merge(pipeline, lora)
        except _Misfit as error:
            raise ModelUnusable(manifest.name, f"{name} {error}") from error
        # A file may hold anything: whatever is raised, it does not fit.
        except (ValueError, RuntimeError, KeyError) as error:
            reason = f"{type(error).__name__}: {str(error)[:150]}".replace("\n", " ")
            raise ModelUnusable(manifest.name, f"{name} does not fit the model ({reason})") from error


class _Misfit(Exception):
    """An adapter that does not fit; the message is the rest of a sentence about it."""


@dataclass(kw_only=True, slots=True)
class _Change:
    """The change of one layer."""

    part: str
    layer: str
    """The layer's name in the file, without the part's."""
    tensors: "dict[str, Tensor]" = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)


def _merge(pipeline: Any, lora: Lora) -> None:
    import torch
    from safetensors.torch import load_file

    header = read_header(lora.file)
    changes = _group_tensors(load_file(lora.file))
    if not changes:
        contents = describe_contents(header.shapes) or "of no known kind"
        raise _Misfit(f"holds nothing for any layer of the model: the file is {contents}")
    config = json.loads(header.metadata.get(_METADATA, "{}"))
    layers = {
        part: _list_layers(getattr(pipeline, part, None), part)
        for part in {change.part for change in changes}
    }
    # All are found before one is changed.
    found = [(change, layers[change.part].get(_flatten(change))) for change in changes]
    if strangers := [change.keys[0] for change, layer in found if layer is None]:
        raise _Misfit(f"is for another model, which has {list_keys(sorted(strangers))}")
    with torch.no_grad():
        for change, layer in found:
            assert layer is not None, "strangers are refused above"
            name, module = layer
            changed = _compute_weight(
                module.weight.float(), change, lora.weight, _find_alpha(config, change.part, name)
            )
            if not torch.isfinite(changed).all():
                raise _Misfit(f"holds values that are not finite for {change.part}.{name}")
            module.weight.copy_(changed)


def _group_tensors(tensors: "Mapping[str, Tensor]") -> list[_Change]:
    """Group the tensors by layer. Raises `_Misfit` for tensors of other kinds of adapters."""
    changes: dict[tuple[str, str], _Change] = {}
    others = []
    for key, tensor in tensors.items():
        # peft wraps the model, and older versions of diffusers name the UNet's layers alone.
        bare = key.removeprefix("base_model.model.")
        prefix, part = next((pair for pair in _PREFIXES.items() if bare.startswith(pair[0])), ("", "unet"))
        match = _TENSORS.search(bare)
        if match is None:
            others.append(key)
            continue
        layer = bare[: match.start()].removeprefix(prefix)
        kind = match["lora"] or match["magnitude"] or match["other"]
        change = changes.setdefault((part, layer), _Change(part=part, layer=layer))
        change.tensors[_SPELLINGS.get(kind, kind)] = tensor.float()
        change.keys.append(key)
    if changes and others:
        raise _Misfit(f"holds {list_keys(sorted(others))}: this kind of LyCORIS adapter is not supported")
    if others and (contents := describe_contents(dict.fromkeys(others, ()))) == "a LyCORIS adapter":
        raise _Misfit(f"is {contents} of a kind that is not supported ({list_keys(sorted(others))})")
    return list(changes.values())


def _flatten(change: _Change) -> str:
    """Return the layer's name as kohya writes it, with diffusers' older names of attention turned new."""
    name = change.layer.replace(".processor", "").replace(".", "_")
    if change.part != "unet":
        name = name.removeprefix("text_model_")
        return re.sub(r"self_attn_to_(q|k|v|out)$", r"self_attn_\1_proj", name)
    return re.sub(r"to_out$", "to_out_0", name)


def _list_layers(module: Any, part: str) -> dict[str, tuple[str, Any]]:
    """Return the layers that have a weight, with their names, by the names that adapters give them."""
    layers: dict[str, tuple[str, Any]] = {}
    if module is None:
        return layers
    for name, layer in module.named_modules():
        if getattr(layer, "weight", None) is not None:
            name = name.removeprefix("text_model.")
            layers[name.replace(".", "_")] = name, layer
    if part == "unet":
        for name, layer in list(layers.values()):
            layers.setdefault(_to_original_name(name, module).replace(".", "_"), (name, layer))
    return layers


_ORIGINAL_NAMES: Final = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ORIGINAL_RESNET_NAMES: Final = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _to_original_name(name: str, unet: Any) -> str:
    """Return the name that a UNet's layer has in the original layout: adapters for SDXL use it."""
    if name in _ORIGINAL_NAMES:
        return _ORIGINAL_NAMES[name]
    rows = unet.config.layers_per_block + 1
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, number, rest = found[1], int(found[2]), found[3]
        if kind == "attentions":
            return f"middle_block.1.{rest}"
        return f"middle_block.{2 * number}.{_ORIGINAL_RESNET_NAMES.get(rest, rest)}"
    if not (found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)):
        return name
    block, kind, number, rest = int(found[2]), found[3], int(found[4]), found[5]
    side, first = ("input_blocks", 1) if found[1] == "down" else ("output_blocks", 0)
    match kind:
        case "resnets":
            return f"{side}.{rows * block + number + first}.0.{_ORIGINAL_RESNET_NAMES.get(rest, rest)}"
        case "attentions":
            return f"{side}.{rows * block + number + first}.1.{rest}"
        case "downsamplers":
            return f"{side}.{rows * (block + 1)}.0.op"
    has_attention = hasattr(unet.up_blocks[block], "attentions")
    return f"{side}.{rows * (block + 1) - 1}.{2 if has_attention else 1}.{rest}"


def _find_alpha(config: Mapping[str, Any], part: str, layer: str) -> float | None:
    """Return the layer's scale from peft's configuration in the file's metadata: alpha, for a rank of 1."""
    own = {key.removeprefix(f"{part}."): value for key, value in config.items() if key.startswith(f"{part}.")}
    if "lora_alpha" not in own:
        return None

    def pick(patterns: str, default: str) -> float:
        matching = (value for key, value in (own.get(patterns) or {}).items() if _matches(key, layer))
        return float(next(matching, own[default]))

    rank = pick("rank_pattern", "r")
    return pick("alpha_pattern", "lora_alpha") / (rank**0.5 if own.get("use_rslora") else rank)


def _matches(pattern: str, layer: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", layer) is not None


def _compute_weight(weight: "Tensor", change: _Change, strength: float, scale: float | None) -> "Tensor":
    """Return the changed weight. `scale` is alpha / rank, if the file's metadata say it."""
    tensors = change.tensors
    product, rank = _compute_product(tensors)
    if scale is None:
        scale = 1.0 if rank is None or "alpha" not in tensors else float(tensors["alpha"]) / rank
    product = (product * scale).reshape(weight.shape)
    if "magnitude" in tensors:
        return _decompose(weight + strength * product, tensors["magnitude"].flatten())
    if "dora_scale" in tensors:
        return weight + strength * (_decompose(weight + product, tensors["dora_scale"]) - weight)
    return weight + strength * product


def _compute_product(tensors: "Mapping[str, Tensor]") -> "tuple[Tensor, int | None]":
    """Return the change before it is scaled, and its rank if it has one. Raises `KeyError`."""
    import torch

    if "down" in tensors:
        up, down = tensors["up"].flatten(1), tensors["down"]
        if "mid" in tensors:
            return _apply_core(tensors["mid"], up.T, down.flatten(1)), len(down)
        return up @ down.flatten(1), len(down)
    if "hada_w1_a" in tensors:
        one, other = (
            _multiply(tensors[f"hada_w{n}_a"], tensors[f"hada_w{n}_b"], tensors.get(f"hada_t{n}"))
            for n in (1, 2)
        )
        return one * other, len(tensors["hada_w1_b"])
    factors: list[Tensor] = []
    rank = None
    for n in (1, 2):
        if f"lokr_w{n}" in tensors:
            factors.append(tensors[f"lokr_w{n}"])
        else:
            narrow = tensors[f"lokr_w{n}_b"]
            rank = len(narrow)
            factors.append(_multiply(tensors[f"lokr_w{n}_a"], narrow, tensors.get(f"lokr_t{n}")))
    small, large = factors
    return torch.kron(small.view(*small.shape, *[1] * (large.dim() - small.dim())), large.contiguous()), rank


def _multiply(left: "Tensor", right: "Tensor", core: "Tensor | None") -> "Tensor":
    """Return (out, in, …): the matrix product, or Tucker's with a core (rank, rank, …)."""
    if core is not None:
        return _apply_core(core, left, right)
    return (left @ right.flatten(1)).view(len(left), *right.shape[1:])


def _apply_core(core: "Tensor", left: "Tensor", right: "Tensor") -> "Tensor":
    import torch

    return torch.einsum("ij...,ip,jr->pr...", core, left, right)


def _decompose(weight: "Tensor", magnitude: "Tensor") -> "Tensor":
    """Return the weight with its rows of these lengths; or, as LyCORIS once did, its columns."""
    import torch

    on_rows = magnitude.dim() < 2 or len(magnitude) == len(weight)
    lengths = (weight if on_rows else weight.transpose(0, 1)).flatten(1).norm(dim=1)
    # A row of zeros has no direction: it stays as it is.
    factors = magnitude.flatten() / lengths.clamp_min(torch.finfo(weight.dtype).eps)
    shape = [1] * weight.dim()
    shape[0 if on_rows else 1] = -1
    changed: Tensor = weight * factors.view(shape)
    return changed
