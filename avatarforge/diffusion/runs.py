"""One request on its way through the batching engine."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from avatarforge.diffusion.engine import EngineRequest, EngineResult, EngineStep, News
from avatarforge.diffusion.families import Conditions
from avatarforge.diffusion.previews import SECONDS, encoded
from avatarforge.diffusion.schedules import Plan, Trajectory
from avatarforge.domain.errors import AvatarForgeError, ImageNotFinite, ImageWithheld
from avatarforge.domain.jobs import Stage

Arriving = Callable[[], Tensor]
"""Waits for a tensor on its way from the device."""


class Run:
    """What is known of one picture so far. The engine's thread writes it; others only deliver."""

    def __init__(self, request: EngineRequest, model: str, news: News) -> None:
        self.request = request
        self.news = news
        self.plan: Plan
        self.pixels: Tensor
        self.trajectory: Trajectory
        self.conditions: Conditions
        self._model = model
        self._failed = False
        self._preview: bytes | None = None
        self._begun = self._encoded = self._denoised = self._shown = 0.0

    @property
    def alive(self) -> bool:
        """Whether anybody wants more of it."""
        return not self._failed and not self.news.unwanted

    @property
    def ended(self) -> bool:
        """Whether all its steps are done."""
        return self.trajectory.ended

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.trajectory.sample.shape)

    def begin(self) -> None:
        """Its turn has come."""
        self._begun = perf_counter()
        self._tell_step(0)

    def encoded(self, trajectory: Trajectory) -> None:
        """The photo is latents now."""
        self.trajectory = trajectory
        self._encoded = self._shown = perf_counter()

    def stepped(self) -> None:
        """A step is done."""
        self._denoised = perf_counter()
        self._tell_step(self.trajectory.done)

    def fail(self, error: AvatarForgeError) -> None:
        """There will be no picture. Only the first reason is told."""
        if not self._failed:
            self._failed = True
            self.news.tell(error)

    # --- what other threads deliver ---------------------------------------------------------------

    def wants_preview(self) -> bool:
        """Whether enough time has passed since the last one. Asking counts as having it."""
        now = perf_counter()
        if self.trajectory.ended or now - self._shown < SECONDS:
            return False
        self._shown = now
        return True

    def show(self, colours: Arriving) -> None:
        """Make the preview that the next step tells."""
        self._preview = encoded(colours())

    def deliver(self, pixels: Arriving, withheld: bool) -> None:
        """Make the picture of pixels (3, H, W) in -1 to 1, and tell it."""
        picture = as_image(pixels())
        if withheld:
            self.fail(ImageWithheld(self._model))
        elif picture is None:
            self.fail(ImageNotFinite(self._model))
        else:
            self.news.tell(EngineResult(image=picture, timings=self._timings()))

    def _tell_step(self, step: int) -> None:
        preview, self._preview = self._preview, None
        self.news.tell(EngineStep(step=step, total_steps=len(self.plan), preview=preview))

    def _timings(self) -> dict[Stage, float]:
        return {
            Stage.ENCODE: self._encoded - self._begun,
            Stage.STEPS: self._denoised - self._encoded,
            Stage.DECODE: perf_counter() - self._denoised,
        }


def as_image(pixels: Tensor) -> Image.Image | None:
    """As diffusers' `VaeImageProcessor.postprocess`; `None` where a value is no number."""
    shown: Any = (pixels.float() * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    if not np.isfinite(shown).all():
        return None
    return Image.fromarray((shown * 255).round().astype("uint8"))
