"""Classifies torch's errors, and translates them into the domain's."""

from avatarforge.domain.errors import AvatarForgeError, DeviceFailed, PipelineFailed


def is_out_of_memory(error: BaseException) -> bool:
    import torch

    # On a CPU the allocator raises nothing more telling than a RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def is_fatal(error: BaseException) -> bool:
    """Return whether every later call in this process will fail too."""
    import torch

    return isinstance(error, getattr(torch, "AcceleratorError", ())) and not is_out_of_memory(error)


def translate_error(error: Exception, model: str, device: str) -> AvatarForgeError:
    """Return the domain error for `error`, with `error` as its cause."""
    reason = f"{type(error).__name__}: {error}"
    translated: AvatarForgeError
    if isinstance(error, AvatarForgeError):
        return error
    if is_out_of_memory(error):
        translated = DeviceFailed(device, "it has too little memory for this image.")
    elif is_fatal(error):
        translated = DeviceFailed(device, reason)
    else:
        translated = PipelineFailed(model, reason)
    translated.__cause__ = error
    return translated
