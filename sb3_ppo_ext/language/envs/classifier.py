"""A Hugging Face sequence classifier as the reward function: a reward model, a sentiment, a toxicity."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from sb3_ppo_ext.language.envs.rewards import RewardFunction, accepted_columns
from sb3_ppo_ext.language.inputs import at_least, columns_of, one_of
from sb3_ppo_ext.language.model.adapters import has_adapter, merged
from sb3_ppo_ext.language.model.causal_lm import widened
from sb3_ppo_ext.language.model.pretrained import pretrained

SCORES = ("logit", "log_prob")
PAIR = "pair"
LONG_TEXTS = ("refuse", "cut")
TOLERANCE, TOLERANCE_OF_HALF = 1e-3, 0.1  # of a logit with and without padding beside it

Text = str | Callable[..., "str | tuple[str, str]"]


class ClassifierReward:
    """Scores prompt and response as text, by a classifier with a tokenizer of its own: TRL's reward model, and others.

    Given as ``PromptVecEnv(prompts, ClassifierReward("folder"), tokenizer, ...)``; a bare classifier there is taken as
    ``ClassifierReward(classifier)``. It is frozen, and switched to evaluation: no dropout; nothing of it is saved.

    :param model: folder or hub name, or a model of transformers with labels; a PEFT adapter is merged into its base
    :param tokenizer: the classifier's, which need not be the policy's; None loads it from where the model came from
    :param label: the label of the score, by name or number; None only where there is a single label
    :param score: that label's "logit", or its "log_prob" among the labels
    :param text: what is read: a template with ``{prompt}`` and ``{response}``; "pair" for prompt and response as the
        two sequences of a model of pairs; or a function ``(prompt, response, **columns)`` that returns the one or the
        other
    :param max_length: in tokens; None takes what model and tokenizer allow
    :param long_texts: what is done with longer ones: "refuse", or "cut" their beginning (``n_cut`` counts them)
    :param batch_size: texts per forward pass
    :param device: where it is to run; None leaves it where it is
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel | PeftModel,
        tokenizer: Any = None,
        *,
        label: str | int | None = None,
        score: str = "logit",
        text: Text = "{prompt}{response}",
        max_length: int | None = None,
        long_texts: str = "refuse",
        batch_size: int = 64,
        device: str | torch.device | None = None,
    ) -> None:
        batch_size = at_least(1, "batch_size", batch_size)
        one_of(SCORES, "score", score)
        one_of(LONG_TEXTS, "long_texts", long_texts)
        if isinstance(text, str) and text != PAIR and "{response}" not in text:
            raise ValueError(f'text={text!r}: a template with {{response}}, "pair", or a function is needed')
        self.model = _classifier(model)
        if device is not None:
            torch.nn.Module.to(self.model, torch.device(device))
        self.tokenizer = _tokenizer(self.model, tokenizer, model)
        self.label, self.score, self.text = _label(self.model, label, score), score, text
        longest = _longest(self.model, self.tokenizer) if max_length is None else max_length
        self.max_length = at_least(1, "max_length", longest)
        self.long_texts, self.batch_size = long_texts, batch_size
        self._check_padding()
        self.n_cut = 0

    def __call__(self, prompts: Sequence[Any], responses: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        """One score per response."""
        listed = columns_of(columns, len(prompts))
        texts = []
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            if not isinstance(prompt, str) or not isinstance(response, str):
                raise ValueError("a classifier reads text: give the environment the policy's tokenizer")
            texts.append(self._text(prompt, response, {name: column[row] for name, column in listed.items()}))
        rows = [self._ids(text, row) for row, text in enumerate(texts)]
        return self._scores(rows).tolist()

    def _text(self, prompt: str, response: str, columns: dict[str, Any]) -> str | tuple[str, str]:
        if not isinstance(self.text, str):
            return self.text(prompt, response, **accepted_columns(self.text, columns))
        if self.text == PAIR:
            return prompt, response
        # Not str.format: prompts have braces of their own. Split, so that a "{response}" in a prompt stays one.
        return response.join(piece.replace("{prompt}", prompt) for piece in self.text.split("{response}"))

    def _ids(self, text: str | tuple[str, str], row: int) -> dict[str, list[int]]:
        """The ids of one text by the tokenizer, cut where ``long_texts`` allows it."""
        sequences = (text,) if isinstance(text, str) else text
        encoded = self.tokenizer(*sequences)
        if len(encoded["input_ids"]) > self.max_length:
            if self.long_texts == "refuse":
                raise ValueError(
                    f"the text of response {row} has {len(encoded['input_ids'])} tokens for the classifier, which "
                    f'reads {self.max_length}: pass long_texts="cut", or a greater max_length if it can take it'
                )
            self.n_cut += 1
            encoded = self._cut(*sequences)
        if not encoded["input_ids"]:  # no text at all, and no special tokens around it
            encoded = {"input_ids": [self.tokenizer.pad_token_id], "attention_mask": [1]}
        return {name: list(encoded[name]) for name in encoded}

    def _cut(self, *sequences: str) -> Any:
        return self.tokenizer(*sequences, truncation="longest_first", max_length=self.max_length)

    @torch.no_grad()
    def _scores(self, rows: list[dict[str, list[int]]]) -> Tensor:
        """Scores [N] of encoded texts, longest first so that little is padded."""
        self.model.eval()
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]["input_ids"]))
        scores = torch.zeros(len(rows))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            padded = self.tokenizer.pad([rows[row] for row in chosen], return_tensors="pt").to(self.model.device)
            logits = widened(self.model(**padded).logits)
            every = logits.log_softmax(dim=-1) if self.score == "log_prob" else logits
            scores[chosen] = every[:, self.label].float().cpu()
        return scores

    def _check_padding(self) -> None:
        """Refuses a padding token by which the model does not find the end of a text: its scores would be wrong."""
        rows = [dict(self._cut(text)) for text in ("a", "a b c d")]
        gap = (self._scores(rows) - torch.cat([self._scores([row]) for row in rows])).abs().max().item()
        half = self.model.dtype in (torch.float16, torch.bfloat16)
        if not gap <= (TOLERANCE_OF_HALF if half else TOLERANCE):
            raise ValueError(
                f"{type(self.model).__name__}: the score of a text changes by {gap:.3g} with the padding beside it; "
                "is this the tokenizer the classifier was trained with?"
            )


