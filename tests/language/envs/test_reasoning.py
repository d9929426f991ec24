"""Questions of reasoning-gym: distinct, held out, graded; with a stand-in for the package, and with it where it is."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from typing import Any

import numpy as np
import pytest

from sb3_ppo_ext.language import PromptVecEnv, reasoning_prompts
from sb3_ppo_ext.language.envs.answers import Grader, last_number, last_tag, stripped
from sb3_ppo_ext.language.envs.reasoning import shared
from tests.language import reasoning_stand_in
from tests.language.reasoning_stand_in import ALL_FAIL, SOME_FAIL, Sums
from tests.language.words import tokenizer


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    reasoning_stand_in.install(monkeypatch)


def questions(rows: list[dict[str, Any]]) -> set[str]:
    return {row["entry"]["question"] for row in rows}


def test_no_question_comes_twice_and_other_seeds_give_others(stand_in: None) -> None:
    seen: set[str] = set()
    for seed in range(3):
        found = reasoning_prompts("sums", 200, held_out=50, seed=seed)
        drawn = questions(found.train) | questions(found.held_out)
        assert len(drawn) == 250 and not drawn & seen
        seen |= drawn


def test_what_is_held_out_does_not_depend_on_the_size_of_training(stand_in: None) -> None:
    few, many = (reasoning_prompts("sums", size, held_out=20, seed=4) for size in (5, 100))
    assert few.held_out == many.held_out and few.train == many.train[:5]


def test_a_small_space_of_questions_is_warned_of(stand_in: None) -> None:
    """Two terms of 1 to 3 make 9 questions."""
    with pytest.warns(UserWarning, match=r"sums: \d+ of \d+ questions had been drawn before, 9 of 12 are different"):
        found = reasoning_prompts({"sums": {"largest": 3}}, 8, held_out=4)
    assert len(questions(found.train) | questions(found.held_out)) == 9 and len(found.held_out) == 4


def test_questions_that_a_task_cannot_make_are_left_out(stand_in: None) -> None:
    assert len(questions(reasoning_prompts({"sums": {"largest": SOME_FAIL}}, 10).train)) == 10


def test_tasks_have_shares(stand_in: None) -> None:
    found = reasoning_prompts({"sums": {"weight": 3}, "more_sums": {}}, 10, held_out=4)
    counts = [[row["task"] for row in rows].count("sums") for rows in (found.train, found.held_out)]
    assert counts == [8, 3] and len(found.train) == 10 and len(found.held_out) == 4
    assert shared(7, np.array([1.0, 1.0, 1.0])) == [3, 2, 2]


def test_answers_are_the_last_tag_the_last_number_or_the_text() -> None:
    assert last_tag("<answer>1</answer> no: <answer> 2 </answer>") == "2" and last_tag("2") is None
    assert [last_number(text) for text in ("7 + 8 = 15.", "-3", "1,234.5 km", "none")] == ["15", "-3", "1234.5", None]
    assert stripped(" a b ") == "a b" and stripped(" ") is None


@pytest.mark.parametrize(("reward", "expected"), [("success", [1, 0, 0]), ("score", [1, 0.25, 0])])
def test_success_is_the_reward_and_partial_credit_a_choice(stand_in: None, reward: str, expected: list[float]) -> None:
    found = reasoning_prompts("sums", 3, answer="number", reward=reward)
    right = found.train[0]["entry"]["answer"]
    responses = [f"it is {right}", "it is 0", "nothing"]
    columns = {name: [row[name] for row in found.train] for name in ("task", "entry")}
    assert found.scoring["reward_fn"]([], responses, **columns, cut_off=[False] * 3) == expected


def test_a_grader_that_fails_gives_0_is_counted_and_named_once(stand_in: None) -> None:
    grader = Grader({"sums": Sums(0, 1)}, stripped, "score")
    with pytest.warns(UserWarning, match="grader of 'sums' failed on the answer 'junk'.*ValueError") as caught:
        scores = grader([], ["junk", "3", "more junk"], ["sums"] * 3, [{"answer": "3"}] * 3, [False] * 3)
    assert scores == [0.0, 1.0, 0.0] and grader.n_errors == 2 and len(caught) == 1


def test_a_number_that_was_cut_off_is_no_answer() -> None:
    """It may have been 1, or the beginning of 15; the number before it is whole."""
    grader = Grader({"sums": Sums(0, 1)}, last_number, "success")
    texts = ["it is 1", "it is 1.", "it is 1, not", "1 or 15"]
    for cut, expected in ((False, [1, 1, 1, 0]), (True, [0, 0, 1, 1])):
        assert grader([], texts, ["sums"] * 4, [{"answer": "1"}] * 4, [cut] * 4) == expected


def test_the_rows_are_prompts_of_an_environment(stand_in: None) -> None:
    found = reasoning_prompts("sums", 4, answer="number", hint="go left")
    env = PromptVecEnv(found.train, tokenizer=tokenizer(), n_envs=2, max_new_tokens=2, **found.scoring)
    env.reset()
    infos = env.step(np.array([[3, 1], [4, 1]]))[3]
    assert [info["is_success"] for info in infos] == [False, False]
    assert infos[0]["prompt"].endswith("=\ngo left\n")


def test_chats_have_a_system_message_where_one_is_asked_for(stand_in: None) -> None:
    (row,) = reasoning_prompts("sums", 1, chat=True, system="Be brief.").train
    roles = [message["role"] for message in row["prompt"]]
    assert roles == ["system", "user"] and "<answer>" in row["prompt"][1]["content"]


BAD: dict[str, dict[str, Any]] = {
    "task='sum': one of 'sums'": {"tasks": "sum"},
    "size=0": {"size": 0},
    "reward='all'": {"reward": "all"},
    "answer='last'": {"answer": "last"},
    "weight of 'sums' is 0": {"tasks": {"sums": {"weight": 0}}},
    "'seed' in the configuration of 'sums'": {"tasks": {"sums": {"seed": 3}}},
    r"the task 'sums' with \{'largest': 0\} failed: AssertionError": {"tasks": {"sums": {"largest": 0}}},
    "made no question in 16 draws": {"tasks": {"sums": {"largest": ALL_FAIL}}},
    r"tasks=\[\]": {"tasks": []},
    "at most 1000000": {"size": 2_000_000},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_refused(stand_in: None, message: str) -> None:
    options: dict[str, Any] = {"tasks": "sums", "size": 2, **BAD[message]}
    with pytest.raises(ValueError, match=message):
        reasoning_prompts(options.pop("tasks"), options.pop("size"), **options)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"pip install \"sb3_ppo_ext\[reasoning\]\""):
        reasoning_prompts("gcd", 1)


@pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="needs reasoning-gym")
def test_the_package_itself_is_as_assumed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = reasoning_prompts({"gcd": {"max_value": 60}, "letter_counting": {}}, 40, held_out=10, answer="number")
        assert not questions(found.train) & questions(found.held_out)
        columns = {name: [row[name] for row in found.train] for name in ("task", "entry")}
        right = [f"so it is {row['entry']['answer']}" for row in found.train]
        assert set(found.scoring["reward_fn"]([], right, **columns, cut_off=[False] * 40)) == {1.0}
        assert set(found.scoring["reward_fn"]([], ["-1"] * 40, **columns, cut_off=[False] * 40)) == {0.0}
        with pytest.warns(UserWarning, match="coin_flip: .* the task has few of them"):
            reasoning_prompts("coin_flip", 400)
