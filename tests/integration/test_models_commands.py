"""`avatarforge models`: listing, checking and comparing, without a server."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

from avatarforge.cli import app
from avatarforge.cli.contact_sheet import Panel, write_contact_sheet
from avatarforge.diffusion.models.catalogue import Catalogue, Manifest
from avatarforge.imaging.provenance import SOURCE_TYPE
from avatarforge.package_data import package_data
from avatarforge.settings import variables
from tests.checkpoints import CARRIED, img2img_checkpoint, write_manifest

REAL = ["lcm-dreamshaper", "sd-turbo", "sdxl", "sdxl-turbo", "stable-diffusion-1.5"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in variables():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("AVATARFORGE_DIFFUSION_THREADS", "1")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def told(result: Result) -> str:
    """Standard error as one line: the console breaks long ones."""
    return " ".join(result.stderr.split())


# --- list --------------------------------------------------------------------------------------------------


def test_the_list_says_what_each_model_is_and_where_its_weights_are() -> None:
    rows = {row["name"]: row for row in json.loads(run("models", "list", "--json").stdout)}
    mini = rows["avatar-mini"]
    assert (mini["serves"], mini["size"], mini["licence"]) == (True, 256, "Apache-2.0")
    assert mini["weights"] == {
        "kind": "carried",
        "place": str(CARRIED),
        "bytes": sum(path.stat().st_size for path in CARRIED.rglob("*.safetensors")),
        "missing": None,
    }
    turbo = rows["sd-turbo"]
    assert turbo["serves"] is False
    assert turbo["weights"]["kind"] == "hub"
    assert turbo["weights"]["place"].startswith("stabilityai/sd-turbo@")


def test_the_list_shows_the_real_checkpoints_with_their_licences() -> None:
    shown = run("models", "list").stdout
    assert all(name in shown for name in REAL)
    assert "Stability AI Community License" in shown
    assert "CreativeML Open RAIL++-M" in shown


def test_weights_on_the_hub_that_were_never_fetched_are_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    rows = {row["name"]: row for row in json.loads(run("models", "list", "--json").stdout)}
    assert {rows[name]["weights"]["missing"] for name in REAL} == {"not cached"}


def test_a_wrong_manifest_is_listed_with_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVATARFORGE_DIFFUSION_MODELS_DIR", str(tmp_path))
    write_manifest(tmp_path, "good", folder=str(CARRIED))
    (tmp_path / "bad.yaml").write_text("name: bad")
    bad, good = json.loads(run("models", "list", "--json").stdout)
    assert "title: Field required" in bad["fault"]
    assert good["fault"] is None
    assert "title: Field required" in run("models", "list").stdout


# --- check -------------------------------------------------------------------------------------------------


def test_checking_loads_the_model_and_tells_time_and_memory(tmp_path: Path) -> None:
    facts = json.loads(run("models", "check", "avatar-mini", "--out", "picture.png", "--json").stdout)
    assert facts["digests"] == 3
    assert facts["parts"] == {
        "scheduler": "DDIMScheduler",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKLHunyuanImage",
    }
    assert facts["kind"].endswith("editing, predicts the image, zero SNR")
    assert facts["takes"]["fields"] == ["guidance", "negativePrompt", "imageGuidance"]
    assert "watercolor" in facts["takes"]["styles"]
    assert set(facts["seconds"]) == {"read", "measure", "first_image", "image"}
    assert all(seconds > 0 for seconds in facts["seconds"].values())
    assert facts["memory"]["bytes"] > 100_000_000
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (Catalogue().read("avatar-mini").size,) * 2
        assert SOURCE_TYPE in picture.info["XML:com.adobe.xmp"]


def test_checking_shows_the_same_to_people() -> None:
    result = run("models", "check", "avatar-mini")
    assert result.exit_code == 0
    assert "3 checked" in result.stdout
    assert "unet (UNet2DConditionModel, Apache-2.0)" in " ".join(result.stdout.split())
    assert "guidance, negativePrompt, imageGuidance; styles flat-illustration" in result.stdout
    assert "avatar-mini works." in result.stderr


def test_checking_tells_the_kind_and_the_licences_of_what_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVATARFORGE_DIFFUSION_MODELS_DIR", str(tmp_path))
    vae = (img2img_checkpoint() / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text((img2img_checkpoint() / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(vae)
    save_file(
        {"emb_params": np.zeros((1, 32), dtype=np.float32)},
        tmp_path / "word.safetensors",
        {"modelspec.license": "CC0-1.0"},
    )
    checkpoint = shutil.copytree(img2img_checkpoint(), tmp_path / "checkpoint")
    [unet] = (checkpoint / "unet").glob("*.safetensors")
    save_file(load_file(unet), unet, {"modelspec.license": "OpenRAIL++"})
    path = write_manifest(tmp_path, "m", folder=str(checkpoint))
    added = "vae: vae\nembeddings: [{file: word.safetensors, token: <word>}]\nsamplers: [DDIM]\n"
    path.write_text(path.read_text() + added)
    result = run("models", "check", "m")
    assert result.exit_code == 0, result.output
    assert "v-prediction" in result.stdout
    assert "word.safetensors (CC0-1.0)" in "".join(result.stdout.split("\n"))
    assert "its file states no licence" in result.stdout
    assert "samplers DDIM" in result.stdout
    parts = " ".join(result.stdout.split())
    assert "unet (UNet2DConditionModel, OpenRAIL++)" in parts
    assert "vae (AutoencoderTiny, replaced)" in parts
    assert f"text_encoder (CLIPTextModel, {Manifest.read(path).licence})" in parts


def broken(folder: Path) -> Path:
    """A copy of the carried model in the folder `models`, to be broken."""
    return (
        Path(shutil.copytree(package_data("models") / "avatar-mini", folder / "avatar-mini")) / "checkpoint"
    )


def missing_part(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "vae")


def missing_weights(checkpoint: Path) -> None:
    (checkpoint / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def changed_weights(checkpoint: Path) -> None:
    with (checkpoint / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (missing_part, "its part 'vae' is not there"),
        (missing_weights, "diffusion_pytorch_model.safetensors cannot be read"),
        (changed_weights, "SHA-256"),
    ],
)
def test_checking_a_broken_model_says_what_is_wrong_and_exits_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: object, sentence: str
) -> None:
    monkeypatch.setenv("AVATARFORGE_DIFFUSION_MODELS_DIR", str(tmp_path))
    checkpoint = broken(tmp_path)
    manifest = tmp_path / "avatar-mini" / "manifest.yaml"
    if spoil is missing_part:
        manifest.write_text(yaml.safe_dump(yaml.safe_load(manifest.read_text()) | {"sha256": {}}))
    spoil(checkpoint)  # type: ignore[operator]
    result = run("models", "check", "avatar-mini")
    assert result.exit_code == 1
    assert "The model 'avatar-mini' cannot be used" in told(result)
    assert sentence in told(result)
    assert "Traceback" not in result.stderr


def test_checking_a_model_that_is_not_there_is_told_with_near_names() -> None:
    result = run("models", "check", "avatar-mimi")
    assert result.exit_code == 1
    assert "did you mean avatar-mini" in told(result)


# --- compare -----------------------------------------------------------------------------------------------


def test_two_models_are_compared_over_styles_and_strengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVATARFORGE_DIFFUSION_MODELS_DIR", str(tmp_path))
    values = Catalogue().read("avatar-mini").model_dump(mode="json", include={"title", "licence"})
    values |= {
        "family": "stable-diffusion",
        "size": 128,
        "source": {"folder": str(img2img_checkpoint())},
        "defaults": {"steps": 3},
    }
    neon = {"title": "Neon", "prompt": "neon, {prompt}"}
    for name, styles in (("one", {"neon": neon}), ("two", {"oil": neon | {"title": "Oil"}})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values | {"name": name, "styles": styles}))
    result = run("models", "compare", "one", "two", "--strengths", "0.4,1", "--out", "both.png")
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "both.png") in "".join(result.stdout.split())
    with Image.open(tmp_path / "both.png") as sheet:
        assert sheet.size == (1124, 594)
        assert SOURCE_TYPE in sheet.info["XML:com.adobe.xmp"]


def test_the_contact_sheet_has_a_picture_for_each_style_and_strength(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("#c81e1e", "#1e1ec8"))
    panels = [
        Panel(title="One", detail="d" * 500, images={("a", 0.5): red, ("b", 0.5): red}),
        Panel(title="Two", detail="", images={("b", 0.5): blue}),
    ]
    titles = {"a": "A", "b": "B"}
    write_contact_sheet(tmp_path / "s.png", red, titles, (0.5,), panels, "the foot")
    with Image.open(tmp_path / "s.png") as sheet:
        columns, rows = (36 + 220 + 96, 36 + 220 + 192 + 40 + 96), (36 + 100 + 60, 36 + 100 + 192 + 12 + 60)
        assert [[sheet.getpixel((x, y)) for x in columns] for y in rows] == [
            [(200, 30, 30), (236, 234, 228)],
            [(200, 30, 30), (30, 30, 200)],
        ]


@pytest.mark.parametrize("strengths", ["", "high", "0.5,2", "0"])
def test_strengths_that_no_model_knows_are_refused(strengths: str) -> None:
    result = run("models", "compare", "avatar-mini", "avatar-mini", "--strengths", strengths)
    assert result.exit_code == 1
    assert "above 0 and at most 1" in told(result)


def test_comparing_with_a_photo_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "words.jpg").write_text("words")
    for photo, sentence in (("nowhere.jpg", "There is no photo"), ("words.jpg", "is not an image")):
        result = run("models", "compare", "avatar-mini", "avatar-mini", "--photo", photo)
        assert result.exit_code == 1
        assert sentence in told(result)
