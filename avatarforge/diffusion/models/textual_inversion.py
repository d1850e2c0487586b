"""Adds textual inversion embeddings: words of a prompt with vectors of their own.

https://arxiv.org/abs/2208.01618
"""

from pathlib import Path
from typing import Any, Final

from avatarforge.diffusion.models.catalogue import Manifest
from avatarforge.diffusion.models.weight_files import UnreadableWeights, describe_contents, read_header
from avatarforge.domain.errors import ModelUnusable

_XL_KEYS: Final = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""Names of the vectors in files for models with two text encoders, by the part of the pipeline."""


def add_embeddings(pipeline: Any, manifest: Manifest) -> None:
    """Add all of the manifest's embeddings. Raises `ModelUnusable` for one that does not fit."""
    for embedding in manifest.embeddings:
        name = f"its embedding {embedding.file.name}"
        if embedding.file.suffix != ".safetensors" or not embedding.file.is_file():
            raise ModelUnusable(
                manifest.name, f"its embedding {embedding.file} is no .safetensors file that is there"
            )
        try:
            for encoder, vectors in _read_vectors(pipeline, embedding.file).items():
                pipeline.load_textual_inversion(
                    vectors,
                    token=embedding.token,
                    tokenizer=getattr(pipeline, encoder.replace("text_encoder", "tokenizer")),
                    text_encoder=getattr(pipeline, encoder),
                )
        except ValueError as error:
            raise ModelUnusable(manifest.name, f"{name} {str(error)[:150]}") from error


def _read_vectors(pipeline: Any, file: Path) -> dict[str, Any]:
    """Return the vectors (N, width) by the text encoder that they are for.

    Raises `ValueError`, with the rest of a sentence, if they do not fit.
    """
    from safetensors.torch import load_file

    encoders = [name for name in _XL_KEYS if getattr(pipeline, name, None) is not None]
    if not encoders or not hasattr(pipeline, "load_textual_inversion"):
        raise UnreadableWeights(f"cannot be added to a {type(pipeline).__name__}")
    shapes = read_header(file).shapes
    is_xl = "text_encoder_2" in encoders
    keys = {name: _XL_KEYS[name] if is_xl else next(iter(shapes), "") for name in encoders}
    if not shapes.keys() >= set(keys.values()) or (len(shapes) > 1 and not is_xl):
        wanted = " and ".join(keys.values()) if is_xl else "one tensor"
        contents = describe_contents(shapes) or "of no known kind"
        raise UnreadableWeights(f"is {contents}, with {', '.join(sorted(shapes)[:2])}: it must hold {wanted}")
    tensors = load_file(file)
    found = {name: tensors[key] for name, key in keys.items()}
    for name, vectors in found.items():
        width = getattr(pipeline, name).get_input_embeddings().weight.shape[-1]
        if vectors.shape[-1] != width:
            raise UnreadableWeights(
                f"is for a text encoder of width {vectors.shape[-1]}, and this one has {width}"
            )
        if not vectors.isfinite().all():
            raise UnreadableWeights("holds values that are not finite")
    if len({len(vectors) for vectors in found.values()}) > 1:
        raise UnreadableWeights("has not as many vectors for one text encoder as for the other")
    return found
