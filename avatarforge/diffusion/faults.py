"""What torch raises, in the family of errors that callers know."""

from avatarforge.domain.errors import AvatarForgeError, DeviceFailed, GenerationBroke


def out_of_memory(error: BaseException) -> bool:
    import torch

    # On a CPU the allocator raises nothing more telling than a RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def fatal(error: BaseException) -> bool:
    """Whether every later call in this process will fail too."""
    import torch

    return isinstance(error, getattr(torch, "AcceleratorError", ())) and not out_of_memory(error)


def translated(error: Exception, model: str, device: str) -> AvatarForgeError:
    """The error that a caller meets, with `error` as its cause."""
    reason = f"{type(error).__name__}: {error}"
    told: AvatarForgeError
    if isinstance(error, AvatarForgeError):
        return error
    if out_of_memory(error):
        told = DeviceFailed(device, "it has too little memory for this picture.")
    elif fatal(error):
        told = DeviceFailed(device, reason)
    else:
        told = GenerationBroke(model, reason)
    told.__cause__ = error
    return told
