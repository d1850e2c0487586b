"""Reads the headers of `.safetensors` files, and recognises what the files hold. Imports no torch."""

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_MAX_HEADER_BYTES: Final = 100_000_000
"""As in safetensors itself."""

_WRAPPERS: Final = ("_orig_mod.", "module.")
"""The prefixes of a compiled model's keys, and of one that was trained on several GPUs."""


class UnreadableWeights(ValueError):
    """A weight file that cannot be read. The message is a part of a sentence, such as "is truncated"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The header of a `.safetensors` file (https://github.com/huggingface/safetensors#format)."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(file: Path) -> Header:
    """Read the header. Raises `UnreadableWeights` for a file that is not whole, or something else."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        if foreign := _recognise_foreign(start):
            raise UnreadableWeights(f"holds {foreign} in place of weights")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise UnreadableWeights(f"is truncated, or no safetensors: {size:,} bytes do not hold its header")
        try:
            entries = json.loads(opened.read(length))
            metadata = entries.pop("__metadata__", {})
            shapes = {key: tuple(entry["shape"]) for key, entry in entries.items()}
            end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnreadableWeights("is no safetensors: its header cannot be read") from error
    if end > size:
        raise UnreadableWeights(f"is truncated: {size:,} of {end:,} bytes are there")
    return Header(shapes=shapes, metadata=metadata)


def _recognise_foreign(start: bytes) -> str | None:
    if start.lstrip()[:1] == b"<":
        return "HTML"
    if start == b"version ":
        return "a pointer of Git LFS"
    if start[:2] in (b"PK", b"\x80\x02"):
        return "pickled data"
    return None


def find_wrapper(keys: Iterable[str]) -> str | None:
    """Return the prefix that all keys begin with, if it is one that training tools wrap a model in."""
    keys = list(keys)
    return next((one for one in _WRAPPERS if keys and all(key.startswith(one) for key in keys)), None)


def unwrap_key(key: str) -> str:
    """Strip such a prefix, wherever it stands: `model._orig_mod.…` is found in single files."""
    for wrapper in _WRAPPERS:
        key = re.sub(rf"(^|\.){re.escape(wrapper)}", r"\1", key)
    return key


_UNET: Final = "model.diffusion_model."
_INPUT_KEYS: Final = (f"{_UNET}input_blocks.0.0.weight", "input_blocks.0.0.weight", "conv_in.weight")
_INPUT_KINDS: Final = {5: "a depth-to-image UNet", 7: "an upscaler's UNet", 8: "an editing UNet"}

_KINDS: Final = (
    # The first that matches counts.
    (r"\.hada_w1_a$|\.lokr_w[12](_a)?$|\.oft_\w+$|\.b1\.weight$|\.on_input$", "a LyCORIS adapter"),
    (r"[._]lora[._](down|A|up|B)|\.lora_linear_layer\.", "a LoRA"),
    (r"^emb_params$|^string_to_param|^<.*>$|^clip_[lg]$", "a textual inversion embedding"),
    (r"^control_model\.|^controlnet_|^input_hint_block\.", "a ControlNet"),
    (r"(^|\.)double_blocks\.0\.img_attn", "a Flux file"),
    (r"(^|\.)joint_blocks\.0\.", "a Stable Diffusion 3 file"),
    (r"\.(absmax|quant_map|scale_weight)$|\.weight\.quant_state", "a file of quantized weights"),
    (r"^conditioner\.embedders\.1\.", "an SDXL file"),
    (r"^conditioner\.embedders\.0\.model\.", "an SDXL refiner's file"),
    (r"^cond_stage_model\.model\.", "a Stable Diffusion 2 file"),
    (r"^cond_stage_model\.", "a Stable Diffusion 1 file"),
    (rf"^{re.escape(_UNET)}label_emb\.|^add_embedding\.", "an SDXL UNet"),
    (rf"^{re.escape(_UNET)}|^input_blocks\.0\.0\.|^down_blocks\.0\.", "a UNet"),
    (r"^first_stage_model\.|^decoder\.", "a VAE"),
    (r"^(text_model\.)?(embeddings\.token_embedding|encoder\.layers)\.", "a text encoder"),
)


def describe_contents(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Say what a file with tensors of these names and shapes is, such as "an inpainting UNet"."""
    for key in _INPUT_KEYS:
        if len(shape := shapes.get(key, ())) == 4 and shape[1] == 9:
            is_xl = any("label_emb." in name or name.startswith("add_embedding.") for name in shapes)
            return f"an inpainting {'SDXL ' if is_xl else ''}UNet"
        if len(shape) == 4 and shape[1] in _INPUT_KINDS:
            return _INPUT_KINDS[shape[1]]
    return next((kind for pattern, kind in _KINDS if any(re.search(pattern, key) for key in shapes)), None)
