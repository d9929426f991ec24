"""What a policy that convolves its observations needs: images [B, C, H, W] with a pixel's channels side by side.

In that layout, torch's "channels last", oneDNN's convolutions take less time on a CPU, most of all the gradient of the
first one's weights, and cuDNN's on a GPU need not turn every tensor over and back. Rounding differs, so only compiled
updates use it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sb3_ppo_ext.host.pytorch import trees
from sb3_ppo_ext.host.pytorch.modules import is_convolution
from sb3_ppo_ext.objective.batch import Observation


def convolves(policy: nn.Module) -> bool:
    """Whether a part of the policy is a convolution, which uses its parameters many times over."""
    return any(map(is_convolution, policy.modules()))


def channels_last(tensor: Tensor) -> Tensor:
    """The tensor, or a copy in that layout of what has four dimensions."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def images_channels_last(observation: Observation) -> Observation:
    """The observations with their images in that layout."""
    laid_out: Observation = trees.tree_map(channels_last, observation)
    return laid_out
