"""Stable Diffusion's original layout: one file, with the names that its first authors gave the weights.

The inverse of what diffusers' `loaders.single_file_utils` does when it reads one.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from avatarforge.diffusion.models.catalogue import Manifest
from tests.checkpoints import img2img_checkpoint, write_manifest

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def single_file(folder: Path, pipeline: Any) -> Manifest:
    """The pipeline's UNet and text encoder in one file, with a small VAE of the kind that such files hold."""
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        norm_num_groups=8,
    )
    shutil.copytree(img2img_checkpoint(), folder / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    vae.save_config(folder / "config" / "vae")
    index = folder / "config" / "model_index.json"
    index.write_text(index.read_text().replace("AutoencoderTiny", "AutoencoderKL"))
    unet, text_encoder = pipeline.unet, pipeline.text_encoder
    tensors = {
        **_renamed("model.diffusion_model.", unet, lambda key: _unet_key(key, unet.config)),
        **_renamed("first_stage_model.", vae, lambda key: _vae_key(key, blocks=2)),
        **_renamed("cond_stage_model.transformer.text_model.", text_encoder, lambda key: key),
    }
    for key in tensors:
        if ".mid.attn_1." in key and "norm" not in key and key.endswith("weight"):
            tensors[key] = tensors[key][:, :, None, None]
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "w.safetensors")
    source = {"file": "w.safetensors", "config": "config", "pipeline": "StableDiffusionImg2ImgPipeline"}
    return Manifest.read(write_manifest(folder, "m", **source))


def _renamed(prefix: str, module: Any, name: Any) -> dict[str, Any]:
    return {prefix + name(key): tensor for key, tensor in module.state_dict().items()}


def _unet_key(key: str, config: Any) -> str:
    layers = config.layers_per_block + 1
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key):
        way, block, part, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        side, first = ("input", 1) if way == "down" else ("output", 0)
        place = f"{side}_blocks.{layers * block + number + first}"
        match part:
            case "resnets":
                return f"{place}.0.{_resnet(rest)}"
            case "attentions":
                return f"{place}.1.{rest}"
            case "downsamplers":
                return f"input_blocks.{layers * (block + 1)}.0.{rest.replace('conv', 'op')}"
        within = 2 if config.up_block_types[block].startswith("CrossAttn") else 1
        return f"output_blocks.{layers * (block + 1) - 1}.{within}.{rest}"
    if found := re.fullmatch(r"mid_block\.(\w+)\.(\d)\.(.+)", key):
        part, number, rest = found[1], int(found[2]), found[3]
        return (
            f"middle_block.1.{rest}" if part == "attentions" else f"middle_block.{2 * number}.{_resnet(rest)}"
        )
    for ours, theirs in {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }.items():
        key = re.sub(rf"^{re.escape(ours)}\.", f"{theirs}.", key)
    return key


def _resnet(rest: str) -> str:
    part, _, kind = rest.partition(".")
    return f"{_RESNET[part]}.{kind}"


def _vae_key(key: str, blocks: int) -> str:
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if "mid_block.attentions.0." in key:
        head, _, rest = key.partition("mid_block.attentions.0.")
        part, _, kind = rest.rpartition(".")
        return f"{head}mid.attn_1.{_VAE_ATTENTION[part]}.{kind}"
    return key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
