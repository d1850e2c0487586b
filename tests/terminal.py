"""A terminal in which the code blocks of our documents are run as a reader would type them."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from avatarforge.settings import PREFIX
from tests.documents import Block
from tests.servers.mariadb import free_port

TREE = Path(__file__).parents[1]
LEFT_BEHIND = ("data", "out", "dist", "benchmarks", "tests")
BLOCK_SECONDS = 90
PORTS = ("8000", "9000", "8800")

# A shell that says which line of the block failed, and a curl that fails when the server refuses.
PROLOGUE = """
set -Eeuo pipefail
trap 'echo "line $((LINENO - OFFSET)): $BASH_COMMAND" >&2' ERR
curl() { command curl --silent --show-error --fail-with-body "$@"; }
[ -f .exports ] && . ./.exports
OFFSET=$LINENO
"""
EPILOGUE = "\nexport -p | grep -v -E '^declare -x (OFFSET|PWD|OLDPWD|SHLVL|_)=' > .exports || true\n"


class Terminal:
    """A copy of the tree in which blocks are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports = {port: str(free_port()) for port in PORTS}
        self._background: list[subprocess.Popen[bytes]] = []
        shutil.copytree(TREE, folder, ignore=_ignored, symlinks=True)
        (folder / "data").mkdir()
        (folder / ".venv").symlink_to(TREE / ".venv")
        # The reader's own photo.
        shutil.copy(TREE / "avatarforge" / "samples" / "portrait.png", folder / "me.jpg")
        for name in ("pyproject.toml", "constraints.txt"):
            # Older than what is installed: `make` has nothing to install.
            os.utime(folder / name, (0, 0))

    def run(self, block: Block) -> None:
        """Raises `AssertionError`, with the block's place, when it does not do what it should."""
        code = self._code(block)
        if block.background_until is not None:
            self._start(block, code, block.background_until)
            return
        try:
            done = subprocess.run(
                self._command(block, code),
                cwd=self.folder,
                env=self._environ(),
                capture_output=True,
                text=True,
                timeout=block.cut_after or BLOCK_SECONDS,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as late:
            said = (late.stdout or b"").decode()
            if block.cut_after is None or not said:
                what = (
                    f"it did not end in {late.timeout:g} s" if block.cut_after is None else "it said nothing"
                )
                raise AssertionError(_told(block, what, said)) from None
            return
        said = done.stdout + done.stderr
        if block.is_refused:
            assert done.returncode != 0, _told(block, "it was not refused", said)
        else:
            assert done.returncode == 0, _told(block, f"it ended with {done.returncode}", said)

    def close(self) -> None:
        for process in self._background:
            # Not SIGINT: where a shell started us in its background, that one is ignored.
            process.terminate()
        for process in self._background:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _start(self, block: Block, code: str, words: str) -> None:
        """Return once the program has said the words; it goes on."""
        log = self.folder / f"background-{len(self._background)}.log"
        with log.open("wb") as file:
            self._background.append(
                subprocess.Popen(
                    self._command(block, code),
                    cwd=self.folder,
                    env=self._environ(),
                    stdout=file,
                    stderr=file,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        deadline = time.monotonic() + BLOCK_SECONDS
        while words not in (said := log.read_text(errors="replace")):
            assert self._background[-1].poll() is None, _told(block, "it ended", said)
            assert time.monotonic() < deadline, _told(block, f"no {words!r}", said)
            time.sleep(0.1)

    def _command(self, block: Block, code: str) -> list[str]:
        if block.language == "python":
            return [str(TREE / ".venv" / "bin" / "python"), "-c", code]
        if block.background_until is not None:
            # The last program takes the shell's place, so that Ctrl-C reaches it.
            *before, last = [line for line in code.splitlines() if line.strip()]
            code = "\n".join([*before, f"exec {last}"])
            return ["bash", "-c", PROLOGUE + code]
        return ["bash", "-c", PROLOGUE + code + EPILOGUE]

    def _code(self, block: Block) -> str:
        return re.sub(r"\b(" + "|".join(PORTS) + r")\b", lambda port: self._ports[port[0]], block.code)

    def _environ(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        return {
            **inherited,
            "AVATARFORGE_HTTP_PORT": self._ports["8000"],
            "AVATARFORGE_GRPC_PORT": self._ports["9000"],
        }


def _ignored(folder: str, names: list[str]) -> set[str]:
    hidden = {name for name in names if name.startswith(".") or name == "__pycache__"}
    return hidden | set(LEFT_BEHIND) if Path(folder) == TREE else hidden


def _told(block: Block, what: str, said: str) -> str:
    return f"{block.place}: {what}.\n--- the block\n{block.code}\n--- it said\n{said[-4000:]}"
