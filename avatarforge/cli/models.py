"""`avatarforge models`: what there is, whether it works, and what it makes of a photo. Needs no server."""

import asyncio
import json
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from avatarforge.cli.contact_sheet import Panel, write_contact_sheet
from avatarforge.cli.photos import SAMPLE, read_photo
from avatarforge.cli.terminal import err, out
from avatarforge.diffusion.catalogue import Catalogue, FileSource, FolderSource, Manifest
from avatarforge.diffusion.engine import EngineRequest, EngineResult
from avatarforge.diffusion.loading import LoadedModel, ModelLoader
from avatarforge.diffusion.provenance import Marking
from avatarforge.diffusion.squares import square
from avatarforge.diffusion.weights import Weights, cached, parts_of, weights_of
from avatarforge.domain.errors import InvalidRequest, ModelUnusable
from avatarforge.domain.jobs import ImageFormat
from avatarforge.settings import DiffusionSettings, load_settings

# --- list --------------------------------------------------------------------------------------------------


def show_models(as_json: bool) -> None:
    """Every manifest; one that is wrong is listed with what is wrong in it."""
    settings = load_settings().diffusion
    catalogue = Catalogue(settings.models_dir)
    rows = [_row(catalogue, name, settings) for name in catalogue.names()]
    if as_json:
        out.print_json(json.dumps(rows))
        return
    if not rows:
        err.print("No manifest was found.")
    table = Table("Name", "Model", "Pixels", "Weights", show_lines=True)
    table.columns[0].no_wrap = True
    table.columns[3].overflow = "fold"
    for row in rows:
        name = f"[bold]{row['name']}[/] *" if row["serves"] else row["name"]
        if row["fault"] is None:
            table.add_row(name, _described(row), str(row["size"]), _shown_weights(row["weights"]))
        else:
            table.add_row(name, f"[red]{escape(row['fault'])}[/]")
    out.print(table)
    out.print("* is what AVATARFORGE_DIFFUSION_MODEL names.")


def _row(catalogue: Catalogue, name: str, settings: DiffusionSettings) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "serves": name == settings.model, "fault": None}
    try:
        manifest = catalogue.manifest(name)
    except ModelUnusable as error:
        return row | {"fault": error.reason}
    weights = weights_of(manifest)
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


def _described(row: Mapping[str, Any]) -> str:
    return (
        f"{escape(row['title'])}\n[dim]{escape(row['family'])}, {escape(row['licence'])}[/]\n"
        f"{escape(', '.join(row['styles']) or 'no styles')}"
    )


def _shown_weights(weights: Mapping[str, Any]) -> str:
    state = f"[yellow]{escape(weights['missing'])}[/]" if weights["missing"] else _bytes(weights["bytes"])
    if weights["kind"] == "hub" and not weights["missing"]:
        state = f"cached, {state}"
    place = "" if weights["kind"] == "carried" else f" {escape(_short(weights['place']))}"
    return f"{weights['kind']}{place}\n{state}"


def _short(place: str) -> str:
    """A commit's first digits are enough for people."""
    repository, _, revision = place.partition("@")
    return f"{repository}@{revision[:8]}" if len(revision) == 40 else place


# --- check -------------------------------------------------------------------------------------------------


def check_model(name: str, target: Path | None, as_json: bool) -> None:
    """Raises `ModelUnusable` for whatever keeps the model from making a picture of the sample portrait."""
    settings = _settings()
    # A wrong name is told before seconds go into imports.
    manifest = Catalogue(settings.models_dir).manifest(name)
    with err.status(f"Loading {name} and making a picture …"):
        facts, picture = asyncio.run(_checked(settings, manifest))
    if target is not None:
        target.write_bytes(Marking().file(picture, ImageFormat.PNG))
    if as_json:
        out.print_json(json.dumps(facts))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for label, value in _lines(facts):
        table.add_row(label, escape(value))
    if target is not None:
        table.add_row("kept as", escape(str(target.resolve())))
    out.print(table)
    err.print(f"[bold green]{escape(name)} works.[/]")


async def _checked(settings: DiffusionSettings, manifest: Manifest) -> tuple[dict[str, Any], Image.Image]:
    loader = ModelLoader(settings)
    await loader.prepare()
    model = await loader.load(manifest)
    with model.engine as engine:
        photo, _ = square(read_photo(SAMPLE), manifest.size)
        request = _request(manifest, photo, None, manifest.defaults.strength, seed=1)
        begun = perf_counter()
        picture = await _picture(model, request)
        seconds = perf_counter() - begun
        facts = {
            "name": manifest.name,
            "title": manifest.title,
            "licence": manifest.licence,
            "weights": _found(weights_of(manifest)),
            "digests": len(manifest.sha256),
            "parts": _parts(manifest),
            "device": engine.device,
            "dtype": model.dtype,
            "atOnce": engine.report().limit,
            "seconds": {**model.seconds, "picture": seconds},
            "steps": request.steps,
            "strength": request.strength,
            "pixels": manifest.size,
            "memory": _memory(engine.device),
        }
    return facts, picture


def _found(weights: Weights) -> dict[str, Any]:
    return {"kind": weights.kind, "place": weights.place, "bytes": weights.size}


def _parts(manifest: Manifest) -> dict[str, str]:
    match manifest.source:
        case FolderSource(folder=folder) | FileSource(config=folder):
            return parts_of(folder)
        case source:
            snapshot = cached(source.hub)
            assert snapshot is not None, "a model that was loaded is in the cache"
            return parts_of(snapshot)


