"""One pass of the UNet over images that differ in all but their shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from avatarforge.diffusion.buckets import bucket_of
from avatarforge.diffusion.families import Conditions, Family, Row
from avatarforge.diffusion.lanes import Lanes
from avatarforge.diffusion.schedules import Trajectory, advance

Compilation = Literal["none", "compile", "cudagraphs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Denoised:
    """What a step leaves for previews: (B, C, h, w) each."""

    inputs: Tensor
    outputs: Tensor


class Denoiser:
    """Steps any images of one shape, with or without guidance, each at its own place."""

    def __init__(self, family: Family, lanes: Lanes, compilation: Compilation = "none") -> None:
        self._family = family
        self._lanes = lanes
        self._compiled = compilation != "none"
        if self._compiled:
            # Each number of rows is compiled for itself: that is what the padding is for.
            family.compile("reduce-overhead" if compilation == "cudagraphs" else "default")

    def step(self, trajectories: Sequence[Trajectory], conditions: Sequence[Conditions]) -> Denoised:
        """One step of each."""
        order = sorted(range(len(conditions)), key=lambda place: conditions[place].negative is None)
        # Those with guidance come first: their negative rows stand in front of all positive ones.
        denoised = self._predicted([trajectories[at] for at in order], [conditions[at] for at in order])
        back = torch.tensor(sorted(range(len(order)), key=order.__getitem__))
        denoised = Denoised(inputs=denoised.inputs[back], outputs=denoised.outputs[back])
        advance(trajectories, denoised.outputs)
        return denoised

    def _predicted(self, trajectories: Sequence[Trajectory], conditions: Sequence[Conditions]) -> Denoised:
        device = self._family.device
        scales = torch.tensor([trajectory.scale for trajectory in trajectories]).view(-1, 1, 1, 1)
        samples = torch.stack([trajectory.sample for trajectory in trajectories])
        inputs = (samples * scales.to(device, non_blocking=True)).to(self._family.dtype)
        timesteps = torch.stack([trajectory.timestep for trajectory in trajectories])
        timesteps = timesteps.to(device, non_blocking=True)
        negatives = [one.negative for one in conditions if one.negative is not None]
        guided = len(negatives)
        rows = [*negatives, *(one.positive for one in conditions)]
        outputs = self._asked(
            torch.cat([inputs[:guided], inputs]), torch.cat([timesteps[:guided], timesteps]), rows
        ).float()
        without, outputs = outputs[:guided], outputs[guided:]
        if guided:
            strengths = torch.tensor([one.guidance for one in conditions[:guided]]).view(-1, 1, 1, 1)
            strengths = strengths.to(device, non_blocking=True)
            outputs = torch.cat([without + strengths * (outputs[:guided] - without), outputs[guided:]])
        return Denoised(inputs=inputs, outputs=outputs)

    def _asked(self, samples: Tensor, timesteps: Tensor, rows: Sequence[Row]) -> Tensor:
        """The UNet's answers to all rows, computed side by side as far as the device has lanes."""
        total = len(rows)
        if self._compiled:
            padding = bucket_of(total) - total
            places = torch.tensor([*range(total), *[0] * padding], device=samples.device)
            return self._family.predict(samples[places], timesteps[places], [*rows, *[rows[0]] * padding])[
                :total
            ]
        parts = min(self._lanes.count, total)
        edges = [total * part // parts for part in range(parts + 1)]
        answers = self._lanes.run(
            [
                partial(self._family.predict, samples[start:end], timesteps[start:end], rows[start:end])
                for start, end in pairwise(edges)
            ]
        )
        return torch.cat(answers)
