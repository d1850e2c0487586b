"""The catalogue of models: one manifest for each.

A model is a folder `<name>/manifest.yaml`, which may hold its weights too, or a single file
`<name>.yaml`. `models/README.md` says what a manifest may hold.
"""

import difflib
import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.alias_generators import to_camel

from avatarforge.diffusion.engines.prompts import PromptWeights, UnusablePrompt, read_fragments
from avatarforge.domain.errors import InvalidRequest, ModelUnusable
from avatarforge.domain.jobs import RequestedParameters
from avatarforge.package_data import package_data

PLACEHOLDER = "{prompt}"


def _resolve_path(path: Path, info: ValidationInfo) -> Path:
    return Path(info.context["folder"], path) if info.context else path


def _check_template(template: str) -> str:
    if template.count(PLACEHOLDER) != 1:
        raise ValueError(f"the template must hold {PLACEHOLDER} once")
    return template


ManifestPath = Annotated[Path, AfterValidator(_resolve_path)]
"""A path in a manifest: absolute, or relative to the manifest's folder."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FolderSource(_Part):
    folder: ManifestPath
    """A checkpoint in diffusers' folder layout."""
    pipeline: str | None = None
    """The pipeline's class, where the one that diffusers picks for image to image is not wanted."""


class FileSource(_Part):
    file: ManifestPath
    """A single `.safetensors` file that holds every weight."""
    config: ManifestPath | None = None
    """A folder with the configuration files and the tokenizer that the file belongs to. Files of Stable
    Diffusion 1, 2 and XL need none."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """How the file was trained, where there is no `config`; by default `epsilon`, but 2 must be told."""
    pipeline: str | None = None
    """The pipeline's class, where the one that diffusers picks for image to image is not wanted."""

    @model_validator(mode="after")
    def _check_prediction_type(self) -> Self:
        if self.config is not None and self.prediction_type is not None:
            raise ValueError("prediction_type must be left out beside a config, whose scheduler says it")
        return self


class HubAddress(_Part):
    repository: str
    """Such as `owner/name`."""
    revision: str
    """A commit, which never changes; or a tag or a branch."""
    variant: str | None = None
    """Which of several sets of weights to fetch, such as `fp16` (files named `….fp16.safetensors`)."""


class HubSource(_Part):
    hub: HubAddress
    """A checkpoint on the Hugging Face hub, fetched at the first load."""
    pipeline: str | None = None
    """The pipeline's class, where the one that diffusers picks for image to image is not wanted."""


def _get_source_kind(value: Any) -> str | None:
    """Return the source's kind, if it is exactly one of the three."""
    if isinstance(value, _Part):
        value = value.model_dump()
    kinds = [kind for kind in ("folder", "file", "hub") if isinstance(value, dict) and kind in value]
    return kinds[0] if len(kinds) == 1 else None


Source = Annotated[
    Annotated[FolderSource, Tag("folder")]
    | Annotated[FileSource, Tag("file")]
    | Annotated[HubSource, Tag("hub")],
    Discriminator(
        _get_source_kind,
        custom_error_type="source",
        custom_error_message="must hold exactly one of folder, file and hub",
    ),
]


EDITING_FAMILY = "instruct-pix2pix"
"""Checkpoints that edit a photo by words (https://arxiv.org/abs/2211.09800)."""


def image_guidance_for(strength: float) -> float:
    """The image guidance that stays as close to the photo as this strength, for models that edit.

    1 for full strength, 3 for none: the range that is of use in InstructPix2Pix.
    """
    return 1 + 2 * (1 - strength)


def strength_for(image_guidance: float) -> float:
    """The reverse of `image_guidance_for`, for models without an image guidance. Above 0."""
    return max(0.05, 1 - (image_guidance - 1) / 2)


class Defaults(_Part):
    """The values for what a request leaves out."""

    steps: int = Field(30, ge=1, le=1000)
    strength: float = Field(0.6, gt=0, le=1)
    guidance: float = Field(7.5, ge=0, le=100)
    image_guidance: float = Field(1.5, ge=1, le=5)
    prompt: str = ""
    """For a request with neither prompt nor style."""
    negative_prompt: str = ""


