"""What a replica tells of itself: the model that serves, what became of the wish for another, and figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class ReplicaState(StrEnum):
    """What a replica can do with a task at this moment."""

    LOADING = "loading"
    """It has no model yet; tasks wait in it."""
    SERVING = "serving"
    DRAINING = "draining"
    """Its memory does not hold two models: it finishes what runs, then loads the next; tasks wait in it."""
    EMPTY = "empty"
    """It has no model, and the one that was wished for cannot be loaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFailure:
    """Why a model that was wished for does not serve."""

    model: str
    reason: str
    at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A model that serves, and the defaults that its manifest gives."""

    name: str
    fingerprint: str
    """Of the manifest's content: it differs where a manifest was changed and kept its name."""
    since: datetime
    load_seconds: float
    """What loading took, with the first picture."""
    dtype: str
    steps: int
    strength: float
    guidance: float
    strength_counts: bool = True
    """Whether `int(steps x strength)` steps are run; else all of them are."""

    def steps_of(self, steps: int | None, strength: float | None) -> int:
        """The steps that are run for a request; `None` stands for the default."""
        steps = self.steps if steps is None else steps
        if not self.strength_counts:
            return steps
        return max(1, int(steps * (self.strength if strength is None else strength)))


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaReport:
    """A replica at one moment, as it tells every tracker some times a minute."""

    replica_id: str
    backend: str
    """`local` or `remote`, as jobs record it."""
    at: datetime
    """By the replica's clock."""
    state: ReplicaState
    wish: str
    """The model that was asked for last."""
    model: ServedModel | None = None
    failure: ModelFailure | None = None
    """Of the last wish, if it failed."""
    device: str | None = None
    limit: int = 1
    """Images that are denoised at once."""
    active: int = 0
    """Images in the making."""
    waiting: int = 0
    """Images whose turn has not come."""
    step_seconds: Mapping[int, float] = field(default_factory=dict)
    """Seconds of a step by the number of images, rounded up to 1, 2, 4, 8, …"""
    steps_by_images: Mapping[int, int] = field(default_factory=dict)
    """How many steps were run with so many images, since the model serves."""
    pictures: int = 0
    """Pictures that were finished since the model serves."""
    busy_seconds: float = 0.0
    """Time that went into pictures since the model serves."""
    memory: int | None = None
    """Bytes taken on a GPU; `None` on a CPU."""
    cached_embeddings: int = 0
    circuit: str | None = None
    """Of a remote backend: whether its server is asked (`closed`) or left alone (`open`)."""

    @property
    def mean_images(self) -> float | None:
        """The real batch size: images of a step, on average; `None` before the first step."""
        steps = sum(self.steps_by_images.values())
        return (
            sum(images * times for images, times in self.steps_by_images.items()) / steps if steps else None
        )
