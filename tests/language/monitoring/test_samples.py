"""The table of samples shows what tells its prompts apart, not the header of a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_ppo_ext.language import PromptVecEnv, SampleTable
from sb3_ppo_ext.language.monitoring.samples import as_text, what_differs
from tests.language import setups
from tests.language.words import tokenizer

HEADER = "system\nYou are a helpful assistant.\nuser\n"


def test_the_lines_that_all_prompts_share_are_left_out() -> None:
    prompts = [f"{HEADER}What is {what}?\nassistant\n" for what in ("red", "blue")]
    assert what_differs(prompts) == ["...What is red?...", "...What is blue?..."]


def test_a_system_prompt_that_differs_is_shown() -> None:
    prompts = [f"system\nYou are {what}.\nuser\nWhat is red?\nassistant\n" for what in ("short", "polite")]
    assert what_differs(prompts) == ["...You are short....", "...You are polite...."]


def test_longer_conversations_are_shown_from_where_they_part() -> None:
    longer = f"{HEADER}What is red?\nassistant\nA colour.\nuser\nWhich?\nassistant\n"
    shorter = f"{HEADER}What is blue?\nassistant\n"
    shown = what_differs([longer, shorter])
    assert shown == ["...What is red?\nassistant\nA colour.\nuser\nWhich?...", "...What is blue?..."]


def test_one_long_line_loses_the_words_that_all_prompts_share() -> None:
    start = "system you are a helpful assistant that answers briefly user "
    assert what_differs([f"{start}go left now", f"{start}stay here now"]) == ["...go left now", "...stay here now"]


@pytest.mark.parametrize(
    "prompts",
    [
        ["What is red?", "What is blue?"],  # short: a few words in common say what it is about
        ["the same\nprompt", "the same\nprompt"],
        [[3, 4], [3, 4, 5]],  # ids: there is no tokenizer
        ["", "go"],
    ],
)
def test_what_is_short_or_the_same_stays_as_it_is(prompts: list[Any]) -> None:
    assert what_differs(prompts) == prompts


def test_the_terminal_shows_the_end_of_a_prompt_and_the_beginning_of_a_response() -> None:
    table = as_text([("best", "1", "0", "b" * 30 + "the end", "the start" + "b" * 30)], width=20)
    assert "...bbbbbbbbbbthe end" in table and "the startbbbbbbbb..." in table


def test_chats_are_told_apart_in_tensorboard_and_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tokenizer(chat=True)
    header = {"role": "good", "content": " ".join(["your", "door", "is", "on", "the", "right"] * 4)}
    chats = [[header, {"role": "bad", "content": text}] for text in ("go left", "stay here")]
    env = PromptVecEnv(chats, lambda _, responses: [0.5] * len(responses), words, n_envs=8, max_new_tokens=4)
    model = setups.ppox(environment=env, tensorboard_log=str(tmp_path))
    model.learn(16, callback=SampleTable(verbose=1, random_rows=8))
    events = EventAccumulator(str(next(tmp_path.iterdir()))).Reload()
    texts: Any = events.Tensors("lm/samples/text_summary")
    for shown in (capsys.readouterr().out, texts[0].tensor_proto.string_val[0].decode()):
        assert "go left" in shown and "stay here" in shown
        assert "your door" not in shown
