"""Adapters for diffusers' pipelines: how texts, photos and latents go into and out of each architecture.

Every piece is diffusers' own, called with several requests at once where diffusers would have one.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal

import torch
from PIL import Image
from torch import Tensor

from avatarforge.diffusion.engines.engine import EngineRequest
from avatarforge.diffusion.engines.prompts import Piece, PromptWeights, split_prompt
from avatarforge.diffusion.engines.samplers import StrengthUse

_MAX_CACHED_BYTES: Final = 128 * 1024 * 1024
"""Of the device's memory. A short text takes some 300 KB: these are the texts of a few hundred customers."""
_RECOMPILE_LIMIT: Final = 64
"""Shapes for which torch compiles the same code; 8 by default, which two models exceed."""
_PIECES_PER_PASS: Final = 16
"""Of texts through their encoders: more hardly gain, and take memory that the images need."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedding:
    """One text, encoded for the UNet."""

    hidden: Tensor
    """(1, tokens, width)."""
    pooled: Tensor | None = None
    """(1, width), in architectures that need the whole text as one vector too."""

    @property
    def nbytes(self) -> int:
        return self.hidden.nbytes + (0 if self.pooled is None else self.pooled.nbytes)


class EmbeddingCache:
    """An LRU cache of embeddings. Not thread-safe."""

    def __init__(self, max_bytes: int = _MAX_CACHED_BYTES) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._embeddings: OrderedDict[Hashable, Embedding] = OrderedDict()

    def __len__(self) -> int:
        return len(self._embeddings)

    def get(self, text: Hashable) -> Embedding | None:
        if (found := self._embeddings.get(text)) is not None:
            self._embeddings.move_to_end(text)
        return found

    def put(self, text: Hashable, embedding: Embedding) -> None:
        """Store the embedding of a text that is not there; the least recently used ones make room for it."""
        self._embeddings[text] = embedding
        self._bytes += embedding.nbytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._embeddings.popitem(last=False)[1].nbytes


Part = Literal["unet", "vae"]
"""A part of a pipeline, by its attribute."""

Compilation = Literal["none", "compile", "regional", "cudagraphs"]
"""What torch compiles: nothing; the UNet; its repeated blocks alone; the UNet, into CUDA's graphs."""

Text = str | None
"""A prompt; `None` for a negative prompt that was not given, in architectures that use zeros for it."""

_SCHEDULERS: Final = frozenset(
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDPM", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep"),
        *("EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "LCM", "PNDM", "TCD", "UniPCMultistep"),
    )
)
"""The schedulers that `samplers` supports."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetInputs:
    """The inputs of one pass through the UNet beside the noisy latents: each is (1, …)."""

    hidden: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    guidance: Tensor | None = None
    photo: Tensor | None = None
    """(1, C, h, w): latents that are concatenated with the noisy ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """The passes through the UNet that one image needs at every step: one, or with guidance several."""

    rows: Sequence[UNetInputs]
    weights: Sequence[float] = (1.0,)
    """By row: the prediction is the weighted sum of the UNet's outputs."""