SchedulerName = Literal["ddim", "euler", "euler-ancestral", "dpm++-2m-karras", "unipc", "lcm", "tcd"]
SamplerName = Literal[
    "DDIM", "Euler", "Euler a", "Heun", "DPM++ 2M Karras", "DPM++ 2M SDE Karras", "UniPC", "LCM", "TCD"
]
"""What a request may ask for, by AUTOMATIC1111's names of sampler and noise schedule."""

_SAMPLERS: Mapping[SchedulerName, SamplerName] = {
    "ddim": "DDIM",
    "euler": "Euler",
    "euler-ancestral": "Euler a",
    "dpm++-2m-karras": "DPM++ 2M Karras",
    "unipc": "UniPC",
    "lcm": "LCM",
    "tcd": "TCD",
}


class Lora(_Part):
    """A LoRA adapter: small weights that change the model's."""

    file: ManifestPath
    """A `.safetensors` file, in diffusers' layout or in that of kohya's trainer."""
    weight: float = Field(1.0, ge=-4, le=4)
    """How much of the change is made."""


class TextualInversion(_Part):
    """A word of prompts that has vectors of its own."""

    file: ManifestPath
    """A `.safetensors` file, in AUTOMATIC1111's layout or in that of diffusers."""
    token: str = Field(pattern=r"^\S+$")
    """The word."""


class Capabilities(_Part):
    """The fields that the model supports. It refuses requests that name one of the others."""

    strength: bool = True
    guidance: bool = True
    negative_prompt: bool = True
    image_guidance: bool = False

    @property
    def dials(self) -> list[str]:
        """The fields that say how close an avatar stays to its photo, by the names that clients use."""
        return [to_camel(name) for name in ("strength", "image_guidance") if getattr(self, name)]

    @property
    def missing(self) -> list[str]:
        """The unsupported fields, by the names that clients use."""
        return [to_camel(name) for name in type(self).model_fields if not getattr(self, name)]

    def check(self, model: str, pipeline: type[Any]) -> None:
        """Raise `ModelUnusable` if the pipeline's call lacks what is declared."""
        parameters = inspect.signature(pipeline.__call__).parameters
        for name, argument in _ARGUMENTS.items():
            if getattr(self, name) and argument not in parameters:
                raise ModelUnusable(
                    model,
                    f"{pipeline.__name__} takes no {argument}: its manifest must say "
                    f"`capabilities: {{{name}: false}}`",
                )

    def refuse(self, model: str, **given: object) -> None:
        """Raise `InvalidRequest` for the first of these, by our names, that is given and not declared."""
        for name, value in given.items():
            if not getattr(self, name) and value not in (None, ""):
                reason = f"the model {model} has no {name.replace('_', ' ')}"
                if name in ("strength", "image_guidance") and self.dials:
                    reason += f", it has {' and '.join(self.dials)}"
                raise InvalidRequest(to_camel(name), value, f"left out: {reason}")


_ARGUMENTS = {
    "strength": "strength",
    "guidance": "guidance_scale",
    "negative_prompt": "negative_prompt",
    "image_guidance": "image_guidance_scale",
}
"""Capabilities, as diffusers' pipelines call them."""


class Style(_Part):
    title: str
    prompt: Annotated[str, AfterValidator(_check_template)]
    """A template in which `{prompt}` stands for the client's words, which may be none."""


