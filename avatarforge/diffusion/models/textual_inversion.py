"""Adds textual inversion embeddings: words of a prompt with vectors of their own.

https://arxiv.org/abs/2208.01618
"""

from typing import Any

from avatarforge.diffusion.models.catalogue import Manifest
from avatarforge.diffusion.models.weight_files import UnreadableWeights, describe_contents, read_header
from avatarforge.domain.errors import ModelUnusable


def add_embeddings(pipeline: Any, manifest: Manifest) -> None:
    """Add all of the manifest's embeddings. Raises `ModelUnusable` for one that does not fit."""
    for embedding in manifest.embeddings:
        name = f"its embedding {embedding.file.name}"
        if embedding.file.suffix != ".safetensors" or not embedding.file.is_file():
            raise ModelUnusable(
                manifest.name, f"its embedding {embedding.file} is no .safetensors file that is there"
            )
        try:
            vectors = _read_vectors(pipeline, embedding.file)
            pipeline.load_textual_inversion(vectors, token=embedding.token)
        except ValueError as error:
            raise ModelUnusable(manifest.name, f"{name} {str(error)[:150]}") from error


def _read_vectors(pipeline: Any, file: Any) -> Any:
    """Return (vectors, width). Raises `ValueError`, with the rest of a sentence, if they do not fit."""
    from safetensors.torch import load_file

    shapes = read_header(file).shapes
    if "clip_g" in shapes or getattr(pipeline, "text_encoder_2", None) is not None:
        raise UnreadableWeights("cannot be added: embeddings for two text encoders are not supported")
    encoder = getattr(pipeline, "text_encoder", None)
    if encoder is None or not hasattr(pipeline, "load_textual_inversion"):
        raise UnreadableWeights(f"cannot be added to a {type(pipeline).__name__}")
    if len(shapes) != 1:
        raise UnreadableWeights(f"is none: the file is {describe_contents(shapes) or 'of no known kind'}")
    (vectors,) = load_file(file).values()
    width = encoder.get_input_embeddings().weight.shape[-1]
    if vectors.shape[-1] != width:
        raise UnreadableWeights(
            f"is for a text encoder of width {vectors.shape[-1]}, and this one has {width}"
        )
    if not vectors.isfinite().all():
        raise UnreadableWeights("holds values that are not finite")
    return vectors
