"""One request in progress in the batching engine."""

from collections.abc import Callable, Mapping
from time import perf_counter

from torch import Tensor

from avatarforge.diffusion.engines.architectures import Conditions, Embedding, Text
from avatarforge.diffusion.engines.engine import (
    EngineRequest,
    EngineResult,
    EngineStep,
    UpdateChannel,
    to_image,
)
from avatarforge.diffusion.engines.previews import PREVIEW_INTERVAL_SECONDS, encode_webp
from avatarforge.diffusion.engines.samplers import SamplingPlan, Trajectory
from avatarforge.domain.errors import AvatarForgeError, ImageNotFinite, ImageWithheld
from avatarforge.domain.jobs import Stage

PendingTensor = Callable[[], Tensor]
"""Waits for a tensor on its way from the device, and returns it."""


class ActiveRequest:
    """The state of one request. The engine's thread writes it; other threads only deliver to the channel."""

    def __init__(self, params: EngineRequest, model: str, channel: UpdateChannel) -> None:
        self.params = params
        self.channel = channel
        self.plan: SamplingPlan
        self.pixels: Tensor
        self.trajectory: Trajectory
        self.embeddings: Mapping[Text, Embedding]
        self.latents: Tensor
        """(C, h, w), of the photo."""
        self.conditions: Conditions
        self._model = model
        self._has_failed = False
        self._preview: bytes | None = None
        self._started_at = self._encoded_at = self._denoised_at = self._previewed_at = 0.0

    @property
    def is_active(self) -> bool:
        """True while it has not failed and its receiver is there."""
        return not self._has_failed and not self.channel.is_closed

    @property
    def is_denoised(self) -> bool:
        """True once all its steps are done."""
        return self.trajectory.is_finished

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w) of its latents."""
        return tuple(self.trajectory.sample.shape)

    def start(self) -> None:
        self._started_at = perf_counter()
        self._send_step(0)

    def set_latents(self, latents: Tensor, trajectory: Trajectory) -> None:
        """Store the encoded photo, and where its denoising starts."""
        self.latents = latents
        self.trajectory = trajectory
        self._encoded_at = self._previewed_at = perf_counter()

    def record_step(self) -> None:
        self._denoised_at = perf_counter()
        self._send_step(self.trajectory.steps_done)

    def fail(self, error: AvatarForgeError) -> None:
        """End it without an image. Only the first error is sent."""
        if not self._has_failed:
            self._has_failed = True
            self.channel.send(error)

    def claim_preview(self) -> bool:
        """Return whether a preview is due; if so, the time to the next one starts now."""
        now = perf_counter()
        if self.is_denoised or now - self._previewed_at < PREVIEW_INTERVAL_SECONDS:
            return False
        self._previewed_at = now
        return True

    # --- called from the I/O pool -----------------------------------------------------------------

    def encode_preview(self, rgb: PendingTensor) -> None:
        """Make the preview that is sent with the next step."""
        self._preview = encode_webp(rgb())

    def deliver(self, pixels: PendingTensor, is_withheld: bool) -> None:
        """Make the image of pixels (3, H, W) in -1 to 1, and send it."""
        # Scaled as diffusers' `VaeImageProcessor.postprocess` does.
        image = to_image((pixels().float() * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy())
        if is_withheld:
            self.fail(ImageWithheld(self._model))
        elif image is None:
            self.fail(ImageNotFinite(self._model))
        else:
            self.channel.send(EngineResult(image=image, timings=self._timings()))

    def _send_step(self, step: int) -> None:
        preview, self._preview = self._preview, None
        self.channel.send(EngineStep(step=step, total_steps=len(self.plan), preview=preview))

    def _timings(self) -> dict[Stage, float]:
        return {
            Stage.ENCODE: self._encoded_at - self._started_at,
            Stage.STEPS: self._denoised_at - self._encoded_at,
            Stage.DECODE: perf_counter() - self._denoised_at,
        }