class Manifest(_Part):
    """The description of one model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str
    family: str
    """`stable-diffusion`, `instruct-pix2pix`, or another family's name."""
    licence: str
    source: Source
    size: int = Field(ge=64, le=4096, multiple_of=8)
    """Side in pixels of the squares that the model makes where a request names no size."""
    max_size: int | None = Field(None, ge=64, le=4096, multiple_of=8)
    """The longest side that a request may ask for; by default `size`."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Number format on a GPU, where the automatic choice does not suit the model."""
    scheduler: SchedulerName | None = None
    """The scheduler, where the checkpoint's own is not wanted."""
    samplers: tuple[SamplerName, ...] = ()
    """What a request may ask for beside the model's own."""
    vae: ManifestPath | None = None
    """Another VAE in place of the checkpoint's: a folder in diffusers' layout, or a `.safetensors` file."""
    clip_skip: int = Field(1, ge=1, le=12)
    """As AUTOMATIC1111 counts: 2 takes the text encoder's last layer but one."""
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    """How far guided predictions are brought back to the contrast of unguided ones: of use where the noise
    has zero SNR (https://arxiv.org/abs/2305.08891)."""
    prompt_weights: PromptWeights = "none"
    """What brackets and signs in prompts mean: nothing, or what they mean to AUTOMATIC1111 or compel."""
    embeddings: tuple[TextualInversion, ...] = ()
    """Words that prompts may use besides."""
    loras: tuple[Lora, ...] = ()
    """Merged into the weights at loading, in this order."""
    capabilities: Capabilities = Capabilities()
    """The supported fields; by default those of the family."""
    offload: Literal["none", "model", "sequential"] = "none"
    """Keep the weights in the machine's memory and bring them to the GPU when they are needed: whole parts,
    or layer by layer. Slower, one image at a time, for a model that does not fit the GPU."""
    safety_checker: bool | None = None
    """Withhold images that the checkpoint's own checker finds unsafe. By default where it has a checker;
    `true` refuses a checkpoint that has none, `false` loads it without."""
    defaults: Defaults = Defaults()
    styles: Mapping[str, Style] = {}
    sha256: Mapping[ManifestPath, str] = {}
    """Digests of files, checked at every load."""

    @model_validator(mode="before")
    @classmethod
    def _take_capabilities_of_family(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("family") != EDITING_FAMILY:
            return values
        given = values.get("capabilities", {})
        if not isinstance(given, dict):
            return values
        return values | {"capabilities": {"strength": False, "image_guidance": True} | given}

    @model_validator(mode="after")
    def _check_step_count(self) -> Self:
        """Refuse defaults by which no step would be run, unless strength has another effect."""
        steps, strength = self.defaults.steps, self.defaults.strength
        # Where diffusers picks the pipeline, loading finds out: the first image has the defaults.
        skips_steps = self.source.pipeline not in (None, "LatentConsistencyModelImg2ImgPipeline")
        if self.capabilities.strength and skips_steps and int(steps * strength) < 1:
            raise ValueError(
                f"defaults of {steps} steps and a strength of {strength:g} run no step, since int(steps x "
                f"strength) are run: the strength must be at least 1/{steps}"
            )
        return self

    @model_validator(mode="after")
    def _check_max_size(self) -> Self:
        if not self.size <= self.longest_side <= 2 * self.size:
            raise ValueError(f"max_size must be from the size, {self.size}, to twice that")
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        """Refuse weights of the manifest's own that cannot be used: they would be refused as a client's."""
        own = (self.defaults.prompt, self.defaults.negative_prompt)
        for text in (*own, *(style.prompt for style in self.styles.values())):
            read_fragments(text, self.prompt_weights)
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the manifest in the file `path`. Raises `ModelUnusable` with what is wrong in it."""
        name = _get_name(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            manifest = cls.model_validate(values, context={"folder": path.parent.resolve()})
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ModelUnusable(name, f"its manifest {path} cannot be read ({error})") from error
        except ValidationError as error:
            raise ModelUnusable(name, f"its manifest {path} is wrong: {_format_error(error)}") from error
        if manifest.name != name:
            raise ModelUnusable(name, f"its manifest {path} says that its name is {manifest.name!r}")
        return manifest

    @property
    def fingerprint(self) -> str:
        """A hash of the manifest's content: it changes with every value."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def build_prompt(self, style: str | None, prompt: str) -> str:
        """Build the model's prompt: the client's, in the style's template if one is named.

        With neither, the model's default prompt. Raises `InvalidRequest` for a style that it does not have.
        """
        prompt = prompt.strip()
        if style is None:
            return prompt or self.defaults.prompt
        if style not in self.styles:
            known = ", ".join(self.styles) or "left out: this model has none"
            raise InvalidRequest("The style", style, f"one of those of the model {self.name}: {known}")
        # A template such as "neon portrait, {prompt}" should leave no comma hanging.
        return self.styles[style].prompt.replace(PLACEHOLDER, prompt).strip(" ,")

    @property
    def own_sampler(self) -> SamplerName | None:
        """The name of the manifest's scheduler; `None` for the checkpoint's own, which may be any."""
        return None if self.scheduler is None else _SAMPLERS[self.scheduler]

    @property
    def sampler_names(self) -> tuple[SamplerName, ...]:
        """The samplers that a request may ask for: the model's own first, if it has a name."""
        own = () if self.own_sampler is None else (self.own_sampler,)
        return tuple(dict.fromkeys((*own, *self.samplers)))

    def check_parameters(self, parameters: RequestedParameters) -> None:
        """Raise `InvalidRequest` for what requests to this model may not ask for: a style, a sampler, a size,
        and weights of words. How many tokens a prompt has only a tokenizer knows."""
        self._check_prompts(parameters)
        self._check_sampler(parameters.sampler)
        self._check_size(parameters.width, parameters.height)

    def _check_prompts(self, parameters: RequestedParameters) -> None:
        prompt, negative = parameters.prompt, parameters.negative_prompt
        whole = self.build_prompt(parameters.style, prompt)
        if self.prompt_weights == "none":
            return
        for name, written, text in (("prompt", prompt, whole), ("negativePrompt", negative, negative)):
            try:
                read_fragments(text, self.prompt_weights)
            except UnusablePrompt as error:
                raise InvalidRequest(name, written, error.expected) from error

    def _check_sampler(self, name: str | None) -> None:
        if name is not None and name not in self.sampler_names:
            known = ", ".join(self.sampler_names) or "left out: this model has its own sampler alone"
            raise InvalidRequest("sampler", name, f"one of {known}" if self.sampler_names else known)

    @property
    def longest_side(self) -> int:
        return self.size if self.max_size is None else self.max_size

    def _check_size(self, width: int | None, height: int | None) -> None:
        for name, side, other in (("width", width, height), ("height", height, width)):
            if side is None and other is not None:
                raise InvalidRequest(name, side, "given too: width and height come together")
            if side is not None and not (64 <= side <= self.longest_side and side % 8 == 0):
                expected = f"a multiple of 8 from 64 to {self.longest_side} with the model {self.name}"
                raise InvalidRequest(name, side, expected)

    def check_files(self) -> None:
        """Raise `ModelUnusable` unless every file with a digest is there and matches it."""
        for path, expected in self.sha256.items():
            try:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise ModelUnusable(self.name, f"its file {path} cannot be read ({error})") from error
            if found != expected.lower():
                raise ModelUnusable(
                    self.name, f"its file {path} has the SHA-256 {found}, but the manifest says {expected}"
                )


class Catalogue:
    """The manifests in a folder, by default the package's own. Every call reads the folder anew."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or package_data("models")

    def list_names(self) -> list[str]:
        """Return the names of all models, sorted. A manifest that is listed may still be invalid."""
        return sorted(self._find_paths())

    def read(self, name: str) -> Manifest:
        """Read a manifest. Raises `ModelUnusable` if there is none of this name, or it is invalid."""
        paths = self._find_paths()
        if name not in paths:
            near = difflib.get_close_matches(name, paths, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(paths))}"
            raise ModelUnusable(
                name, f"{self._folder} has no manifest of this name; {hint if paths else 'it is empty'}"
            )
        return Manifest.read(paths[name])

    def _find_paths(self) -> dict[str, Path]:
        found = [*self._folder.glob("*/manifest.yaml"), *self._folder.glob("*.yaml")]
        return {_get_name(path): path for path in found}


def _get_name(path: Path) -> str:
    return path.parent.name if path.name == "manifest.yaml" else path.stem


def _format_error(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in detail['loc']) or 'the whole'}: {detail['msg']}"
        for detail in error.errors()
    )
