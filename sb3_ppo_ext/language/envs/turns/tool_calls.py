"""The calls of tools in a response, in the format of the tokenizer's chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class ToolCall(NamedTuple):
    """A call of the tool ``name``; ``error`` is the reason where it cannot be read."""

    name: str
    arguments: dict[str, Any]
    error: str | None = None


Parser = Callable[[str], list[ToolCall]]  # from a response, special tokens included, to its calls

TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
LISTED = re.compile(r"\[TOOL_CALLS\]\s*(.*)$", re.DOTALL)
FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|$)", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


def read_call(value: Any) -> ToolCall:
    """A call from its JSON object, which has the arguments as "arguments" or "parameters", an object or JSON text."""
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return ToolCall("", {}, "a call is a JSON object with name and arguments")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as error:
            return ToolCall(value["name"], {}, f"the arguments are no JSON: {error}")
    if not isinstance(arguments, Mapping):
        return ToolCall(value["name"], {}, "the arguments are no JSON object")
    return ToolCall(value["name"], dict(arguments))


def read_json(text: str) -> list[ToolCall]:
    """The calls of a JSON object, or of a list of them."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return [ToolCall("", {}, f"the call is no JSON: {error}")]
    return [read_call(call) for call in (value if isinstance(value, list) else [value])]


def tagged_calls(response: str) -> list[ToolCall]:
    """Calls as JSON between <tool_call> and </tool_call>: Hermes, Qwen 2.5 and Qwen 3."""
    return [call for text in TAGGED.findall(response) for call in read_json(text.strip())]


def listed_calls(response: str) -> list[ToolCall]:
    """A JSON list after [TOOL_CALLS]: Mistral."""
    found = LISTED.search(response)
    return [] if found is None else read_json(found[1].strip())


def bare_calls(response: str) -> list[ToolCall]:
    """A response that is one JSON object with a name: Llama 3."""
    text = response.strip().removeprefix("<|python_tag|>").strip()
    return read_json(text) if text.startswith("{") and '"name"' in text else []


def written_calls(response: str) -> list[ToolCall]:
    """Calls as <function=NAME> with <parameter=NAME> in them: Qwen 3 Coder. Values are JSON where they can be."""
    return [
        ToolCall(name.strip(), {key.strip(): _value(text) for key, text in PARAMETER.findall(body)})
        for name, body in FUNCTION.findall(response)
    ]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


PARSERS: tuple[Parser, ...] = (written_calls, listed_calls, tagged_calls, bare_calls)
EXAMPLE = ToolCall("look", {"place": "here", "count": 2})


def parser_of(tokenizer: Any) -> Parser:
    """The parser that reads the calls which the tokenizer's template writes; ``ValueError`` where none does.

    A tokenizer with a ``response_template`` brings its own.
    """
    if getattr(tokenizer, "response_template", None) is not None:
        return lambda response: _parsed_by(tokenizer, response)
    function = {"name": EXAMPLE.name, "arguments": dict(EXAMPLE.arguments)}
    question = {"role": "user", "content": "question"}
    answer = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    whole = tokenizer.apply_chat_template([question, answer], tokenize=False)
    before = tokenizer.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
    written = whole[len(before) :] if whole.startswith(before) else whole
    for token in sorted(filter(None, (tokenizer.eos_token, tokenizer.pad_token)), key=len, reverse=True):
        written = written.replace(token, "")
    for parser in PARSERS:
        if parser(written) == [EXAMPLE]:
            return parser
    raise ValueError(
        f"the tokenizer's chat template writes a call of a tool as {written!r}, which is none of the known formats (or "
        "no call at all); pass tool_calls=..., a function from a response to a list of ToolCall"
    )


def _parsed_by(tokenizer: Any, response: str) -> list[ToolCall]:
    try:
        parsed = tokenizer.parse_response(response, prefix="")
    except (ValueError, TypeError, KeyError) as error:
        return [ToolCall("", {}, f"the call cannot be read: {error}")]
    return [read_call(call) for call in parsed.get("tool_calls") or []]
