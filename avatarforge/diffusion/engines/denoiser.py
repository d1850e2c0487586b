"""One pass of the UNet over images that differ in all but their shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from textwrap import shorten
from typing import Final

import structlog
import torch
from torch import Tensor

from avatarforge.diffusion.engines.architectures import Architecture, Compilation, Conditions, UNetInputs
from avatarforge.diffusion.engines.batch_limits import bucket_of
from avatarforge.diffusion.engines.cpu_pool import CpuPool
from avatarforge.diffusion.engines.samplers import Trajectory, advance
from avatarforge.diffusion.engines.torch_errors import is_compilation_error

log = structlog.get_logger(__name__)

_MAX_REASON_LENGTH: Final = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTensors:
    """The UNet's inputs and weighted outputs of one step, for previews: (B, C, h, w) each."""

    inputs: Tensor
    outputs: Tensor


class Denoiser:
    """Steps images of one shape together, with or without guidance, each at its own timestep."""

    def __init__(
        self, architecture: Architecture, cpu_pool: CpuPool, compilation: Compilation = "none"
    ) -> None:
        self._architecture = architecture
        self._cpu_pool = cpu_pool
        self._lanes: dict[int, int] = {}
        self.is_compiled = compilation != "none"
        self.compile_failure: str | None = None
        """Why the model runs as it is, if torch could not compile it."""
        self._compiled_shapes: set[tuple[int, ...]] = set()
        self._is_warm = False
        if self.is_compiled:
            # Each number of rows is compiled for itself: that is what the padding is for.
            architecture.compile(compilation)

    def list_lanes(self, rows: int) -> list[int]:
        """Return the numbers of passes side by side worth measuring for so many rows, the usual one first."""
        lanes = dict.fromkeys(min(lanes, rows) for lanes in self._cpu_pool.list_lanes())
        return list(lanes)[: 1 if self.is_compiled else None]

    def set_lanes(self, rows: int, lanes: int) -> None:
        """Split so many rows, and the numbers of the same bucket, into passes side by side."""
        self._lanes[bucket_of(rows)] = lanes

    def describe_lanes(self) -> dict[str, str]:
        """Return how rows are split, by each number of rows for which it was set."""
        return {
            f"{rows} row{'s' * (rows > 1)}": self._cpu_pool.describe_lanes(lanes)
            for rows, lanes in sorted(self._lanes.items())
        }

    def step(self, trajectories: Sequence[Trajectory], conditions: Sequence[Conditions]) -> StepTensors:
        device = self._architecture.device
        scales = torch.tensor([trajectory.input_scale for trajectory in trajectories]).view(-1, 1, 1, 1)
        samples = torch.stack([trajectory.sample for trajectory in trajectories])
        inputs = (samples * scales.to(device, non_blocking=True)).to(self._architecture.dtype)
        timesteps = torch.stack([trajectory.timestep for trajectory in trajectories])
        timesteps = timesteps.to(device, non_blocking=True)
        images = torch.tensor([image for image, one in enumerate(conditions) for _ in one.rows])
        images = images.to(device, non_blocking=True)
        rows = [row for one in conditions for row in one.rows]
        predicted = self._predict(inputs[images], timesteps[images], rows).float()
        outputs = _sum_rows(predicted, conditions, self._architecture.guidance_rescale)
        advance(trajectories, outputs)
        return StepTensors(inputs=inputs, outputs=outputs)

    def _predict(self, samples: Tensor, timesteps: Tensor, rows: Sequence[UNetInputs]) -> Tensor:
        """Run the UNet on all rows, split over the CPU pool's threads."""
        predict, total = self._architecture.predict, len(rows)
        if self.is_compiled:
            if not self._may_compile(samples, rows):
                with torch.compiler.set_stance("force_eager"):
                    return predict(samples, timesteps, rows)
            padding = bucket_of(total) - total
            indices = torch.tensor([*range(total), *[0] * padding]).to(samples.device, non_blocking=True)
            try:
                return predict(samples[indices], timesteps[indices], [*rows, *[rows[0]] * padding])[:total]
            except Exception as error:
                if not is_compilation_error(error):
                    raise
                self._run_eagerly(error)
        lanes = self._find_lanes(total)
        edges = [total * part // lanes for part in range(lanes + 1)]
        outputs = self._cpu_pool.run(
            [
                partial(predict, samples[start:end], timesteps[start:end], rows[start:end])
                for start, end in pairwise(edges)
            ]
        )
        return torch.cat(outputs)

    def finish_warming_up(self) -> None:
        """Compile nothing more: other sizes and longer prompts run as they are, or all jobs would stand still
        while one's shape is compiled."""
        self._is_warm = True

    def _may_compile(self, samples: Tensor, rows: Sequence[UNetInputs]) -> bool:
        lengths = {row.hidden.shape[-2] for row in rows}
        # Texts of several lengths bring a mask.
        shape = (bucket_of(len(rows)), *samples.shape[1:], max(lengths), len(lengths) > 1)
        if not self._is_warm:
            self._compiled_shapes.add(shape)
        return shape in self._compiled_shapes

    def _run_eagerly(self, error: Exception) -> None:
        """Do without compilation, for good: an image late is better than none."""
        self._architecture.undo_compilation()
        self.is_compiled = False
        # What follows tells how to debug torch.
        reason, _, _ = str(error).partition("\n")
        self.compile_failure = shorten(f"{type(error).__name__}: {reason}", _MAX_REASON_LENGTH)
        log.warning("model is not compiled", reason=self.compile_failure)

    def _find_lanes(self, rows: int) -> int:
        """Return what was set for the nearest number of rows below."""
        known = [bucket for bucket in self._lanes if bucket <= bucket_of(rows)]
        return min(self._lanes[max(known)] if known else self._cpu_pool.size, rows)


def _sum_rows(outputs: Tensor, conditions: Sequence[Conditions], rescale: float) -> Tensor:
    """Return (B, C, h, w): for each image the weighted sum of its rows' outputs (R, C, h, w).

    With `rescale` those of several rows come as near to the first row's standard deviation
    (https://arxiv.org/abs/2305.08891, section 3.4).
    """
    most = max(len(one.rows) for one in conditions)
    indices, weights, first = [], [], 0
    for one in conditions:
        # An image with fewer rows counts its own first one again, with no weight: never another image's.
        missing = most - len(one.rows)
        indices.append([*range(first, first + len(one.rows)), *[first] * missing])
        weights.append([*one.weights, *[0.0] * missing])
        first += len(one.rows)
    rows = outputs[torch.tensor(indices).to(outputs.device, non_blocking=True)]
    by_row = torch.tensor(weights).view(len(conditions), most, 1, 1, 1)
    summed = (rows * by_row.to(outputs.device, non_blocking=True)).sum(dim=1)
    if not rescale:
        return summed
    factors = torch.tensor([rescale if len(one.rows) > 1 else 0.0 for one in conditions]).view(-1, 1, 1, 1)
    factors = factors.to(outputs.device, non_blocking=True)
    wanted, found = (one.std(dim=(1, 2, 3), keepdim=True) for one in (rows[:, 0], summed))
    return factors * summed * (wanted / found) + (1 - factors) * summed
