"""Samplers: the steps of diffusers' schedulers, as matrices that step a whole batch.

A step of nearly every scheduler is linear: the next sample, and the scheduler's state, are weighted sums of
the sample, the model's output, fresh noise and the state before. The weights depend on the step alone. So
they are read off diffusers' own scheduler, by letting it step over unit vectors, and checked against it;
then one matrix product steps images at different places of different schedules. A scheduler that is not
linear (one that clips, say) steps each image itself.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal

import torch
from torch import Tensor

StrengthUse = Literal["skips_steps", "sets_range", "none"]
"""How strength acts: it skips the first steps; it shortens the range of the timesteps and not their number;
or it has no effect, in models that begin with pure noise."""

Slot = tuple[str, int]
"""A tensor of a scheduler's state: its attribute, and the index in it if that is a list."""

_PROBE_STEPS: Final = 6
"""Steps of the schedule that reveals a scheduler's state: more than any of them looks back."""
_TOLERANCE: Final = 1e-3
"""How far the matrices may be from the scheduler itself over a whole schedule, for samples around 1."""


class NonlinearScheduler(Exception):
    """Raised if a scheduler's step is not a weighted sum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingPlan:
    """The steps that one request runs, the same for every image with these parameters."""

    timesteps: Tensor
    """(N,), as the scheduler has them: integers or floats."""
    noise_weights: tuple[float, float]
    """The first sample is `noise_weights[0]` x latents + `noise_weights[1]` x noise."""
    denoised_weights: Sequence[tuple[float, float]]
    """By step (a, b): a x model's input + b x model's output is the image without its noise."""
    input_scales: Sequence[float] = ()
    """By step the factor of the sample before it is the model's input."""
    matrices: Tensor | None = None
    """(N, 1 + slots, 3 + slots): from sample, slots, output and noise to the next sample and slots."""
    draws_noise: Sequence[bool] = ()
    """By step whether noise is drawn."""
    scheduler: Any = None
    """In place of scales and matrices: to be copied for each image."""

    def __len__(self) -> int:
        return len(self.timesteps)


@dataclass(slots=True, eq=False)
class Trajectory:
    """The sampling state of one image."""

    plan: SamplingPlan
    generator: torch.Generator
    """On the CPU, for this image alone: its noise does not depend on the batch."""
    state: Tensor
    """(1 + slots, C, H, W) in float32: the sample, and the scheduler's state."""
    dtype: torch.dtype
    """The model's number format, in which diffusers draws noise: another format draws other values."""
    steps_done: int = 0
    _scheduler: Any = field(default=None)

    @classmethod
    def start(cls, plan: SamplingPlan, latents: Tensor, generator: torch.Generator) -> "Trajectory":
        """Start from `latents` (C, H, W) in the model's number format, with noise from `generator`."""
        slots = 0 if plan.matrices is None else plan.matrices.shape[1] - 1
        state = latents.new_zeros((1 + slots, *latents.shape), dtype=torch.float32)
        kept, added = plan.noise_weights
        state[0] = kept * latents.float() + added * _draw_noise(latents, latents.dtype, generator)
        scheduler = None if plan.scheduler is None else _clone(plan.scheduler)
        return cls(plan, generator, state, latents.dtype, _scheduler=scheduler)

    @property
    def is_finished(self) -> bool:
        return self.steps_done >= len(self.plan)

    @property
    def sample(self) -> Tensor:
        return self.state[0]

    @property
    def timestep(self) -> Tensor:
        return self.plan.timesteps[self.steps_done]

    @property
    def input_scale(self) -> float:
        if self._scheduler is not None:
            return _read_input_scale(self._scheduler, self.timestep)
        return self.plan.input_scales[self.steps_done]

    @property
    def denoised_weights(self) -> tuple[float, float]:
        return self.plan.denoised_weights[self.steps_done]


