"""Prompts as text, chat messages and ids: special tokens once, and one clear error for what cannot be read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sb3_ppo_ext.language import PromptVecEnv
from tests.language.words import tokenizer

PAD, EOS, BOS, GO, LEFT, RIGHT, NOW = 0, 1, 2, 3, 4, 5, 13


def prompts_of(prompts: Any, words: Any, **options: Any) -> PromptVecEnv:
    return PromptVecEnv(
        prompts, lambda asked, answers: [0.0] * len(answers), words, n_envs=len(prompts), max_new_tokens=3,
        shuffle=False, **options,
    )  # fmt: skip


def ids_of(env: PromptVecEnv) -> list[list[int]]:
    observation: Any = env.reset()
    return [row[mask > 0].tolist() for row, mask in zip(*observation.values(), strict=True)]


@pytest.mark.parametrize("begins", [False, True])
def test_a_chat_template_is_applied_once(begins: bool) -> None:
    """It writes the begin-of-text token, and the tokenizer, which puts one before every text, not a second one."""
    words = tokenizer(begins=begins, chat=True)
    talk = [{"role": "left", "content": "go"}, {"role": "right", "content": "go go"}]
    env = prompts_of([talk, [{"role": "left", "content": "go"}], [GO], "go"], words)
    expected = [[BOS, LEFT, GO, RIGHT, GO, GO, NOW], [BOS, LEFT, GO, NOW], [GO], [BOS, GO] if begins else [GO]]
    assert ids_of(env) == expected
    # As the reward function sees it: without special tokens.
    assert env.task.source.texts[1] == "left go now"


def test_ids_may_be_arrays() -> None:
    assert ids_of(prompts_of([np.array([GO, LEFT]), (GO,)], tokenizer())) == [[GO, LEFT], [GO]]


def test_the_text_of_a_response_is_without_special_tokens() -> None:
    seen: list[Any] = []

    def reward(prompts: list[str], answers: list[str]) -> list[float]:
        seen.extend(answers)
        return [0.0]

    env = PromptVecEnv(["go"], reward, tokenizer(), n_envs=1, max_new_tokens=4)
    env.reset()
    env.step(np.array([[LEFT, RIGHT, EOS, PAD]]))
    assert seen == ["left right"]


@pytest.mark.parametrize("begins", [False, True])
def test_the_end_that_a_tokenizer_puts_after_a_text_is_not_part_of_a_prompt(begins: bool) -> None:
    """The response goes on where the prompt stops; an end of the user's own within the text stays."""
    env = prompts_of(["go left", "go <eos> left"], tokenizer(begins=begins, ends=True))
    first = [BOS] if begins else []
    assert ids_of(env) == [[*first, GO, LEFT], [*first, GO, EOS, LEFT]]
    assert env.task.source.texts[0] == "go left"


def test_so_is_a_separator_which_readers_have_at_the_end() -> None:
    words = tokenizer(ends=True, eos_token="<pad>", sep_token="<eos>")
    assert ids_of(prompts_of(["go left"], words, eos_token_id=PAD, pad_token_id=PAD)) == [[GO, LEFT]]


@pytest.mark.parametrize(
    "prompt", ["go <eos>", [GO, EOS], np.array([GO, LEFT, 8]), [{"role": "go", "content": "left <eos>"}]]
)
def test_a_prompt_that_has_ended_is_refused_cut_or_kept_as_is_asked(prompt: Any) -> None:
    words = tokenizer(chat=True)
    words.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }}{% endfor %}"  # says no "now"
    settings: dict[str, Any] = {"eos_token_id": [EOS, 8]}
    with pytest.raises(ValueError, match=r'prompt 0 ends with the end-of-text token [18].*ended_prompts="cut"'):
        prompts_of([prompt], words, **settings)
    ((*_, last),) = ids_of(prompts_of([prompt], words, ended_prompts="keep", **settings))
    assert last in (EOS, 8)
    ((*_, last),) = ids_of(prompts_of([prompt], words, ended_prompts="cut", **settings))
    assert last in (GO, LEFT)


def test_a_prompt_of_one_token_begins_a_text() -> None:
    """GPT-2's texts begin with the token that ends them."""
    assert ids_of(prompts_of([[EOS], "<eos>"], tokenizer())) == [[EOS], [EOS]]


BAD: dict[str, tuple[Any, Any]] = {
    "prompts='go': a list of prompts": ("go", tokenizer()),
    "prompt 1 is None: a text": (["go", None], tokenizer()),
    r"prompt 0 is \{'role': 'left', 'content': 'go'\}: a text": ([{"role": "left", "content": "go"}], tokenizer()),
    "prompt 0 has 3.5 among its ids": ([[3.5]], tokenizer()),
    "prompt 1 is empty": (["go", ""], tokenizer()),
    "prompt 0 is chat messages, and the tokenizer has no chat_template": (
        [[{"role": "left", "content": "go"}]],
        tokenizer(),
    ),
    r"prompt 0 has the message \{'role': 'left'\}": ([[{"role": "left"}]], tokenizer(chat=True)),
    "prompt 0 begins with two '<bos>'": (["<bos> go"], tokenizer(begins=True)),
    "prompt 0 has the id 99": ([[99]], tokenizer()),
    "prompt 0 has the id -1": ([[-1]], tokenizer()),
    "eos_token_id=None, and the tokenizer has none": (["go"], tokenizer(eos_token=None)),
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_read_is_refused_by_its_row(message: str) -> None:
    prompts, words = BAD[message]
    with pytest.raises(ValueError, match=message):
        prompts_of(prompts, words)


def test_a_tokenizer_without_padding_pads_with_its_end_of_text() -> None:
    env = prompts_of(["go left", "go"], tokenizer(pad_token=None))
    observation: Any = env.reset()
    assert observation["input_ids"].tolist() == [[GO, LEFT], [EOS, GO]]
    assert observation["attention_mask"].tolist() == [[1, 1], [0, 1]]
