"""Chat messages and tools as a tokenizer's template takes them, whatever table they were kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2


def without_none(value: Any) -> Any:
    """The value without the entries of mappings that are None, at any depth.

    Arrow gives every row the keys of all rows, with None where a row had none; a template reads that as an entry.
    """
    if isinstance(value, Mapping):
        return {key: without_none(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, (list, tuple)):
        return [without_none(entry) for entry in value]
    return without_none(value.tolist()) if hasattr(value, "tolist") else value


def messages_of(messages: Sequence[Any], row: int) -> list[dict[str, Any]]:
    """The messages of prompt ``row``, without None; content in parts is joined where all parts are text.

    ``ValueError`` names a message without a role, or with neither content nor calls of tools.
    """
    listed = []
    for message in messages:
        plain = without_none(message) if isinstance(message, Mapping) else {}
        if "role" not in plain or not ("content" in plain or plain.get("tool_calls")):
            raise ValueError(
                f"prompt {row} has the message {message!r}: one with 'role' and 'content' is needed (or, of an answer "
                "that calls tools, 'tool_calls')"
            )
        listed.append({**plain, **({"content": _joined(plain["content"])} if "content" in plain else {})})
    return listed


def _joined(content: Any) -> Any:
    all_text = isinstance(content, list) and all(isinstance(entry, Mapping) and "text" in entry for entry in content)
    return "".join(entry["text"] for entry in content) if all_text else content


def tools_of(tools: Any, row: int) -> list[Any] | None:
    """The tools of prompt ``row`` for the template: functions or JSON schemas, the latter also as JSON text."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise ValueError(f"the tools of prompt {row} are text that is no JSON: {error}") from error
    plain = without_none(tools)
    if plain is not None and not isinstance(plain, list):
        raise ValueError(f"the tools of prompt {row} are {tools!r}: a list of functions or JSON schemas is needed")
    return plain or None


def templated_ids(tokenizer: Any, messages: list[dict[str, Any]], tools: list[Any] | None, row: int) -> list[int]:
    """The ids by the tokenizer's template, which writes the special tokens itself: they are not added again."""
    try:
        applied = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=True)
    except (jinja2.TemplateError, TypeError) as error:
        raise ValueError(
            f"prompt {row}: the tokenizer's chat template failed with {type(error).__name__}: {error}; its messages "
            f"are {messages!r}"
        ) from error
    ids: list[int] = applied["input_ids"]
    return ids
