import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from avatarforge.diffusion.models.catalogue import (
    Catalogue,
    FileSource,
    HubSource,
    Manifest,
    image_guidance_for,
    strength_for,
)
from avatarforge.domain.errors import InvalidRequest, ModelUnusable
from avatarforge.package_data import package_data

PLAIN: dict[str, Any] = {
    "name": "small",
    "title": "Small",
    "family": "stable-diffusion",
    "licence": "Apache-2.0",
    "source": {"folder": "checkpoint"},
    "size": 128,
    "defaults": {"steps": 20, "strength": 0.5, "guidance": 3, "prompt": "a portrait"},
    "styles": {"neon": {"title": "Neon", "prompt": "neon portrait, {prompt}"}},
}


def write(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(PLAIN | changes))
    return path


def small(folder: Path, **changes: Any) -> Manifest:
    return Manifest.read(write(folder / "small.yaml", **changes))


def test_a_folder_and_a_single_file_are_both_models(tmp_path: Path) -> None:
    write(tmp_path / "in-folder" / "manifest.yaml", name="in-folder")
    write(tmp_path / "single.yaml", name="single")
    assert Catalogue(tmp_path).list_names() == ["in-folder", "single"]


def test_paths_are_relative_to_the_manifest(tmp_path: Path) -> None:
    path = write(tmp_path / "small" / "manifest.yaml", sha256={"checkpoint/a.bin": "00"})
    manifest = Manifest.read(path)
    assert manifest.source.folder == tmp_path / "small" / "checkpoint"  # type: ignore[union-attr]
    assert list(manifest.sha256) == [tmp_path / "small" / "checkpoint" / "a.bin"]


def test_an_absolute_path_stays(tmp_path: Path) -> None:
    source = {"file": "/models/x.safetensors", "config": "config", "pipeline": "P"}
    assert small(tmp_path, source=source).source == FileSource(
        file=Path("/models/x.safetensors"), config=tmp_path / "config", pipeline="P"
    )


def test_a_hub_source_names_repository_and_revision(tmp_path: Path) -> None:
    source = {"hub": {"repository": "someone/something", "revision": "main"}}
    assert isinstance(small(tmp_path, source=source).source, HubSource)


def test_the_carried_model_has_six_styles() -> None:
    manifest = Catalogue().read("avatar-mini")
    assert list(manifest.styles) == [
        "flat-illustration",
        "watercolor",
        "pencil-sketch",
        "pixel-art",
        "oil-painting",
        "neon",
    ]


@pytest.mark.parametrize("name", [name for name in Catalogue().list_names() if name != "avatar-mini"])
def test_a_checkpoint_to_pick_is_pinned_and_has_the_carried_ones_styles(name: str) -> None:
    manifest = Catalogue().read(name)
    assert isinstance(manifest.source, HubSource)
    assert re.fullmatch(r"[0-9a-f]{40}", manifest.source.hub.revision)
    assert list(manifest.styles) == list(Catalogue().read("avatar-mini").styles)
    if manifest.capabilities.strength:
        assert int(manifest.defaults.steps * manifest.defaults.strength) >= 1


@pytest.mark.parametrize("name", ["sd-turbo", "sdxl-turbo"])
def test_turbo_models_are_not_guided(name: str) -> None:
    assert Catalogue().read(name).defaults.guidance == 0


def test_the_safety_checker_is_left_to_the_checkpoint_unless_the_manifest_says_so(tmp_path: Path) -> None:
    assert small(tmp_path).safety_checker is None
    assert small(tmp_path, safety_checker=False).safety_checker is False
    assert small(tmp_path, safety_checker=True).safety_checker is True


def test_an_unknown_model_is_told_with_near_names(tmp_path: Path) -> None:
    write(tmp_path / "small.yaml")
    with pytest.raises(ModelUnusable, match="did you mean small"):
        Catalogue(tmp_path).read("smal")


def test_a_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "small.yaml")
    (tmp_path / "models").mkdir()
    with pytest.raises(ModelUnusable, match="it is empty"):
        Catalogue(tmp_path / "models").read("../small")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"size": 100}, "size: Input should be a multiple of 8"),
        ({"max_size": 264}, "max_size must be from the size, 128, to twice that"),
        ({"size": 4096, "max_size": 4104}, "max_size: Input should be less than or equal to 4096"),
        (
            {"source": {"file": "a.safetensors", "config": "config", "prediction_type": "epsilon"}},
            "source.file: Value error, prediction_type must be left out beside a config",
        ),
        ({"max_size": 64}, "max_size must be from the size, 128, to twice that"),
        (
            {"prompt_weights": "compel", "defaults": {"prompt": "(neon)11"}},
            "The prompt is '(neon)11', but it must be without weights above 10",
        ),
        (
            {"prompt_weights": "automatic1111", "styles": {"a": {"title": "A", "prompt": "(b:11) {prompt}"}}},
            "The prompt is '(b:11) {prompt}', but it must be without weights above 10",
        ),
        ({"source": {}}, "source: must hold exactly one of folder, file and hub"),
        ({"source": {"folder": "a", "file": "b"}}, "must hold exactly one"),
        ({"source": "checkpoint"}, "must hold exactly one"),
        ({"source": {"file": "a", "prediction_type": "x"}}, "prediction_type: Input should be 'epsilon'"),
        ({"source": {"hub": {"repository": "a/b"}}}, "revision: Field required"),
        ({"defaults": {"strength": 7}}, "defaults.strength: Input should be less than or equal to 1"),
        (
            {
                "source": {"folder": "a", "pipeline": "StableDiffusionImg2ImgPipeline"},
                "defaults": {"steps": 1, "strength": 0.5},
            },
            "the strength must be at least 1/1",
        ),
        ({"styles": {"x": {"title": "X", "prompt": "no place"}}}, "must hold {prompt} once"),
        ({"dtype": "int8"}, "dtype: Input should be"),
        ({"scheduler": "plms"}, "scheduler: Input should be 'ddim', 'euler'"),
        ({"samplers": ["PLMS"]}, "samplers.0: Input should be 'DDIM', 'Euler'"),
        ({"loras": [{"file": "a.safetensors", "weight": 9}]}, "loras.0.weight: Input should be less than"),
        ({"safety_checker": "maybe"}, "safety_checker: Input should be a valid boolean"),
        ({"name": "other"}, "says that its name is 'other'"),
    ],
)
def test_a_wrong_manifest_is_told_by_field(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelUnusable) as caught:
        small(tmp_path, **changes)
    assert told in str(caught.value)


