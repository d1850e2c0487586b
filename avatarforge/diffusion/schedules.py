"""The way from noise to picture: what diffusers' schedulers do, as numbers that fit a whole batch.

A step of nearly every scheduler is linear: the next sample, and what the scheduler keeps for later, are
weighted sums of the sample, the model's output, fresh noise and what was kept before. The weights depend
on the step alone. So they are read off diffusers' own scheduler, by letting it step over unit vectors,
and checked against it; then one matrix product steps images at different places of different schedules.
A scheduler that is not linear (one that clips, say) steps each image itself.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor

Slot = tuple[str, int]
"""Where a scheduler keeps a tensor: an attribute, and the place in it where that is a list."""

_PROBED: Final = 6
"""Steps of the schedule in which a scheduler shows what it keeps: more than any of them looks back."""
_ALIKE: Final = 1e-3
"""How far the matrices may be from the scheduler itself over a whole schedule, for samples around 1."""


class NotLinear(Exception):
    """The scheduler's step is no weighted sum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The steps that one request runs, the same for every image of these settings."""

    timesteps: Tensor
    """(N,), as the scheduler has them: integers or floats."""
    noise: tuple[float, float]
    """The first sample is `noise[0]` x latents + `noise[1]` x noise."""
    clean: Sequence[tuple[float, float]]
    """The picture as it looks now, by step: `clean[0]` x model's input + `clean[1]` x model's output."""
    scales: Sequence[float] = ()
    """By which the sample is multiplied before the model sees it, by step."""
    matrices: Tensor | None = None
    """(N, 1 + slots, 3 + slots): from sample, slots, output and noise to the next sample and slots."""
    draws: Sequence[bool] = ()
    """Whether noise is drawn, by step."""
    scheduler: Any = None
    """In place of scales and matrices: to be copied for each image."""

    def __len__(self) -> int:
        return len(self.timesteps)


@dataclass(slots=True, eq=False)
class Trajectory:
    """One image on its way: how many steps are done, and what the next one needs."""

    plan: Plan
    generator: torch.Generator
    """Of this image alone, on the CPU: what is drawn depends on nobody else."""
    state: Tensor
    """(1 + slots, C, H, W) in float32: the sample, and what the scheduler keeps."""
    dtype: torch.dtype
    """The model's number format, in which diffusers draws noise: another format draws other values."""
    done: int = 0
    _scheduler: Any = field(default=None)

    @classmethod
    def begun(cls, plan: Plan, latents: Tensor, generator: torch.Generator) -> "Trajectory":
        """Of `latents` (C, H, W) in the model's number format, with noise drawn from `generator`."""
        slots = 0 if plan.matrices is None else plan.matrices.shape[1] - 1
        state = latents.new_zeros((1 + slots, *latents.shape), dtype=torch.float32)
        kept, added = plan.noise
        state[0] = kept * latents.float() + added * _drawn(latents, latents.dtype, generator)
        scheduler = None if plan.scheduler is None else _cloned(plan.scheduler)
        return cls(plan, generator, state, latents.dtype, _scheduler=scheduler)

    @property
    def ended(self) -> bool:
        return self.done >= len(self.plan)

    @property
    def sample(self) -> Tensor:
        return self.state[0]

    @property
    def timestep(self) -> Tensor:
        return self.plan.timesteps[self.done]

    @property
    def scale(self) -> float:
        if self._scheduler is not None:
            return _scale(self._scheduler, self.timestep)
        return self.plan.scales[self.done]

    @property
    def clean(self) -> tuple[float, float]:
        return self.plan.clean[self.done]


def advance(trajectories: Sequence[Trajectory], outputs: Tensor) -> None:
    """One step of each; `outputs` (B, C, H, W) is what the model said of them."""
    if trajectories[0].plan.matrices is None:
        for trajectory, output in zip(trajectories, outputs, strict=True):
            _step_alone(trajectory, output[None])
    else:
        _step_together(trajectories, outputs)
    for trajectory in trajectories:
        trajectory.done += 1


def _step_together(trajectories: Sequence[Trajectory], outputs: Tensor) -> None:
    states = torch.stack([trajectory.state for trajectory in trajectories])
    columns = [states, outputs[:, None].float()]
    drawing = [trajectory.plan.draws[trajectory.done] for trajectory in trajectories]
    if any(drawing):
        columns.append(_noises(trajectories, outputs, drawing)[:, None])
    known = torch.cat(columns, dim=1)
    weights = torch.stack([_matrix(trajectory) for trajectory in trajectories])[..., : known.shape[1]]
    after = torch.bmm(weights.to(known.device, non_blocking=True), known.flatten(2)).view_as(states)
    for trajectory, state in zip(trajectories, after, strict=True):
        trajectory.state = state


