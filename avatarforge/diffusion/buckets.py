"""How many images a pass takes at once, and how long it takes, by resolution."""

from collections.abc import Iterator, Mapping
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


class Buckets:
    """Limits and times. Read from any thread."""

    def __init__(self, most: int) -> None:
        """`most` images are denoised at once at any resolution."""
        self._most = most
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

    def lower(self, shape: Shape, failed: int) -> None:
        """So many images were too many: half of them are the limit from now on."""
        with self._lock:
            self._limits[shape] = max(1, min(self._limits.get(shape, self._most), failed // 2))

    def seconds(self) -> dict[int, float]:
        """Of a step, by bucket, at the resolution that was met last."""
        with self._lock:
            return dict(sorted(next(reversed(self._seconds.values()), {}).items()))
