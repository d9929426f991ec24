"""Whatever carries them, values belong together by position; whatever library they are of, numbers are numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sb3_ppo_ext.language import CandidatePolicy, ClassifierReward, PromptEnv, PromptVecEnv, ResponseSpace, prompt_space
from sb3_ppo_ext.language.arguments import check_options
from sb3_ppo_ext.language.inputs import in_order, number_of, whole_number_of
from tests.language import setups
from tests.language.candidates import ACTIONS, policy

ANSWERS = [3, 4, 5, 6]
SHUFFLED = [2, 0, 3, 1]  # labels, none of them in its place


class Arrow:
    """As pyarrow's arrays, whose elements are objects of their own."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def to_pylist(self) -> list[Any]:
        return self.values

    def __iter__(self) -> Any:
        return iter(map(str, self.values))


CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "deque": deque,
    "generator": lambda values: (value for value in values),
    "values of a dict": lambda values: dict(enumerate(values)).values(),
    "array": np.array,
    "array of objects": lambda values: np.fromiter(values, object, len(values)),
    "tensor": torch.tensor,
    "shuffled Series": lambda values: pd.Series(values, index=SHUFFLED),
    "filtered Series": lambda values: pd.Series([0, *values, 0])[1:5],
    "Index": pd.Index,
    "column of a table": lambda values: pd.DataFrame({"x": values}, index=SHUFFLED)["x"],
    "pyarrow": Arrow,
}


def right(prompts: list[Any], responses: list[Any], answer: list[Any]) -> list[float]:
    return [float(prompt == [int(mine)]) for prompt, mine in zip(prompts, answer, strict=True)]


def step(env: PromptVecEnv) -> list[float]:
    env.reset()
    scores: list[float] = env.step(np.ones((4, 2), int))[1].tolist()
    return scores


def env_of(prompts: Any, reward: Any, **options: Any) -> PromptVecEnv:
    settings: dict[str, Any] = {"n_envs": 4, "max_new_tokens": 2, "vocab_size": 24, "eos_token_id": 1, **options}
    return PromptVecEnv(prompts, reward, shuffle=False, **settings)


@pytest.mark.parametrize("container", CONTAINERS)
def test_columns_belong_to_prompts_by_position(container: str) -> None:
    columns = {"answer": CONTAINERS[container](ANSWERS)}
    assert step(env_of([[answer] for answer in ANSWERS], right, columns=columns)) == [1, 1, 1, 1]


@pytest.mark.parametrize("container", CONTAINERS)
def test_scores_belong_to_responses_by_position(container: str) -> None:
    scores = [0.5, 0.25, 2.0, 4.0]
    env = env_of([[answer] for answer in ANSWERS], lambda prompts, responses: CONTAINERS[container](scores))
    assert step(env) == scores


PROMPTS: dict[str, Any] = {
    "shuffled Series": pd.Series([[answer] for answer in ANSWERS], index=SHUFFLED),
    "generator": ([answer] for answer in ANSWERS),
    "tensor [M, L]": torch.tensor(ANSWERS)[:, None],
    "array [M, L]": np.array(ANSWERS)[:, None],
    "tuples of tensors": tuple((torch.tensor(answer),) for answer in ANSWERS),
    "tensors [L]": [torch.tensor([answer]) for answer in ANSWERS],
    "arrays [L]": [np.array([answer]) for answer in ANSWERS],
    "Series": [pd.Series([answer], index=[7]) for answer in ANSWERS],
    "ranges": [range(answer, answer + 1) for answer in ANSWERS],
}


@pytest.mark.parametrize("container", PROMPTS)
def test_prompts_are_read_by_position(container: str) -> None:
    env = env_of(PROMPTS[container], right, columns=pd.DataFrame({"answer": ANSWERS}, index=SHUFFLED))
    assert step(env) == [1, 1, 1, 1] and env.task.source.texts == [[3], [4], [5], [6]]


def test_one_environment_at_a_time_takes_a_generator_too() -> None:
    env = PromptEnv(([number] for number in (3, 4)), setups.low_ids, max_new_tokens=2, vocab_size=24, eos_token_id=1)
    env.reset(seed=0)
    assert len(env.task.source.ids) == env.order.size == 2


BAD: dict[str, dict[str, Any]] = {
    "the table has no column 'prompt' of prompts; its columns are 'q'": {"prompts": pd.DataFrame({"q": [[3]]})},
    r"prompts=\{3: 4\}": {"prompts": {3: 4}},
    "prompts=3: a list of prompts": {"prompts": 3},
    r"columns\['a'\] is 'abcd'": {"columns": {"a": "abcd"}},
    r"columns\['a'\] is \{0: 1": {"columns": {"a": {0: 1, 1: 2, 2: 3, 3: 4}}},
    r"columns\['a'\] has 3 values for 4 prompts": {"columns": {"a": pd.Series([1, 2, 3])}},
    "columns=.*a mapping": {"columns": [1, 2, 3, 4]},
    r"columns\[0\] is": {"columns": pd.DataFrame({0: ANSWERS})},
    "n_envs=0": {"n_envs": 0},
    "n_envs=2.5": {"n_envs": 2.5},
    "max_new_tokens=2.0": {"max_new_tokens": 2.0},
    "max_prompt_length=0": {"max_prompt_length": 0},
}


