"""Breaks torch in a process as a failing GPU would. Python imports it at its start, found by `PYTHONPATH`.

The file that DEVICE_FAULT names says what the next convolution does: `hang`, or `die` as after an error that
ends a CUDA context. Whoever meets the fault takes the file away, so that another process is whole.
"""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any


def _break_torch(fault: Path) -> None:
    while (convolution := getattr(sys.modules.get("torch.nn.modules.conv"), "Conv2d", None)) is None:
        time.sleep(0.05)
    convolve, broken = convolution.forward, threading.Event()

    def forward(*arguments: Any, **options: Any) -> Any:
        if not broken.is_set():
            try:
                kind = fault.read_text()
                fault.unlink()
            except FileNotFoundError:
                return convolve(*arguments, **options)
            broken.set()
            if kind == "hang":
                threading.Event().wait()
        raise sys.modules["torch"].AcceleratorError("CUDA error: an illegal memory access", 700)

    convolution.forward = forward


if (path := os.environ.get("DEVICE_FAULT")) is not None:
    threading.Thread(target=_break_torch, args=(Path(path),), daemon=True).start()
