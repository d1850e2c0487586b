"""The wheel, installed elsewhere: it carries all that `avatarforge up` needs."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from avatarforge.diffusion.models.catalogue import Catalogue
from tests.servers.mariadb import free_port

TREE = Path(__file__).parents[2]
NEEDED = (
    "avatarforge/_carried/migrations/env.py",
    "avatarforge/_carried/models/avatar-mini/manifest.yaml",
    "avatarforge/_carried/proto/profile_photo_job.proto",
    "avatarforge/_carried/serve_config.yaml",
    "avatarforge/diffusion/models/clip_vocabulary.LICENSE.txt",
    "avatarforge/diffusion/models/clip_vocabulary.txt.gz",
    "avatarforge/ingress/studio/figtree.LICENSE.txt",
    "avatarforge/ingress/studio/figtree.woff2",
    "avatarforge/ingress/studio/index.html",
    "avatarforge/ingress/studio/main.js",
    "avatarforge/ingress/studio/studio.css",
    "avatarforge/ingress/studio/styles/neon.svg",
    "avatarforge/samples/portrait.png",
    "avatarforge/py.typed",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make build` builds it."""
    folder = tmp_path_factory.mktemp("dist")
    _run([sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, TREE])
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content and nothing of the source tree. Its needs come from this Python."""
    folder = tmp_path_factory.mktemp("site")
    _run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", folder, wheel])
    return folder


def test_the_wheel_holds_models_migrations_and_proto_and_no_caches(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert [name for name in NEEDED if name not in names] == []
    assert [name for name in names if "__pycache__" in name] == []
    assert any(name.endswith("unet/diffusion_pytorch_model.safetensors") for name in names)


def test_the_installed_wheel_forges_an_avatar_in_an_unrelated_folder(installed: Path, tmp_path: Path) -> None:
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AVATARFORGE_")},
        "PYTHONPATH": str(installed),
        "AVATARFORGE_HTTP_PORT": str(free_port()),
        "AVATARFORGE_DATA_DIR": str(tmp_path / "data"),
    }
    where = "import avatarforge; print(avatarforge.__file__)"
    imported = _run([sys.executable, "-c", where], cwd=tmp_path, env=environ)
    assert Path(imported).is_relative_to(installed), "the wheel is tested, not the source tree"

    forge = [sys.executable, "-m", "avatarforge", "forge", "--start", "--json", "--seed", "1"]
    results = json.loads(_run(forge, cwd=tmp_path, env=environ))
    assert [result["job"]["status"] for result in results] == ["DONE"]
    with Image.open(results[0]["avatars"][0]) as avatar:
        side = Catalogue(None).read("avatar-mini").size
        assert avatar.size == (side, side)


def _run(command: list[object], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