@pytest.mark.parametrize("message", BAD)
def test_what_has_no_order_or_no_number_is_refused(message: str) -> None:
    options: dict[str, Any] = {"prompts": [[answer] for answer in ANSWERS], **BAD[message]}
    with pytest.raises(ValueError, match=message):
        env_of(options.pop("prompts"), right, **options)


NUMBERS: dict[str, Any] = {
    "tensor": torch.tensor(0.5),
    "bfloat16 with a gradient": torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True),
    "tensor of one": torch.tensor([0.5]),
    "array": np.array(0.5),
    "float32": np.float32(0.5),
    "fraction": Fraction(1, 2),
    "decimal": Decimal("0.5"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_scores_and_options_are_numbers_of_any_library(kind: str) -> None:
    number = NUMBERS[kind]
    assert step(env_of([[3]] * 4, lambda prompts, responses: [number] * 4)) == [0.5] * 4
    options = check_options(number, number, np.int64(2), use_sde=False, sampling={})
    assert options == (0.5, 0.5, 2) and all(type(value) in (float, int) for value in options)


def test_truth_values_are_numbers_and_texts_are_none() -> None:
    assert [number_of(value) for value in (np.True_, True, torch.tensor(False))] == [1, 1, 0]
    others = (None, "1", np.str_("1"), 1j, [1.0], torch.tensor([1.0, 2.0]), np.datetime64("2000"), np.array([]))
    assert [number_of(value) for value in others] == [None] * len(others)
    assert [whole_number_of(value) for value in (np.int32(3), torch.tensor(3), np.array(3), 3.0)] == [3, 3, 3, None]


def test_a_set_and_a_text_have_no_order() -> None:
    assert [in_order(values) for values in ({1, 2}, "ab", b"ab", {"a": 1}, 3, torch.tensor(3))] == [None] * 6


def test_an_error_inside_a_generator_of_scores_is_the_users_own() -> None:
    def scores(prompts: list[Any], responses: list[Any]) -> Any:
        yield from (1.0 + response for response in responses)  # a list

    with pytest.raises(TypeError, match="unsupported operand"):
        step(env_of([[3]] * 4, scores))


def test_a_score_of_a_tensor_with_a_gradient_is_its_number() -> None:
    assert step(env_of([[3]] * 4, lambda prompts, responses: torch.ones(4, requires_grad=True) * 2)) == [2] * 4


def test_options_of_numpy_and_torch_are_those_of_python() -> None:
    one = env_of(
        [[3]], right, n_envs=np.int64(2), max_new_tokens=np.int32(3), vocab_size=torch.tensor(24),
        eos_token_id=np.array(1), pad_token_id=torch.tensor(0), max_prompt_length=np.int64(4),
        columns={"answer": [3]},
    )  # fmt: skip
    assert one.action_space == ResponseSpace(24, 3, 1, 0) and one.num_envs == 2
    assert one.observation_space == prompt_space(24, 4)
    model = setups.ppox(
        policy_kwargs={
            "temperature": np.float32(0.5),
            "value_lr_ratio": torch.tensor(2.0),
            "value_warmup": np.int64(1),
        },
        rollout_buffer_kwargs={"missing_eos_penalty": torch.tensor(0.5), "micro_batch_tokens": np.int64(64)},
    )
    model.learn(16)
    policy: Any = model.policy
    assert (policy.lm.temperature, policy.value_lr_ratio, policy.value_warmup) == (0.5, 2.0, 1)


def test_candidates_are_read_by_position() -> None:
    mine: CandidatePolicy = policy(candidates=pd.Series(ACTIONS, index=[2, 0, 1]))
    assert mine.options["candidates"] == ACTIONS
    with pytest.raises(ValueError, match="a list of texts"):
        policy(candidates=[1, 2, 3])


def test_a_classifier_finds_columns_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = ClassifierReward.__new__(ClassifierReward)
    reward.text = lambda prompt, response, answer: f"{prompt}{response}{answer}"
    read: list[Any] = []
    monkeypatch.setattr(reward, "_ids", lambda text, row: read.append(text))
    monkeypatch.setattr(reward, "_scores", lambda rows: torch.zeros(2))
    reward(["a", "b"], ["c", "d"], answer=pd.Series(["e", "f"], index=[1, 0]))
    assert read == ["ace", "bdf"]


def test_a_vocabulary_of_ids_needs_whole_numbers() -> None:
    with pytest.raises(ValueError, match=r"prompt 0 has tensor\(3.5\d*\) among its ids"):
        env_of([[torch.tensor(3.5)]], right, columns={"answer": [3]})