def advance(trajectories: Sequence[Trajectory], outputs: Tensor) -> None:
    """Advance each by one step; `outputs` (B, C, H, W) are the model's."""
    # Those whose matrices have one size are stepped together.
    slots = [None if (one := each.plan.matrices) is None else len(one[0]) for each in trajectories]
    for size in dict.fromkeys(slots):
        places = [place for place, other in enumerate(slots) if other == size]
        same = [trajectories[place] for place in places]
        theirs = outputs
        if len(same) < len(slots):
            # Not by a list: a GPU would be waited for.
            theirs = outputs[torch.tensor(places).to(outputs.device, non_blocking=True)]
        if size is None:
            for trajectory, output in zip(same, theirs, strict=True):
                _step_alone(trajectory, output[None])
        else:
            _step_together(same, theirs)
    for trajectory in trajectories:
        trajectory.steps_done += 1


def _step_together(trajectories: Sequence[Trajectory], outputs: Tensor) -> None:
    states = torch.stack([trajectory.state for trajectory in trajectories])
    columns = [states, outputs[:, None].float()]
    drawing = [trajectory.plan.draws_noise[trajectory.steps_done] for trajectory in trajectories]
    if any(drawing):
        columns.append(_draw_noises(trajectories, outputs, drawing)[:, None])
    inputs = torch.cat(columns, dim=1)
    weights = torch.stack([_current_matrix(trajectory) for trajectory in trajectories])
    weights = weights[..., : inputs.shape[1]].to(inputs.device, non_blocking=True)
    after = torch.bmm(weights, inputs.flatten(2)).view_as(states)
    for trajectory, state in zip(trajectories, after, strict=True):
        trajectory.state = state


def _current_matrix(trajectory: Trajectory) -> Tensor:
    assert trajectory.plan.matrices is not None, "only plans with matrices are stepped together"
    return trajectory.plan.matrices[trajectory.steps_done]


def _draw_noises(trajectories: Sequence[Trajectory], outputs: Tensor, drawing: Sequence[bool]) -> Tensor:
    """Return (B, C, H, W): noise for those whose step draws it, zeros for the others."""
    noises = outputs.new_zeros(outputs.shape, dtype=torch.float32)
    for index, (trajectory, draws) in enumerate(zip(trajectories, drawing, strict=True)):
        if draws:
            noises[index] = _draw_noise(outputs[index], trajectory.dtype, trajectory.generator)
    return noises


def _step_alone(trajectory: Trajectory, output: Tensor) -> None:
    sample, output = trajectory.state[:1].to(trajectory.dtype), output.to(trajectory.dtype)
    stepped = _step(trajectory._scheduler, trajectory.timestep, sample, output, trajectory.generator)
    trajectory.state = stepped.float()


