from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("transformers")

from text_tasks import copying
from text_tasks.copying import PromptCopyEnv, bad_copies, likeness, words


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (" bafelo", 1.0),
        ("bafelo", 1.0),
        (" bafeli", 0.5 * 5 / 6),  # five letters of six
        (" bafelobo", 0.5 * 6 / 8),  # six places of eight
        (" bafe", 0.5 * 4 / 6),
        (" olefab", 0.0),  # no letter in its place
        ("", 0.0),
    ],
)
def test_the_score_of_a_copy(response: str, expected: float) -> None:
    assert likeness(["copy bafelo >"], [response], word=["bafelo"]) == [pytest.approx(expected)]


def test_the_splits_and_the_corpus_share_no_word() -> None:
    training, held_out = set(words("training")), set(words("held_out"))
    read = {line.split()[1] for line in bad_copies()}
    assert (len(training), len(held_out)) == (2000, 256)
    assert not training & held_out and not training & read and not held_out & read


def test_a_syllable_of_the_corpus_is_copied_as_often_as_it_says() -> None:
    # Right where it is copied (0.6), or where the random one of 40 is the same (0.4 / 40).
    pairs = [(line.split()[1], line.split()[3]) for line in bad_copies()]
    right = np.mean([[word[i : i + 2] == copy[i : i + 2] for i in (0, 2, 4)] for word, copy in pairs])
    assert right == pytest.approx(0.6 + 0.4 / 40, abs=0.01)  # 60,000 syllables: a standard error of 0.002


def test_a_step_says_whether_the_copy_is_right() -> None:
    env = PromptCopyEnv("held_out", render_mode="ansi")
    env.reset(seed=0)
    word = env.task.source.texts[env.rows[0]].split()[1]
    eos = env.task.vocabulary.eos
    for text, right in ((f" {word}", True), (" bababa", False)):
        ids = copying.MODEL.tokenizer()(text)["input_ids"]
        _, score, terminated, truncated, info = env.step(np.array([*ids, *[eos] * (6 - len(ids))]))
        assert (score == 1.0, info["is_success"], terminated, truncated) == (right, right, True, False)
        assert env.render() == f"copy {word} >{text}   {score:.2f}"


def test_environments_of_one_split_share_their_prompts_but_not_their_order() -> None:
    first, second = PromptCopyEnv(), PromptCopyEnv()
    assert first.task is second.task is not PromptCopyEnv("held_out").task
    first.reset(seed=1), second.reset(seed=2)
    assert first.rows[0] != second.rows[0]
    with pytest.raises(ValueError, match=r"split='test'.*'held_out', 'training'"):
        PromptCopyEnv("test")
