"""The token ids between the responses of a conversation: what an environment writes, in the tokenizer's own format.

A response stays in the transcript as the ids that were sampled. Only the environment's words are tokenized, each time
by themselves, so that no token changes after it was read or drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sb3_ppo_ext.language.envs.vocabulary import Vocabulary

Messages = list[dict[str, Any]]

MARKER = "sb3ppoextanswer"  # in the place of a response, where the template is rendered


class Turns(Protocol):
    """A format of conversations."""

    def opening(self, content: Any, tools: list[Any] | None = None) -> list[int]:
        """The ids of the prompt of the first response."""
        ...

    def between(self, reply: Any, *, ended: bool, tools: list[Any] | None = None) -> list[int]:
        """The ids from the end of a response, which has ``ended`` by itself or was cut off, to the next response."""
        ...


class PlainTurns:
    """Texts one after the other; ``turn_format`` is put around what the environment replies."""

    def __init__(self, vocabulary: Vocabulary, turn_format: str) -> None:
        if "{reply}" not in turn_format:
            raise ValueError(f"turn_format={turn_format!r}: a text with {{reply}} in it is needed")
        self.vocabulary, self.turn_format = vocabulary, turn_format

    def opening(self, content: Any, tools: list[Any] | None = None) -> list[int]:
        """The ids of a text, and of what stands after a reply."""
        if not isinstance(content, str):
            raise ValueError(f"the environment begins with {content!r}: without a chat template a text is needed")
        return self.vocabulary.ids_of(content + self.turn_format.rpartition("{reply}")[2], 0)

    def between(self, reply: Any, *, ended: bool, tools: list[Any] | None = None) -> list[int]:
        """The ids of the reply, after the end-of-text token that a response which was cut off lacks."""
        if not isinstance(reply, str):
            raise ValueError(f"the environment replies {reply!r}: without a chat template a text is needed")
        words = self.vocabulary.ids_of_continuation(self.turn_format.replace("{reply}", reply), "the reply")
        return words if ended else [self.vocabulary.eos, *words]


class ChatTurns:
    """Messages by the tokenizer's chat template."""

    def __init__(self, vocabulary: Vocabulary, system: str | None) -> None:
        self.vocabulary, self.system = vocabulary, system
        self.end_texts: list[str] = vocabulary.tokenizer.convert_ids_to_tokens(list(vocabulary.ends))

    def opening(self, content: Any, tools: list[Any] | None = None) -> list[int]:
        """The ids of chat messages, or of a text as the user's message, after the system's where there is one."""
        messages = as_messages(content)
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        return self.vocabulary.ids_of(messages, 0, tools)

    def between(self, reply: Any, *, ended: bool, tools: list[Any] | None = None) -> list[int]:
        """The ids of what the template writes after a response: its end where that is missing, the reply, a header."""
        messages = as_messages(reply)
        after, at = self._after_response(messages, tools)
        missing = []
        if at is None:  # the template has no end of its own
            missing = [] if ended else [self.vocabulary.eos]
        elif ended:
            after = after[at:]
        return [*missing, *self.vocabulary.ids_of_continuation(after, "the reply in the chat template")]

    def _after_response(self, messages: Messages, tools: list[Any] | None) -> tuple[str, int | None]:
        """The template's text from a response's end token on, and where that token stops in it.

        Without such a token it is the text from the response on, and None.
        """
        for answer in _answers_before(messages):
            whole = self._rendered([answer, *messages], tools)
            if MARKER in whole:
                break
        else:
            raise ValueError("the tokenizer's chat template leaves out the answers of earlier turns; pass chat=False")
        tail = whole.rpartition(MARKER)[2]
        content = messages[0].get("content") or ""
        found = [(tail.find(text), text) for text in self.end_texts]
        limit = tail.find(content) if content else len(tail)
        if ends := [(start, text) for start, text in found if 0 <= start < max(limit, 1)]:
            start, text = min(ends)
            return tail[start:], len(text)
        if "tool_calls" in answer:  # the marker is inside of the call, which goes on after it
            before = self._rendered([answer], tools, opened=False)
            if not whole.startswith(before):
                raise ValueError("the tokenizer's chat template changes a call of a tool when its result follows")
            return whole[len(before) :], None
        return tail, None

    def _rendered(self, messages: Messages, tools: list[Any] | None, *, opened: bool = True) -> str:
        conversation = [{"role": "user", "content": "question"}, *messages]
        rendered: str = self.vocabulary.tokenizer.apply_chat_template(
            conversation, tools=tools, add_generation_prompt=opened, tokenize=False
        )
        return rendered


def _answers_before(messages: Messages) -> Messages:
    """Answers with the marker in them that a template may have before ``messages``; the likeliest comes first."""
    plain = {"role": "assistant", "content": MARKER}
    if messages[0]["role"] != "tool":
        return [plain]
    function = {"name": messages[0].get("name", "tool"), "arguments": {"value": MARKER}}
    return [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}, plain]


def as_messages(content: Any) -> Messages:
    """A text as the user's message; chat messages as they are."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    if isinstance(content, Mapping):
        return [dict(content)]
    if isinstance(content, Sequence) and content and all(isinstance(message, Mapping) for message in content):
        return [dict(message) for message in content]
    raise ValueError(f"the environment writes {content!r}: a text or a list of chat messages is needed")


def turns_of(vocabulary: Vocabulary, *, chat: bool | None, system: str | None, turn_format: str) -> Turns:
    """The format by the tokenizer: its chat template where it has one, unless ``chat`` is False."""
    has_template = bool(getattr(vocabulary.tokenizer, "chat_template", None))
    if chat and not has_template:
        raise ValueError("chat=True: the tokenizer has no chat_template; set it, or pass chat=False")
    if has_template and chat is not False:
        return ChatTurns(vocabulary, system)
    if system is not None:
        raise ValueError(f"system={system!r}: without a chat template there are no system messages")
    return PlainTurns(vocabulary, turn_format)
