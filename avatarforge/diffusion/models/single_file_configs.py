"""Writes the configuration that a single file of Stable Diffusion 1, 2 or XL comes without.

The sizes are those of the checkpoints' authors, in diffusers' words. The vocabulary is CLIP's, which all use.
"""

import gzip
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from avatarforge.diffusion.models.weight_files import (
    UnreadableWeights,
    describe_contents,
    read_header,
    unwrap_key,
)
from avatarforge.domain.errors import ModelUnusable

PredictionType = Literal["epsilon", "v_prediction"]

_VOCABULARY: Final = Path(__file__).parent / "clip_vocabulary.txt.gz"
_VOCABULARY_SHA256: Final = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
_MERGES: Final = 49152 - 256 - 2
"""So many lines count. With 256 bytes, the same as ends of words, and two marks they are the tokens."""
_START, _END = "<|startoftext|>", "<|endoftext|>"

_VAE: Final = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
_CLIP_L: Final = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
_OPEN_CLIP_H: Final = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    # Of 24: the last one is not used.
    "num_hidden_layers": 23,
    "projection_dim": 1024,
    "hidden_act": "gelu",
}
_OPEN_CLIP_BIG_G: Final = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_XL_UNET: Final = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
_V2_UNET: Final = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    # Its attention overflows in float16.
    "upcast_attention": True,
}
CONFIGS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "a Stable Diffusion 1 file": {
        "unet": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
        "vae": _VAE,
        "text_encoder": _CLIP_L,
    },
    "a Stable Diffusion 2 file": {"unet": _V2_UNET, "vae": _VAE, "text_encoder": _OPEN_CLIP_H},
    "an SDXL file": {
        "unet": _XL_UNET,
        "vae": _VAE | {"scaling_factor": 0.13025},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _OPEN_CLIP_BIG_G,
    },
}
"""By what `describe_contents` calls the file: the parts' configurations, as far as they differ from the
classes' defaults."""
_TEXT: Final = {"vocab_size": _MERGES + 512 + 2, "max_position_embeddings": 77}
_CLASSES: Final = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
}
_NOISE: Final = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def write_config(model: str, file: Path, folder: Path, prediction_type: PredictionType | None = None) -> None:
    """Write the index, the parts' configurations and the tokenizers that the file needs into the folder.

    Raises `ModelUnusable` for a file of another kind, and for one of Stable Diffusion 2 that does not say how
    it was trained: those of 768 pixels by `v_prediction`, those of 512 by `epsilon`.
    """
    kind = _recognise(model, file)
    if prediction_type is None and kind == "a Stable Diffusion 2 file":
        raise ModelUnusable(
            model,
            f"its file {file.name} is {kind}, which does not say how it was trained: its source must say "
            "`prediction_type: v_prediction` (most of 768 pixels) or `prediction_type: epsilon` (512)",
        )
    is_xl = kind == "an SDXL file"
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
    }
    if not is_xl:
        index |= {"safety_checker": (None, None), "requires_safety_checker": False}
    for name, values in CONFIGS[kind].items():
        index[name] = library, own_class = _CLASSES[name]
        if library == "transformers":
            tokenizer = name.replace("text_encoder", "tokenizer")
            index[tokenizer] = _CLASSES[tokenizer]
            # OpenAI's own model, whose activation is the quick one, was trained with ends as padding.
            _write_tokenizer(folder / tokenizer, _END if values["hidden_act"] == "quick_gelu" else "!")
            values = {"architectures": [own_class], "model_type": "clip_text_model", **_TEXT, **values}
        _write_json(folder / name / "config.json", {"_class_name": own_class, **values})
    scheduler = "EulerDiscreteScheduler" if is_xl else "DDIMScheduler"
    index |= {"scheduler": ("diffusers", scheduler), "feature_extractor": (None, None)}
    noise = {**_NOISE, "prediction_type": prediction_type or "epsilon"}
    noise |= {} if is_xl else {"clip_sample": False, "set_alpha_to_one": False}
    _write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": scheduler, **noise})
    _write_json(folder / "model_index.json", index)


def _recognise(model: str, file: Path) -> str:
    try:
        shapes = {unwrap_key(key): shape for key, shape in read_header(file).shapes.items()}
    except UnreadableWeights as error:
        raise ModelUnusable(model, f"its file {file.name} {error}") from error
    if (kind := describe_contents(shapes)) not in CONFIGS:
        known = "Stable Diffusion 1, 2 and XL"
        reason = (
            f"its file {file.name} is {kind or 'of no known kind'}: without a `config` only {known} are read"
        )
        raise ModelUnusable(model, reason)
    assert kind is not None
    return kind


def _write_tokenizer(folder: Path, pad: str) -> None:
    content = _VOCABULARY.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != _VOCABULARY_SHA256:
        raise OSError(f"{_VOCABULARY} was changed: its SHA-256 is {found}")
    merges = gzip.decompress(content).decode().split("\n")[1 : _MERGES + 1]
    letters = _list_byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair.split()) for pair in merges)]
    _write_json(
        folder / "vocab.json", {token: number for number, token in enumerate([*tokens, _START, _END])}
    )
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    marks = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": pad}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **marks}
    _write_json(folder / "tokenizer_config.json", config)


def _list_byte_letters() -> list[str]:
    """Return the letters that stand for the 256 bytes in GPT-2's vocabularies, in their order there."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = 256 - len(printable)
    return [chr(number) for number in (*printable, *range(256, 256 + others))]


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
