"""What every environment of several turns has in common: the sum of the rewards, and whose word on success counts."""

from __future__ import annotations

from typing import Any

import pytest

from sb3_ppo_ext.language import ConversationEnv, Turn
from tests.language import chats


class Scripted(ConversationEnv):
    """Gives the turns of a list, whatever is said."""

    def __init__(self, turns: list[Turn], **options: Any) -> None:
        super().__init__(chats.tokenizer(), max_new_tokens=4, max_prompt_length=160, **options)
        self.turns = turns

    def begin(self, seed: int) -> str:
        self.left = iter(self.turns)
        return "begin"

    def answer(self, response: str) -> Turn:
        return next(self.left)


def last_info(turns: list[Turn], **options: Any) -> dict[str, Any]:
    env = Scripted(turns, **options)
    for _ in "ab":  # a second episode does not begin with the score of the first
        env.reset(seed=0)
        for _ in turns:
            _, _, terminated, _, info = env.step(chats.response("x", 4))
        assert terminated
    return info


def test_the_rewards_of_all_turns_are_the_score_that_decides_on_success() -> None:
    assert last_info([Turn("on", 0.75), Turn(reward=0.25, done=True)])["is_success"]
    assert not last_info([Turn("on", 0.5), Turn(reward=0.25, done=True)])["is_success"]
    assert not last_info([Turn("on", -0.5), Turn(reward=1.25, done=True)])["is_success"]
    assert last_info([Turn("on", 0.5), Turn(reward=0.25, done=True)], success_score=0.75)["is_success"]


@pytest.mark.parametrize("success", [True, False])
def test_the_environments_own_word_on_success_comes_first(success: bool) -> None:
    reward = 0.0 if success else 5.0
    assert last_info([Turn(reward=reward, done=True, success=success)])["is_success"] is success
