"""Classifies torch's errors, and translates them into the domain's."""

from collections.abc import Iterator

from avatarforge.domain.errors import AvatarForgeError, DeviceFailed, DeviceLost, PipelineFailed

_MEMORY_MESSAGES = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Of a CPU's allocator, of a driver (in an `AcceleratorError`), and of cuBLAS, which raise a RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MEMORY_MESSAGES)


def is_fatal(error: BaseException) -> bool:
    """Return whether every later call in this process will fail too."""
    import torch

    return isinstance(error, getattr(torch, "AcceleratorError", ())) and not is_out_of_memory(error)


def is_compilation_error(error: BaseException) -> bool:
    """Return whether torch could not compile a model, or has compiled it too often; it may run as it is."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return isinstance(error, TorchDynamoException | FailOnRecompileLimitHit)


def translate_error(error: Exception, model: str, device: str) -> AvatarForgeError:
    """Return the domain error for `error`, with `error` as its cause."""
    reason = f"{type(error).__name__}: {error}"
    translated: AvatarForgeError
    if isinstance(error, AvatarForgeError):
        return error
    if is_out_of_memory(error):
        translated = DeviceFailed(device, "it has too little memory for this image.")
    elif is_fatal(error):
        translated = DeviceLost(device, reason)
    else:
        translated = PipelineFailed(model, reason)
    translated.__cause__ = error
    return translated


def has_run_out_of_memory(error: BaseException) -> bool:
    """Return whether the error is, or was caused by, one of too little memory."""
    return any(is_out_of_memory(cause) for cause in _iterate_causes(error))


def find_device_loss(error: BaseException) -> DeviceLost | None:
    """Return the loss of the device that the error is, or was caused by, if there is one."""
    for cause in _iterate_causes(error):
        if isinstance(cause, DeviceLost):
            return cause
        if is_fatal(cause):
            return DeviceLost("cuda", f"{type(cause).__name__}: {cause}")
    return None


def _iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
