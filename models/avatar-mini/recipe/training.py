"""What the three stages of training share: a budget of steps, a resumable state on disk, and averaged
weights."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

log = logging.getLogger("avatar-mini")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a stage trains, in optimizer steps, and its learning rate: warm-up, constant, straight down to
    zero.

    `override` names a file that may appear during training: the number in it replaces `steps`. So a run ends
    cleanly before its time: write (steps done + `decay`) into the file, and the rate starts to fall at once.
    """

    steps: int
    decay: int
    peak: float
    override: Path
    warmup: int = 100

    def total(self) -> int:
        """The steps that the stage takes as things stand now."""
        return int(self.override.read_text()) if self.override.exists() else self.steps

    def rate(self, step: int, total: int) -> float:
        """The learning rate of this step."""
        return self.peak * min(1.0, (step + 1) / self.warmup, max(total - step, 0) / self.decay)


class Average:
    """An exponential moving average of a module's parameters; early steps count for less."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live = list(module.parameters())
        self.values = [parameter.detach().clone() for parameter in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self._live], 1 - decay)

    @torch.no_grad()
    def copy_into(self, module: nn.Module) -> None:
        for parameter, value in zip(module.parameters(), self.values, strict=True):
            parameter.copy_(value)


class Progress:
    """A stage's training state in one file, written under another name first so that it is always whole."""

    def __init__(
        self, file: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
    ) -> None:
        self._file, self._module, self._optimizer, self._average = file, module, optimizer, average
        self._cpu_before = -time.process_time()
        self._losses: list[float] = []

    def resume(self) -> int:
        """Load the state if there is one, and return the number of steps done."""
        if not self._file.exists():
            return 0
        state = torch.load(self._file, map_location="cpu", weights_only=True)
        self._module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._average is not None:
            for value, saved in zip(self._average.values, state["average"], strict=True):
                value.copy_(saved)
        self._cpu_before += state["cpu_seconds"]
        return int(state["step"])

    def save(self, step: int) -> None:
        state = {
            "step": step,
            "module": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average.values if self._average is not None else [],
            "cpu_seconds": self.cpu_seconds(),
        }
        partial = self._file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._file)

    def cpu_seconds(self) -> float:
        """Processor time of the stage over all its runs, of all threads together, in seconds."""
        return self._cpu_before + time.process_time()

    def report(self, step: int, total: int, loss: float, *, every: int = 50) -> None:
        """Log the mean loss of the last `every` steps."""
        self._losses.append(loss)
        if step % every == 0:
            mean = sum(self._losses) / len(self._losses)
            log.info(
                "%s step %d of %d, loss %.4f, CPU %d s",
                self._file.stem,
                step,
                total,
                mean,
                self.cpu_seconds(),
            )
            self._losses.clear()


def update(
    loss: torch.Tensor, optimizer: torch.optim.Optimizer, rate: float, clipped: Iterable[nn.Parameter]
) -> None:
    """One optimizer step at this learning rate, with gradients clipped to a norm of 1."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
    nn.utils.clip_grad_norm_(clipped, 1.0)
    optimizer.step()
