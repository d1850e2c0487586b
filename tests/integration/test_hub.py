"""Checkpoints from a hub: fetched once, then taken from the cache. The hub is on this machine.

Its client reads addresses and folders when it is imported, so each load is a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checkpoints import img2img_checkpoint
from tests.servers.hub import COMMIT, serving_hub


class Machine:
    """A machine with its own cache, and a manifest that names the hub's repository."""

    def __init__(self, folder: Path, url: str) -> None:
        source = {"hub": {"repository": "someone/small", "revision": COMMIT}}
        values = {"name": "small", "title": "Small", "family": "stable-diffusion", "licence": "none"}
        (folder / "models").mkdir()
        (folder / "models" / "small.yaml").write_text(
            yaml.safe_dump(values | {"size": 128, "source": source})
        )
        self.environ = os.environ | {
            "HF_ENDPOINT": url,
            "HF_HOME": str(folder / "hf"),
            "AVATARFORGE_DIFFUSION_MODELS_DIR": str(folder / "models"),
            "AVATARFORGE_DIFFUSION_THREADS": "1",
            "COLUMNS": "1000",
        }

    def models(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "avatarforge", "models", *arguments],
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def listed(self) -> dict[str, Any]:
        (row,) = json.loads(self.models("list", "--json").stdout)
        weights: dict[str, Any] = row["weights"]
        return weights


def test_a_checkpoint_is_fetched_once_and_then_loaded_without_the_hub(tmp_path: Path) -> None:
    with serving_hub(img2img_checkpoint()) as hub:
        machine = Machine(tmp_path, hub.url)
        assert machine.listed()["missing"] == "not cached"
        first = machine.models("check", "small")
        assert first.returncode == 0, first.stderr
        assert "unet/diffusion_pytorch_model.safetensors" in hub.fetched
    again = machine.models("check", "small", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert machine.listed() == {
        "kind": "hub",
        "place": f"someone/small@{COMMIT}",
        "bytes": sum(path.stat().st_size for path in img2img_checkpoint().rglob("*.safetensors")),
        "missing": None,
    }


def test_a_download_that_breaks_off_is_taken_up_again(tmp_path: Path) -> None:
    weights = "unet/diffusion_pytorch_model.safetensors"
    with serving_hub(img2img_checkpoint()) as hub:
        hub.torn.add(weights)
        checked = Machine(tmp_path, hub.url).models("check", "small")
    assert checked.returncode == 0, checked.stderr
    assert hub.fetched.count(weights) == 2


@pytest.mark.parametrize("environ", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["no hub", "offline"])
def test_a_checkpoint_that_cannot_be_fetched_says_what_to_do(tmp_path: Path, environ: dict[str, str]) -> None:
    # Nothing listens on port 9 of this machine.
    machine = Machine(tmp_path, "http://127.0.0.1:9")
    checked = machine.models("check", "small", **environ)
    assert checked.returncode == 1
    assert "in the hub's cache" in checked.stderr
    assert str(tmp_path / "hf" / "hub") in checked.stderr
    assert "HF_HUB_OFFLINE=1" in checked.stderr
    assert "`avatarforge models check small`" in checked.stderr
    assert "Traceback" not in checked.stderr


def test_a_repository_without_safetensors_is_refused(tmp_path: Path) -> None:
    pickled = tmp_path / "repository"
    for path in img2img_checkpoint().rglob("*"):
        if path.is_file():
            copy = pickled / path.relative_to(img2img_checkpoint())
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.with_suffix(".bin" if copy.suffix == ".safetensors" else copy.suffix).write_bytes(
                path.read_bytes()
            )
    with serving_hub(pickled) as hub:
        checked = Machine(tmp_path, hub.url).models("check", "small")
    assert checked.returncode == 1
    assert "AVATARFORGE_DIFFUSION_ALLOW_PICKLE" in checked.stderr
    assert not any(name.endswith(".bin") for name in hub.fetched)
