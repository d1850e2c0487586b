"""What a text means to a model, kept for the next request with the same words."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from torch import Tensor

_MOST: Final = 512
"""Texts kept, each some hundred kilobytes: the words of a few hundred customers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedding:
    """One text as the UNet takes it."""

    hidden: Tensor
    """(1, tokens, width)."""
    pooled: Tensor | None = None
    """(1, width), in families that want the whole text as one vector too."""


class EmbeddingCache:
    """The embeddings that were used last. For one thread."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._embeddings: OrderedDict[Hashable, Embedding] = OrderedDict()

    def __len__(self) -> int:
        return len(self._embeddings)

    def get(self, text: Hashable) -> Embedding | None:
        if (found := self._embeddings.get(text)) is not None:
            self._embeddings.move_to_end(text)
        return found

    def put(self, text: Hashable, embedding: Embedding) -> None:
        """The one that was not used for longest goes when there are too many."""
        self._embeddings[text] = embedding
        self._embeddings.move_to_end(text)
        if len(self._embeddings) > self._most:
            self._embeddings.popitem(last=False)
