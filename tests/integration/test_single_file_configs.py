"""The configuration that is written for a single file without one."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from avatarforge.diffusion.models import pipelines, single_file_configs
from avatarforge.diffusion.models.catalogue import Manifest
from avatarforge.diffusion.models.single_file_configs import write_config
from avatarforge.diffusion.models.weights import read_parts
from avatarforge.domain.errors import ModelUnusable
from tests.checkpoints import img2img
from tests.single_file import single_file

MARKS = {
    "1": "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    "2": "cond_stage_model.model.ln_final.weight",
    "xl": "conditioner.embedders.1.model.ln_final.weight",
}
PARAMETERS = {
    "1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "xl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}
"""As the published checkpoints have them."""


def marked(folder: Path, kind: str) -> Path:
    """A file that holds no more than what its kind is recognised by."""
    save_file({MARKS[kind]: torch.zeros(1)}, folder / "w.safetensors")
    return folder / "w.safetensors"


def written(folder: Path, kind: str, **options: Any) -> Path:
    (folder / "config").mkdir()
    write_config("m", marked(folder, kind), folder / "config", **options)
    return folder / "config"


@pytest.mark.parametrize("kind", MARKS)
def test_every_part_has_the_size_of_the_published_one(tmp_path: Path, kind: str) -> None:
    from accelerate import init_empty_weights

    config = written(tmp_path, kind, prediction_type="v_prediction" if kind == "2" else None)
    found = {}
    for name, (library, own_class) in read_parts(config).items():
        if name not in PARAMETERS[kind]:
            continue
        module = getattr(importlib.import_module(library), own_class)
        with init_empty_weights():
            if library == "diffusers":
                part = module.from_config(module.load_config(str(config / name)))
            else:
                part = module(module.config_class.from_pretrained(str(config / name)))
        found[name] = sum(weights.numel() for weights in part.parameters())
    assert found == PARAMETERS[kind]


def test_the_tokenizers_read_as_clip_does(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    config = written(tmp_path, "xl")
    first, second = (CLIPTokenizer.from_pretrained(config / name) for name in ("tokenizer", "tokenizer_2"))
    cat = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert first("a photo of a cat").input_ids == second("A photo of a  cat").input_ids == cat
    assert (first.pad_token_id, second.pad_token_id) == (49407, 0)
    assert (first.model_max_length, second.model_max_length) == (77, 77)


def test_a_file_of_stable_diffusion_2_must_be_told_how_it_was_trained(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match="does not say how it was trained: its source must say"):
        written(tmp_path, "2")


def test_another_file_needs_a_config(tmp_path: Path) -> None:
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelUnusable, match="a Flux file: without a `config` only Stable Diffusion 1, 2 and"):
        write_config("m", tmp_path / "w.safetensors", tmp_path)


def test_a_changed_vocabulary_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "changed.gz").write_bytes(b"changed")
    monkeypatch.setattr(single_file_configs, "_VOCABULARY", tmp_path / "changed.gz")
    with pytest.raises(OSError, match="was changed"):
        written(tmp_path, "1")


def test_a_file_without_a_config_is_loaded_as_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_config = single_file(tmp_path, img2img())
    config = tmp_path / "config"
    sizes = {
        name: json.loads((config / name / "config.json").read_text())
        for name in ("unet", "vae", "text_encoder")
    }
    monkeypatch.setattr(single_file_configs, "CONFIGS", {"a Stable Diffusion 1 file": sizes})
    values = {"name": "n", "title": "N", "family": "stable-diffusion", "licence": "none", "size": 64}
    source = {"file": "w.safetensors", "prediction_type": "v_prediction"}
    (tmp_path / "n.yaml").write_text(yaml.safe_dump(values | {"source": source}))
    expected, loaded = (
        pipelines.load(manifest, "cpu", torch.float32)
        for manifest in (with_config, Manifest.read(tmp_path / "n.yaml"))
    )
    assert type(loaded) is type(expected)
    for name in sizes:
        ours, theirs = (getattr(one, name).state_dict() for one in (loaded, expected))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert loaded.safety_checker is None
    assert loaded.tokenizer("a cat").input_ids[1:3] == [320, 2368]