def _matrix(trajectory: Trajectory) -> Tensor:
    assert trajectory.plan.matrices is not None, "all of a scheduler's plans have matrices, or none"
    return trajectory.plan.matrices[trajectory.done]


def _noises(trajectories: Sequence[Trajectory], outputs: Tensor, drawing: Sequence[bool]) -> Tensor:
    """(B, C, H, W): noise for those who draw."""
    noises = outputs.new_zeros(outputs.shape, dtype=torch.float32)
    for place, (trajectory, draws) in enumerate(zip(trajectories, drawing, strict=True)):
        if draws:
            noises[place] = _drawn(outputs[place], trajectory.dtype, trajectory.generator)
    return noises


def _step_alone(trajectory: Trajectory, output: Tensor) -> None:
    sample, output = trajectory.state[:1].to(trajectory.dtype), output.to(trajectory.dtype)
    stepped = _step(trajectory._scheduler, trajectory.timestep, sample, output, trajectory.generator)
    trajectory.state = stepped.float()


def _drawn(like: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Noise of the shape of `like`, on its device, drawn on the CPU as diffusers draws it for one image."""
    noise = torch.randn((1, *like.shape), generator=generator, dtype=dtype)[0]
    return noise.to(like.device, torch.float32, non_blocking=True)


class Schedules:
    """Makes the plans of one scheduler. Keeps those that were asked for last."""

    def __init__(self, scheduler: Any, *, strength_sets_range: bool = False) -> None:
        """`strength_sets_range`: strength shortens the range of the timesteps and not their number."""
        self._scheduler = scheduler
        self._strength_sets_range = strength_sets_range
        self._kept: Callable[[int, int, float], Plan] = lru_cache(256)(self._plan)
        self._slots: dict[Slot, int] | None = None
        try:
            self._slots = self._found_slots()
            self._check(self._slots)
        except NotLinear:
            self._slots = None

    @property
    def linear(self) -> bool:
        """Whether a batch is stepped at once."""
        return self._slots is not None

    def length(self, steps: int, strength: float) -> int:
        """How many steps are asked for: int(steps x strength), as in diffusers' `get_timesteps`."""
        return steps if self._strength_sets_range else min(int(steps * strength), steps)

    def plan(self, steps: int, strength: float) -> Plan:
        """Raises what the scheduler raises for a number of steps that it cannot make."""
        return self._kept(steps, self.length(steps, strength), strength if self._strength_sets_range else 1)

    def _plan(self, steps: int, length: int, within: float) -> Plan:
        scheduler, timesteps = self._begun(steps, length, within)
        common: dict[str, Any] = {
            "timesteps": timesteps,
            "noise": _noise_weights(scheduler, timesteps[:1]),
            "clean": [_clean_weights(scheduler, timestep) for timestep in timesteps],
        }
        if self._slots is None:
            return Plan(**common, scheduler=scheduler)
        return Plan(**common, **_probed(_cloned(scheduler), timesteps, self._slots))

    def _begun(self, steps: int, length: int, within: float) -> tuple[Any, Tensor]:
        """A copy of the scheduler at the place where a request begins, and the timesteps from there on."""
        scheduler = type(self._scheduler).from_config(self._scheduler.config)
        if self._strength_sets_range:
            scheduler.set_timesteps(steps, strength=within)
            return scheduler, scheduler.timesteps
        scheduler.set_timesteps(steps)
        skipped = (steps - length) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        return scheduler, scheduler.timesteps[skipped:]

    def _found_slots(self) -> dict[Slot, int]:
        """What the scheduler keeps in a schedule of a few steps."""
        scheduler, timesteps = self._begun(_PROBED, _PROBED, 1.0)
        found: dict[Slot, int] = {}
        sample = torch.ones((1, 7, 1, 1))
        for timestep in timesteps:
            _scale(scheduler, timestep)
            _step(scheduler, timestep, sample, sample, torch.Generator())
            for slot in _slots(scheduler, sample.shape):
                found.setdefault(slot, len(found))
        return found

    def _check(self, slots: Mapping[Slot, int]) -> None:
        """Raise `NotLinear` unless the matrices lead where the scheduler itself does."""
        scheduler, timesteps = self._begun(_PROBED, _PROBED, 1.0)
        steps = _probed(_cloned(scheduler), timesteps, slots)
        common: dict[str, Any] = {"timesteps": timesteps, "noise": (0, 3), "clean": ()}
        plans = Plan(**common, **steps), Plan(**common, scheduler=scheduler)
        latents, random = torch.zeros((2, 3, 4)), torch.Generator().manual_seed(0)
        ours, theirs = (Trajectory.begun(plan, latents, torch.Generator().manual_seed(1)) for plan in plans)
        for _ in timesteps:
            output = torch.randn((1, *latents.shape), generator=random)
            # Schedulers ask to be asked for the scale before each step.
            if not math.isclose(ours.scale, theirs.scale, rel_tol=_ALIKE):
                raise NotLinear
            advance([ours], output)
            advance([theirs], output)
            if not torch.allclose(ours.sample, theirs.sample, rtol=_ALIKE, atol=_ALIKE):
                raise NotLinear


def _probed(scheduler: Any, timesteps: Tensor, slots: Mapping[Slot, int]) -> dict[str, Any]:
    """`scales`, `matrices` and `draws` of a plan; the scheduler is used up."""
    width = 2 + len(slots)
    # In the order of a matrix' columns: sample, slots, output. The last column is the noise's.
    sample, *kept, output = torch.eye(width).view(width, 1, width, 1, 1)
    matrices = torch.zeros((len(timesteps), width - 1, width + 1))
    scales, draws = [], []
    for matrix, timestep in zip(matrices, timesteps, strict=True):
        for slot in _slots(scheduler, sample.shape):
            _put(scheduler, slot, kept[slots[slot]].clone())
        scales.append(_scale(scheduler, timestep))
        twin, first, second = (
            _cloned(scheduler),
            torch.Generator().manual_seed(0),
            torch.Generator().manual_seed(1),
        )
        untouched = first.get_state()
        after = _outcome(scheduler, timestep, sample, output, first, slots)
        draws.append(not torch.equal(first.get_state(), untouched))
        if draws[-1]:
            # Nothing else differs between the two: what they have drawn tells the noise's weights.
            other = _outcome(twin, timestep, sample, output, second, slots)
            noise, others = (torch.randn(width, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
            place = int((noise - others).abs().argmax())
            weights = (after - other)[:, place] / (noise - others)[place]
            matrix[:, width], after = weights, after - weights[:, None] * noise
        matrix[:, :width] = after
    if not matrices.isfinite().all():
        raise NotLinear
    return {"scales": scales, "matrices": matrices, "draws": draws}


def _outcome(
    scheduler: Any,
    timestep: Tensor,
    sample: Tensor,
    output: Tensor,
    generator: torch.Generator,
    slots: Mapping[Slot, int],
) -> Tensor:
    """(1 + slots, width): the next sample and what the scheduler keeps then."""
    after = torch.zeros((1 + len(slots), sample.shape[1]))
    after[0] = _step(scheduler, timestep, sample.clone(), output.clone(), generator).flatten()
    for slot, tensor in _slots(scheduler, sample.shape).items():
        if slot not in slots:
            raise NotLinear
        after[1 + slots[slot]] = tensor.flatten()
    return after


def _step(
    scheduler: Any, timestep: Tensor, sample: Tensor, output: Tensor, generator: torch.Generator
) -> Tensor:
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if takes_generator else {}
    stepped = scheduler.step(output, timestep, sample, **extra, return_dict=False)[0]
    assert isinstance(stepped, Tensor)
    return stepped


def _slots(scheduler: Any, shape: torch.Size) -> dict[Slot, Tensor]:
    """The tensors of this shape that the scheduler keeps."""
    found: dict[Slot, Tensor] = {}
    for name, value in vars(scheduler).items():
        for place, item in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(item, Tensor) and item.shape == shape:
                found[name, place] = item
    return found


def _put(scheduler: Any, slot: Slot, tensor: Tensor) -> None:
    name, place = slot
    if isinstance(kept := getattr(scheduler, name), list):
        kept[place] = tensor
    else:
        setattr(scheduler, name, tensor)


def _cloned(scheduler: Any) -> Any:
    """A copy that steps by itself. What schedulers never write into is shared."""
    clone = copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list):
            setattr(clone, name, list(value))
    return clone


def _scale(scheduler: Any, timestep: Tensor) -> float:
    """What `scale_model_input` multiplies with at the step that comes next."""
    return float(scheduler.scale_model_input(torch.ones(1), timestep))


def _noise_weights(scheduler: Any, timestep: Tensor) -> tuple[float, float]:
    """Of `add_noise`: the weights of latents and noise."""
    one, none = torch.ones(1), torch.zeros(1)
    return (
        float(scheduler.add_noise(one, none, timestep)),
        float(scheduler.add_noise(none, one, timestep)),
    )


def _clean_weights(scheduler: Any, timestep: Tensor) -> tuple[float, float]:
    """By which the model's input and output give the picture without its noise.

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
