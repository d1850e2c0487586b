"""Print `avatarforge/client/sync_client.py`, generated from `async_client.py`. `make client` writes it."""

import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "avatarforge" / "client" / "async_client.py"
REPLACEMENTS = {
    "AsyncClient": "Client",
    "AsyncBaseTransport": "BaseTransport",
    "aclose": "close",
    "aiter_bytes": "iter_bytes",
    "aread": "read",
    "async_load_photo": "load_photo",
    # For `sleep`.
    "asyncio": "time",
}


def generate() -> str:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "sync_client.py")
        rule = unasync.Rule(str(SOURCE), str(target), additional_replacements=REPLACEMENTS)
        unasync.unasync_files([str(SOURCE)], [rule])
        # In docstrings; unasync only changes code.
        code = target.read_text().replace("async with", "with")
    for command in ("check --select I,UP028 --fix --unsafe-fixes", "format"):
        code = subprocess.run(
            [sys.executable, "-m", "ruff", *command.split(), "--quiet", "-"],
            input=code,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
    return code


if __name__ == "__main__":
    print(generate(), end="")
