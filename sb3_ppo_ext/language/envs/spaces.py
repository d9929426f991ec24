"""The spaces of an environment in which one action is one response, and where a response ends."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"


class ResponseSpace(spaces.MultiDiscrete):
    """Responses of ``max_new_tokens`` slots, each an id below ``vocab_size``.

    A response ends with its first ``eos_token_id``; ``pad_token_id``, which may be the same, fills the slots after it.
    """

    def __init__(
        self, vocab_size: int, max_new_tokens: int, eos_token_id: int, pad_token_id: int | None = None
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: at least 1 is needed")
        pad_token_id = eos_token_id if pad_token_id is None else pad_token_id
        for name, token in (("eos_token_id", eos_token_id), ("pad_token_id", pad_token_id)):
            if not isinstance(token, (int, np.integer)) or not 0 <= token < vocab_size:
                raise ValueError(f"{name}={token!r}: an id among the {vocab_size} tokens of the vocabulary is needed")
        super().__init__([vocab_size] * max_new_tokens)
        self.vocab_size = int(vocab_size)
        self.eos_token_id = int(eos_token_id)
        self.pad_token_id = int(pad_token_id)

    @property
    def max_new_tokens(self) -> int:
        """The longest response."""
        return len(self.nvec)

    def mask_of(self, response: np.ndarray) -> np.ndarray:
        """Which slots [..., L] hold the response: those up to and including its first end-of-text token."""
        ends = response == self.eos_token_id
        mask: np.ndarray = np.cumsum(ends, axis=-1) - ends == 0
        return mask

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ResponseSpace)
            and super().__eq__(other)
            and (self.eos_token_id, self.pad_token_id) == (other.eos_token_id, other.pad_token_id)
        )


def prompt_space(vocab_size: int, max_prompt_length: int) -> spaces.Dict:
    """Prompts of up to ``max_prompt_length`` tokens, padded on the left, and the mask of what is not padding."""
    shape = (max_prompt_length,)
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
    parts = observation.spaces if isinstance(observation, spaces.Dict) else {}
    ids, mask = parts.get(INPUT_IDS), parts.get(ATTENTION_MASK)
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