def _draw_noise(like: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Draw noise on the CPU, as diffusers does for one image, and move it to the device of `like`."""
    noise = torch.randn((1, *like.shape), generator=generator, dtype=dtype)[0]
    return noise.to(like.device, torch.float32, non_blocking=True)


class Sampler:
    """Makes the plans of one scheduler, and caches the last ones."""

    def __init__(self, scheduler: Any, strength_use: StrengthUse = "skips_steps") -> None:
        self._scheduler = scheduler
        self._strength_use = strength_use
        self._cached_plan: Callable[[int, int, float], SamplingPlan] = lru_cache(256)(self._plan)
        self._slots: dict[Slot, int] | None = None
        try:
            self._slots = self._find_slots()
            self._check(self._slots)
        except NonlinearScheduler:
            self._slots = None

    def count_steps(self, steps: int, strength: float) -> int:
        """Return how many steps are run: int(steps x strength), as in diffusers' `get_timesteps`."""
        return min(int(steps * strength), steps) if self._strength_use == "skips_steps" else steps

    def plan(self, steps: int, strength: float) -> SamplingPlan:
        """Plan the steps. Raises the scheduler's error for a number of steps that it does not support."""
        time_range = strength if self._strength_use == "sets_range" else 1
        return self._cached_plan(steps, self.count_steps(steps, strength), time_range)

    def _plan(self, steps: int, step_count: int, time_range: float) -> SamplingPlan:
        scheduler, timesteps = self._start(steps, step_count, time_range)
        common: dict[str, Any] = {
            "timesteps": timesteps,
            "noise_weights": self._compute_noise_weights(scheduler, timesteps[:1]),
            "denoised_weights": [_compute_denoised_weights(scheduler, timestep) for timestep in timesteps],
        }
        if self._slots is None:
            return SamplingPlan(**common, scheduler=scheduler)
        return SamplingPlan(**common, **_probe(_clone(scheduler), timesteps, self._slots))

    def _compute_noise_weights(self, scheduler: Any, timestep: Tensor) -> tuple[float, float]:
        """Return the weights of latents and noise in the first sample."""
        if self._strength_use == "none":
            return 0.0, float(scheduler.init_noise_sigma)
        one, none = torch.ones(1), torch.zeros(1)
        return (
            float(scheduler.add_noise(one, none, timestep)),
            float(scheduler.add_noise(none, one, timestep)),
        )

    def _start(self, steps: int, step_count: int, time_range: float) -> tuple[Any, Tensor]:
        """Return a copy of the scheduler at a request's first step, and the timesteps from there on."""
        scheduler = type(self._scheduler).from_config(self._scheduler.config)
        if self._strength_use == "sets_range":
            scheduler.set_timesteps(steps, strength=time_range)
            return scheduler, scheduler.timesteps
        scheduler.set_timesteps(steps)
        if self._strength_use == "none":
            return scheduler, scheduler.timesteps
        skipped = (steps - step_count) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        return scheduler, scheduler.timesteps[skipped:]

    def _find_slots(self) -> dict[Slot, int]:
        """Run a schedule of a few steps, and return the slots that the scheduler fills."""
        scheduler, timesteps = self._start(_PROBE_STEPS, _PROBE_STEPS, 1.0)
        found: dict[Slot, int] = {}
        sample = torch.ones((1, 7, 1, 1))
        for timestep in timesteps:
            _read_input_scale(scheduler, timestep)
            _step(scheduler, timestep, sample, sample, torch.Generator())
            for slot in _find_tensors(scheduler, sample.shape):
                found.setdefault(slot, len(found))
        return found

    def _check(self, slots: Mapping[Slot, int]) -> None:
        """Raise `NonlinearScheduler` unless the matrices give the scheduler's own samples."""
        scheduler, timesteps = self._start(_PROBE_STEPS, _PROBE_STEPS, 1.0)
        steps = _probe(_clone(scheduler), timesteps, slots)
        common: dict[str, Any] = {"timesteps": timesteps, "noise_weights": (0, 3), "denoised_weights": ()}
        plans = SamplingPlan(**common, **steps), SamplingPlan(**common, scheduler=scheduler)
        latents, random = torch.zeros((2, 3, 4)), torch.Generator().manual_seed(0)
        ours, theirs = (Trajectory.start(plan, latents, torch.Generator().manual_seed(1)) for plan in plans)
        for _ in timesteps:
            output = torch.randn((1, *latents.shape), generator=random)
            # Schedulers want `scale_model_input` to be called before each step.
            if not math.isclose(ours.input_scale, theirs.input_scale, rel_tol=_TOLERANCE):
                raise NonlinearScheduler
            advance([ours], output)
            advance([theirs], output)
            if not torch.allclose(ours.sample, theirs.sample, rtol=_TOLERANCE, atol=_TOLERANCE):
                raise NonlinearScheduler


def _probe(scheduler: Any, timesteps: Tensor, slots: Mapping[Slot, int]) -> dict[str, Any]:
    """Return the `input_scales`, `matrices` and `draws_noise` of a plan. Uses the scheduler up."""
    width = 2 + len(slots)
    # In the order of a matrix' columns: sample, slots, output. The last column is the noise's.
    sample, *kept, output = torch.eye(width).view(width, 1, width, 1, 1)
    matrices = torch.zeros((len(timesteps), width - 1, width + 1))
    scales, draws = [], []
    for matrix, timestep in zip(matrices, timesteps, strict=True):
        for slot in _find_tensors(scheduler, sample.shape):
            _set_slot(scheduler, slot, kept[slots[slot]].clone())
        scales.append(_read_input_scale(scheduler, timestep))
        twin, first, second = (
            _clone(scheduler),
            torch.Generator().manual_seed(0),
            torch.Generator().manual_seed(1),
        )
        untouched = first.get_state()
        after = _probe_step(scheduler, timestep, sample, output, first, slots)
        draws.append(not torch.equal(first.get_state(), untouched))
        if draws[-1]:
            # The two differ in their noise alone: its weights follow.
            other = _probe_step(twin, timestep, sample, output, second, slots)
            noise, others = (torch.randn(width, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
            widest = int((noise - others).abs().argmax())
            weights = (after - other)[:, widest] / (noise - others)[widest]
            matrix[:, width], after = weights, after - weights[:, None] * noise
        matrix[:, :width] = after
    if not matrices.isfinite().all():
        raise NonlinearScheduler
    return {"input_scales": scales, "matrices": matrices, "draws_noise": draws}


def _probe_step(
    scheduler: Any,
    timestep: Tensor,
    sample: Tensor,
    output: Tensor,
    generator: torch.Generator,
    slots: Mapping[Slot, int],
) -> Tensor:
    """Return (1 + slots, width): the next sample and the scheduler's state."""
    after = torch.zeros((1 + len(slots), sample.shape[1]))
    after[0] = _step(scheduler, timestep, sample.clone(), output.clone(), generator).flatten()
    for slot, tensor in _find_tensors(scheduler, sample.shape).items():
        if slot not in slots:
            raise NonlinearScheduler
        after[1 + slots[slot]] = tensor.flatten()
    return after


def _step(
    scheduler: Any, timestep: Tensor, sample: Tensor, output: Tensor, generator: torch.Generator
) -> Tensor:
    # As diffusers' pipelines call it: their eta is 0, while TCD's own is not.
    extra: dict[str, Any] = {"generator": generator, "eta": 0.0}
    extra = {
        name: value for name, value in extra.items() if name in inspect.signature(scheduler.step).parameters
    }
    stepped = scheduler.step(output, timestep, sample, **extra, return_dict=False)[0]
    assert isinstance(stepped, Tensor)
    return stepped


def _find_tensors(scheduler: Any, shape: torch.Size) -> dict[Slot, Tensor]:
    """Return the tensors of this shape in the scheduler's state."""
    found: dict[Slot, Tensor] = {}
    for name, value in vars(scheduler).items():
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(item, Tensor) and item.shape == shape:
                found[name, index] = item
    return found


def _set_slot(scheduler: Any, slot: Slot, tensor: Tensor) -> None:
    name, index = slot
    if isinstance(value := getattr(scheduler, name), list):
        value[index] = tensor
    else:
        setattr(scheduler, name, tensor)


def _clone(scheduler: Any) -> Any:
    """Copy the scheduler so that it steps independently; what schedulers never write to is shared."""
    clone = copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list):
            setattr(clone, name, list(value))
    return clone


def _read_input_scale(scheduler: Any, timestep: Tensor) -> float:
    """Return the factor that `scale_model_input` applies at the next step."""
    return float(scheduler.scale_model_input(torch.ones(1), timestep))


def _compute_denoised_weights(scheduler: Any, timestep: Tensor) -> tuple[float, float]:
    """Return the weights of the model's input and output in the image without its noise.

    From x_t = sqrt(a) x_0 + sqrt(1 - a) e and v = sqrt(a) e - sqrt(1 - a) x_0 (https://arxiv.org/abs/2202.00512).
    """
    signal = max(float(scheduler.alphas_cumprod[int(timestep)]), 1e-4)
    kept, noise = signal**0.5, (1 - signal) ** 0.5
    match scheduler.config.prediction_type:
        case "epsilon":
            return 1 / kept, -noise / kept
        case "v_prediction":
            return kept, -noise
    return 0.0, 1.0
