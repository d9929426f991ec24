"""Images [B, C, H, W] with the channels of a pixel side by side in memory: torch's "channels last".

In that layout oneDNN's convolutions take less time on a CPU, most of all the gradient of the first one's weights, and
cuDNN's on a GPU need no transposed copies. Rounding differs, so only compiled updates use it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sb3_ppo_ext.host.pytorch import trees
from sb3_ppo_ext.host.pytorch.modules import is_convolution
from sb3_ppo_ext.objective.batch import Observation


def convolves(policy: nn.Module) -> bool:
    """Whether a module of the policy is a convolution."""
    return any(map(is_convolution, policy.modules()))


def channels_last(tensor: Tensor) -> Tensor:
    """The tensor; where it has four dimensions, in that layout."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def images_channels_last(observation: Observation) -> Observation:
    """The observations with their images in that layout."""
    converted: Observation = trees.tree_map(channels_last, observation)
    return converted
