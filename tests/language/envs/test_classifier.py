"""A sequence classifier as the reward function: text in, by a tokenizer of its own, one number out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from sb3_ppo_ext.language import ClassifierReward, PromptVecEnv
from tests.language import setups, tiny
from tests.language.classifiers import ANSWERS, OWN, PROMPTS, alone, classifier
from tests.language.words import tokenizer


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("family", [*tiny.FAMILIES, "bert"])
def test_scores_are_those_of_each_text_by_itself(family: str, batch_size: int) -> None:
    model = classifier(family)
    reward = ClassifierReward(model, OWN, text="{prompt} {response}", batch_size=batch_size)
    model.train()
    scores = reward(PROMPTS, ANSWERS)
    texts = [f"{prompt} {answer}" for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    expected = [alone(model, text).item() for text in texts]
    assert scores == pytest.approx(expected, abs=1e-4) and max(expected) - min(expected) > 0.1
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("label", ["good", 2])
def test_one_of_several_labels_is_chosen_by_name_or_number(label: str | int) -> None:
    model = classifier(labels=3, id2label={0: "bad", 1: "so so", 2: "good"})
    logits = alone(model, "the door left")
    for score, expected in (("logit", logits[2]), ("log_prob", logits.log_softmax(-1)[2])):
        reward = ClassifierReward(model, OWN, label=label, score=score, text="{prompt} {response}")
        assert reward(["the door"], ["left"]) == pytest.approx([expected.item()], abs=1e-5)


def test_texts_are_put_together_as_asked() -> None:
    seen: list[Any] = []
    model = classifier("bert")
    reward = ClassifierReward(model, OWN, text="{prompt} is {response} {prompt}")
    assert reward._text("{response} go", "left", {}) == "{response} go is left {response} go"

    def with_side(prompt: str, response: str, side: str) -> tuple[str, str]:
        seen.append((prompt, response, side))
        return prompt, f"{response} {side}"

    [pair] = ClassifierReward(model, OWN, text="pair")(["the door"], ["left now"])
    both = model(**OWN("the door", "left now", return_tensors="pt")).logits.item()
    assert pair == pytest.approx(both, abs=1e-5)
    assert ClassifierReward(model, OWN, text=with_side)(["the door"], ["left"], side=["now"]) == pytest.approx(
        [pair], abs=1e-5
    )
    assert seen == [("the door", "left", "now")]


def test_an_empty_response_has_a_score() -> None:
    scores = ClassifierReward(classifier(), OWN, text="{response}")(["go", "go"], ["", "left"])
    assert len(set(scores)) == 2 and all(map(torch.isfinite, torch.tensor(scores)))


def test_long_texts_are_refused_or_lose_their_beginning_and_are_counted() -> None:
    model = classifier()
    with pytest.raises(ValueError, match="response 1 has 6 tokens for the classifier, which reads 4"):
        ClassifierReward(model, OWN, text="{prompt} {response}", max_length=4)(["go"] * 2, ["left", "here " * 5])
    cutting = ClassifierReward(model, OWN, text="{prompt} {response}", max_length=2, long_texts="cut")
    assert cutting(["the door is"], ["on left"]) == pytest.approx([alone(model, "on left").item()], abs=1e-5)
    assert cutting.n_cut == 1
    # GPT-2's own limit, without asking: 64 positions.
    with pytest.raises(ValueError, match="has 70 tokens for the classifier, which reads 64"):
        ClassifierReward(model, OWN, text="{response}")(["go"], ["go " * 70])


def test_a_policy_is_trained_by_a_bare_classifier_from_a_folder(tmp_path: Path) -> None:
    classifier("qwen3").save_pretrained(tmp_path)
    OWN.save_pretrained(tmp_path)
    model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    options: dict[str, Any] = {"n_envs": 8, "max_new_tokens": 5}
    env = PromptVecEnv(PROMPTS, model, tokenizer(), **options)
    trained = setups.ppox(environment=env)
    trained.learn(16)
    answers = [(info["prompt"], info["response"], info["episode"]["r"]) for info in env.step(env.responses)[3]]
    for prompt, answer, score in answers:
        assert score == pytest.approx(alone(model, f"{prompt}{answer}").item(), abs=1e-4)
    assert len({score for *_, score in answers}) > 2
    named = PromptVecEnv(PROMPTS, ClassifierReward(tmp_path), tokenizer(), **options)
    score, expected = (each.task.rewards(["go"], ["left"], {}).total for each in (named, env))
    assert score == expected


BAD: dict[str, Any] = {
    "GPT2LMHeadModel is no sequence classifier": lambda: ClassifierReward(tiny.model(), OWN),
    "was not loaded from anywhere": lambda: ClassifierReward(classifier()),
    "label=None: one of 'LABEL_0', 'LABEL_1' is needed": lambda: ClassifierReward(classifier(labels=2), OWN),
    "label='kind'": lambda: ClassifierReward(classifier(labels=2), OWN, label="kind"),
    "of a single label is 0": lambda: ClassifierReward(classifier(), OWN, score="log_prob"),
    "score='best'": lambda: ClassifierReward(classifier(), OWN, score="best"),
    "long_texts='drop'": lambda: ClassifierReward(classifier(), OWN, long_texts="drop"),
    "batch_size=0": lambda: ClassifierReward(classifier(), OWN, batch_size=0),
    "text='{prompt}'": lambda: ClassifierReward(classifier(), OWN, text="{prompt}"),
    "pad_token_id is None, its tokenizer's 0": lambda: ClassifierReward(classifier(pad_token_id=None), OWN),
    "pad_token_id is 0, its tokenizer's None": lambda: ClassifierReward(classifier(), tokenizer(pad_token=None)),
    "has 40 tokens, its model only 24": lambda: ClassifierReward(
        classifier(), tokenizer(words=[*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJ", "here"])
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_refused_with_the_remedy(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_a_classifier_whose_scores_depend_on_padding_is_refused() -> None:
    model = classifier("bert")
    forward = model.forward
    model.forward = lambda **given: forward(input_ids=given["input_ids"])  # a fault: without the mask
    with pytest.raises(ValueError, match=r"changes by .* with the padding beside it"):
        ClassifierReward(model, OWN)


def test_a_classifier_is_refused_where_prompts_are_ids() -> None:
    with pytest.raises(ValueError, match="reads text: give the environment the policy's tokenizer"):
        setups.env_of(ClassifierReward(classifier(), OWN))


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reward_fn=1\.0: a function"):
        setups.env_of(1.0)


def test_causal_models_are_no_reward() -> None:
    with pytest.raises(ValueError, match="is no sequence classifier"):
        setups.env_of(AutoModelForCausalLM.from_config(tiny.config("llama")))
