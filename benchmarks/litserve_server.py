"""What a user would write with LitServe: a server that calls a diffusers pipeline with up to eight requests.

`python -m benchmarks.litserve_server MODEL THREADS PORT`; `POST /predict` takes JSON, `photo` (a file in
base64) and the fields of `Wishes`, and answers with a PNG. It stops when its standard input is closed.

Of each photo it makes what AvatarForge makes: the square around the face, with the same code, and from it an
avatar with the request's own steps, guidances and seed. It keeps nothing: no photos, freed from metadata,
and no jobs that outlive it.
"""

import base64
import io
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import litserve
from fastapi import Response
from PIL import Image

from avatarforge.diffusion.models.catalogue import Catalogue
from avatarforge.imaging.crop import square
from avatarforge.imaging.decode import load_upright

BATCH = 8
BATCH_TIMEOUT_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a request asks of its image."""

    prompt: str
    seed: int
    steps: int
    guidance: float
    image_guidance: float


class PhotoApi(litserve.LitAPI):  # type: ignore[misc]  # it has no types
    """A call of diffusers' pipeline has one number of steps and one guidance: a batch is split by these."""

    def __init__(self, model: str, threads: int) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=BATCH_TIMEOUT_SECONDS)
        self._model, self._threads = model, threads

    def setup(self, device: str) -> None:
        self._pipeline = load_pipeline(self._model, self._threads)
        self._size = Catalogue().read(self._model).size

    def decode_request(self, request: Mapping[str, Any]) -> tuple[Image.Image, Wishes]:
        wishes = dict(request)
        photo = load_upright(base64.b64decode(wishes.pop("photo")))
        return square(photo, self._size)[0], Wishes(**wishes)

    def predict(self, inputs: Sequence[tuple[Image.Image, Wishes]]) -> list[Image.Image]:
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, (_, wishes) in enumerate(inputs):
            alike = wishes.steps, wishes.guidance, wishes.image_guidance
            groups.setdefault(alike, []).append(place)
        images: dict[int, Image.Image] = {}
        for places in groups.values():
            made = call_pipeline(self._pipeline, [inputs[place] for place in places])
            images.update(zip(places, made, strict=True))
        return [images[place] for place in range(len(inputs))]

    def encode_response(self, output: Image.Image) -> Response:
        png = io.BytesIO()
        output.save(png, "PNG")
        return Response(png.getvalue(), media_type="image/png")


def load_pipeline(model: str, threads: int) -> Any:
    """Return diffusers' pipeline of the carried checkpoint, in float32 on the CPU."""
    # First: OpenMP's threads wait as they do for everybody who has said nothing.
    import torch

    from avatarforge.diffusion.models import pipelines

    pipelines.import_libraries(threads)
    pipeline = pipelines.load(Catalogue().read(model), "cpu", torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call_pipeline(pipeline: Any, requests: Sequence[tuple[Image.Image, Wishes]]) -> list[Image.Image]:
    """Call it once with requests that differ in photo, prompt and seed alone."""
    import torch

    first = requests[0][1]
    made: list[Image.Image] = pipeline(
        prompt=[wishes.prompt for _, wishes in requests],
        image=[photo for photo, _ in requests],
        num_inference_steps=first.steps,
        guidance_scale=first.guidance,
        image_guidance_scale=first.image_guidance,
        generator=[torch.Generator("cpu").manual_seed(wishes.seed) for _, wishes in requests],
    ).images
    return made


def main() -> None:
    model, threads, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

    def end_with_input() -> None:
        # Without Python's file, whose lock the processes that LitServe forks would inherit.
        while os.read(0, 1):
            pass
        os.killpg(0, 15)

    os.setpgid(0, 0)
    threading.Thread(target=end_with_input, daemon=True).start()
    server = litserve.LitServer(PhotoApi(model, threads), accelerator="cpu", timeout=600)
    server.run(
        host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, log_level="warning"
    )


if __name__ == "__main__":
    main()
