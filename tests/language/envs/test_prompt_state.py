"""A prompt environment that takes back its state goes on as the one that gave it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sb3_ppo_ext.language import PromptEnv, PromptVecEnv
from tests.language import setups, tiny

ANSWER = np.full((3, setups.LENGTH), tiny.EOS)


def steps(env: PromptVecEnv, count: int) -> list[Any]:
    """Prompts and scores of so many steps."""
    seen: list[Any] = []
    for _ in range(count):
        observation, rewards, _, infos = env.step(ANSWER)
        assert isinstance(observation, dict)
        seen.append((observation["input_ids"].tolist(), rewards.tolist(), [info["prompt"] for info in infos]))
    return seen


def single() -> PromptEnv:
    return PromptEnv(setups.PROMPTS, setups.low_ids, max_new_tokens=4, vocab_size=24, eos_token_id=1)


@pytest.mark.parametrize("seed", [5, None])
def test_a_vector_environment_goes_on_within_a_pass_and_beyond_it(seed: int | None) -> None:
    env, other = setups.env(n_envs=3), setups.env(n_envs=3)
    env.seed(seed)
    env.reset()
    steps(env, 2)
    state = json.loads(json.dumps(env.state_dict()))  # plain values, of any size
    other.seed(9)  # as a model does that is loaded with it
    other.load_state_dict(state)
    assert steps(other, 5) == steps(env, 5)
    assert {name: rows.tolist() for name, rows in other.reset().items()} == {
        name: rows.tolist() for name, rows in env.reset().items()
    }


def test_the_state_before_the_first_reset_has_the_seed() -> None:
    env, other = setups.env(n_envs=3), setups.env(n_envs=3)
    env.seed(5)
    other.load_state_dict(env.state_dict())
    for each in (env, other):
        each.reset()
    assert steps(other, 5) == steps(env, 5)


def test_the_clock_of_the_episodes_goes_on() -> None:
    env, other = setups.env(n_envs=3), setups.env(n_envs=3)
    env.reset()
    env.started -= 100.0
    other.load_state_dict(env.state_dict())
    assert other.step(ANSWER)[3][0]["episode"]["t"] >= 100.0


def test_an_environment_of_one_prompt_goes_on() -> None:
    env, other = single(), single()
    env.reset(seed=3)
    env.reset()
    other.load_state_dict(json.loads(json.dumps(env.state_dict())))
    answer = np.array([2, 3, 9, 1])
    assert env.step(answer)[4] == other.step(answer)[4]
    for _ in range(6):
        ours, theirs = env.reset()[0], other.reset()[0]
        assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()


def test_the_state_of_another_environment_is_refused_and_changes_nothing() -> None:
    env = setups.env(n_envs=3)
    env.seed(5)
    env.reset()
    before = env.state_dict()
    with pytest.raises(ValueError, match="the saved state is of 2 prompts at a time, this environment of 3"):
        env.load_state_dict(setups.env(n_envs=2).state_dict())
    fewer = PromptVecEnv([[3], [4]], setups.low_ids, n_envs=3, max_new_tokens=2, vocab_size=24, eos_token_id=1)
    with pytest.raises(ValueError, match="of an environment of 2 prompts; this one has 4"):
        env.load_state_dict(fewer.state_dict())
    assert {**env.state_dict(), "elapsed": 0} == {**before, "elapsed": 0}