def _lines(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    weights, seconds, memory = facts["weights"], facts["seconds"], facts["memory"]
    yield "model", f"{facts['name']} ({facts['title']}, {facts['licence']})"
    yield "weights", f"{_bytes(weights['bytes'])}, {weights['kind']}, {weights['place']}"
    digests = facts["digests"]
    yield "digests", f"{digests} checked" if digests else "none in the manifest"
    yield "parts", ", ".join(f"{name} ({kind})" for name, kind in facts["parts"].items())
    yield "runs on", f"{facts['device']} in {facts['dtype']}, up to {facts['atOnce']} pictures at once"
    yield "load", f"{seconds['load']:.1f} s, and {seconds['warm_up']:.1f} s to warm up"
    yield (
        "picture",
        f"{seconds['picture']:.2f} s for {facts['pixels']} x {facts['pixels']} pixels, "
        f"{facts['steps']} steps at strength {facts['strength']:g}",
    )
    yield "memory", f"{_bytes(memory['bytes'])} at most, {memory['of']}"


def _memory(device: str) -> dict[str, Any]:
    """The most that was taken so far, on the GPU or by this process."""
    if device.startswith("cuda"):
        import torch

        return {"bytes": torch.cuda.max_memory_allocated(), "of": "on the GPU"}
    import resource

    # Kilobytes on Linux, bytes on macOS: getrusage(2).
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "of": "by the whole process",
    }


# --- compare -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wish:
    """What is made with each model."""

    photo: Image.Image
    styles: tuple[str | None, ...]
    strengths: tuple[float, ...]
    seed: int


def compare_models(
    first: str, second: str, photo: Path | None, target: Path, strengths: str, seed: int
) -> None:
    """Raises `ModelUnusable`, `InvalidRequest` for strengths that no model knows, and for the photo."""
    settings = _settings()
    catalogue = Catalogue(settings.models_dir)
    manifests = [catalogue.manifest(name) for name in (first, second)]
    titles = {key: style.title for manifest in manifests for key, style in manifest.styles.items()}
    wish = _Wish(
        photo=read_photo(photo or SAMPLE),
        styles=tuple(titles) or (None,),
        strengths=_strengths(strengths),
        seed=seed,
    )
    with _progress() as progress:
        panels = [asyncio.run(_panel(settings, manifest, wish, progress)) for manifest in manifests]
    write_contact_sheet(
        target,
        square(wish.photo, 512)[0],
        titles or {"": "default prompt"},
        wish.strengths,
        panels,
        f"{(photo or SAMPLE).name}, seed {seed}",
    )
    out.print(f"contact sheet  {target.resolve()}", highlight=False)


async def _panel(settings: DiffusionSettings, manifest: Manifest, wish: _Wish, progress: Progress) -> Panel:
    """All pictures of one model. They are asked for at once: the engine makes as many together as it can."""
    cells = [
        (style, strength)
        for style in wish.styles
        if style is None or style in manifest.styles
        for strength in wish.strengths
    ]
    line = progress.add_task(manifest.name, total=len(cells), state="loading")
    loader = ModelLoader(settings)
    await loader.prepare()
    model = await loader.load(manifest)
    with model.engine:
        progress.update(line, state="making pictures")
        photo, _ = square(wish.photo, manifest.size)
        begun = perf_counter()
        pictures = await asyncio.gather(
            *(
                _counted(model, _request(manifest, photo, style, strength, wish.seed), progress, line)
                for style, strength in cells
            )
        )
        seconds = perf_counter() - begun
    progress.update(line, state="done")
    return Panel(
        title=manifest.title,
        detail=(
            f"{manifest.name}, {manifest.defaults.steps} steps, guidance {manifest.defaults.guidance:g}, "
            f"{seconds / max(len(cells), 1):.2f} s a picture"
        ),
        pictures={
            (style or "", strength): picture
            for (style, strength), picture in zip(cells, pictures, strict=True)
        },
    )


async def _counted(
    model: LoadedModel, request: EngineRequest, progress: Progress, line: TaskID
) -> Image.Image:
    picture = await _picture(model, request)
    progress.advance(line)
    return picture


def _strengths(text: str) -> tuple[float, ...]:
    expected = "numbers above 0 and at most 1, separated by commas, such as 0.4,0.6,0.8"
    try:
        strengths = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidRequest("--strengths", text, expected) from error
    if not all(0 < strength <= 1 for strength in strengths):
        raise InvalidRequest("--strengths", text, expected)
    return strengths


def _progress() -> Progress:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total}, {task.fields[state]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=err)


# --- shared ------------------------------------------------------------------------------------------------


def _settings() -> DiffusionSettings:
    """The settings in force, but that a GPU is taken where there is one: here no Ray sets it aside."""
    return load_settings(environ=os.environ).diffusion.model_copy(update={"num_gpus": 1})


def _request(
    manifest: Manifest, photo: Image.Image, style: str | None, strength: float, seed: int
) -> EngineRequest:
    return EngineRequest(
        image=photo,
        prompt=manifest.prompt_for(style, ""),
        negative_prompt=manifest.defaults.negative_prompt,
        seed=seed,
        strength=strength,
        steps=manifest.defaults.steps,
        guidance=manifest.defaults.guidance,
    )


async def _picture(model: LoadedModel, request: EngineRequest) -> Image.Image:
    async with aclosing(model.engine.generate(request)) as updates:
        async for update in updates:
            if isinstance(update, EngineResult):
                return update.image
    raise AssertionError("an engine's generator ends with a result or an error")


def _bytes(number: int) -> str:
    for unit in ("B", "KB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number //= 1000
    return f"{number:.1f} GB"
