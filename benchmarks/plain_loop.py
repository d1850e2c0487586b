"""What a user would write without AvatarForge: a loop over a diffusers pipeline, in its own process.

`python -m benchmarks.plain_loop MODEL THREADS FOLDER` loads the pipeline; each line of seeds on standard
input is a turn, answered by a line of JSON.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.photos import SAMPLE_PORTRAIT
from benchmarks.service import ROOT, stop

POLICIES: dict[str, dict[str, str]] = {"default": {}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}
"""How OpenMP's threads wait for each other: as nobody has said, and as the service has it."""


class PlainLoop:
    """The loop's process, from here."""

    def __init__(self, model: str, threads: int, policy: str, folder: Path) -> None:
        """`threads` as in the setting `diffusion.threads`, `policy` one of `POLICIES`.

        Pictures go to `folder`, by seed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.policy = policy
        self._log = folder / "loop.log"
        variables = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        with self._log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.plain_loop", model, str(threads), str(folder)],
                cwd=ROOT,
                env=variables | POLICIES[policy],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self.facts = str(self._answer())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop(self._process)
        assert self._process.stdout is not None, "a pipe"
        self._process.stdout.close()

    def run(self, seeds: Iterable[int]) -> float:
        """Seconds for one picture of each seed."""
        assert self._process.stdin is not None, "a pipe"
        self._process.stdin.write(" ".join(map(str, seeds)).encode() + b"\n")
        self._process.stdin.flush()
        seconds = self._answer()
        assert isinstance(seconds, float)
        return seconds

    def _answer(self) -> object:
        assert self._process.stdout is not None, "a pipe"
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The loop ended:\n{self._log.read_text(errors='replace')[-3000:]}")
        answer: object = json.loads(line)
        return answer


def main() -> None:
    model, threads, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])

    # First, so that OpenMP keeps the policy that our caller has chosen.
    import torch

    from avatarforge.diffusion.models import pipelines
    from avatarforge.diffusion.models.catalogue import Catalogue
    from avatarforge.imaging.crop import square
    from avatarforge.imaging.decode import load_upright

    pipelines.import_libraries(threads)
    manifest = Catalogue().read(model)
    pipeline = pipelines.load(manifest, "cpu", torch.float32)
    picture, _ = square(load_upright(SAMPLE_PORTRAIT.read_bytes()), manifest.size)
    defaults, prompt = manifest.defaults, manifest.build_prompt(None, "")
    dial = (
        {"strength": defaults.strength}
        if manifest.capabilities.strength
        else {"image_guidance_scale": defaults.image_guidance}
    )
    _say(
        f"{model}, {manifest.size} px, {defaults.steps} steps, {dial}, guidance "
        f"{defaults.guidance}, prompt {prompt!r}, float32, {torch.get_num_threads()} torch threads"
    )
    for line in sys.stdin:
        images = {}
        begun = time.perf_counter()
        for seed in map(int, line.split()):
            images[seed] = pipeline(
                prompt=prompt,
                image=picture,
                **dial,
                num_inference_steps=defaults.steps,
                guidance_scale=defaults.guidance,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="pil",
            ).images[0]
        _say(time.perf_counter() - begun)
        for seed, image in images.items():
            image.save(folder / f"{seed}.png")


def _say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
