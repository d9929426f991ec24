"""Token ids and their texts: what a tokenizer puts around a text, and how a text ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sb3_ppo_ext.language.envs.chat import messages_of, templated_ids, tools_of
from sb3_ppo_ext.language.inputs import at_least, in_order, whole_number_of
from sb3_ppo_ext.language.model.end_tokens import EndTokens, end_tokens


@dataclass(frozen=True)
class Vocabulary:
    """Ids and their texts. Without a tokenizer a text is the list of its ids."""

    tokenizer: Any
    size: int
    ends: tuple[int, ...]  # the ids that end a text
    pad: int

    @property
    def eos(self) -> int:
        """The first of the end-of-text tokens."""
        return self.ends[0]

    @classmethod
    def of(
        cls, tokenizer: Any, vocab_size: int | None = None, eos: EndTokens | None = None, pad: int | None = None
    ) -> Vocabulary:
        """The vocabulary of a tokenizer of transformers, or that of the numbers themselves, which take precedence."""
        if tokenizer is not None:
            vocab_size = len(tokenizer) if vocab_size is None else vocab_size
            eos = tokenizer.eos_token_id if eos is None else eos
            pad = tokenizer.pad_token_id if pad is None else pad
        if vocab_size is None:
            raise ValueError("vocab_size=None without a tokenizer: one of the two is needed")
        if eos is None:
            reason = "there is no tokenizer to take it from" if tokenizer is None else "the tokenizer has none"
            raise ValueError(f"eos_token_id=None, and {reason}: without an end-of-text token no response could end")
        ends = end_tokens(eos)
        size = at_least(1, "vocab_size", vocab_size)
        return cls(tokenizer, size, ends, ends[0] if pad is None else at_least(0, "pad_token_id", pad))

    def ids_of(self, prompt: Any, row: int, tools: Any = None) -> list[int]:
        """The token ids of one prompt, its ``tools`` in the template of a chat; ``ValueError`` names its ``row``."""
        content = prompt.tolist() if hasattr(prompt, "tolist") else prompt
        content = content if isinstance(content, str) else in_order(content)
        if content is None:
            raise ValueError(f"prompt {row} is {prompt!r}: a text, a list of chat messages or a list of ids is needed")
        if isinstance(content, str) or (content and isinstance(content[0], Mapping)):
            if self.tokenizer is None:
                raise ValueError(f"prompt {row} is text: a tokenizer is needed, or token ids")
            if isinstance(content, str):
                content = self._ids_of_text(content, row)
            else:
                content = self._ids_of_chat(content, row, tools)
        return self._checked(content, f"prompt {row}")

    def ids_of_continuation(self, text: str, what: str) -> list[int]:
        """The token ids of a text that follows another, without special tokens around it; errors call it ``what``."""
        return self._checked(self.tokenizer(text, add_special_tokens=False)["input_ids"], what)

    def _checked(self, tokens: Sequence[Any], what: str) -> list[int]:
        numbers = [whole_number_of(token) for token in tokens]
        ids = [number for number in numbers if number is not None]
        if len(ids) < len(numbers):
            wrong = tokens[numbers.index(None)]
            raise ValueError(f"{what} has {wrong!r} among its ids: whole numbers are needed")
        if not ids:
            raise ValueError(f"{what} is empty: at least one token is needed (the begin-of-text token, say)")
        if not 0 <= min(ids) <= max(ids) < self.size:
            worst = max(ids) if max(ids) >= self.size else min(ids)
            raise ValueError(f"{what} has the id {worst}; the vocabulary has {self.size} tokens, from 0 on")
        return ids

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)

    def ends_early(self, ids: Sequence[int]) -> bool:
        """True where a prompt's last token ends it; a prompt of one token begins a text, be it the end of another."""
        over = {*self.ends, getattr(self.tokenizer, "eos_token_id", None)}
        return len(ids) > 1 and ids[-1] in over

    def _ids_of_text(self, prompt: str, row: int) -> list[int]:
        ids: list[int] = list(self.tokenizer(prompt)["input_ids"])
        if ids and ids[-1] in self._special:
            # A response continues where the prompt stops: the end that the tokenizer puts after a text is left off.
            ids = without_appended(ids, list(self.tokenizer(prompt, add_special_tokens=False)["input_ids"]))
        if self.tokenizer.bos_token_id is not None and ids[:2] == [self.tokenizer.bos_token_id] * 2:
            raise ValueError(
                f"prompt {row} begins with two {self.tokenizer.bos_token!r}: the tokenizer puts one before a text that "
                "has one already. Leave it out of the text; a chat template's output comes as messages, or as ids"
            )
        return ids

    def _ids_of_chat(self, messages: Sequence[Any], row: int, tools: Any) -> list[int]:
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"prompt {row} is chat messages, and the tokenizer has no chat_template: set it, or write the prompts "
                "as text"
            )
        return templated_ids(self.tokenizer, messages_of(messages, row), tools_of(tools, row), row)

    def text_of(self, ids: Any) -> Any:
        """The text of ids, without special tokens; the ids up to the end-of-text token where there is no tokenizer."""
        if self.tokenizer is not None:
            return self.tokenizer.decode(ids, skip_special_tokens=True)
        plain = [int(token) for token in ids]
        return plain[:-1] if plain and plain[-1] in self.ends else plain


def without_appended(ids: list[int], plain: list[int]) -> list[int]:
    """The ``ids`` of a text and of special tokens around it, cut after the text itself, which is ``plain``."""
    for start in range(len(ids) - len(plain) + 1):
        if plain and ids[start : start + len(plain)] == plain:
            return ids[: start + len(plain)]
    return ids
