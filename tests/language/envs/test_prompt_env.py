from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_ppo_ext.language import PromptEnv, PromptVecEnv, ResponseSpace
from tests.language import setups, tiny


def responses(*ids: list[int], length: int = setups.LENGTH) -> np.ndarray:
    return np.array([one + [tiny.PAD] * (length - len(one)) for one in ids])


def test_a_response_ends_with_its_first_end_of_text() -> None:
    space = ResponseSpace(24, 4, eos_token_id=1)
    assert space.pad_token_id == 1  # the same: the first one counts
    masks = space.mask_of(np.array([[5, 1, 1, 1], [1, 5, 5, 1], [5, 6, 7, 8]]))
    assert masks.sum(-1).tolist() == [2, 1, 4]


def test_prompts_are_padded_on_the_left() -> None:
    env = setups.env(n_envs=4, shuffle=False)
    observation = env.reset()
    assert observation["input_ids"].tolist() == [[0, 0, 3, 4], [0, 5, 6, 7], [0, 0, 0, 8], [9, 10, 11, 12]]
    assert observation["attention_mask"].sum(-1).tolist() == [2, 3, 1, 4]


def test_a_step_scores_what_was_answered_and_gives_the_next_prompts() -> None:
    seen: list[Any] = []

    def reward(prompts: list[Any], answers: list[Any], target: list[int]) -> np.ndarray:
        seen.extend(zip(prompts, answers, target, strict=True))
        return np.arange(len(answers))

    columns = {"target": [10, 20, 30, 40]}
    env = PromptVecEnv(
        setups.PROMPTS,
        reward,
        n_envs=2,
        max_new_tokens=3,
        vocab_size=24,
        eos_token_id=1,
        shuffle=False,
        columns=columns,
    )
    env.reset()
    observation, rewards, dones, infos = env.step(np.array([[5, 1, 1], [5, 6, 7]]))
    assert seen == [([3, 4], [5], 10), ([5, 6, 7], [5, 6, 7], 20)]  # the end-of-text token is no text
    assert isinstance(observation, dict)
    assert observation["input_ids"][0].tolist() == [1, 1, 1, 8] and rewards.tolist() == [0, 1] and dones.all()
    assert [info["cut_off"] for info in infos] == [False, True]
    assert [(info["episode"]["r"], info["episode"]["l"]) for info in infos] == [(0, 2), (1, 3)]
    assert infos[1]["terminal_observation"]["input_ids"].tolist() == [1, 5, 6, 7]


def test_every_prompt_comes_once_before_any_comes_twice() -> None:
    env = setups.env(n_envs=3)
    env.seed(5)
    env.reset()
    rows = [*env.rows]
    for _ in range(3):
        env.step(responses([1], [1], [1]))
        rows.extend(env.rows)
    assert all(sorted(rows[at : at + 4]) == [0, 1, 2, 3] for at in (0, 4, 8))


def test_one_seed_gives_one_order() -> None:
    orders = []
    for _ in range(2):
        env, rows = setups.env(n_envs=3), []
        env.seed(5)
        env.reset()
        for _ in range(4):
            env.step(responses([1], [1], [1]))
            rows.extend(env.rows.tolist())
        orders.append(rows)
    assert orders[0] == orders[1]


def test_one_prompt_at_a_time_is_a_gymnasium_environment() -> None:
    env = PromptEnv(setups.PROMPTS, setups.low_ids, max_new_tokens=4, vocab_size=24, eos_token_id=1)
    check_env(env, warn=False)
    env.reset(seed=1)
    _, reward, terminated, truncated, info = env.step(np.array([2, 3, 9, 1]))
    assert (reward, terminated, truncated) == (2.0, True, False) and info["response"] == [2, 3, 9]


def test_both_environments_train_and_evaluate() -> None:
    single = PromptEnv(setups.PROMPTS, setups.low_ids, max_new_tokens=4, vocab_size=24, eos_token_id=1)
    for env in (setups.env(), single):
        model = setups.ppox(environment=env, n_steps=4)  # type: ignore[arg-type]  # any env
        model.learn(8)
        mean: Any
        mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=8)  # type: ignore[arg-type]  # there is one
        assert 0 <= mean <= 6


BAD: dict[str, dict[str, Any]] = {
    "prompts is empty": {"prompts": []},
    "prompt 1 is empty": {"prompts": [[3], []]},
    "prompt 0 has the id 24; the vocabulary has 24": {"prompts": [[24]]},
    "prompt 0 is text": {"prompts": ["hello"]},
    "2 prompts are longer than max_prompt_length=2, the first of them prompt 1": {"max_prompt_length": 2},
    "long_prompts='drop'": {"long_prompts": "drop"},
    "ended_prompts='drop'": {"ended_prompts": "drop"},
    "eos_token_id=None": {"eos_token_id": None},
    "eos_token_id=24": {"eos_token_id": 24},
    "vocab_size=None": {"vocab_size": None},
    "max_new_tokens=0": {"max_new_tokens": 0},
    "has 1 values for 4 prompts": {"columns": {"answer": [1]}},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_refused(message: str) -> None:
    options: dict[str, Any] = {"prompts": setups.PROMPTS, **BAD[message]}
    prompts = options.pop("prompts")
    settings: dict[str, Any] = {"vocab_size": 24, "eos_token_id": 1, "max_new_tokens": 4, **options}
    with pytest.raises(ValueError, match=message):
        PromptVecEnv(prompts, setups.low_ids, n_envs=2, **settings)


def test_prompts_that_are_too_long_lose_their_beginning_if_asked_and_are_counted() -> None:
    env = setups.env(max_prompt_length=2, long_prompts="cut", n_envs=4, shuffle=False)
    assert env.reset()["input_ids"].tolist() == [[3, 4], [6, 7], [0, 8], [11, 12]]
    assert env.n_cut == 2


SCORES: dict[str, Any] = {
    "returned 1 scores for 2 responses": [1.0],
    "returned nan for response 1 of 2": [1.0, float("nan")],
    "returned 'good' for response 0": ["good", 1.0],
    "returned a NoneType for 2": None,
}


@pytest.mark.parametrize("message", SCORES)
def test_scores_that_are_no_numbers_are_refused(message: str) -> None:
    env = PromptVecEnv(
        setups.PROMPTS,
        lambda prompts, answers: SCORES[message],
        n_envs=2,
        max_new_tokens=3,
        vocab_size=24,
        eos_token_id=1,
    )
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(np.array([[5, 1, 1], [5, 6, 7]]))
