"""One token drawn from each row of logits. Letters: see ``causal_lm``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256  # probabilities whose sum is looked at first
BELOW_ONE = 1 - 2.0**-52


def noise_for(rows: int, device: torch.device) -> Tensor:
    """The numbers [rows], uniform on [0, 1), that ``draw`` takes: one for each token to be drawn."""
    return torch.rand(rows, dtype=precision_on(device), device=device)


def precision_on(device: torch.device) -> torch.dtype:
    """float64, in which the sums over a vocabulary are exact to 1e-16; float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def draw(logits: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token [B] from each row of ``logits`` [B, V], and its log-probability [B]; without ``noise`` the likeliest.

    ``noise`` [B] is uniform on [0, 1), and the token is where the cumulative distribution exceeds it. A noise for each
    token of the vocabulary, as ``torch.multinomial`` draws it, takes 7 times as long over 49,152 tokens.
    """
    highest = logits.max(dim=-1, keepdim=True).values
    weight = (logits - highest).exp()
    token, total = inverse_cdf(weight, noise) if noise is not None else (logits.argmax(dim=-1), weight.sum(dim=-1))
    chosen = logits.gather(-1, token[:, None])[:, 0] - highest[:, 0]
    return token, chosen - total.log().to(logits.dtype)


def inverse_cdf(weight: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The index [B] at which the running sum of ``weight`` [B, V] exceeds ``noise`` [B] of the total, and the total.

    In two levels: the block of 256 weights in which that happens, then the weight within it. An index of weight 0 is
    never the result.
    """
    blocks = pad(weight, (0, -weight.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    until = blocks.sum(dim=-1, dtype=noise.dtype).cumsum(dim=-1)
    total = until[:, -1]
    target = (noise * total).minimum(total * BELOW_ONE)
    block = (until <= target[:, None]).sum(dim=-1)
    before = pad(until, (1, 0)).gather(-1, block[:, None])[:, 0]
    inside = blocks.gather(1, block[:, None, None].expand(-1, 1, BLOCK))[:, 0].to(noise.dtype).cumsum(dim=-1)
    rest = (target - before).minimum(inside[:, -1] * BELOW_ONE)
    return block * BLOCK + (inside <= rest[:, None]).sum(dim=-1), total
