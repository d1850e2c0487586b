"""The models that can be named: one manifest each.

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
)

from avatarforge.carried import carried
from avatarforge.domain.errors import InvalidRequest, ModelUnusable

PLACEHOLDER = "{prompt}"


def _beside_the_manifest(path: Path, info: ValidationInfo) -> Path:
    return Path(info.context["folder"], path) if info.context else path


def _with_placeholder(template: str) -> str:
    if template.count(PLACEHOLDER) != 1:
        raise ValueError(f"the template must hold {PLACEHOLDER} once")
    return template


ManifestPath = Annotated[Path, AfterValidator(_beside_the_manifest)]
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
    config: ManifestPath
    """A folder with the configuration files and the tokenizer that the file belongs to."""
    pipeline: str
    """The image-to-image pipeline's class, such as `StableDiffusionImg2ImgPipeline`."""


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


def _kind_of_source(value: Any) -> str | None:
    """Which of the three a source is, when it is exactly one of them."""
    if isinstance(value, _Part):
        value = value.model_dump()
    kinds = [kind for kind in ("folder", "file", "hub") if isinstance(value, dict) and kind in value]
    return kinds[0] if len(kinds) == 1 else None


Source = Annotated[
    Annotated[FolderSource, Tag("folder")]
    | Annotated[FileSource, Tag("file")]
    | Annotated[HubSource, Tag("hub")],
    Discriminator(
        _kind_of_source,
        custom_error_type="source",
        custom_error_message="must hold exactly one of folder, file and hub",
    ),
]


class Defaults(_Part):
    """What holds where a request does not say."""

    steps: int = Field(30, ge=1, le=1000)
    strength: float = Field(0.6, gt=0, le=1)
    guidance: float = Field(7.5, ge=0, le=100)
    prompt: str = ""
    """For a request with neither prompt nor style."""
    negative_prompt: str = ""


SchedulerName = Literal["ddim", "euler", "euler-ancestral", "dpm++-2m-karras", "unipc", "lcm"]


class Lora(_Part):
    """Small weights that change the large ones."""

    file: ManifestPath
    """A `.safetensors` file, in diffusers' layout or in that of kohya's trainer."""
    weight: float = Field(1.0, ge=-4, le=4)
    """How much of the change is made."""


class Capabilities(_Part):
    """What a request may say. A model without one of these refuses requests that name it."""

    strength: bool = True
    guidance: bool = True
    negative_prompt: bool = True

    @property
    def missing(self) -> list[str]:
        """What is not declared, by the names that clients use."""
        return [field for name, field in _FIELDS.items() if not getattr(self, name)]

    def check(self, model: str, pipeline: type[Any]) -> None:
        """Raise `ModelUnusable` if the pipeline's call lacks what is declared."""
        taken = inspect.signature(pipeline.__call__).parameters
        for name, argument in _ARGUMENTS.items():
            if getattr(self, name) and argument not in taken:
                raise ModelUnusable(
                    model,
                    f"{pipeline.__name__} takes no {argument}: its manifest must say "
                    f"`capabilities: {{{name}: false}}`",
                )

    def refuse(self, model: str, **given: object) -> None:
        """Raise `InvalidRequest` for the first of these, by our names, that is given and not declared."""
        for name, value in given.items():
            if not getattr(self, name) and value not in (None, ""):
                raise InvalidRequest(
                    _FIELDS[name], value, f"left out: the model {model} has no {name.replace('_', ' ')}"
                )


_ARGUMENTS = {"strength": "strength", "guidance": "guidance_scale", "negative_prompt": "negative_prompt"}
"""Capabilities, as diffusers' pipelines call them."""
_FIELDS = {"strength": "strength", "guidance": "guidance", "negative_prompt": "negativePrompt"}
"""Capabilities, as clients call them."""


class Style(_Part):
    title: str
    prompt: Annotated[str, AfterValidator(_with_placeholder)]
    """A template in which `{prompt}` stands for the client's words, which may be none."""


class Manifest(_Part):
    """What is known of one model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str
    family: str
    """`stable-diffusion`, or another family's name."""
    licence: str
    source: Source
    size: int = Field(ge=64, le=4096, multiple_of=8)
    """Side of the square that the model takes and makes, in pixels."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Number format on a GPU, where the automatic choice does not suit the model."""
    scheduler: SchedulerName | None = None
    """How noise is taken away step by step, where the checkpoint's own way is not wanted."""
    loras: tuple[Lora, ...] = ()
    """Added to the weights at loading, in this order."""
    capabilities: Capabilities = Capabilities()
    """What a request may say; by default all that Stable Diffusion knows."""
    offload: Literal["none", "model", "sequential"] = "none"
    """Keep the weights in the machine's memory and bring them to the GPU when they are needed: whole parts,
    or layer by layer. Slower, one picture at a time, for a model that the GPU does not hold."""
    safety_checker: bool | None = None
    """Withhold pictures that the checkpoint's own checker finds unsafe. By default where it has a checker;
    `true` refuses a checkpoint that has none, `false` loads it without."""
    defaults: Defaults = Defaults()
    styles: Mapping[str, Style] = {}
    sha256: Mapping[ManifestPath, str] = {}
    """Digests of files, checked at every load."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The manifest in the file `path`. Raises `ModelUnusable` with what is wrong in it."""
        name = _name_of(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            manifest = cls.model_validate(values, context={"folder": path.parent.resolve()})
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ModelUnusable(name, f"its manifest {path} cannot be read ({error})") from error
        except ValidationError as error:
            raise ModelUnusable(name, f"its manifest {path} is wrong: {_told(error)}") from error
        if manifest.name != name:
            raise ModelUnusable(name, f"its manifest {path} says that its name is {manifest.name!r}")
        return manifest

    @property
    def fingerprint(self) -> str:
        """Of all that the manifest says: another one where a word of it was changed."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def prompt_for(self, style: str | None, prompt: str) -> str:
        """The text to give the model: the client's words, put into the style's template if it names one.

        With neither, the model's default prompt. Raises `InvalidRequest` for a style that it has not.
        """
        words = prompt.strip()
        if style is None:
            return words or self.defaults.prompt
        if style not in self.styles:
            known = ", ".join(self.styles) or "left out: this model has none"
            raise InvalidRequest("The style", style, f"one of those of the model {self.name}: {known}")
        # A template such as "neon portrait, {prompt}" should leave no comma hanging.
        return self.styles[style].prompt.replace(PLACEHOLDER, words).strip(" ,")

    def check_files(self) -> None:
        """Raise `ModelUnusable` unless every file with a digest is there and has it."""
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
    """The manifests in a folder; by default the ones that AvatarForge carries. Read anew at every call."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or carried("models")

    def names(self) -> list[str]:
        """The names of all models, sorted. A manifest that is listed may still be wrong."""
        return sorted(self._paths())

    def manifest(self, name: str) -> Manifest:
        """Raises `ModelUnusable` if there is none of this name, or the one there is wrong."""
        paths = self._paths()
        if name not in paths:
            near = difflib.get_close_matches(name, paths, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(paths))}"
            raise ModelUnusable(
                name, f"{self._folder} has no manifest of this name; {hint if paths else 'it is empty'}"
            )
        return Manifest.read(paths[name])

    def _paths(self) -> dict[str, Path]:
        found = [*self._folder.glob("*/manifest.yaml"), *self._folder.glob("*.yaml")]
        return {_name_of(path): path for path in found}


def _name_of(path: Path) -> str:
    return path.parent.name if path.name == "manifest.yaml" else path.stem


def _told(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in fault['loc']) or 'the whole'}: {fault['msg']}"
        for fault in error.errors()
    )