def _classifier(source: Any) -> PreTrainedModel:
    """The classifier, with an adapter that it brings along merged into its weights."""
    if isinstance(source, (str, Path)):
        model = pretrained(AutoModelForSequenceClassification, str(source))
    elif isinstance(source, nn.Module) and has_adapter(source):
        model = merged(copy.deepcopy(source), f"model={type(source).__name__}")
    else:
        model = source
    if not isinstance(model, PreTrainedModel) or "ForSequenceClassification" not in type(model).__name__:
        raise ValueError(
            f"a {type(model).__name__} is no sequence classifier: load it with AutoModelForSequenceClassification; "
            "for any other model, write a function (prompts, responses) that returns one number per response"
        )
    return model.requires_grad_(False)


def _tokenizer(model: PreTrainedModel, tokenizer: Any, source: Any) -> Any:
    """The classifier's tokenizer, padding on the right, where no model miscounts its positions."""
    tokenizer = copy.deepcopy(_loaded_tokenizer(model, source) if tokenizer is None else tokenizer)
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
    pad, configured = tokenizer.pad_token_id, getattr(model.config, "pad_token_id", None)
    if pad is None or pad != configured:
        raise ValueError(
            f"the classifier's pad_token_id is {configured}, its tokenizer's {pad}: the end of a text beside padding "
            "is found by it. Set tokenizer.pad_token and model.config.pad_token_id = tokenizer.pad_token_id (one that "
            "no text has within)"
        )
    rows = int(cast(torch.nn.Embedding, model.get_input_embeddings()).weight.shape[0])
    if len(tokenizer) > rows:
        raise ValueError(
            f"the classifier's tokenizer has {len(tokenizer)} tokens, its model only {rows}: they do not belong "
            "together"
        )
    return tokenizer


def _loaded_tokenizer(model: PreTrainedModel, source: Any) -> Any:
    """The tokenizer of the classifier's folder or name; an adapter's folder may have one, or its base model's."""
    named = [str(source)] if isinstance(source, (str, Path)) else []
    sources = list(dict.fromkeys([*named, model.name_or_path] if model.name_or_path else named))
    if not sources:
        raise ValueError(
            f"this {type(model).__name__} was not loaded from anywhere, and neither can its tokenizer be: pass it, as "
            "ClassifierReward(model, tokenizer)"
        )
    errors: list[Exception] = []
    for name in sources:
        try:
            return AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            errors.append(error)
    raise ValueError(
        f"no tokenizer could be loaded from {' or '.join(map(repr, sources))}, where the classifier is from "
        f"({errors[-1]}); pass it as ClassifierReward(model, tokenizer)"
    ) from errors[-1]


def _label(model: PreTrainedModel, label: str | int | None, score: str) -> int:
    names: dict[int, str] = dict(cast(Any, model.config).id2label)
    if len(names) == 1 and score == "log_prob":
        raise ValueError('score="log_prob" of a single label is 0 for every text: pass "logit"')
    if label is None and len(names) == 1:
        return 0
    for number, name in names.items():
        if label is not None and label in (number, name):
            return int(number)
    raise ValueError(f"label={label!r}: one of {', '.join(map(repr, names.values()))} is needed, or its number")


def _longest(model: PreTrainedModel, tokenizer: Any) -> int:
    limits = (getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length)
    return min(int(limit) for limit in limits if limit is not None)


def as_reward_function(reward_fn: Any, *, reads_text: bool) -> RewardFunction:
    """A function as it is, a bare classifier as a ``ClassifierReward``; ``ValueError`` for anything else."""
    if isinstance(reward_fn, (PreTrainedModel, PeftModel)):
        reward_fn = ClassifierReward(reward_fn)
    if not callable(reward_fn):
        raise ValueError(
            f"reward_fn={reward_fn!r}: a function (prompts, responses, **columns) that returns one number per response "
            "is needed, or a classifier of transformers (ClassifierReward loads one from a folder)"
        )
    if isinstance(reward_fn, ClassifierReward) and not reads_text:
        raise ValueError("a classifier as reward_fn reads text: give the environment the policy's tokenizer")
    function: RewardFunction = reward_fn
    return function
