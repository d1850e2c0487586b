"""The recipe of the carried checkpoint: what training begins with, bad input, and what a kill leaves."""

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avatarforge.cli.photos import SAMPLE
from avatarforge.diffusion.models.catalogue import Manifest
from tests.checkpoints import CARRIED, img2img_checkpoint

RECIPE = Path(__file__).parents[2] / "models" / "avatar-mini" / "recipe"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPE))


def module(name: str) -> Any:
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def portrait() -> Any:
    """(1, 3, 256, 256) in -1 to 1."""
    import torch

    with Image.open(SAMPLE) as sample:
        pixels = np.asarray(sample.convert("RGB").resize((256, 256)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def psnr(first: Any, second: Any) -> float:
    return float(-10 * ((first - second) / 2).square().mean().log10())


# --- what training begins with ----------------------------------------------------------------------------


def test_the_untrained_autoencoder_is_the_code_that_it_was_set_to(portrait: Any) -> None:
    import torch

    autoencoder = module("autoencoder")
    code = autoencoder.find_code(torch.cat([portrait, portrait.flip(3)]))
    model = autoencoder.create_autoencoder(code).eval()
    with torch.inference_mode():
        latents = model.encode(portrait).latent_dist.mode()
        shown = model.decode(latents).sample
    assert latents.shape == (1, autoencoder.LATENTS, 32, 32)
    assert (latents - code.encode(portrait)).abs().max() < 1e-4
    assert psnr(shown, code.decode(latents)) >= 50


def test_the_code_keeps_even_squares_as_they_are(portrait: Any) -> None:
    from torch.nn import functional

    code = module("autoencoder").find_code(portrait)
    even = functional.interpolate(functional.avg_pool2d(portrait, 4), scale_factor=4.0)
    assert (code.decode(code.encode(even)) - even).abs().max() < 0.01


def test_the_code_can_be_read_from_an_autoencoder(portrait: Any) -> None:
    autoencoder = module("autoencoder")
    code = autoencoder.find_code(portrait)
    read = autoencoder.read_code(autoencoder.create_autoencoder(code))
    latents = code.encode(portrait)
    assert (read.encode(portrait) - latents).abs().max() < 1e-4
    # Between two pictures there is no difference.
    apart = read.decode(latents) - read.decode(latents.flip(3))
    assert (apart - code.decode(latents) + code.decode(latents.flip(3))).abs().max() < 1e-4


def test_the_untrained_denoiser_answers_noise_with_the_photo() -> None:
    import torch

    denoiser = module("denoiser")
    torch.manual_seed(1)
    model = denoiser.create_denoiser().eval()
    noise, photo = torch.randn(2, 1, 32, 32, 32)
    words = torch.randn(1, 77, 128)
    with torch.inference_mode():
        made = model(torch.cat([noise, photo], dim=1), denoiser.LAST, words).sample
    assert (made - photo).square().mean() < 0.05 * photo.square().mean()


def test_training_goes_on_from_the_carried_checkpoint(portrait: Any, tmp_path: Path) -> None:
    import torch

    denoiser, train = module("denoiser"), module("train")
    train.take_over(CARRIED, tmp_path)
    code = train.find_or_load_code(tmp_path, [])
    model = denoiser.create_denoiser()
    assert train.load_weights(model, tmp_path / "denoiser.pt")
    words = train.train_or_load_words(tmp_path, minutes=0, seed=1)
    with torch.inference_mode():
        photo = code.encode(portrait)
        seen = torch.cat([torch.randn(photo.shape), photo], dim=1)
        made = model(seen, denoiser.LAST, words.encode(["pencil sketch"])).sample
    drawn = code.decode(made).std(dim=1).mean()
    assert drawn < 0.5 * portrait.std(dim=1).mean(), "a pencil sketch is nearly grey"


def test_only_a_checkpoint_of_this_recipe_can_be_gone_on_from(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is no checkpoint that this recipe can go on from"):
        module("train").take_over(tmp_path / "nothing", tmp_path / "work")
    with pytest.raises(SystemExit, match="is no checkpoint that this recipe can go on from"):
        module("train").take_over(img2img_checkpoint(), tmp_path / "work")


def test_every_style_is_a_filter_that_keeps_size_and_range(portrait: Any) -> None:
    styles, captions = module("styles"), module("captions")
    assert list(styles.STYLES) == list(captions.STYLES)
    corner = (portrait[..., 64:192, 64:192] + 1) / 2
    drawn = {name: draw(corner) for name, draw in styles.STYLES.items()}
    for picture in drawn.values():
        assert picture.shape == corner.shape
        assert -0.01 <= picture.min() <= picture.max() <= 1.01
        assert (picture - corner).abs().mean() > 0.01


# --- captions ---------------------------------------------------------------------------------------------


def test_a_caption_names_what_it_is_labelled_with_before_anything_else() -> None:
    captions, text_encoder = module("captions"), module("text_encoder")
    rng = np.random.default_rng(3)
    sampled = [captions.sample_caption(rng) for _ in range(400)]
    labels = text_encoder.label(sampled)
    for caption, (style, background, tone) in zip(sampled, labels.tolist(), strict=True):
        assert (caption.style, caption.background, caption.tone) == (
            [None, *captions.STYLES][style],
            [None, *captions.BACKGROUNDS][background],
            [None, *captions.TONES][tone],
        )
        assert first_style(captions, caption.text) == caption.style, caption
        if caption.tone:
            assert any(words in caption.text for words in captions.TONES[caption.tone]), caption
    assert len(set(map(tuple, labels.tolist()))) > 100


def first_style(captions: Any, text: str) -> str | None:
    """The style whose words come first, the longest of those that begin at one place."""
    places = [
        (text.index(words), -len(words), style)
        for style, several in captions.STYLES.items()
        for words in several
        if words in text
    ]
    return min(places)[2] if places else None


# --- portraits --------------------------------------------------------------------------------------------


def make_portraits(folder: Path, number: int) -> Path:
    folder.mkdir(exist_ok=True)
    for one in range(number):
        Image.new("RGB", (300, 360), (one, 90, 200)).save(folder / f"{one:03}.jpg")
    return folder


def test_the_split_depends_on_nothing_but_the_names(tmp_path: Path) -> None:
    photos = module("photos")
    folder = make_portraits(tmp_path / "p", 25)
    (folder / "000-notes.txt").write_text("no portrait")
    training, validation = photos.split_files(folder)
    assert [file.name for file in validation] == ["000.jpg", "010.jpg", "020.jpg"]
    assert len(training) == 22
    assert not set(training) & set(validation)


def folder_of_text(folder: Path) -> None:
    for number in range(20):
        (folder / f"{number}.txt").write_text("no portrait")


def folder_of_text_called_jpeg(folder: Path) -> None:
    for number in range(20):
        (folder / f"{number}.jpg").write_text("no portrait")


@pytest.mark.parametrize(
    ("fill", "told"),
    [
        (lambda folder: folder.rmdir(), "is not a folder; name one with JPEG or PNG portraits"),
        (lambda folder: None, "holds 0 JPEG or PNG files; at least 8 people are needed"),
        (folder_of_text, "holds 0 JPEG or PNG files"),
        (lambda folder: make_portraits(folder, 1), "holds 1 JPEG or PNG files; at least 8 people"),
        (folder_of_text_called_jpeg, r"1\.jpg is not a picture that can be read; take it out"),
        (lambda folder: make_portraits(folder, 12), "a face was found in 0 of 10 photos"),
    ],
    ids=["missing", "empty", "text", "one person", "text called JPEG", "no faces"],
)
def test_portraits_that_cannot_be_trained_on_are_told_in_a_sentence(
    tmp_path: Path, fill: Any, told: str
) -> None:
    photos = module("photos")
    folder = tmp_path / "portraits"
    folder.mkdir()
    fill(folder)
    with pytest.raises(SystemExit, match=told):
        photos.load_people(photos.split_files(folder)[0])


# --- what stays when a run does not end well --------------------------------------------------------------


def test_a_full_disk_leaves_the_file_before_and_no_half_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    training = module("training")
    file = tmp_path / "denoiser.pt"
    training.save_whole({"step": torch.tensor(1)}, file)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        training.save_whole({"step": torch.tensor(2)}, file)
    assert list(tmp_path.iterdir()) == [file]
    assert torch.load(file)["step"] == 1


SAVING = """
import sys, torch
from pathlib import Path
from training import save_whole
for step in range(10**6):
    save_whole({"weights": torch.full((500_000,), float(step))}, Path(sys.argv[1]))
"""


def test_a_process_killed_while_it_saves_leaves_whole_weights(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "denoiser.pt"
    process = subprocess.Popen([sys.executable, "-c", SAVING, str(file)], cwd=RECIPE)
    try:
        deadline = time.monotonic() + 120
        while not file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(random.uniform(0, 0.5))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    weights = torch.load(file)["weights"]
    assert (weights == weights[0]).all()


# --- publishing -------------------------------------------------------------------------------------------


def test_publishing_copies_the_checkpoint_and_renews_the_digests(tmp_path: Path) -> None:
    publish = module("publish")
    model = tmp_path / "avatar-mini"
    (model / "checkpoint").mkdir(parents=True)
    (model / "checkpoint" / "left.over").touch()
    manifest = (CARRIED.parent / "manifest.yaml").read_text()
    (model / "manifest.yaml").write_text(manifest.partition("sha256:")[0] + "sha256:\n  old: '0'\n")
    publish.publish(CARRIED, model)
    assert (model / "manifest.yaml").read_text() == manifest, "the carried manifest has the carried digests"
    Manifest.read(model / "manifest.yaml").check_files()
    assert not (model / "checkpoint" / "left.over").exists()
    assert sorted(model.iterdir()) == [model / "checkpoint", model / "manifest.yaml"]
    with pytest.raises(SystemExit, match=r"holds no model_index\.json"):
        publish.publish(tmp_path, model)


def test_figures_are_written_between_the_marks_of_the_card_again_and_again(tmp_path: Path) -> None:
    report = module("report")
    rate = {"nearest_is_own": 97.6, "face_found": 100.0}
    repeated = rate | {"psnr": 25.2}
    style = {"avatar": rate, "filter": rate, "filter_through_autoencoder": repeated}
    style |= {"is_the_style": 99.5, "lab_distance": 3.5, "psnr_to_filter": 21.0}
    figures = {
        "people": 41,
        "styles": {"neon": style},
        "photo_through_autoencoder": repeated,
        "steps": {"1": rate, "8": rate | {"nearest_is_own": 95.0}},
        "background": {"styles_that_keep_colour": 97.0, "other_styles": 90.0},
        "odd_photos": {"00-dark, neon": 0.81, "01-tilted, neon": 0.92},
    }
    card = tmp_path / "README.md"
    card.write_text((CARRIED.parent / "README.md").read_text())
    report.write_figures(figures, card)
    once = card.read_text()
    assert "| neon | 97.6 % |" in once
    assert "8: 95 % and 100 %" in once
    assert "lowest 0.81 (00-dark, neon)" in once
    report.write_figures(figures, card)
    assert card.read_text() == once
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "people.png").touch()
    report.write_figures(figures, card)
    assert "(grids/people.png)" in card.read_text()
    card.write_text("no marks")
    with pytest.raises(SystemExit, match="lacks the marks"):
        report.write_figures(figures, card)
