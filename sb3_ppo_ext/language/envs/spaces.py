"""The spaces of an environment in which one action is one response, and where a response ends."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from gymnasium import spaces

from sb3_ppo_ext.language.inputs import at_least
from sb3_ppo_ext.language.model.end_tokens import EndTokens, end_tokens, written

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"


class ResponseSpace(spaces.MultiDiscrete):
    """Responses of ``max_new_tokens`` slots, each an id below ``vocab_size``.

    A response ends with its first ``eos_token_id``, which may be several ids: the first of any. ``pad_token_id`` fills
    the slots after it; it may be one of them, and is the first of them where it is None.
    """

    more_end_tokens: tuple[int, ...] = ()  # besides ``eos_token_id``; none in files saved when there was one only

    def __init__(
        self, vocab_size: int, max_new_tokens: int, eos_token_id: EndTokens, pad_token_id: int | None = None
    ) -> None:
        self.vocab_size = at_least(1, "vocab_size", vocab_size)
        max_new_tokens = at_least(1, "max_new_tokens", max_new_tokens)
        self.eos_token_id, *more = end_tokens(eos_token_id)
        self.more_end_tokens = tuple(more)
        self.pad_token_id = self.eos_token_id if pad_token_id is None else at_least(0, "pad_token_id", pad_token_id)
        for name, tokens in (("eos_token_id", self.eos_token_ids), ("pad_token_id", (self.pad_token_id,))):
            if wrong := [token for token in tokens if not 0 <= token < self.vocab_size]:
                raise ValueError(
                    f"{name}={wrong[0]}: an id among the {self.vocab_size} tokens of the vocabulary is needed"
                )
        super().__init__([self.vocab_size] * max_new_tokens)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All tokens that end a response."""
        return (self.eos_token_id, *self.more_end_tokens)

    @property
    def max_new_tokens(self) -> int:
        """The longest response."""
        return len(self.nvec)

    def mask_of(self, response: np.ndarray) -> np.ndarray:
        """True for the slots [..., L] of the response: those up to and including its first end-of-text token."""
        ends = self._ends(response)
        mask: np.ndarray = np.cumsum(ends, axis=-1) - ends == 0
        return mask

    def cut_off(self, response: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """True for responses [...] that reached the last slot without ending; ``mask`` [..., L] is by ``mask_of``."""
        cut: np.ndarray = mask[..., -1] & ~self._ends(response[..., -1])
        return cut

    def _ends(self, token: np.ndarray) -> np.ndarray:
        ends: np.ndarray = token == self.eos_token_id
        for other in self.more_end_tokens:
            ends = ends | (token == other)
        return ends

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ResponseSpace)
            and super().__eq__(other)
            and (set(self.eos_token_ids), self.pad_token_id) == (set(other.eos_token_ids), other.pad_token_id)
        )

    def __repr__(self) -> str:
        return (
            f"ResponseSpace({self.vocab_size}, {self.max_new_tokens}, eos_token_id={written(self.eos_token_ids)}, "
            f"pad_token_id={self.pad_token_id})"
        )


def prompt_space(vocab_size: int, max_prompt_length: int) -> spaces.Dict:
    """Prompts of up to ``max_prompt_length`` tokens, padded on the left, and the mask of what is not padding."""
    vocab_size = at_least(1, "vocab_size", vocab_size)
    shape = (at_least(1, "max_prompt_length", max_prompt_length),)
    return spaces.Dict(
        {
            INPUT_IDS: spaces.Box(0, vocab_size - 1, shape, np.int64),
            ATTENTION_MASK: spaces.Box(0, 1, shape, np.int8),
        }
    )


def require_spaces(observation: spaces.Space, action: spaces.Space) -> tuple[int, ResponseSpace]:  # type: ignore[type-arg]  # any
    """The prompt's length and the space of responses; ``ValueError`` where the environment is of another kind."""
    if not isinstance(action, ResponseSpace):
        raise ValueError(
            f"the action space is {action}; a language model needs a ResponseSpace: use PromptVecEnv or PromptEnv, or "
            "give an environment of your own sb3_ppo_ext.language.ResponseSpace(...) as its action space"
        )
    named = observation.spaces if isinstance(observation, spaces.Dict) else {}
    ids, mask = named.get(INPUT_IDS), named.get(ATTENTION_MASK)
    if ids is None or mask is None or ids.shape is None or ids.shape != mask.shape:
        raise ValueError(
            f"the observation space is {observation}; a Dict of {INPUT_IDS!r} and {ATTENTION_MASK!r}, both [P], is "
            "needed: sb3_ppo_ext.language.prompt_space(...) makes it"
        )
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"token ids come as {ids.dtype}: a wrapper normalises them. Take VecNormalize off: ids are names, not "
            "numbers, and the reward is to stay the raw score"
        )
    return ids.shape[0], action


def require_prompt_length(observation: object, length: int) -> None:
    """``ValueError`` for prompts [..., P] of an environment whose P is not the policy's ``length``."""
    ids = observation.get(INPUT_IDS) if isinstance(observation, Mapping) else None
    if ids is not None and ids.shape[-1] != length:
        raise ValueError(
            f"the prompts of this environment have {ids.shape[-1]} slots, those the policy was made for {length}: pass "
            f"max_prompt_length={length} to it, or make it by held_out(prompts) of the training environment"
        )
