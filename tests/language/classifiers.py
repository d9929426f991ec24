"""Tiny sequence classifiers with a tokenizer of their own."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from tests.language import tiny
from tests.language.words import WORDS, tokenizer

# Not the policy's ids: the words the other way round.
OWN = tokenizer(words=WORDS[::-1])
PROMPTS = ["the door is", "go", "your door"]
ANSWERS = ["left now", "good good bad right here", "stay"]


def classifier(family: str = "gpt2", labels: int = 1, **options: Any) -> PreTrainedModel:
    if family == "bert":
        config: Any = BertConfig(
            vocab_size=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
    else:
        config = tiny.config(family)
    config.num_labels = labels
    for name, value in options.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(5.0)
    model.train()  # with GPT-2's and BERT's dropout of 0.1
    return model


def alone(model: PreTrainedModel, text: str) -> torch.Tensor:
    """The logits of one text by the plain model, without padding and dropout."""
    logits: torch.Tensor = model.eval()(**OWN(text, return_tensors="pt")).logits[0]
    return logits.detach()
