"""How many images a pass takes at once, and how long it takes, by resolution."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Lock

Shape = tuple[int, ...]
"""(C, h, w) of latents."""

_GAIN = 0.95
"""A larger bucket must take less than this share of the time for each image, or it only makes others wait."""
_WEIGHT = 0.1
"""Of the newest measurement in the average."""


def bucket_of(images: int) -> int:
    """The next power of two."""
    return 1 << max(0, images - 1).bit_length()


@dataclass(slots=True)
class _Lowered:
    """A limit that ran out of memory."""

    found: int
    """What it was before."""
    patience: int
    """Steps without trouble before it is raised."""
    quiet: int = 0


class Buckets:
    """Limits and times. Read from any thread."""

    QUIET = 256
    """Steps at a lowered limit after which twice as many images are tried; doubled each time that fails."""

    def __init__(self, most: int) -> None:
        """`most` images are denoised at once at any resolution."""
        self._most = most
        self._lowered: dict[Shape, _Lowered] = {}
        self._limits: dict[Shape, int] = {}
        self._seconds: dict[Shape, dict[int, float]] = {}
        self._lock = Lock()

    def limit(self, shape: Shape | None = None) -> int:
        """Images that one pass may hold; without a shape the least of all shapes that were met."""
        with self._lock:
            if shape is None:
                return min(self._limits.values(), default=self._most)
            return self._limits.get(shape, self._most)

    def sizes(self) -> Iterator[int]:
        """The buckets that are worth trying, smallest first."""
        size = 1
        while size < self._most:
            yield size
            size *= 2
        yield self._most

    def found(self, shape: Shape, seconds: Mapping[int, float]) -> None:
        """Set the limit from what warming up measured: seconds of a step by the number of images."""
        least = min(taken / images for images, taken in seconds.items())
        enough = [images for images, taken in seconds.items() if _GAIN * taken / images <= least]
        with self._lock:
            self._limits[shape] = min(enough)
            self._seconds[shape] = {bucket_of(images): taken for images, taken in seconds.items()}

    def note(self, shape: Shape, images: int, seconds: float) -> None:
        """A step of so many images took so long."""
        with self._lock:
            times = self._seconds.setdefault(shape, {})
            bucket = bucket_of(images)
            times[bucket] = times.get(bucket, seconds) * (1 - _WEIGHT) + seconds * _WEIGHT
            self._raise_again(shape, images)

    def lower(self, shape: Shape, failed: int) -> None:
        """So many images were too many: half of their bucket is the limit, until all is quiet for a while."""
        with self._lock:
            limit = self._limits.get(shape, self._most)
            lowered = self._lowered.setdefault(shape, _Lowered(found=limit, patience=self.QUIET // 2))
            lowered.patience *= 2
            lowered.quiet = 0
            self._limits[shape] = max(1, min(limit, bucket_of(failed) // 2))

    def _raise_again(self, shape: Shape, images: int) -> None:
        """What took the memory may be gone; only steps that fill the limit tell."""
        lowered, limit = self._lowered.get(shape), self._limits.get(shape, self._most)
        if lowered is None or limit >= lowered.found or images < limit:
            return
        lowered.quiet += 1
        if lowered.quiet >= lowered.patience:
            self._limits[shape], lowered.quiet = min(lowered.found, 2 * limit), 0

    def seconds(self) -> dict[int, float]:
        """Of a step, by bucket, at the resolution that was met last."""
        with self._lock:
            return dict(sorted(next(reversed(self._seconds.values()), {}).items()))