class Architecture:
    """Stable Diffusion 1 and 2; the subclasses override what differs."""

    strength_use: StrengthUse = "skips_steps"
    _obeys_force_upcast = False
    """The autoencoder's setting `force_upcast` counts; else it is only its class' default."""
    photo_is_concatenated = False
    """The UNet takes the photo's latents beside the noisy ones, in channels of their own."""

    def __init__(
        self, pipeline: Any, prompt_weights: PromptWeights = "none", guidance_rescale: float = 0.0
    ) -> None:
        self._pipeline = pipeline
        self.guidance_rescale = guidance_rescale
        """How far guided predictions are brought back to the contrast of the positive ones: 0 to 1."""
        self._prompt_weights = prompt_weights
        self.device: torch.device = pipeline.device
        self.dtype: torch.dtype = pipeline.unet.dtype
        self._unet: Any = pipeline.unet
        self.memory_formats: dict[Part, torch.memory_format] = {}
        self.set_memory_format("unet", torch.channels_last)
        # Faster in half precision on tensor cores. On a CPU one decoding took a third longer so.
        on_cpu = self.device.type == "cpu"
        self.set_memory_format("vae", torch.contiguous_format if on_cpu else torch.channels_last)
        self._vae_dtype = self.dtype
        if (
            self._obeys_force_upcast
            and self.dtype is torch.float16
            and getattr(pipeline.vae.config, "force_upcast", False)
        ):
            # It overflows in float16. diffusers switches it to and fro for each image.
            self._vae_dtype = torch.float32
            pipeline.vae.to(torch.float32)

    def set_memory_format(self, part: Part, memory_format: torch.memory_format) -> None:
        """Lay the weights of this part out anew."""
        getattr(self._pipeline, part).to(memory_format=memory_format)
        self.memory_formats[part] = memory_format

    # --- texts --------------------------------------------------------------------------------------

    def list_texts(self, request: EngineRequest) -> list[Text]:
        """Return the prompt and, with guidance, the negative prompt."""
        if not self._is_guided(request):
            return [request.prompt]
        return [request.prompt, self._negative_text(request)]

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """Embed the texts together: a long one in pieces, whose tokens are joined.

        Raises `UnusablePrompt` for one that is too long, or whose weights cannot be used.
        """
        tokenizer = self._pipeline.tokenizer or self._pipeline.tokenizer_2
        pieces = [split_prompt(text, tokenizer, self._prompt_weights) for text in texts]
        together = [piece for one in pieces for piece in one]
        embedded: list[Embedding] = []
        for start in range(0, len(together), _PIECES_PER_PASS):
            some = together[start : start + _PIECES_PER_PASS]
            plain = self._embed_pieces([piece.text for piece in some])
            embedded += [self._weigh(one, piece) for one, piece in zip(plain, some, strict=True)]
        in_order = iter(embedded)
        return [_join([next(in_order) for _ in one]) for one in pieces]

    def _weigh(self, embedding: Embedding, piece: Piece) -> Embedding:
        """Let the tokens count as much as their weights say.

        The text as a whole, where it is one vector, has no weights.
        """
        if piece.weights is None:
            return embedding
        weights = embedding.hidden.new_ones((embedding.hidden.shape[1], 1), dtype=torch.float32)
        weights[1 : len(piece.weights) + 1, 0] = torch.tensor(piece.weights)
        weigh = self._scale_by_part if self._prompt_weights == "automatic1111" else self._move_from_empty
        hidden = weigh(embedding.hidden.float(), weights, piece)
        return replace(embedding, hidden=hidden.to(embedding.hidden.dtype))

    def _scale_by_part(self, hidden: Tensor, weights: Tensor, piece: Piece) -> Tensor:
        """Scale the tokens, and all so that each text encoder's mean stays, as AUTOMATIC1111 does."""
        parts = torch.split(hidden, [encoder.config.hidden_size for encoder in self._text_encoders], dim=-1)
        scaled = [part * weights for part in parts]
        means = [part.mean() / one.mean() for part, one in zip(parts, scaled, strict=True)]
        return torch.cat([one * mean for one, mean in zip(scaled, means, strict=True)], dim=-1)

    def _move_from_empty(self, hidden: Tensor, weights: Tensor, piece: Piece) -> Tensor:
        """Move the tokens away from, or towards, those of an empty text, as compel does.

        A fragment with a weight below 1 is besides hidden from the others: half of it for a weight of 0.5.
        """
        empty = self._empty_text
        total, shares = empty + (hidden - empty) * weights, 1.0
        here = [tokens for _, tokens in piece.weak if tokens]
        hiding = hidden.new_ones((len(here), hidden.shape[1]))
        for row, tokens in zip(hiding, here, strict=True):
            row[[token + 1 for token in tokens]] = 0
        hidden_without = iter(self._embed_masked(piece.text, hiding) if here else ())
        for weight, tokens in piece.weak:
            # Without what is in other pieces, this one is as it was.
            without = next(hidden_without) if tokens else hidden
            share = math.tan((1 - max(weight, 1e-5)) * math.pi / 2)
            total, shares = total + share * (empty + (without - empty) * weights), shares + share
        return total / shares

    @cached_property
    def _empty_text(self) -> Tensor:
        return self._embed_pieces([""])[0].hidden.float()

    @property
    def _text_encoders(self) -> list[Any]:
        parts = (getattr(self._pipeline, name, None) for name in ("text_encoder", "text_encoder_2"))
        return [part for part in parts if part is not None]

    def _embed_masked(self, text: str, masks: Tensor) -> list[Tensor]:
        """Embed the text once for each mask (tokens,), with tokens hidden from the others where it is 0."""

        def mask(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, kwargs | {"attention_mask": masks.long()}

        hooks = [each.register_forward_pre_hook(mask, with_kwargs=True) for each in self._text_encoders]
        try:
            return [one.hidden.float() for one in self._embed_pieces([text] * len(masks))]
        finally:
            for hook in hooks:
                hook.remove()

    def _embed_pieces(self, texts: Sequence[str]) -> list[Embedding]:
        hidden = self._pipeline.encode_prompt(
            prompt=list(texts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0]
        return [Embedding(hidden=one) for one in hidden.split(1)]

    def build_conditions(
        self,
        request: EngineRequest,
        embeddings: Mapping[Text, Embedding],
        photo: Tensor,
        size: tuple[int, int],
    ) -> Conditions:
        """Build them from the embeddings of `list_texts` and the photo's latents (C, h, w).

        `size` is the image's (H, W).
        """
        positive, *negatives = self.list_texts(request)
        return self._apply_guidance(
            request,
            photo[None],
            self._build_row(embeddings[positive], request, size),
            *(self._build_row(embeddings[text], request, size, negative=True) for text in negatives),
        )

    def _apply_guidance(
        self, request: EngineRequest, photo: Tensor, positive: UNetInputs, *negatives: UNetInputs
    ) -> Conditions:
        """Apply classifier-free guidance (https://arxiv.org/abs/2207.12598) if there is a negative row."""
        if not negatives:
            return Conditions(rows=[positive])
        return Conditions(rows=[positive, *negatives], weights=[request.guidance, 1 - request.guidance])

    def _is_guided(self, request: EngineRequest) -> bool:
        return request.guidance > 1 and self._guidance_width is None

    def _negative_text(self, request: EngineRequest) -> Text:
        return request.negative_prompt

    @property
    def _guidance_width(self) -> int | None:
        """Width of the guidance's embedding, in models that were distilled to take one."""
        width: int | None = self._pipeline.unet.config.time_cond_proj_dim
        return width

    def _build_row(
        self, embedding: Embedding, request: EngineRequest, size: tuple[int, int], *, negative: bool = False
    ) -> UNetInputs:
        return UNetInputs(hidden=embedding.hidden, guidance=self._embed_guidance(request))

    def _embed_guidance(self, request: EngineRequest) -> Tensor | None:
        if self._guidance_width is None:
            return None
        scale = torch.tensor([float(request.guidance) - 1])
        embedding = self._pipeline.get_guidance_scale_embedding(scale, embedding_dim=self._guidance_width)
        assert isinstance(embedding, Tensor)
        return embedding.to(self.device, self.dtype)

    # --- images -------------------------------------------------------------------------------------

    def to_pixels(self, image: Image.Image) -> Tensor:
        """Return (1, 3, H, W) in -1 to 1, on the CPU."""
        pixels = self._pipeline.image_processor.preprocess(image)
        assert isinstance(pixels, Tensor)
        return pixels

    def encode(self, photos: Tensor, draws: Sequence[tuple[int, torch.Generator]]) -> Tensor:
        """Return latents (len(draws), C, h, w), each of the photo at a place in `photos` (B, 3, H, W), drawn
        from its distribution if the VAE has one."""
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        encoded = self._pipeline.vae.encode(photos.to(self.device, self._vae_dtype))
        if hasattr(encoded, "latents"):
            latents = encoded.latents[[place for place, _ in draws]]
        else:
            parameters = encoded.latent_dist.parameters.split(1)
            latents = torch.cat(
                [DiagonalGaussianDistribution(parameters[place]).sample(chance) for place, chance in draws]
            )
        return self._scale_latents(latents.to(self.dtype))

    def encode_mode(self, pixels: Tensor) -> Tensor:
        """Return the likeliest latents (B, C, h, w) of images, as they are after the last step."""
        return self._scale_latents(self._encode_mode(pixels))

    def _encode_mode(self, pixels: Tensor) -> Tensor:
        encoded = self._pipeline.vae.encode(pixels.to(self.device, self._vae_dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        assert isinstance(latents, Tensor)
        return latents.to(self.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Return (B, 3, H, W) in -1 to 1."""
        pixels: Tensor = self._pipeline.vae.decode(self._unscale_latents(latents.to(self._vae_dtype))).sample
        return pixels

    def screen(self, pixels: Tensor) -> tuple[Tensor, bool]:
        """Return pixels (3, H, W) as they may be shown, and whether the safety checker withholds them.

        Waits for the device. Unlike the rest, it may be called from any thread.
        """
        screened, unsafe = self._pipeline.run_safety_checker(pixels[None], self.device, self.dtype)
        return (pixels, False) if unsafe is None else (screened[0], bool(unsafe[0]))

    def _scale_latents(self, latents: Tensor) -> Tensor:
        scaled: Tensor = self._pipeline.vae.config.scaling_factor * latents
        return scaled

    def _unscale_latents(self, latents: Tensor) -> Tensor:
        unscaled: Tensor = latents / self._pipeline.vae.config.scaling_factor
        return unscaled

    # --- denoising ----------------------------------------------------------------------------------

    def compile(self, compilation: Compilation) -> None:
        """Let torch compile the UNet at its next calls, for each shape separately."""
        if compilation == "regional":
            self._pipeline.unet.compile_repeated_blocks(dynamic=False)
        else:
            mode = "reduce-overhead" if compilation == "cudagraphs" else "default"
            self._pipeline.unet.compile(mode=mode, dynamic=False)

    @staticmethod
    def raise_recompile_limit() -> None:
        """Let torch compile more shapes in this thread, for which alone it keeps such settings.

        Those of all models that were loaded here count together: their code is the same. Beyond the limit it
        raises now, where it would silently run them as they are.
        """
        config: Any = torch._dynamo.config
        config.recompile_limit, config.fail_on_recompile_limit_hit = _RECOMPILE_LIMIT, True

    def undo_compilation(self) -> None:
        """Run the UNet as it is."""
        for module in self._pipeline.unet.modules():
            module._compiled_call_impl = None

    def predict(self, samples: Tensor, timesteps: Tensor, rows: Sequence[UNetInputs]) -> Tensor:
        """Run the UNet on samples (R, C, h, w) at timesteps (R,), each with its row."""
        hidden, mask = _pad([row.hidden for row in rows])
        output: Tensor = self._unet(
            samples,
            timesteps,
            encoder_hidden_states=hidden,
            encoder_attention_mask=mask,
            timestep_cond=_concatenate([row.guidance for row in rows]),
            added_cond_kwargs=self._build_added_conditions(rows),
            return_dict=False,
        )[0]
        return output

    def _build_added_conditions(self, rows: Sequence[UNetInputs]) -> dict[str, Tensor] | None:
        return None


class SDXLArchitecture(Architecture):
    """Stable Diffusion XL: two text encoders, a pooled embedding, and the image's size as a condition."""

    _obeys_force_upcast = True

    def _embed_pieces(self, texts: Sequence[str]) -> list[Embedding]:
        hidden, _, pooled, _ = self._pipeline.encode_prompt(
            prompt=list(texts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return [
            Embedding(hidden=one, pooled=whole)
            for one, whole in zip(hidden.split(1), pooled.split(1), strict=True)
        ]

    def build_conditions(
        self,
        request: EngineRequest,
        embeddings: Mapping[Text, Embedding],
        photo: Tensor,
        size: tuple[int, int],
    ) -> Conditions:
        positive = embeddings[request.prompt]
        assert positive.pooled is not None
        zeros = Embedding(hidden=torch.zeros_like(positive.hidden), pooled=torch.zeros_like(positive.pooled))
        return super().build_conditions(request, {None: zeros, **embeddings}, photo, size)

    def _negative_text(self, request: EngineRequest) -> Text:
        if not request.negative_prompt and self._pipeline.config.force_zeros_for_empty_prompt:
            return None
        return request.negative_prompt

    def _build_row(
        self, embedding: Embedding, request: EngineRequest, size: tuple[int, int], *, negative: bool = False
    ) -> UNetInputs:
        return UNetInputs(
            hidden=embedding.hidden,
            pooled=embedding.pooled,
            time_ids=self._build_time_ids(embedding, size)[negative],
            guidance=self._embed_guidance(request),
        )

    def _build_time_ids(self, embedding: Embedding, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return those of the positive and the negative row. The scores are diffusers' own defaults."""
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
            text_encoder_projection_dim=self._get_projection_width(embedding),
        )
        return positive.to(self.device), negative.to(self.device)

    def _get_projection_width(self, embedding: Embedding) -> int:
        encoder = self._pipeline.text_encoder_2
        assert embedding.pooled is not None
        width: int = embedding.pooled.shape[-1] if encoder is None else encoder.config.projection_dim
        return width

    def _scale_latents(self, latents: Tensor) -> Tensor:
        if (statistics := self._read_latent_statistics(latents)) is None:
            return super()._scale_latents(latents)
        mean, deviation = statistics
        scaled: Tensor = (latents - mean) * self._pipeline.vae.config.scaling_factor / deviation
        return scaled

    def _unscale_latents(self, latents: Tensor) -> Tensor:
        if (statistics := self._read_latent_statistics(latents)) is None:
            return super()._unscale_latents(latents)
        mean, deviation = statistics
        unscaled: Tensor = latents * deviation / self._pipeline.vae.config.scaling_factor + mean
        return unscaled

    def _read_latent_statistics(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return mean and deviation by channel, if the VAE's configuration has both."""
        config: Any = self._pipeline.vae.config
        values = [getattr(config, f"latents_{name}", None) for name in ("mean", "std")]
        if None in values:
            return None
        mean, deviation = (torch.tensor(one).view(1, -1, 1, 1).to(latents) for one in values)
        return mean, deviation

    def screen(self, pixels: Tensor) -> tuple[Tensor, bool]:
        """Watermark the pixels where diffusers would. There is no safety checker."""
        if self._pipeline.watermark is not None:
            pixels = self._pipeline.watermark.apply_watermark(pixels[None])[0]
        return pixels, False

    def _build_added_conditions(self, rows: Sequence[UNetInputs]) -> dict[str, Tensor] | None:
        pooled, time_ids = (
            _concatenate([row.pooled for row in rows]),
            _concatenate([row.time_ids for row in rows]),
        )
        assert pooled is not None
        assert time_ids is not None
        return {"text_embeds": pooled, "time_ids": time_ids}


class LCMArchitecture(Architecture):
    """A latent consistency model in its own pipeline: no negative prompt, and every step is run."""

    strength_use = "sets_range"

    def _is_guided(self, request: EngineRequest) -> bool:
        return False


class _PhotoConcatenation(Architecture):
    """InstructPix2Pix (https://arxiv.org/abs/2211.09800): begins with noise, sees the photo at every step.

    The photo's latents are not scaled as the noisy ones are: the checkpoints were trained so.
    """

    strength_use = "none"
    photo_is_concatenated = True

    @property
    def _guidance_width(self) -> int | None:
        """`None`: these pipelines have no distilled guidance."""
        return None

    def encode(self, photos: Tensor, draws: Sequence[tuple[int, torch.Generator]]) -> Tensor:
        """Return the photos' likeliest latents (len(draws), C, h, w), unscaled. Nothing is drawn."""
        return self._encode_mode(photos)[[place for place, _ in draws]]

    def _apply_guidance(
        self, request: EngineRequest, photo: Tensor, positive: UNetInputs, *negatives: UNetInputs
    ) -> Conditions:
        """Guide by text and photo (equation 3 of the paper), with three rows, if there is a negative one.

        A row that has no weight, such as the last one at an image guidance of 1, is left out.
        """
        positive = replace(positive, photo=photo)
        if not negatives:
            return Conditions(rows=[positive])
        without_text = replace(negatives[0], photo=photo)
        without_both = replace(negatives[0], photo=torch.zeros_like(photo))
        text, image = request.guidance, request.image_guidance
        weighted = (positive, text), (without_text, image - text), (without_both, 1 - image)
        counting = [(row, weight) for row, weight in weighted if weight]
        return Conditions(rows=[row for row, _ in counting], weights=[weight for _, weight in counting])

    def predict(self, samples: Tensor, timesteps: Tensor, rows: Sequence[UNetInputs]) -> Tensor:
        photos = _concatenate([row.photo for row in rows])
        assert photos is not None
        return super().predict(torch.cat([samples, photos], dim=1), timesteps, rows)


class InstructPix2PixArchitecture(_PhotoConcatenation):
    """InstructPix2Pix of Stable Diffusion 1."""

    def _embed_pieces(self, texts: Sequence[str]) -> list[Embedding]:
        hidden = self._pipeline._encode_prompt(list(texts), self.device, 1, False)
        return [Embedding(hidden=one) for one in hidden.split(1)]


class SDXLInstructPix2PixArchitecture(_PhotoConcatenation, SDXLArchitecture):
    """InstructPix2Pix of Stable Diffusion XL. Of CosXL Edit the photo's latents are scaled."""

    def encode(self, photos: Tensor, draws: Sequence[tuple[int, torch.Generator]]) -> Tensor:
        latents = super().encode(photos, draws)
        if self._pipeline.is_cosxl_edit:
            latents = latents * self._pipeline.vae.config.scaling_factor
        return latents

    def _build_time_ids(self, embedding: Embedding, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        time_ids = self._pipeline._get_add_time_ids(
            size, (0, 0), size, embedding.hidden.dtype, self._get_projection_width(embedding)
        ).to(self.device)
        return time_ids, time_ids


_ARCHITECTURES: Final[Mapping[str, type[Architecture]]] = {
    "StableDiffusionImg2ImgPipeline": Architecture,
    "StableDiffusionXLImg2ImgPipeline": SDXLArchitecture,
    "LatentConsistencyModelImg2ImgPipeline": LCMArchitecture,
    "StableDiffusionInstructPix2PixPipeline": InstructPix2PixArchitecture,
    "StableDiffusionXLInstructPix2PixPipeline": SDXLInstructPix2PixArchitecture,
}


def find_architecture(pipeline: Any) -> type[Architecture] | None:
    """Return the adapter for the pipeline's steps; `None` if only the pipeline's own call can run them."""
    architecture = _ARCHITECTURES.get(_find_call_owner(pipeline))
    parts = getattr(pipeline, "components", {})
    unet: Any = parts.get("unet")
    vae = parts.get("vae")
    is_known = (
        architecture is not None
        and type(unet).__name__ == "UNet2DConditionModel"
        and unet.config.in_channels == (1 + architecture.photo_is_concatenated) * unet.config.out_channels
        and unet.config.encoder_hid_dim_type is None
        and type(vae).__name__ in {"AutoencoderKL", "AutoencoderKLHunyuanImage", "AutoencoderTiny"}
        and type(parts.get("scheduler")).__name__ in _SCHEDULERS
        # Offloaded parts, which move to the device when they are needed, are not thread-safe.
        and not getattr(pipeline, "_all_hooks", None)
    )
    return architecture if is_known else None


def _find_call_owner(pipeline: Any) -> str:
    """Return the name of the diffusers class that defines the pipeline's `__call__`; "" for a custom one."""
    owner = next(kind for kind in type(pipeline).__mro__ if "__call__" in vars(kind))
    return owner.__name__ if owner.__module__.startswith("diffusers.") else ""


def _join(pieces: Sequence[Embedding]) -> Embedding:
    """Join the embeddings of one text's pieces, as a copy: they are views of all that shared their pass.

    As a whole, the text is what its first piece says.
    """
    pooled = pieces[0].pooled
    return Embedding(
        hidden=torch.cat([piece.hidden for piece in pieces], dim=1),
        pooled=None if pooled is None else pooled.clone(),
    )


def _pad(hidden: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return (R, tokens, width), and which tokens are a row's own, or `None` if all are.

    Texts of several lengths share a pass: what pads the shorter ones is not looked at.
    """
    lengths = [one.shape[1] for one in hidden]
    if len(set(lengths)) == 1:
        return torch.cat(list(hidden)), None
    padded = hidden[0].new_zeros((len(hidden), max(lengths), hidden[0].shape[2]))
    mask = padded.new_zeros(padded.shape[:2])
    for row, (one, length) in enumerate(zip(hidden, lengths, strict=True)):
        padded[row, :length], mask[row, :length] = one[0], 1
    return padded, mask


def _concatenate(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Concatenate those that are present; `None` if the architecture has none."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None
