"""Runs the tools that a model calls: with a time limit, and with an error's text for what goes wrong."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sb3_ppo_ext.language.envs.failures import Failures
from sb3_ppo_ext.language.envs.turns.tool_calls import ToolCall

Tool = Callable[..., Any]


class Ran(NamedTuple):
    """What came of a call."""

    text: str  # the result as the model reads it
    failed: bool = False
    timed_out: bool = False  # the tool may still be running


def run_tool(call: ToolCall, tools: Mapping[str, Tool], time_limit: float | None, failures: Failures) -> Ran:
    """The result of a call as text. An unknown tool, wrong arguments and a tool that raises give an error's text.

    A tool that raises or takes longer than ``time_limit`` seconds is counted in ``failures``, under its name.
    """
    if call.error is not None:
        return Ran(f"error: {call.error}", failed=True)
    tool = tools.get(call.name)
    if tool is None:
        return Ran(f"error: there is no tool {call.name!r}; the tools are {', '.join(sorted(tools))}", failed=True)
    try:
        inspect.signature(tool).bind(**call.arguments)
    except TypeError as error:
        return Ran(f"error: wrong arguments for {call.name}: {error}", failed=True)
    try:
        return Ran(as_text(within(time_limit, tool, call.arguments)))
    except TimeoutError as error:
        failures.add(f"the tool {call.name!r}", error, "the model reads an error")
        return Ran(f"error: {call.name} took longer than {time_limit:g} s", failed=True, timed_out=True)
    except Exception as error:  # whatever a tool raises
        failures.add(f"the tool {call.name!r}", error, "the model reads the error")
        return Ran(f"error: {type(error).__name__}: {error}", failed=True)


def within(time_limit: float | None, tool: Tool, arguments: Mapping[str, Any]) -> Any:
    """What the tool returns; ``TimeoutError`` after ``time_limit`` seconds, where its thread is left to itself."""
    if time_limit is None:
        return _call(tool, arguments)
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, _call(tool, arguments)))
        except BaseException as error:
            outcome.append((False, error))

    thread = threading.Thread(target=run, name=f"tool {getattr(tool, '__name__', tool)}", daemon=True)
    thread.start()
    thread.join(time_limit)
    if not outcome:
        raise TimeoutError(f"no result after {time_limit:g} s")
    returned, value = outcome[0]
    if returned:
        return value
    if isinstance(value, TimeoutError):  # the tool's own
        raise RuntimeError(str(value)) from value
    raise value


def _call(tool: Tool, arguments: Mapping[str, Any]) -> Any:
    result = tool(**arguments)
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result


def as_text(result: Any) -> str:
    """A result as the model reads it: text as it is, everything else as JSON where it can be."""
    return result if isinstance(result, str) else json.dumps(result, default=str)
