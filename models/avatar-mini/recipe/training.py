"""What the trained stages share: a budget, averaged weights, and files that survive being killed."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a stage trains and how fast it learns."""

    minutes: float
    """Wall time that the stage may take in this run; it ends with the learning rate near zero."""
    peak: float
    """The highest learning rate."""
    warmup: int = 100
    """Steps until the peak is reached."""

    def rate(self, step: int, elapsed: float) -> float:
        """The learning rate after `elapsed` seconds of this run: a warm-up, then half a cosine."""
        share = min(1.0, elapsed / (60 * self.minutes))
        cosine = 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * share))))
        return self.peak * min(1.0, (step + 1) / self.warmup) * max(0.02, cosine)


class Stopwatch:
    """Seconds in which this process really ran, without those in which it was stopped (SIGSTOP)."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._total = 0.0

    def read(self, longest: float = 30.0) -> float:
        """Seconds so far; a gap of more than `longest` since the last reading counts as none."""
        now = time.monotonic()
        if now - self._last < longest:
            self._total += now - self._last
        self._last = now
        return self._total


class Average:
    """An exponential average of a model's weights: what is saved."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, decay: float) -> None:
        self._parameters = list(parameters)
        self._decay = decay
        self._steps = 0
        self._values = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in; the first steps count for more."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for value, parameter in zip(self._values, self._parameters, strict=True):
            value.lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged and the present weights."""
        for value, parameter in zip(self._values, self._parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)


def update(
    loss: Tensor, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], rate: float
) -> None:
    """One step of gradient descent, with gradients cut at a norm of 1."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def save_whole(value: Any, file: Path) -> None:
    """Write a file whole or not at all, so that neither a kill nor a full disk leaves half of one."""
    fresh = file.with_suffix(".new")
    try:
        torch.save(value, fresh)
        with fresh.open("rb") as written:
            os.fsync(written.fileno())
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A path to write the folder's next contents to; they take its place when the body is through."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        yield fresh
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def image_gradients(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbours, across and down."""
    return picture[..., 1:] - picture[..., :-1], picture[..., 1:, :] - picture[..., :-1, :]


def picture_loss(made: Tensor, wanted: Tensor, *, scales: int) -> Tensor:
    """L1 of colours and of gradients at halving scales; pictures are (B, 3, H, W) in -1..1."""
    loss = (made - wanted).abs().mean()
    for scale in range(scales):
        if scale:
            made, wanted = (torch.nn.functional.avg_pool2d(picture, 2) for picture in (made, wanted))
        pairs = zip(image_gradients(made), image_gradients(wanted), strict=True)
        loss = loss + sum((first - second).abs().mean() for first, second in pairs) / (1 + scale)
    return loss
