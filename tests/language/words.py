"""A tokenizer of whole words, made in place."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

WORDS = ["go", "left", "right", "stay", "here", "the", "door", "is", "on", "your", "now", "good", "bad"]
# The template writes the begin-of-text token, as Llama's does.
CHAT = "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}now{% endif %}"  # noqa: E501  # a template has no line breaks of its own


def tokenizer(
    *,
    begins: bool = False,
    ends: bool = False,
    chat: bool = False,
    words: list[str] | None = None,
    **options: Any,
) -> Any:
    """ "<pad>" 0, "<eos>" 1, "<bos>" 2, then the words; ``begins`` and ``ends`` put those around texts."""
    names = ["<pad>", "<eos>", "<bos>", *(words or WORDS)]
    built = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="here"))
    built.pre_tokenizer = Whitespace()
    if begins or ends:
        single = " ".join(["<bos>"] * begins + ["$A"] + ["<eos>"] * ends)
        built.post_processor = TemplateProcessing(single, "<bos> $A <eos> $B", [("<bos>", 2), ("<eos>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", **options}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=built, **special)
    if chat:
        wrapped.chat_template = CHAT
    return wrapped
