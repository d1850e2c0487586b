"""A replica's reports: the model that serves, why the desired one does not, and statistics."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from avatarforge.domain.jobs import RequestedParameters
from avatarforge.domain.pickling import pickle_by_name


class ReplicaState(StrEnum):
    """The state of a replica's model."""

    LOADING = "loading"
    """It has no model yet; tasks wait in it."""
    SERVING = "serving"
    DRAINING = "draining"
    """Its memory does not hold two models: it finishes what runs, then loads the next; tasks wait in it."""
    NO_MODEL = "no_model"
    """It has no model, and the desired one cannot be loaded."""


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFailure:
    """Why the desired model does not serve."""

    model: str
    reason: str
    at: datetime


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A model that serves, and the defaults that its manifest gives."""

    name: str
    fingerprint: str
    """Of the manifest's content: it differs where a manifest was changed and kept its name."""
    since: datetime
    load_phases: Mapping[str, float]
    """The seconds of loading, from `drain` or `import` to `first_image`, in their order."""
    dtype: str
    steps: int
    strength: float
    guidance: float
    size: int
    """Side in pixels of the squares whose steps are measured."""
    strength_skips_steps: bool = True
    """`int(steps x strength)` steps are run; else all of them are."""

    def share_of_pixels(self, parameters: RequestedParameters) -> float:
        """The pixels of a request's image, as a share of the default's: a step takes so much of its time."""
        width, height = parameters.size(self.size)
        return width * height / self.size**2

    @property
    def load_seconds(self) -> float:
        return sum(self.load_phases.values())

    def steps_of(self, steps: int | None, strength: float | None) -> int:
        """The steps that are run for a request; `None` stands for the default."""
        steps = self.steps if steps is None else steps
        if not self.strength_skips_steps:
            return steps
        return max(1, int(steps * (self.strength if strength is None else strength)))


@pickle_by_name
@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaReport:
    """A replica's state at one moment, as it is sent to every tracker some times a minute."""

    replica_id: str
    backend: str
    """`local` or `remote`, as jobs record it."""
    reported_at: datetime
    """By the replica's clock."""
    state: ReplicaState
    desired_model: str
    """The model that the replica should serve."""
    model: ServedModel | None = None
    failure: ModelFailure | None = None
    """Why the desired model could not be loaded, if so."""
    user_config_faults: tuple[str, ...] = ()
    """A sentence for each name and value of its `user_config` that is wrong and left out."""
    device: str | None = None
    limit: int = 1
    """Images that are denoised at once."""
    active: int = 0
    """Images in progress."""
    waiting: int = 0
    """Images that wait in the replica."""
    step_seconds: Mapping[int, float] = field(default_factory=dict)
    """Seconds per step by batch size, rounded up to 1, 2, 4, 8, …"""
    steps_by_images: Mapping[int, int] = field(default_factory=dict)
    """Number of steps by batch size, since the model serves."""
    images_generated: int = 0
    """Images finished since the model serves."""
    busy_seconds: float = 0.0
    """Time spent on images since the model serves."""
    busy_step_seconds: float = 0.0
    """Of it, the time spent in steps."""
    memory_bytes: int | None = None
    """Allocated on the GPU; `None` on a CPU."""
    cached_embeddings: int = 0
    tuning: Mapping[str, str] = field(default_factory=dict)
    """How the device is used, as warming up found it fastest."""
    compile_failure: str | None = None
    """Why the model runs as it is, if torch could not compile it."""
    circuit: str | None = None
    """Of a remote backend: whether its server is asked (`closed`) or left alone (`open`)."""

    @property
    def mean_images(self) -> float | None:
        """The real batch size: images of a step, on average; `None` before the first step."""
        steps = sum(self.steps_by_images.values())
        return (
            sum(images * times for images, times in self.steps_by_images.items()) / steps if steps else None
        )
