"""`avatarforge models`: list, check and compare checkpoints. Needs no server."""

import asyncio
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from PIL import Image
from pydantic.alias_generators import to_camel, to_snake
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from avatarforge.cli.contact_sheet import Panel, write_contact_sheet
from avatarforge.cli.photos import SAMPLE, read_photo
from avatarforge.cli.terminal import err, out
from avatarforge.diffusion.engines.engine import EngineRequest
from avatarforge.diffusion.models.catalogue import (
    Catalogue,
    FileSource,
    FolderSource,
    Manifest,
    image_guidance_for,
)
from avatarforge.diffusion.models.loader import ModelLoader
from avatarforge.diffusion.models.single_file_configs import write_config
from avatarforge.diffusion.models.weight_files import read_header
from avatarforge.diffusion.models.weights import find_snapshot, find_weights, list_files_by_part, read_parts
from avatarforge.domain.errors import InvalidRequest, ModelUnusable
from avatarforge.domain.jobs import ImageFormat
from avatarforge.imaging.crop import square
from avatarforge.imaging.provenance import ContentCredentials
from avatarforge.settings import DiffusionSettings, load_settings

# --- list --------------------------------------------------------------------------------------------------


def show_models(as_json: bool) -> None:
    """Print every manifest; one that is not valid is listed with its fault."""
    settings = load_settings().diffusion
    catalogue = Catalogue(settings.models_dir)
    rows = [_describe_model(catalogue, name, settings) for name in catalogue.list_names()]
    if as_json:
        out.print_json(data=rows)
        return
    if not rows:
        err.print("No manifest was found.")
    table = Table("Name", "Model", "Pixels", "Weights", show_lines=True)
    table.columns[0].no_wrap = True
    table.columns[3].overflow = "fold"
    for row in rows:
        name = f"[bold]{row['name']}[/] *" if row["serves"] else row["name"]
        if row["fault"] is None:
            table.add_row(name, _format_title(row), str(row["size"]), _format_weights(row["weights"]))
        else:
            table.add_row(name, f"[red]{escape(row['fault'])}[/]")
    out.print(table)
    out.print("* is what AVATARFORGE_DIFFUSION_MODEL names.")


def _describe_model(catalogue: Catalogue, name: str, settings: DiffusionSettings) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "serves": name == settings.model, "fault": None}
    try:
        manifest = catalogue.read(name)
    except ModelUnusable as error:
        return row | {"fault": error.reason}
    weights = find_weights(manifest)
    return row | {
        "title": manifest.title,
        "family": manifest.family,
        "size": manifest.size,
        "licence": manifest.licence,
        "weights": {
            "kind": weights.kind,
            "place": weights.place,
            "bytes": weights.size,
            "missing": weights.missing,
        },
        "styles": list(manifest.styles),
    }


def _format_title(row: Mapping[str, Any]) -> str:
    return (
        f"{escape(row['title'])}\n[dim]{escape(row['family'])}, {escape(row['licence'])}[/]\n"
        f"{escape(', '.join(row['styles']) or 'no styles')}"
    )


def _format_weights(weights: Mapping[str, Any]) -> str:
    state = (
        f"[yellow]{escape(weights['missing'])}[/]" if weights["missing"] else _format_bytes(weights["bytes"])
    )
    if weights["kind"] == "hub" and not weights["missing"]:
        state = f"cached, {state}"
    place = "" if weights["kind"] == "carried" else f" {escape(_shorten(weights['place']))}"
    return f"{weights['kind']}{place}\n{state}"


def _shorten(place: str) -> str:
    """Cut the commit to its first digits: they are enough for people."""
    repository, _, revision = place.partition("@")
    return f"{repository}@{revision[:8]}" if len(revision) == 40 else place


# --- check -------------------------------------------------------------------------------------------------


def check_model(name: str, target: Path | None, as_json: bool) -> None:
    """Make an image of the sample portrait. Raises `ModelUnusable` for whatever prevents that."""
    settings = load_settings(environ=os.environ).diffusion
    # Read first: a wrong name is reported before seconds go into imports.
    manifest = Catalogue(settings.models_dir).read(name)
    with err.status(f"Loading {name} and making an image …"):
        facts, image = asyncio.run(_make_sample(settings, manifest))
    if target is not None:
        target.write_bytes(ContentCredentials().encode(image, ImageFormat.PNG))
    if as_json:
        out.print_json(data=facts)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for label, value in _format_facts(facts):
        table.add_row(label, escape(value))
    if target is not None:
        table.add_row("kept as", escape(str(target.resolve())))
    out.print(table)
    err.print(f"[bold green]{escape(name)} works.[/]")


