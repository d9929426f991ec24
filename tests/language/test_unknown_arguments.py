"""An argument that does not exist is reported for the class the user named, with the nearest one that does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from text_tasks.copying import PromptCopyPolicy
from text_tasks.grid import TextGridPolicy

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import PromptEnv, PromptVecEnv, SequenceRolloutBuffer
from tests.language import setups


class Mine(PromptVecEnv):
    """A user's own."""


ENV: dict[str, Any] = {"max_new_tokens": 2, "vocab_size": 24, "eos_token_id": 1}
SPACES: tuple[Any, ...] = (None, None, lambda _: 1e-3)
CALLS: dict[str, Callable[[], Any]] = {
    "PPOX has no argument 'clip_rang'; did you mean 'clip_": lambda: PPOX("MlpPolicy", "CartPole-v1", clip_rang=1),
    "PromptVecEnv has no argument 'colums'; did you mean 'columns'": lambda: PromptVecEnv(
        [[3]], setups.low_ids, n_envs=1, colums={}, **ENV
    ),
    "PromptVecEnv has no argument 'n_env'; did you mean 'n_envs'": lambda: PromptVecEnv(
        [[3]],
        setups.low_ids,
        n_env=3,
        **ENV,
    ),
    "PromptEnv has no argument 'n_envs'; there are prompts": lambda: PromptEnv([[3]], setups.low_ids, n_envs=1, **ENV),
    "Mine has no argument 'x'": lambda: Mine([[3]], setups.low_ids, n_envs=1, x=1, **ENV),
    "SequenceRolloutBuffer has no argument 'ref_kl_estimate'; did you mean": lambda: setups.ppox(
        rollout_buffer_kwargs={"ref_kl_estimate": "k1"}
    ),
    "LanguageModelPolicy has no argument 'temprature'; did you mean 'temperature'": lambda: setups.policy(temprature=1),
    "PromptCopyPolicy has no argument 'temprature'; did you mean": lambda: PromptCopyPolicy(*SPACES, temprature=1),
    "PromptCopyPolicy has no argument 'steps'; .*pretraining_steps": lambda: PromptCopyPolicy(*SPACES, steps=1),
    "TextGridPolicy has no argument 'scores'; did you mean 'score'": lambda: TextGridPolicy(*SPACES, scores="sum"),
}


@pytest.mark.parametrize("message", CALLS)
def test_an_unknown_argument_is_reported_for_the_class_that_was_called(message: str) -> None:
    with pytest.raises(TypeError, match=message) as raised:
        CALLS[message]()
    assert "PromptTask" not in str(raised.value)


def test_what_is_known_passes() -> None:
    buffer: Any = setups.ppox(rollout_buffer_kwargs={"whiten_rewards": True}).rollout_buffer
    assert isinstance(buffer, SequenceRolloutBuffer) and buffer.settings.whiten_rewards
