"""Stage 2: the tokenizer and the text encoder, taught on captions alone to say what a caption names.

The last places of the padded sequence are set aside, one for each attribute: with causal attention they see
the whole caption, and being always padding they are always there. The encoder learns to gather at each of
them its attribute (`SLOTS`). Cross-attention then finds "the colour of the background" at a fixed address,
whatever the caption's wording. All this is a plain CLIPTextModel; the heads that teach it are thrown away.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as functional
from captions import ATTRIBUTES, Caption, sample_caption
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from training import Budget, Stopwatch, update
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

log = logging.getLogger("avatar-mini")

LENGTH: Final = 77
"""Tokens of every caption after padding, as in CLIP."""

WIDTH: Final = 128
LAYERS: Final = 3
BATCH: Final = 48

SLOTS: Final = {attribute: LENGTH - len(ATTRIBUTES) + place for place, attribute in enumerate(ATTRIBUTES)}
"""The position in the sequence that stands for each attribute."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """The frozen text side of the pipeline."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """The text encoder's states, (B, LENGTH, WIDTH)."""
        states: Tensor = self.encoder(to_tokens(self.tokenizer, texts)).last_hidden_state
        return states


def train_tokenizer(folder: Path, *, seed: int) -> CLIPTokenizer:
    """A byte-pair tokenizer of CLIP's kind with the vocabulary of the captions; made once."""
    if not (folder / "tokenizer_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng((seed, 7))
        texts = [sample_caption(rng).text for _ in range(8_000)]
        _count_byte_pairs(texts).model.save(str(folder))
        built = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)
        built.save_pretrained(folder)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def _count_byte_pairs(texts: list[str]) -> Tokenizer:
    """Splits text just as CLIPTokenizer will."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    words = Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=25,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def to_tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token numbers, (B, LENGTH), padded and cut as a diffusers pipeline does it."""
    padded = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    numbers: Tensor = padded.input_ids
    return numbers


def label(captions: list[Caption]) -> Tensor:
    """For each attribute in the order of `ATTRIBUTES`: 0 if it is not named, else 1 + its value's number."""
    return torch.tensor(
        [
            [
                0 if (value := getattr(caption, name)) is None else 1 + values.index(value)
                for name, values in ATTRIBUTES.items()
            ]
            for caption in captions
        ]
    )


class _Heads(nn.Module):
    """Reads each attribute's value linearly from the attribute's slot, and whether the caption is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.ModuleDict(
            {name: nn.Linear(WIDTH, 1 + len(values)) for name, values in ATTRIBUTES.items()}
        )
        self.empty = nn.Linear(WIDTH, 2)

    def forward(self, states: Tensor, captions: list[Caption]) -> tuple[Tensor, Tensor]:
        """The loss, and which values were read rightly, (B, attributes)."""
        wanted, right = label(captions), []
        empty = torch.tensor([int(not caption.text) for caption in captions])
        loss = functional.cross_entropy(self.empty(states[:, SLOTS["style"]]), empty)
        for place, name in enumerate(ATTRIBUTES):
            scores = self.values[name](states[:, SLOTS[name]])
            loss = loss + functional.cross_entropy(scores, wanted[:, place])
            right.append(scores.argmax(-1) == wanted[:, place])
        return loss, torch.stack(right, dim=1)


def train_text_encoder(tokenizer: CLIPTokenizer, budget: Budget, *, seed: int) -> CLIPTextModel:
    """Train from nothing until the budget is spent, and log how often each attribute is read rightly."""
    torch.manual_seed(seed)
    model = CLIPTextModel(_configure(tokenizer)).train()
    heads = _Heads()
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-2, betas=(0.9, 0.98))
    rng, watch, step = np.random.default_rng((seed, 8)), Stopwatch(), 0
    while (elapsed := watch.read()) < 60 * budget.minutes:
        captions = [sample_caption(rng) for _ in range(BATCH)]
        loss, right = heads(_states(model, tokenizer, captions), captions)
        update(loss, optimizer, parameters, budget.rate(step, elapsed))
        step += 1
        if step % 50 == 0:
            log.info("text step %d, loss %.4f, right %.4f", step, loss.item(), right.float().mean())
    _log_accuracy(model.eval(), heads, tokenizer, seed)
    return model


def _states(model: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[Caption]) -> Tensor:
    states: Tensor = model(to_tokens(tokenizer, [caption.text for caption in captions])).last_hidden_state
    return states


@torch.no_grad()
def _log_accuracy(model: CLIPTextModel, heads: _Heads, tokenizer: CLIPTokenizer, seed: int) -> None:
    rng = np.random.default_rng((seed, 9))
    captions = [sample_caption(rng) for _ in range(1_000)]
    _, right = heads(_states(model, tokenizer, captions), captions)
    shares = dict(zip(ATTRIBUTES, right.float().mean(0).tolist(), strict=True))
    log.info(
        "text, 1000 new captions: %s", ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    )


def _configure(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
