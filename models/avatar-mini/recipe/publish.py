"""Puts a trained checkpoint into the project: copies the folder and writes its digests into the manifest.

python publish.py CHECKPOINT
"""

import argparse
import hashlib
import shutil
from pathlib import Path

from training import replace_folder

MODEL = Path(__file__).resolve().parents[1]
_HEADING = "sha256:\n"


def publish(checkpoint: Path, model: Path) -> None:
    """Replace the checkpoint in `model`, a folder with a manifest, and the digests at the manifest's end.

    Raises:
        SystemExit: `checkpoint` is no folder of a pipeline, or the manifest has no digests.
    """
    if not (checkpoint / "model_index.json").is_file():
        raise SystemExit(f"{checkpoint} holds no model_index.json; name a folder that train.py wrote")
    manifest = model / "manifest.yaml"
    before, heading, _ = manifest.read_text().partition(_HEADING)
    if not heading:
        raise SystemExit(f"{manifest} has no line {_HEADING.strip()!r} at its end")
    kept = model / "checkpoint"
    with replace_folder(kept) as fresh:
        shutil.copytree(checkpoint, fresh, copy_function=shutil.copyfile)
    files = sorted(kept.rglob("*.safetensors"))
    digests = (f"  {file.relative_to(model)}: {_digest(file)}\n" for file in files)
    manifest.write_text(before + heading + "".join(digests))


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="the folder that train.py wrote")
    publish(parser.parse_args().checkpoint.resolve(), MODEL)


if __name__ == "__main__":
    main()