def test_defaults_may_be_those_of_a_latent_consistency_model_whose_pipeline_diffusers_picks(
    tmp_path: Path,
) -> None:
    assert small(tmp_path, defaults={"steps": 4, "strength": 0.2}).defaults.steps == 4


@pytest.mark.parametrize("text", ["", "- 1\n", "name: [", "\x00"])
def test_a_file_that_is_no_manifest_is_unusable(tmp_path: Path, text: str) -> None:
    (tmp_path / "small.yaml").write_text(text)
    with pytest.raises(ModelUnusable, match=r"small\.yaml"):
        Catalogue(tmp_path).read("small")


def test_a_style_takes_the_clients_words(tmp_path: Path) -> None:
    assert small(tmp_path).build_prompt("neon", " red {hair} ") == "neon portrait, red {hair}"


def test_a_style_without_words_leaves_no_comma(tmp_path: Path) -> None:
    assert small(tmp_path).build_prompt("neon", "") == "neon portrait"


def test_without_style_the_prompt_stands_alone(tmp_path: Path) -> None:
    assert small(tmp_path).build_prompt(None, "red hair") == "red hair"


def test_with_neither_the_default_prompt_is_used(tmp_path: Path) -> None:
    assert small(tmp_path).build_prompt(None, "  ") == "a portrait"


def test_an_unknown_style_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="one of those of the model small: neon"):
        small(tmp_path).build_prompt("oil", "red hair")


def test_a_file_with_the_wrong_digest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    with pytest.raises(ModelUnusable, match="SHA-256"):
        small(tmp_path, sha256={"weights": "0" * 64}).check_files()


def test_a_file_with_the_right_digest_passes(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    digest = sha256(b"weights").hexdigest().upper()
    small(tmp_path, sha256={"weights": digest}).check_files()


def test_an_absent_file_with_a_digest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match="cannot be read"):
        small(tmp_path, sha256={"weights": "0" * 64}).check_files()


def test_the_carried_data_that_is_absent_is_told() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-data"):
        package_data("no-such-data")


# --- what a model can ---------------------------------------------------------------------------------


class Editor:
    """A pipeline that changes a picture by words alone."""

    def __call__(self, image: object, prompt: str, guidance_scale: float) -> None: ...


def test_a_model_can_what_stable_diffusion_can_unless_its_manifest_says_otherwise(tmp_path: Path) -> None:
    assert small(tmp_path).capabilities.missing == ["imageGuidance"]
    manifest = small(tmp_path, capabilities={"strength": False, "negative_prompt": False})
    assert manifest.capabilities.missing == ["strength", "negativePrompt", "imageGuidance"]


def test_a_family_that_edits_has_an_image_guidance_unless_its_manifest_says_otherwise(tmp_path: Path) -> None:
    editing = small(tmp_path, family="instruct-pix2pix").capabilities
    assert (editing.dials, editing.missing) == (["imageGuidance"], ["strength"])
    without = {"image_guidance": False, "negative_prompt": False}
    editing = small(tmp_path, family="instruct-pix2pix", capabilities=without).capabilities
    assert (editing.dials, editing.missing) == ([], ["strength", "negativePrompt", "imageGuidance"])


def test_strength_and_image_guidance_stand_for_each_other() -> None:
    assert (image_guidance_for(1), image_guidance_for(0.75), image_guidance_for(0)) == (1, 1.5, 3)
    assert strength_for(image_guidance_for(0.4)) == pytest.approx(0.4)
    assert (strength_for(1), strength_for(5)) == (1, 0.05)


def test_a_pipeline_that_lacks_what_is_declared_is_unusable(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match=r"takes no strength: .*`capabilities: \{strength: false\}`"):
        small(tmp_path).capabilities.check("small", Editor)
    small(tmp_path, capabilities={"strength": False, "negative_prompt": False}).capabilities.check(
        "small", Editor
    )


def test_what_the_model_has_not_is_refused(tmp_path: Path) -> None:
    capabilities = small(tmp_path, capabilities={"strength": False, "guidance": False}).capabilities
    capabilities.refuse("small", strength=None, guidance=None, negative_prompt="grey")
    with pytest.raises(InvalidRequest, match=r"guidance is 2\.0, but it must be left out: the model small"):
        capabilities.refuse("small", strength=None, guidance=2.0, negative_prompt="")


def test_any_change_of_a_manifest_changes_its_fingerprint(tmp_path: Path) -> None:
    manifest = small(tmp_path)
    assert manifest.fingerprint == small(tmp_path).fingerprint
    assert manifest.fingerprint != small(tmp_path, title="Smaller").fingerprint