async def _make_sample(settings: DiffusionSettings, manifest: Manifest) -> tuple[dict[str, Any], Image.Image]:
    loader = await _prepare_loader(settings)
    model = await loader.load(manifest)
    with model.engine as engine:
        photo, _ = square(read_photo(SAMPLE), manifest.size)
        request = _build_request(manifest, photo, None, seed=1)
        started_at = perf_counter()
        image = await engine.generate_image(request)
        seconds = perf_counter() - started_at
        weights = find_weights(manifest)
        facts = {
            "name": manifest.name,
            "title": manifest.title,
            "kind": model.kind,
            "licence": manifest.licence,
            "addedLicences": _list_added_licences(manifest),
            "weights": {"kind": weights.kind, "place": weights.place, "bytes": weights.size},
            "digests": len(manifest.sha256),
            "parts": _list_parts(manifest),
            "licences": _list_licences(manifest),
            "device": engine.device,
            "dtype": model.dtype,
            "atOnce": engine.report().limit,
            "seconds": {**model.seconds, "image": seconds},
            "steps": request.steps,
            "dials": {dial: getattr(request, to_snake(dial)) for dial in manifest.capabilities.dials},
            "takes": {
                "fields": [to_camel(name) for name, is_taken in manifest.capabilities if is_taken],
                "styles": list(manifest.styles),
                "samplers": list(manifest.sampler_names),
            },
            "pixels": manifest.size,
            "maxPixels": manifest.longest_side,
            "memory": _measure_memory(engine.device),
        }
    return facts, image


def _list_licences(manifest: Manifest) -> dict[str, str]:
    """Return by part the licence that its weights state; where they state none, the manifest's."""
    # A single file holds all parts that have weights.
    stated = {part: _read_licence(files[0]) for part, files in list_files_by_part(manifest).items()}
    return {
        name: stated.get(name) or stated.get("") or manifest.licence
        for name in _list_parts(manifest)
        if name != "vae" or manifest.vae is None
    }


def _list_added_licences(manifest: Manifest) -> dict[str, str | None]:
    """Return by file the licences of what the manifest adds, as the files themselves state them."""
    files = [*(lora.file for lora in manifest.loras), *(word.file for word in manifest.embeddings)]
    if manifest.vae is not None:
        files += [manifest.vae] if manifest.vae.is_file() else sorted(manifest.vae.glob("*.safetensors"))
    return {str(file): _read_licence(file) for file in files}


def _read_licence(file: Path) -> str | None:
    # https://github.com/Stability-AI/ModelSpec
    is_readable = file.suffix == ".safetensors"
    return read_header(file).metadata.get("modelspec.license") if is_readable else None


def _list_parts(manifest: Manifest) -> dict[str, str]:
    match manifest.source:
        case FolderSource(folder=folder) | FileSource(config=Path() as folder):
            parts = read_parts(folder)
        case FileSource(file=file, prediction_type=prediction_type):
            with TemporaryDirectory() as written:
                write_config(manifest.name, file, Path(written), prediction_type)
                parts = read_parts(Path(written))
        case source:
            snapshot = find_snapshot(source.hub)
            assert snapshot is not None, "a model that was loaded is in the cache"
            parts = read_parts(snapshot)
    return {name: kind for name, (_, kind) in parts.items()}


