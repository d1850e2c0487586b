"""What is particular to a family of checkpoints: how texts, photos and latents go into and out of it.

Every piece is diffusers' own, called with several requests at once where diffusers would have one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from avatarforge.diffusion.embeddings import Embedding
from avatarforge.diffusion.engine import EngineRequest

Text = str | None
"""A prompt; `None` for a negative prompt that was not given, in families that have zeros for it."""

_SCHEDULERS: Final = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDIM",
        "DDPM",
        "DEISMultistep",
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
        "EulerAncestralDiscrete",
        "EulerDiscrete",
        "HeunDiscrete",
        "LCM",
        "PNDM",
        "TCD",
        "UniPCMultistep",
    )
)
"""Those that take steps as `schedules` expects it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What accompanies one latent through the UNet: each is (1, …)."""

    hidden: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    guidance: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What one image is steered by."""

    positive: Row
    negative: Row | None = None
    """With it the UNet is asked twice, and the difference is multiplied by `guidance`."""
    guidance: float = 1.0


class Family:
    """Stable Diffusion 1 and 2; the others differ in what they override."""

    strength_sets_range = False
    """Whether strength shortens the range of the timesteps and not their number."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self.device: torch.device = pipeline.device
        self.dtype: torch.dtype = pipeline.unet.dtype
        # Convolutions are faster so: in half precision on tensor cores, and in one thread of a CPU.
        self._unet: Any = pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
        self._vae_dtype = self.dtype
        if self.dtype is torch.float16 and pipeline.vae.config.force_upcast:
            # It overflows in float16. diffusers switches it to and fro for each picture.
            self._vae_dtype = torch.float32
            pipeline.vae.to(torch.float32)

    # --- texts --------------------------------------------------------------------------------------

    def texts(self, request: EngineRequest) -> list[Text]:
        """The positive, and with guidance the negative one."""
        if not self._guided(request):
            return [request.prompt]
        return [request.prompt, self._negative(request)]

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """All in one pass."""
        hidden = self._pipeline.encode_prompt(
            prompt=list(texts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0]
        return [Embedding(hidden=one) for one in hidden.split(1)]

    def conditions(
        self, request: EngineRequest, embeddings: Mapping[Text, Embedding], size: tuple[int, int]
    ) -> Conditions:
        """From the embeddings of `texts`; `size` is height and width of the picture."""
        positive, *negative = self.texts(request)
        return Conditions(
            positive=self._row(embeddings[positive], request, size),
            negative=self._row(embeddings[negative[0]], request, size, negative=True) if negative else None,
            guidance=request.guidance,
        )

    def _guided(self, request: EngineRequest) -> bool:
        return request.guidance > 1 and self._guidance_width is None

    def _negative(self, request: EngineRequest) -> Text:
        return request.negative_prompt

    @property
    def _guidance_width(self) -> int | None:
        """Width of the guidance's embedding, in models that were distilled to take one."""
        width: int | None = self._pipeline.unet.config.time_cond_proj_dim
        return width

    def _row(
        self, embedding: Embedding, request: EngineRequest, size: tuple[int, int], *, negative: bool = False
    ) -> Row:
        return Row(hidden=embedding.hidden, guidance=self._guidance_embedding(request))

    def _guidance_embedding(self, request: EngineRequest) -> Tensor | None:
        if self._guidance_width is None:
            return None
        scale = torch.tensor([float(request.guidance) - 1])
        embedding = self._pipeline.get_guidance_scale_embedding(scale, embedding_dim=self._guidance_width)
        assert isinstance(embedding, Tensor)
        return embedding.to(self.device, self.dtype)

    # --- pictures -----------------------------------------------------------------------------------

    def pixels(self, image: Image.Image) -> Tensor:
        """(1, 3, H, W) in -1 to 1, on the CPU."""
        pixels = self._pipeline.image_processor.preprocess(image)
        assert isinstance(pixels, Tensor)
        return pixels

    def encode(self, pixels: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """(B, C, h, w): the latents, drawn from their distribution where the VAE gives one."""
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        encoded = self._pipeline.vae.encode(pixels.to(self.device, self._vae_dtype))
        if hasattr(encoded, "latents"):
            latents = encoded.latents
        else:
            parameters = encoded.latent_dist.parameters.split(1)
            latents = torch.cat(
                [
                    DiagonalGaussianDistribution(one).sample(generator)
                    for one, generator in zip(parameters, generators, strict=True)
                ]
            )
        return self._scaled(latents.to(self.dtype))

    def decode(self, latents: Tensor) -> tuple[Tensor, list[bool]]:
        """(B, 3, H, W) in -1 to 1; and whether the safety checker withholds it."""
        pixels = self._pipeline.vae.decode(self._unscaled(latents.to(self._vae_dtype))).sample
        return self._checked(pixels)

    def _scaled(self, latents: Tensor) -> Tensor:
        scaled: Tensor = self._pipeline.vae.config.scaling_factor * latents
        return scaled

    def _unscaled(self, latents: Tensor) -> Tensor:
        unscaled: Tensor = latents / self._pipeline.vae.config.scaling_factor
        return unscaled

    def _checked(self, pixels: Tensor) -> tuple[Tensor, list[bool]]:
        pixels, withheld = self._pipeline.run_safety_checker(pixels, self.device, self.dtype)
        return pixels, [False] * len(pixels) if withheld is None else [bool(found) for found in withheld]

    # --- denoising ----------------------------------------------------------------------------------

    def compile(self, mode: str) -> None:
        """Let torch compile the UNet, for each number of rows by itself."""
        self._unet = torch.compile(self._pipeline.unet, mode=mode, dynamic=False)

    def predict(self, samples: Tensor, timesteps: Tensor, rows: Sequence[Row]) -> Tensor:
        """What the UNet says of samples (R, C, h, w) at timesteps (R,), each with its row."""
        output: Tensor = self._unet(
            samples,
            timesteps,
            encoder_hidden_states=torch.cat([row.hidden for row in rows]),
            timestep_cond=_joined([row.guidance for row in rows]),
            added_cond_kwargs=self._added(rows),
            return_dict=False,
        )[0]
        return output

    def _added(self, rows: Sequence[Row]) -> dict[str, Tensor] | None:
        return None


class XLFamily(Family):
    """Stable Diffusion XL: two text encoders, the whole text as one vector, and the picture's measures."""

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        hidden, _, pooled, _ = self._pipeline.encode_prompt(
            prompt=list(texts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return [
            Embedding(hidden=one, pooled=whole)
            for one, whole in zip(hidden.split(1), pooled.split(1), strict=True)
        ]

    def conditions(
        self, request: EngineRequest, embeddings: Mapping[Text, Embedding], size: tuple[int, int]
    ) -> Conditions:
        positive = embeddings[request.prompt]
        assert positive.pooled is not None
        zeros = Embedding(hidden=torch.zeros_like(positive.hidden), pooled=torch.zeros_like(positive.pooled))
        return super().conditions(request, {None: zeros, **embeddings}, size)

    def _negative(self, request: EngineRequest) -> Text:
        if not request.negative_prompt and self._pipeline.config.force_zeros_for_empty_prompt:
            return None
        return request.negative_prompt

    def _row(
        self, embedding: Embedding, request: EngineRequest, size: tuple[int, int], *, negative: bool = False
    ) -> Row:
        return Row(
            hidden=embedding.hidden,
            pooled=embedding.pooled,
            time_ids=self._time_ids(embedding, size)[negative],
            guidance=self._guidance_embedding(request),
        )

    def _time_ids(self, embedding: Embedding, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """For the positive and the negative row. The scores are diffusers' own defaults."""
        encoder = self._pipeline.text_encoder_2
        assert embedding.pooled is not None
        positive, negative = self._pipeline._get_add_time_ids(
            size,
            (0, 0),
            size,
            6.0,
            2.5,
            size,
            (0, 0),
            size,
            dtype=embedding.hidden.dtype,
            text_encoder_projection_dim=(
                embedding.pooled.shape[-1] if encoder is None else encoder.config.projection_dim
            ),
        )
        return positive.to(self.device), negative.to(self.device)

    def _scaled(self, latents: Tensor) -> Tensor:
        if (measures := self._measures(latents)) is None:
            return super()._scaled(latents)
        mean, deviation = measures
        scaled: Tensor = (latents - mean) * self._pipeline.vae.config.scaling_factor / deviation
        return scaled

    def _unscaled(self, latents: Tensor) -> Tensor:
        if (measures := self._measures(latents)) is None:
            return super()._unscaled(latents)
        mean, deviation = measures
        unscaled: Tensor = latents * deviation / self._pipeline.vae.config.scaling_factor + mean
        return unscaled

    def _measures(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation by channel, where the VAE names both."""
        config: Any = self._pipeline.vae.config
        given = [getattr(config, f"latents_{name}", None) for name in ("mean", "std")]
        if None in given:
            return None
        mean, deviation = (torch.tensor(one).view(1, -1, 1, 1).to(latents) for one in given)
        return mean, deviation

    def _checked(self, pixels: Tensor) -> tuple[Tensor, list[bool]]:
        if self._pipeline.watermark is not None:
            pixels = self._pipeline.watermark.apply_watermark(pixels)
        return pixels, [False] * len(pixels)

    def _added(self, rows: Sequence[Row]) -> dict[str, Tensor] | None:
        pooled, time_ids = _joined([row.pooled for row in rows]), _joined([row.time_ids for row in rows])
        assert pooled is not None
        assert time_ids is not None
        return {"text_embeds": pooled, "time_ids": time_ids}


class ConsistencyFamily(Family):
    """Latent consistency models in their own pipeline: no negative prompt, and every step is run."""

    strength_sets_range = True

    def _guided(self, request: EngineRequest) -> bool:
        return False


_FAMILIES: Final[Mapping[str, type[Family]]] = {
    "StableDiffusionImg2ImgPipeline": Family,
    "StableDiffusionXLImg2ImgPipeline": XLFamily,
    "LatentConsistencyModelImg2ImgPipeline": ConsistencyFamily,
}


def family_of(pipeline: Any) -> type[Family] | None:
    """The family whose steps are known from inside; `None` for a pipeline that must run itself."""
    parts = getattr(pipeline, "components", {})
    unet: Any = parts.get("unet")
    vae = parts.get("vae")
    known = (
        type(unet).__name__ == "UNet2DConditionModel"
        and unet.config.in_channels == unet.config.out_channels
        and unet.config.encoder_hid_dim_type is None
        and type(vae).__name__ in {"AutoencoderKL", "AutoencoderTiny"}
        and type(parts.get("scheduler")).__name__ in _SCHEDULERS
        # Parts that are moved to the device when they are needed do not bear several threads.
        and not getattr(pipeline, "_all_hooks", None)
    )
    return _FAMILIES.get(_owner_of_call(pipeline)) if known else None


def _owner_of_call(pipeline: Any) -> str:
    """The class of diffusers whose `__call__` this pipeline has; nothing for a custom one."""
    owner = next(kind for kind in type(pipeline).__mro__ if "__call__" in vars(kind))
    return owner.__name__ if owner.__module__.startswith("diffusers.") else ""


def _joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """All in one; `None` where the family has none."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None
