"""Spaces, masks and texts of a choice among named actions. Letters as in ``model``; n candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from sb3_ppo_ext.language.envs.text_observation import ACTION_MASK, TEXT, text_of
from sb3_ppo_ext.language.inputs import in_order, one_of

SCORES = ("sum", "token_mean", "word_mean", "first_token")

# The logit of an action that is not allowed, as in sb3-contrib's MaskablePPO: its probability is 0 to the last bit,
# and unlike -inf it leaves products with that 0 and their gradients finite.
EXCLUDED = -1e8


def listed_candidates(candidates: Iterable[str]) -> list[str]:
    """The texts by position, of any container; ``ValueError`` where they are no sequence of texts."""
    listed = in_order(candidates)
    if listed is None or not all(isinstance(text, str) for text in listed):
        raise ValueError(f"candidates={candidates!r}: a list of texts, one for each action, is needed")
    return [str(text) for text in listed]


def check_candidates(
    observation: spaces.Space[Any], action: spaces.Space[Any], candidates: Sequence[str], score: str, prompt: str
) -> None:
    """``ValueError`` where spaces and texts do not belong together."""
    one_of(SCORES, "score", score)
    if not isinstance(action, spaces.Discrete) or action.n != len(candidates):
        raise ValueError(
            f"{len(candidates)} candidates for the action space {action}: one text for each action is needed"
        )
    _check_observation(observation, len(candidates))
    if len(set(candidates)) < len(candidates):
        raise ValueError(f"candidates={list(candidates)}: two are the same")
    if "{}" not in prompt:
        raise ValueError(f"prompt={prompt!r}: it needs a {{}} where the observation is to stand")


def _check_observation(space: spaces.Space[Any], n: int) -> None:
    text = space
    if isinstance(space, spaces.Dict):
        if set(space.spaces) != {TEXT, ACTION_MASK} or space[ACTION_MASK].shape != (n,):
            raise ValueError(
                f"the observation space is {space}; a Dict of {TEXT!r} and {ACTION_MASK!r} [{n}] is needed: "
                "TextObservation(env, action_masks=True) makes it"
            )
        text = space[TEXT]
    if not isinstance(text, spaces.Box) or text.dtype != np.uint8 or len(text.shape) != 1:
        raise ValueError(f"the observation space is {space}; wrap the environment in TextObservation")


def texts_of(observation: PyTorchObs) -> list[str]:
    """The texts of B observations."""
    bytes_of = observation[TEXT] if isinstance(observation, dict) else observation
    return [text_of(row) for row in bytes_of.cpu().numpy()]


def masked(scores: Tensor, observation: PyTorchObs) -> Tensor:
    """Scores [B, n] with those of actions that are not allowed out of reach; ``ValueError`` names a row without any."""
    if not isinstance(observation, dict):
        return scores
    allowed = observation[ACTION_MASK] > 0
    if not bool(allowed.any(dim=-1).all()):
        row = int((~allowed.any(dim=-1)).int().argmax())
        raise ValueError(
            f"row {row} of {len(allowed)} has no allowed action; the environment's action_masks() is to allow at least "
            f"one in every state that is acted in. Its text is {texts_of(observation)[row]!r}"
        )
    return scores.masked_fill(~allowed, EXCLUDED)


def divisor_of(score: str, candidates: Sequence[str], mask: Tensor) -> Tensor:
    """The divisor [n] of each candidate's sum of log-probabilities; ``mask`` [n, K] is True where it has a token."""
    if score == "token_mean":
        return mask.sum(-1).float()
    if score == "word_mean":
        return torch.tensor([float(max(len(text.split()), 1)) for text in candidates])
    return torch.ones(len(candidates))