def _format_facts(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    weights, seconds, memory = facts["weights"], facts["seconds"], facts["memory"]
    yield "model", f"{facts['name']} ({facts['title']}, {facts['licence']})"
    yield "kind", facts["kind"]
    for file, licence in facts["addedLicences"].items():
        yield "added", f"{file} ({licence or 'its file states no licence'})"
    yield "weights", f"{_format_bytes(weights['bytes'])}, {weights['kind']}, {weights['place']}"
    digests = facts["digests"]
    yield "digests", f"{digests} checked" if digests else "none in the manifest"
    licences = facts["licences"]
    yield (
        "parts",
        ", ".join(
            f"{name} ({kind}, {licences.get(name, 'replaced')})" for name, kind in facts["parts"].items()
        ),
    )
    yield "runs on", f"{facts['device']} in {facts['dtype']}, up to {facts['atOnce']} images at once"
    phases = "{read:.1f} s to read, {measure:.1f} s to measure, {first_image:.1f} s for a first image"
    yield "load", phases.format(**seconds)
    yield (
        "image",
        f"{seconds['image']:.2f} s for {facts['pixels']} x {facts['pixels']} pixels, "
        + ", ".join(
            [f"{facts['steps']} steps", *(f"{dial} {value:g}" for dial, value in facts["dials"].items())]
        ),
    )
    takes = facts["takes"]
    for label in ("styles", "samplers"):
        takes = takes | {label: f"{label} {', '.join(takes[label])}" if takes[label] else f"no {label}"}
    yield (
        "takes",
        f"{', '.join(takes['fields']) or 'the prompt alone'}; {takes['styles']}; {takes['samplers']}; "
        f"sides of up to {facts['maxPixels']} pixels",
    )
    yield "memory", f"{_format_bytes(memory['bytes'])} at most, {memory['of']}"


def _measure_memory(device: str) -> dict[str, Any]:
    """Return the peak memory so far, of the GPU or else of this process."""
    if device.startswith("cuda"):
        import torch

        return {"bytes": torch.cuda.max_memory_allocated(), "of": "on the GPU"}
    import resource

    # Kilobytes on Linux, bytes on macOS: getrusage(2).
    unit = 1 if sys.platform == "darwin" else 1024
    return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of": "by the whole process"}


# --- compare -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Comparison:
    """The input of a comparison, the same for each model."""

    photo: Image.Image
    styles: tuple[str | None, ...]
    strengths: tuple[float, ...]
    seed: int


def compare_models(
    first: str, second: str, photo: Path | None, target: Path, strengths: str, seed: int
) -> None:
    """Write the contact sheet. Raises `ModelUnusable`, and `InvalidRequest` for invalid strengths."""
    settings = load_settings(environ=os.environ).diffusion
    catalogue = Catalogue(settings.models_dir)
    manifests = [catalogue.read(name) for name in (first, second)]
    titles = {key: style.title for manifest in manifests for key, style in manifest.styles.items()}
    comparison = _Comparison(
        photo=read_photo(photo or SAMPLE),
        styles=tuple(titles) or (None,),
        strengths=_parse_strengths(strengths),
        seed=seed,
    )
    with _create_progress() as progress:
        panels = [
            asyncio.run(_make_panel(settings, manifest, comparison, progress)) for manifest in manifests
        ]
    write_contact_sheet(
        target,
        square(comparison.photo, 512)[0],
        titles or {"": "default prompt"},
        comparison.strengths,
        panels,
        f"{(photo or SAMPLE).name}, seed {seed}",
    )
    out.print(f"contact sheet  {target.resolve()}", highlight=False)


async def _make_panel(
    settings: DiffusionSettings, manifest: Manifest, comparison: _Comparison, progress: Progress
) -> Panel:
    """Make all images of one model. They are submitted at once, so that the engine batches them."""
    # Where no dial counts, all columns would be alike.
    edits = manifest.capabilities.image_guidance and manifest.defaults.guidance > 1
    cells = [
        (style, strength)
        for style in comparison.styles
        if style is None or style in manifest.styles
        for strength in comparison.strengths[: None if manifest.capabilities.strength or edits else 1]
    ]
    task = progress.add_task(manifest.name, total=len(cells), state="loading")
    loader = await _prepare_loader(settings)
    model = await loader.load(manifest)
    with model.engine:
        progress.update(task, state="making images")
        photo, _ = square(comparison.photo, manifest.size)

        async def generate(style: str | None, strength: float) -> Image.Image:
            request = _build_request(manifest, photo, style, comparison.seed, strength)
            image = await model.engine.generate_image(request)
            progress.advance(task)
            return image

        started_at = perf_counter()
        images = await asyncio.gather(*(generate(*cell) for cell in cells))
        seconds = perf_counter() - started_at
    progress.update(task, state="done")
    return Panel(
        title=manifest.title,
        detail=(
            f"{manifest.name}, {manifest.defaults.steps} steps, guidance {manifest.defaults.guidance:g}, "
            f"{seconds / max(len(cells), 1):.2f} s an image"
        ),
        images={
            (style or "", strength): image for (style, strength), image in zip(cells, images, strict=True)
        },
    )


def _parse_strengths(text: str) -> tuple[float, ...]:
    expected = "numbers above 0 and at most 1, separated by commas, such as 0.4,0.6,0.8"
    try:
        strengths = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidRequest("--strengths", text, expected) from error
    if not all(0 < strength <= 1 for strength in strengths):
        raise InvalidRequest("--strengths", text, expected)
    return strengths


def _create_progress() -> Progress:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total}, {task.fields[state]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=err)


# --- shared ------------------------------------------------------------------------------------------------


async def _prepare_loader(settings: DiffusionSettings) -> ModelLoader:
    """Return a loader that takes a GPU if there is one: no Ray sets it aside here."""
    await ModelLoader(settings).prepare()
    import torch

    return ModelLoader(settings.model_copy(update={"num_gpus": int(torch.cuda.is_available())}))


def _build_request(
    manifest: Manifest, photo: Image.Image, style: str | None, seed: int, strength: float | None = None
) -> EngineRequest:
    """Take the manifest's defaults; models that edit have an image guidance in place of another strength."""
    defaults = manifest.defaults
    return EngineRequest(
        image=photo,
        prompt=manifest.build_prompt(style, ""),
        negative_prompt=defaults.negative_prompt,
        seed=seed,
        strength=defaults.strength if strength is None else strength,
        steps=defaults.steps,
        guidance=defaults.guidance,
        image_guidance=defaults.image_guidance if strength is None else image_guidance_for(strength),
    )


def _format_bytes(number: int) -> str:
    for unit in ("B", "KB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number //= 1000
    return f"{number:.1f} GB"
