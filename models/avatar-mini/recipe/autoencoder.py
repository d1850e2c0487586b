"""Stage 1: the autoencoder, set to be a transform code; stage 4 trains its decoder from there.

A good linear code for blocks of pixels is known in closed form: even squares, and the principal components of
the rest. diffusers' `AutoencoderKLHunyuanImage` moves pixels into channels and back ("pixel shuffle"), so its
weights can be set such that it *is* that code: every half block of 8 rows and 4 columns becomes 16 numbers,
and those are put together again. All residual branches begin at zero, so training has only to take the edges
between blocks away, and never to find out what colour is.
"""

from dataclasses import dataclass
from typing import Final

import torch
from diffusers import AutoencoderKLHunyuanImage
from torch import Tensor, nn

CHANNELS: Final = (64, 64, 64, 128)
COMPONENTS: Final = 16
"""Components that are kept of a half block's 96 numbers."""

LATENTS: Final = 2 * COMPONENTS
"""Latent channels: the left half block's components, then the right one's."""

FADE: Final = 0.5
"""Latents have their components' standard deviations to this power: 1 keeps them, 0 makes all alike."""

_ANCHOR: Final = 3.0
"""What the last normalisation measures by, see `_set_head`."""


@dataclass(frozen=True, kw_only=True)
class BlockCode:
    """A linear code of half blocks: what the encoder is, and what the decoder begins as."""

    mean: Tensor
    """(96,)"""
    analysis: Tensor
    """(96, 16): turns a half block less its mean into components."""
    synthesis: Tensor
    """(96, 16): turns components back."""

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents (B, LATENTS, H / 8, W / 8) of pictures (B, 3, H, W) in -1..1: the encoder's, but sooner."""
        quarters = _unshuffle(_unshuffle(pictures))
        count, channels, height, width = quarters.shape
        halves = quarters.reshape(count, channels, height // 2, 2, width // 2, 2)
        kernel = self.analysis.reshape(2, channels, COMPONENTS)
        latents = (
            torch.einsum("bchdwr,dck->brkhw", halves, kernel) - (self.mean @ self.analysis)[:, None, None]
        )
        return latents.reshape(count, LATENTS, height // 2, width // 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of latents (B, LATENTS, H / 8, W / 8), with the blocks' edges."""
        count, _, height, width = latents.shape
        kernel = self.synthesis.reshape(2, -1, COMPONENTS)
        halves = torch.einsum(
            "brkhw,dck->bchdwr", latents.reshape(count, 2, COMPONENTS, height, width), kernel
        )
        halves = halves + self.mean.reshape(2, -1).T[None, :, None, :, None, None]
        return _shuffle(_shuffle(halves.reshape(count, -1, 2 * height, 2 * width)))


def create_autoencoder(code: BlockCode) -> AutoencoderKLHunyuanImage:
    """An autoencoder that codes as `code` does."""
    model = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENTS,
        block_out_channels=CHANNELS,
        layers_per_block=-1,
        spatial_compression_ratio=8,
        sample_size=256,
        scaling_factor=1.0,
    )
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith((".conv2", ".proj")):
                module.weight.zero_()
                module.bias.zero_()
        _set_encoder(model.encoder, code.mean, code.analysis)
        _set_decoder(model.decoder, code.mean, code.synthesis)
    return model


def _unshuffle(pictures: Tensor) -> Tensor:
    """Turn each 2 x 2 square of pixels into one, the place before the channel, as the autoencoder does."""
    count, channels, height, width = pictures.shape
    squares = pictures.reshape(count, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 3, 5, 1, 2, 4).reshape(count, 4 * channels, height // 2, width // 2)


def _shuffle(pictures: Tensor) -> Tensor:
    """Undo `_unshuffle`."""
    count, channels, height, width = pictures.shape
    squares = pictures.reshape(count, 2, 2, channels // 4, height, width)
    return squares.permute(0, 3, 4, 1, 5, 2).reshape(count, channels // 4, 2 * height, 2 * width)


def find_code(pictures: Tensor) -> BlockCode:
    """Find the code of half blocks from `pictures`, (B, 3, H, W) in -1..1.

    The first six components span the colours of two even squares of 4 x 4 pixels, the others are the
    principal components of what is left. So even squares, pixel art above all, are coded exactly, with the
    last ten components constant. Beside principal components alone this costs photos 0.7 dB.
    """
    quarters = _unshuffle(_unshuffle(pictures))
    count, channels, height, width = quarters.shape
    halves = quarters.reshape(count, channels, height // 2, 2, width).permute(0, 2, 4, 3, 1)
    halves = halves.reshape(-1, 2 * channels).double()
    mean, covariance = halves.mean(dim=0), torch.cov(halves.T)
    # A half block's numbers are upper and lower square, place in the square, colour.
    even = torch.eye(6, dtype=torch.float64).reshape(2, 1, 3, 6).expand(-1, 16, -1, -1).reshape(-1, 6) / 4
    rest = torch.eye(len(even), dtype=torch.float64) - even @ even.T
    first, second = _principal(even, covariance, 6), _principal(rest, covariance, COMPONENTS - 6)
    basis = torch.cat([first, second], dim=1)
    deviation = (basis.T @ covariance @ basis).diagonal().sqrt()
    wanted = deviation**FADE
    wanted = wanted / wanted.square().mean().sqrt()
    scale = deviation / wanted
    return BlockCode(mean=mean.float(), analysis=(basis / scale).float(), synthesis=(basis * scale).float())


def _principal(space: Tensor, covariance: Tensor, count: int) -> Tensor:
    """The first principal components within the space that the columns of `space` span, as columns."""
    _, vectors = torch.linalg.eigh(space.T @ covariance @ space)
    return space @ vectors.flip(1)[:, :count]


def _set_rows(conv: nn.Conv2d, rows: list[int], taps: dict[tuple[int, int], Tensor], bias: Tensor) -> None:
    """Set some outputs of a 3 x 3 convolution: at each offset (down, right) a matrix (rows, inputs)."""
    conv.weight[rows] = 0.0
    for (down, right), matrix in taps.items():
        conv.weight[rows, :, 1 + down, 1 + right] = matrix
    conv.bias[rows] = bias


def _select(indices: list[int], inputs: int, factor: float = 1.0) -> Tensor:
    """A matrix that picks inputs."""
    matrix = torch.zeros(len(indices), inputs)
    matrix[torch.arange(len(indices)), indices] = factor
    return matrix


_LAST_COLUMNS: Final = [16 * place + number for place in range(4) for number in range(12)]
"""Inputs of the encoder's last step that carry pixels."""


def _set_encoder(encoder: nn.Module, mean: Tensor, analysis: Tensor) -> None:
    """Pixels go down unchanged to a quarter of the size; the last step turns two of them into components."""
    first, second, third = encoder.down_blocks
    _set_rows(encoder.conv_in, [0, 1, 2], {(0, 0): torch.eye(3)}, torch.zeros(3))
    _set_copy(first, [0, 1, 2])
    _set_copy(second, [16 * place + colour for place in range(4) for colour in range(3)])
    rows = list(range(LATENTS))
    upper, lower = (torch.zeros(LATENTS, CHANNELS[2]) for _ in range(2))
    upper[:, _LAST_COLUMNS] = analysis[:48].T.repeat_interleave(2, dim=0)
    lower[:, _LAST_COLUMNS] = analysis[48:].T.repeat_interleave(2, dim=0)
    bias = -(mean @ analysis).repeat_interleave(2)
    _set_rows(third.conv, rows, {(0, 0): upper - _downward_shortcut(third), (1, 0): lower}, bias)
    encoder.conv_out.weight.zero_()
    encoder.conv_out.bias.zero_()
    # The second half of the outputs are logarithms of variances; only the means are ever used.
    encoder.conv_out.bias[LATENTS:] = -20.0


def read_code(model: AutoencoderKLHunyuanImage) -> BlockCode:
    """The code that an autoencoder made by `create_autoencoder` encodes with, whatever its decoder learnt.

    Of the mean only what is seen in latents can be read; decoded pictures differ by one pattern, repeated in
    every half block.
    """
    third = model.encoder.down_blocks[2]
    kernel = third.conv.weight.detach().clone()
    kernel[:, :, 1, 1] += _downward_shortcut(third)
    quarters = (kernel[:LATENTS:2, _LAST_COLUMNS, down, 1].T for down in (1, 2))
    analysis = torch.cat(tuple(quarters))
    synthesis = analysis / analysis.square().sum(dim=0)
    mean = -synthesis @ third.conv.bias.detach()[:LATENTS:2]
    return BlockCode(mean=mean, analysis=analysis, synthesis=synthesis)


def _downward_shortcut(block: nn.Module) -> Tensor:
    """What a downsampling block adds to each of its convolution's outputs: the mean of a group of inputs."""
    outputs, inputs = block.conv.weight.shape[:2]
    return torch.eye(outputs).repeat_interleave(block.group_size, dim=1)[:, :inputs] / block.group_size


def _set_copy(block: nn.Module, kept: list[int]) -> None:
    """Carry the `kept` channels of every place through a downsampling block as its first outputs."""
    rows = list(range(len(kept)))
    wanted = _select(kept, block.conv.in_channels)
    _set_rows(block.conv, rows, {(0, 0): wanted - _downward_shortcut(block)[rows]}, torch.zeros(len(kept)))


def _set_decoder(decoder: nn.Module, mean: Tensor, synthesis: Tensor) -> None:
    inner = CHANNELS[-1]
    repeated = torch.eye(LATENTS).repeat_interleave(inner // LATENTS, dim=0)
    rows = list(range(LATENTS))
    _set_rows(decoder.conv_in, rows, {(0, 0): torch.eye(LATENTS) - repeated[rows]}, torch.zeros(LATENTS))
    first, second, third = (block for block in decoder.up_blocks if hasattr(block, "repeats"))
    for place in range(4):
        down, right = divmod(place, 2)
        part = slice(48 * down, 48 * (down + 1))
        wanted = torch.zeros(48, inner)
        wanted[:, COMPONENTS * right : COMPONENTS * (right + 1)] = synthesis[part]
        _set_place(first, place, wanted, mean[part])
        _set_place(second, place, _select([12 * place + n for n in range(12)], CHANNELS[2]), torch.zeros(12))
        _set_place(third, place, *_head_inputs(place))
    _set_head(decoder)


def _set_place(block: nn.Module, place: int, wanted: Tensor, bias: Tensor) -> None:
    """Set what an upsampling block puts at one place of each 2 x 2 square, less what its shortcut adds."""
    outputs, inputs = block.conv.out_channels // 4, block.conv.in_channels
    rows = [outputs * place + number for number in range(len(wanted))]
    shortcut = torch.eye(inputs).repeat_interleave(block.repeats, dim=0)[rows]
    _set_rows(block.conv, rows, {(0, 0): wanted - shortcut}, bias)


_GROUPS: Final = ((1, 1), (-1, -1), (1, -1), (-1, 1))
"""Signs of colour and anchor in the four groups of channels that carry a colour through the head."""


def _head_inputs(place: int) -> tuple[Tensor, Tensor]:
    """For each colour four groups of two channels, the colour and the anchor, with their signs."""
    matrix, bias = torch.zeros(24, CHANNELS[1]), torch.zeros(24)
    anchor = _ANCHOR if place in (0, 3) else -_ANCHOR
    for colour in range(3):
        for group, (colour_sign, anchor_sign) in enumerate(_GROUPS):
            row = 8 * colour + 2 * group
            matrix[row, 3 * place + colour] = colour_sign
            bias[row + 1] = anchor_sign * anchor
    return matrix, bias


def _set_head(decoder: nn.Module) -> None:
    """Undo the last normalisation and SiLU, so that a colour comes through as it went in.

    The normalisation works on groups of two channels and would take a picture's mean colour away. So each
    colour x goes with an anchor a, a chequerboard that is large beside it: the group's mean m is then half of
    x's, and its deviation nearly constant, d = sqrt((a² + E x²) / 2). A second group has -a in place of a.
    Then x / d = (x - m) / d - ((a - m) / d + (-a - m) / d) / 2. As silu(u) - silu(-u) = u, every channel goes
    with its negative.
    """
    deviation = ((_ANCHOR**2 + 0.3) / 2) ** 0.5
    colour_part, anchor_part = deviation / 2, -deviation / 2
    weight = torch.zeros(3, 64)
    for colour in range(3):
        for group, (colour_sign, _) in enumerate(_GROUPS):
            column = 8 * colour + 2 * group
            weight[colour, column] = colour_part * colour_sign
            # The groups with a positive colour hold (a - m) / d and (-a - m) / d, the others their negatives.
            weight[colour, column + 1] = anchor_part * colour_sign
    _set_rows(decoder.conv_out, [0, 1, 2], {(0, 0): weight}, torch.zeros(3))
