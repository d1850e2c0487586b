"""How many images one pass takes, and how long a step takes, by resolution."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from threading import Lock

Shape = tuple[int, ...]
"""(C, h, w) of latents."""

_MIN_GAIN = 0.95
"""A larger bucket must take less than this share of the time per image, or it only makes others wait."""
_SMOOTHING = 0.1
"""Weight of the newest measurement in the moving average."""


def bucket_of(images: int) -> int:
    """Return the next power of two."""
    return 1 << max(0, images - 1).bit_length()


@dataclass(slots=True)
class _LoweredLimit:
    """A limit that was lowered because memory ran out."""

    original: int
    steps_needed: int
    """Steps without trouble before it is raised."""
    quiet_steps: int = 0


class BatchLimits:
    """Limits and step times by shape. Thread-safe."""

    QUIET_STEPS = 256
    """Steps at a lowered limit after which it is doubled; twice as many each time that fails."""

    def __init__(self, max_batch: int) -> None:
        """`max_batch` is the limit at any resolution."""
        self._max_batch = max_batch
        self._lowered: dict[Shape, _LoweredLimit] = {}
        self._limits: dict[Shape, int] = {}
        self._measured: Shape | None = None
        self._seconds: dict[Shape, dict[int, float]] = {}
        self._lock = Lock()

    def limit(self, shape: Shape | None = None) -> int:
        """Return how many images one pass may hold; without a shape, of the measured one.

        One that ran out of memory says nothing of smaller ones.
        """
        with self._lock:
            shape = shape or self._measured
            if shape is None:
                return min(self._limits.values(), default=self._max_batch)
            return self._find(shape)

    def _find(self, shape: Shape) -> int:
        """Return the shape's own limit, else the measured one, or less in proportion where it is larger."""
        if shape in self._limits or self._measured is None:
            return self._limits.get(shape, self._max_batch)
        known = self._limits.get(self._measured, self._max_batch)
        return max(1, min(known, known * prod(self._measured) // prod(shape)))

    def candidates(self) -> Iterator[int]:
        """Yield the batch sizes worth measuring, smallest first."""
        size = 1
        while size < self._max_batch:
            yield size
            size *= 2
        yield self._max_batch

    def set_reference(self, shape: Shape) -> None:
        """Take the limit as that of images of this shape; larger ones get less in proportion."""
        with self._lock:
            self._measured = shape

    def set_from_measurements(self, shape: Shape, seconds: Mapping[int, float], lanes: int = 1) -> None:
        """Set the limit from what warming up measured: seconds of a step by the number of images.

        The limit gives each of the device's `lanes` an image at least: decoding gains by that.
        """
        least = min(taken / images for images, taken in seconds.items())
        enough = [images for images, taken in seconds.items() if _MIN_GAIN * taken / images <= least]
        with self._lock:
            self._measured = shape
            self._limits[shape] = max(min(enough), min(lanes, max(seconds)))
            self._seconds[shape] = {bucket_of(images): taken for images, taken in seconds.items()}

    def record_step(self, shape: Shape, images: int, seconds: float) -> None:
        """Record the time of a step of so many images."""
        with self._lock:
            times = self._seconds.setdefault(shape, {})
            bucket = bucket_of(images)
            times[bucket] = times.get(bucket, seconds) * (1 - _SMOOTHING) + seconds * _SMOOTHING
        self.record_success(shape, images)

    def lower(self, shape: Shape, failed: int) -> None:
        """Lower the limit to half the bucket of `failed` images, which ran out of memory."""
        with self._lock:
            limit = self._find(shape)
            lowered = self._lowered.setdefault(
                shape, _LoweredLimit(original=limit, steps_needed=self.QUIET_STEPS // 2)
            )
            lowered.steps_needed *= 2
            lowered.quiet_steps = 0
            self._limits[shape] = max(1, min(limit, bucket_of(failed) // 2))

    def record_success(self, shape: Shape, images: int) -> None:
        """Record a pass of so many images that had enough memory. After enough of them at a lowered limit it
        is raised: what took the memory may be gone."""
        with self._lock:
            lowered, limit = self._lowered.get(shape), self._find(shape)
            if lowered is None or limit >= lowered.original or images < limit:
                return
            lowered.quiet_steps += 1
            if lowered.quiet_steps >= lowered.steps_needed:
                self._limits[shape], lowered.quiet_steps = min(lowered.original, 2 * limit), 0

    def step_seconds(self) -> dict[int, float]:
        """Return the seconds of a step by bucket, at the measured resolution, else the first one."""
        with self._lock:
            first = next(iter(self._seconds), ())
            return dict(sorted(self._seconds.get(self._measured or first, {}).items()))
