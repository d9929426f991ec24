"""Several reward functions with weights, None where one does not apply, and what counts as success."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_ppo_ext.language import PromptEnv
from sb3_ppo_ext.language.envs.rewards import Rewards
from tests.language import setups, tiny

RESPONSES = np.array([[5, 6, 1], [5, 9, 9], [1, 0, 0], [9, 1, 0]])  # 2, 1, 0 and 0 tokens below 8; ended: all but one


def right(prompts: Any, responses: Any, answer: list[float | None]) -> list[float | None]:
    return answer


def short(prompts: Any, responses: list[list[int]]) -> list[float]:
    return [float(len(response) < 2) for response in responses]


def stepped(reward_fn: Any, answer: Any = (1.0, 0.0, None, 0.5), **options: Any) -> Any:
    env = setups.env_of(reward_fn, 4, max_new_tokens=3, shuffle=False, columns={"answer": answer}, **options)
    env.reset()
    _, rewards, _, infos = env.step(RESPONSES)
    return env, rewards.tolist(), infos


def test_scores_are_summed_with_their_weights_and_none_adds_nothing() -> None:
    """Two functions; ``short`` is 0, 0, 1, 1."""
    env, rewards, infos = stepped([right, short])
    assert rewards == [1, 0, 1, 1.5]
    assert infos[2]["scores"] == {"right": None, "short": 1.0}
    assert env.take_reward_sums() == {"right": [1.5, 3.0], "short": [2.0, 4.0]} and env.take_reward_sums() == {}
    for weights in ([2.0, -1.0], {"short": -1.0, "right": 2.0}):
        assert stepped([right, short], reward_weights=weights)[1] == [2, 0, -1, 0]


def test_functions_of_a_mapping_have_its_names_and_equal_names_are_numbered() -> None:
    assert list(stepped({"a": right, "b": short})[2][0]["scores"]) == ["a", "b"]
    assert list(stepped([short, right, short])[2][0]["scores"]) == ["short", "right", "short_2"]


def ends(prompts: Any, responses: list[list[int]], answer: Any) -> list[bool]:
    return [len(response) < 3 for response in responses]


def test_a_function_may_take_which_responses_were_cut_off() -> None:
    _, rewards, infos = stepped(lambda prompts, responses, answer, cut_off: cut_off)
    assert rewards == [0, 1, 0, 0] == [info["cut_off"] for info in infos]


SUCCESS: list[tuple[Any, list[bool]]] = [
    (1.0, [True, False, True, True]),  # of the sum 1, 0, 1, 1.5
    ({"right": 0.5}, [True, False, True, True]),
    ({"right": 0.5, "short": 1}, [False, False, True, True]),
    (ends, [True, False, True, True]),
]


@pytest.mark.parametrize(("success", "expected"), SUCCESS)
def test_success_is_a_score_scores_by_function_or_a_function(success: Any, expected: list[bool]) -> None:
    infos = stepped([right, short], success=success)[2]
    assert [info["is_success"] for info in infos] == expected


def test_without_a_rule_there_is_no_success() -> None:
    infos = stepped([right, short])[2]
    assert all("is_success" not in info for info in infos)


BAD: dict[str, tuple[Any, dict[str, Any]]] = {
    "every function of reward_fn returned None for response 2": ([right, right], {}),
    "reward_fn returned None for response 2": (right, {}),
    "reward_fn 'right' returned nan for response 0": ([right, short], {"answer": [float("nan"), 1, 1, 1]}),
    r"reward_weights=\[1\]: a finite number for each of the functions 'right', 'short'": (
        [right, short],
        {"reward_weights": [1]},
    ),
    r"reward_weights=\{'wrong': 1, 'short': 1\}": ([right, short], {"reward_weights": {"wrong": 1, "short": 1}}),
    "names 'wrong'; the functions of reward_fn are 'right', 'short'": ([right, short], {"success": {"wrong": 1}}),
    "success='yes': the least score": ([right, short], {"success": "yes"}),
    "reward_fn is empty": ([], {}),
    "reward_fn=3: a function": ([right, 3], {}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_rewards_are_refused_by_name(message: str) -> None:
    functions, options = BAD[message]
    with pytest.raises(ValueError, match=message):
        stepped(functions, **options)


def above(prompts: Any, responses: list[list[int]]) -> list[float]:
    return [float(sum(token >= 8 for token in response)) for response in responses]


@pytest.mark.parametrize("single", [False, True])
def test_each_function_and_success_are_logged(single: bool) -> None:
    options: dict[str, Any] = {"max_new_tokens": 4, "vocab_size": tiny.VOCABULARY, "eos_token_id": 1, "success": 1.0}
    functions = [setups.low_ids, above]
    env: Any = setups.env_of(functions, success=1.0)
    if single:
        env = PromptEnv(setups.PROMPTS, functions, **options)
    model = setups.ppox(environment=env, n_steps=4)
    model.learn(4 * model.n_envs, log_interval=1)
    logged = model.logger.name_to_value
    each = logged["lm/reward/low_ids"], logged["lm/reward/above"]
    assert sum(each) == pytest.approx(logged["lm/score"]) and min(each) >= 0
    assert (
        set(model.ep_success_buffer or []) <= {False, True} and len(model.ep_success_buffer or []) == 4 * model.n_envs
    )


def test_an_environment_of_other_prompts_reads_as_the_one_of_training() -> None:
    env = setups.env(success=1.0)
    model = setups.ppox(environment=env)
    held_out = env.held_out([[3], [4, 5]], n_envs=2)
    assert held_out.observation_space == env.observation_space and held_out.num_envs == 2
    seen: list[Any] = []
    evaluate_policy(model, held_out, n_eval_episodes=2, callback=lambda found, _: seen.append(found["info"]))
    assert sorted(info["prompt"] for info in seen) == [[3], [4, 5]] and all("is_success" in info for info in seen)


def test_prompts_of_another_length_are_refused_by_the_argument() -> None:
    model = setups.ppox()
    with pytest.raises(ValueError, match=r"have 2 slots, those the policy was made for 4: pass max_prompt_length=4"):
        evaluate_policy(model, setups.env(max_prompt_length=2, long_prompts="cut"), n_eval_episodes=8)
    with pytest.raises(ValueError, match="longer than max_prompt_length=4"):
        setups.env().held_out([[3] * 5])


def test_a_function_that_fails_on_a_response_gives_it_0_counted_and_warned_of_once() -> None:
    def digits(prompts: list[str], responses: list[str], factor: list[int]) -> list[float]:
        return [float(int(response) * number) for response, number in zip(responses, factor, strict=True)]

    rewards = Rewards({"digits": digits})
    with pytest.warns(UserWarning, match="reward_fn failed on the response 'x' .*ValueError.*scores 0") as caught:
        scores = rewards(["p"] * 3, ["4", "x", "5"], {"factor": [1, 2, 3]})
        again = rewards(["p"], ["y"], {"factor": [1]})
    assert scores.total.tolist() == [4.0, 0.0, 15.0] and again.total.tolist() == [0.0]
    assert len(caught) == 1 and rewards.failures.counts == {"reward_fn": 2}


def test_a_function_that_has_only_failed_raises_its_error() -> None:
    def wrong(prompts: list[str], responses: list[str]) -> list[float]:
        raise RuntimeError("no such model")

    with pytest.raises(RuntimeError, match="no such model"):
        Rewards({"wrong": wrong})(["p", "q"], ["a", "b"], {})
