"""Tiny pipelines of every family, with random weights: what matters is only that they are made alike."""

from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from avatarforge.diffusion.models import pipelines
from tests.checkpoints import CARRIED

SIDE = 32
"""Of the pictures that they make, in pixels."""

FAMILIES = ("sd-epsilon", "sd-v", "sd-tiny-vae", "xl", "xl-refiner", "lcm", "sd-distilled")
EDITING_FAMILIES = ("edit", "edit-tiny-vae", "edit-mini", "edit-xl", "edit-xl-words", "edit-cosxl")

SCHEDULERS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++-2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {"clip_sample": False}),
    # No wish of a manifest, but what checkpoints come with, or a step of its own kind.
    "dpm-sde": (
        "DPMSolverMultistepScheduler",
        {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
    ),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "heun": ("HeunDiscreteScheduler", {}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "ddim-thresholding": ("DDIMScheduler", {"clip_sample": False, "thresholding": True}),
    "tcd": ("TCDScheduler", {}),
}


def scheduled(pipeline: Any, name: str) -> Any:
    """The pipeline with a scheduler of this name."""
    import diffusers

    kind, wanted = SCHEDULERS[name]
    made = getattr(diffusers, kind).from_config(pipeline.scheduler.config, **wanted)
    fresh = type(pipeline)(**pipeline.components | {"scheduler": made}, **_options(pipeline))
    fresh.set_progress_bar_config(disable=True)
    return fresh


@cache
def tiny(family: str) -> Any:
    """The family's pipeline on the CPU, in float32."""
    pipelines.import_libraries(threads=1)
    import diffusers
    import torch
    from transformers import AutoTokenizer

    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(CARRIED / "tokenizer")
    predictions = {"sd-v": "v_prediction", "img2img": "v_prediction", "edit-tiny-vae": "v_prediction"}
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        # As the carried checkpoint has it.
        prediction_type=(predictions | {"edit-mini": "sample"}).get(family, "epsilon"),
        rescale_betas_zero_snr=family == "edit-mini",
        timestep_spacing="trailing" if family == "edit-mini" else "leading",
    )
    parts: dict[str, Any] = {"scheduler": scheduler, "tokenizer": tokenizer, "vae": _vae(family)}
    if "xl" in family:
        pipeline = _xl(parts, family)
    else:
        parts |= {"text_encoder": _text_encoder(tokenizer), "safety_checker": None, "feature_extractor": None}
        distilled = family in {"lcm", "sd-distilled"}
        channels = parts["vae"].config.latent_channels
        parts["unet"] = _unet(
            cross_attention_dim=32,
            time_cond_proj_dim=16 if distilled else None,
            in_channels=2 * channels if family in EDITING_FAMILIES else channels,
            out_channels=channels,
        )
        if family in EDITING_FAMILIES:
            kind = diffusers.StableDiffusionInstructPix2PixPipeline
        elif family == "lcm":
            parts["scheduler"] = diffusers.LCMScheduler.from_config(scheduler.config, clip_sample=False)
            kind = diffusers.LatentConsistencyModelImg2ImgPipeline
        else:
            kind = diffusers.StableDiffusionImg2ImgPipeline
        pipeline = kind(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def photo(number: int) -> Image.Image:
    """A picture of soft colours, another one for each number."""
    colours = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _options(pipeline: Any) -> dict[str, Any]:
    if "XLInstruct" in type(pipeline).__name__:
        return {"is_cosxl_edit": pipeline.is_cosxl_edit, "add_watermarker": False}
    if "XL" in type(pipeline).__name__:
        return {"requires_aesthetics_score": pipeline.config.requires_aesthetics_score}
    return {"requires_safety_checker": False}


def _vae(family: str) -> Any:
    import diffusers

    if family == "edit-mini":
        return diffusers.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=16,
            block_out_channels=(32, 32, 64),
            layers_per_block=-1,
            spatial_compression_ratio=4,
            sample_size=SIDE,
            scaling_factor=1.0,
        ).eval()
    if family in {"sd-tiny-vae", "img2img", "edit-tiny-vae"}:
        return diffusers.AutoencoderTiny(
            latent_channels=16 if family == "edit-tiny-vae" else 4,
            encoder_block_out_channels=(16, 16, 16),
            decoder_block_out_channels=(16, 16, 16),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
            scaling_factor=1.1,
        ).eval()
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 16),
        norm_num_groups=8,
        latent_channels=4,
        sample_size=SIDE,
        scaling_factor=0.18215,
    ).eval()


def _text_encoder(tokenizer: Any, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Wide, so that the words of a prompt make a difference.
        initializer_range=0.5,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _unet(**changes: Any) -> Any:
    import diffusers

    values: dict[str, Any] = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return diffusers.UNet2DConditionModel(**values | changes).eval()


def _xl(parts: dict[str, Any], family: str) -> Any:
    import diffusers

    refiner, editing = family == "xl-refiner", family in EDITING_FAMILIES
    encoders = {
        "text_encoder": None if refiner else _text_encoder(parts["tokenizer"]),
        "tokenizer": None if refiner else parts["tokenizer"],
        "text_encoder_2": _text_encoder(parts["tokenizer"], projected=True),
        "tokenizer_2": parts["tokenizer"],
    }
    unet = _unet(
        cross_attention_dim=32 if refiner else 64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * (5 if refiner else 6) + 32,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        in_channels=8 if editing else 4,
    )
    if editing:
        return diffusers.StableDiffusionXLInstructPix2PixPipeline(
            **parts | encoders,
            unet=unet,
            force_zeros_for_empty_prompt=family != "edit-xl-words",
            add_watermarker=False,
            is_cosxl_edit=family == "edit-cosxl",
        )
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        **parts | encoders,
        unet=unet,
        requires_aesthetics_score=refiner,
        force_zeros_for_empty_prompt=not refiner,
        add_watermarker=False,
    )
