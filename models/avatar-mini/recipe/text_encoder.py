"""Stage 2: the tokenizer and the text encoder, taught on captions alone to say what a caption names.

The last places of the padded sequence are set aside, one for each attribute: with causal attention they see
the whole caption, and being always padding they are always there. The encoder learns to gather at each of
them its attribute (`SLOTS`). Cross-attention then finds "the colour of the shirt" at a fixed address,
whatever the caption's wording. All this is a plain CLIPTextModel; the heads that teach it are thrown away.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as functional
from captions import Caption, labels, worded
from palette import PALETTES, VALUES
from portraits import sample
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from training import Budget, update
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

log = logging.getLogger("avatar-mini")

LENGTH: Final = 56
"""Tokens of every caption after padding."""

SLOTS: Final = {attribute: LENGTH - len(VALUES) + place for place, attribute in enumerate(VALUES)}
"""The position in the sequence that stands for each attribute."""


@dataclass(frozen=True, kw_only=True)
class TextPlan:
    """Size and training of the text encoder."""

    width: int = 128
    layers: int = 3
    batch: int = 48


def random_captions(count: int, rng: np.random.Generator) -> list[Caption]:
    """Captions of portraits that are never drawn."""
    return [worded(sample(rng), rng) for _ in range(count)]


def trained_tokenizer(folder: Path, *, seed: int) -> CLIPTokenizer:
    """A byte-pair tokenizer of CLIP's kind with the vocabulary of the captions."""
    if not (folder / "tokenizer_config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        texts = [caption.text for caption in random_captions(6_000, np.random.default_rng((seed, 7)))]
        _byte_pairs(texts).model.save(str(folder))
        built = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)
        built.save_pretrained(folder)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def _byte_pairs(texts: list[str]) -> Tokenizer:
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


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token numbers, (B, LENGTH), padded and cut as a diffusers pipeline does it."""
    padded = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    numbers: torch.Tensor = padded.input_ids
    return numbers


class _Heads(nn.Module):
    """Reads each attribute's value, and each colour, linearly from the attribute's slot."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.values = nn.ModuleDict(
            {name: nn.Linear(width, 1 + len(values)) for name, values in VALUES.items()}
        )
        self.colours = nn.ModuleDict({name: nn.Linear(width, 3) for name in PALETTES})

    def forward(self, states: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and which values were read rightly, (B, attributes)."""
        loss, right = torch.zeros((), device=states.device), []
        for place, name in enumerate(VALUES):
            slot, label = states[:, SLOTS[name]], wanted[:, place]
            scores = self.values[name](slot)
            loss = loss + functional.cross_entropy(scores, label)
            right.append(scores.argmax(-1) == label)
            if name in PALETTES:
                loss = loss + self._colour_loss(name, slot, label)
        return loss, torch.stack(right, dim=1)

    def _colour_loss(self, name: str, slot: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Near colours shall lie near each other; where none is named, nothing is asked."""
        table = (
            torch.tensor([(127.5, 127.5, 127.5), *PALETTES[name].values()], device=slot.device) / 127.5 - 1
        )
        error = (self.colours[name](slot) - table[label]) ** 2
        return (error.mean(-1) * (label > 0)).mean()


def train(
    tokenizer: CLIPTokenizer, plan: TextPlan, budget: Budget, *, seed: int, device: str
) -> CLIPTextModel:
    """Train from nothing until the budget is spent, and log how often each attribute is read rightly."""
    torch.manual_seed(seed)
    model = CLIPTextModel(_config(tokenizer, plan)).to(device).train()
    heads = _Heads(plan.width).to(device)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-2, betas=(0.9, 0.98))
    rng, step = np.random.default_rng((seed, 8)), 0
    while step < (total := budget.total()):
        loss, right = _read(model, heads, tokenizer, random_captions(plan.batch, rng), device)
        update(loss, optimizer, budget.rate(step, total), parameters)
        step += 1
        if step % 100 == 0:
            log.info(
                "text step %d of %d, loss %.4f, right %.4f", step, total, loss.item(), right.float().mean()
            )
    _log_accuracy(model.eval(), heads, tokenizer, device, seed)
    return model


def _read(
    model: CLIPTextModel, heads: _Heads, tokenizer: CLIPTokenizer, captions: list[Caption], device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    states = model(tokens(tokenizer, [caption.text for caption in captions]).to(device)).last_hidden_state
    wanted = torch.tensor([labels(caption) for caption in captions], device=device)
    loss, right = heads(states, wanted)
    return loss, right


@torch.no_grad()
def _log_accuracy(
    model: CLIPTextModel, heads: _Heads, tokenizer: CLIPTokenizer, device: str, seed: int
) -> None:
    held_out = random_captions(2_000, np.random.default_rng((seed, 9)))
    _, right = _read(model, heads, tokenizer, held_out, device)
    shares = dict(zip(VALUES, right.float().mean(0).tolist(), strict=True))
    log.info(
        "text, 2000 new captions: %s", ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    )


def _config(tokenizer: CLIPTokenizer, plan: TextPlan) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=plan.width,
        intermediate_size=2 * plan.width,
        num_hidden_layers=plan.layers,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=plan.width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
