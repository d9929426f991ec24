"""Tools: calls in a template's format, runs with a time limit, errors as text, TRL's form of an environment."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import pytest

from sb3_ppo_ext.language import ToolEnv, conversation_vec_env
from sb3_ppo_ext.language.envs.failures import Failures
from sb3_ppo_ext.language.envs.turns.tool_calls import (
    ToolCall,
    bare_calls,
    listed_calls,
    parser_of,
    tagged_calls,
    written_calls,
)
from sb3_ppo_ext.language.envs.turns.tool_runs import run_tool
from tests.checkpoints.environments.continuing import goes_on_exactly
from tests.language import chats

LENGTH = 130
CALL = '<tool_call>{"name": "add", "arguments": {"a": 3}}</tool_call>'


class Counter:
    """As TRL's examples of ``environment_factory``."""

    def __init__(self) -> None:
        self.total = 0

    def reset(self, start: int = 0) -> str:
        self.total = start
        return f" You have {start}."

    def add(self, a: int) -> int:
        """
        Adds to the total.

        Args:
            a: The number to add.

        Returns:
            The total.
        """
        self.total += a
        return self.total

    def fail(self) -> None:
        """Fails."""
        raise RuntimeError("out of order")

    def wait(self) -> None:
        """Takes long."""
        time.sleep(0.5)

    def get_reward(self) -> float:
        return float(self.total == 5)

    def _helper(self) -> None:
        raise AssertionError


PROMPTS: list[dict[str, Any]] = [{"prompt": "Make it 5.", "start": 2}]


def counting(factory: Any = Counter, prompts: Any = PROMPTS, **options: Any) -> ToolEnv:
    settings: dict[str, Any] = {"max_new_tokens": LENGTH, "max_prompt_length": 3000, **options}
    return ToolEnv(factory, prompts, chats.tokenizer(), **settings)


def say(env: ToolEnv, text: str) -> Any:
    return env.step(chats.response(text, LENGTH))


def call(name: str, arguments: str = "{}") -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def test_a_call_is_run_and_the_answer_is_scored_by_the_object() -> None:
    env = counting()
    env.reset(seed=0)
    opening = chats.text_of(env)
    assert opening.endswith("<|start|>user\nMake it 5. You have 2.<|end|>\n<|start|>assistant\n")
    assert "Adds to the total." in opening and "get_reward" not in opening and "_helper" not in opening
    _, reward, terminated, _, _ = say(env, CALL)
    result = "\n<|start|>user\n<tool_response>5</tool_response><|end|>\n<|start|>assistant\n"
    assert (reward, terminated) == (0.0, False) and chats.text_of(env) == f"{opening}{CALL}<|end|>{result}"
    _, reward, terminated, _, info = say(env, "done")
    assert (reward, terminated, info["is_success"]) == (1.0, True, True)
    assert (info["tool_calls"], info["failed_tool_calls"], info["turns"]) == (1, 0, 2)
    env.reset()
    assert env.object is env.objects[""] and env.object.total == 2  # one object, reset


ERRORS = {
    call("multiply"): "error: there is no tool 'multiply'; the tools are add, fail, wait",
    call("add", '{"b": 1}'): "error: wrong arguments for add: missing a required argument: 'a'",
    call("add", "3"): "error: the arguments are no JSON object",
    "<tool_call>{add 3}</tool_call>": "error: the call is no JSON",
    call("add", '{"a": "x"}'): "error: TypeError",
    call("fail"): "error: RuntimeError: out of order",
    call("wait"): "error: wait took longer than 0.05 s",
}


@pytest.mark.filterwarnings("ignore:the tool")
@pytest.mark.parametrize("response", ERRORS)
def test_what_goes_wrong_is_read_by_the_model_and_the_episode_goes_on(response: str) -> None:
    env = counting(time_limit=0.05)
    env.reset(seed=0)
    _, reward, terminated, _, _ = say(env, response)
    assert (reward, terminated) == (0.0, False) and ERRORS[response] in chats.text_of(env)
    assert say(env, "done")[4]["failed_tool_calls"] == 1


def test_a_tool_that_fails_is_counted_and_warned_of_once() -> None:
    env = counting()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="the tool 'fail' failed .RuntimeError: out of order") as caught:
        say(env, call("fail"))
        say(env, call("fail"))
        say(env, call("nothing"))  # the model's mistake, not the tool's
    assert env.failures.counts == {"the tool 'fail'": 2} and len(caught) == 1


def test_an_object_whose_tool_is_still_running_is_not_used_again() -> None:
    env = counting(time_limit=0.05)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="the tool 'wait' failed .TimeoutError"):
        say(env, call("wait"))
    late = env.object
    say(env, "done")
    env.reset()
    assert env.object is not late
    for thread in threading.enumerate():
        if thread.name.startswith("tool "):
            thread.join(2)


def test_several_calls_and_asynchronous_tools_give_a_result_each() -> None:
    async def double(a: int) -> dict[str, int]:
        """
        Doubles.

        Args:
            a: The number.
        """
        return {"result": 2 * a}

    env = counting(tools=[double])
    env.reset(seed=0)
    say(env, call("double", '{"a": 4}') + call("add", '{"a": 1}'))
    expected = '<tool_response>{"result": 8}</tool_response><|end|>\n<|start|>user\n<tool_response>3</tool_response>'
    assert expected in chats.text_of(env)


def test_a_response_with_calls_until_the_last_turn_is_scored_by_what_was_reached() -> None:
    env = counting(max_turns=1)
    env.reset(seed=0)
    _, reward, terminated, _, info = say(env, CALL)
    assert (reward, terminated, info["stopped"]) == (1.0, True, "max_turns")


def test_reward_functions_get_columns_object_and_messages() -> None:
    def brief(prompts: Any, responses: Any, start: Any, environments: Any, messages: Any) -> list[float]:
        assert (prompts, start, environments[0].total) == (["Make it 5. You have 2."], [2], 2)
        assert [message["role"] for message in messages[0]] == ["user", "assistant"]
        return [float(len(response)) for response in responses]

    env = counting(reward_fn=brief)
    env.reset(seed=0)
    assert say(env, "four")[1] == 4.0


def test_a_column_chooses_the_environment_and_its_tools() -> None:
    class Other(Counter):
        def reset(self) -> None:  # type: ignore[override]  # it takes no columns
            self.total = 5

    rows = [{"prompt": "a", "environment": "counter"}, {"prompt": "b", "environment": "other"}]
    env = counting({"counter": Counter, "other": Other}, rows)
    seen = {}
    for episode in range(4):
        env.reset(seed=3 if episode == 0 else None)
        seen[env.messages[0]["content"]] = type(env.object)
    assert seen == {"a You have 0.": Counter, "b": Other}
    with pytest.raises(ValueError, match=r"the prompt's column 'environment'.*'counter'.*'other'"):
        counting({"counter": Counter, "other": Other}, [{"prompt": "a", "environment": "no"}]).reset(seed=0)


def test_every_prompt_comes_once_before_any_comes_again_and_a_group_shares_it() -> None:
    rows = [{"prompt": str(number)} for number in range(5)]
    env = counting(prompts=rows)
    taken = []
    for episode in range(10):
        env.reset(seed=1 if episode == 0 else None)
        taken.append(env.messages[0]["content"][0])
    assert sorted(taken[:5]) == sorted(taken[5:]) == list("01234") and taken[:5] != taken[5:]
    first, second = counting(prompts=rows), counting(prompts=rows)
    for index, member in enumerate((first, second)):
        member.index, member.group_size = index, 2
        member.reset(seed=7 + index)
    assert first.messages == second.messages


REFUSED: dict[str, dict[str, Any]] = {
    "time_limit=0": {"time_limit": 0},
    "prompts: at least one": {"prompts": []},
    "has no method reset": {"factory": object},
    r"has no get_reward\(\) and reward_fn=None": {"factory": type("Bare", (), {"reset": lambda self: None})},
    "tools are written by a chat template": {"chat": False},
}


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_arguments_are_named(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counting(**REFUSED[message])


# What templates of these models write for one call, and what of it is read.
FORMATS = {
    tagged_calls: '\n<tool_call>\n{"name": "f", "arguments": {"a": 1, "b": "x"}}\n</tool_call>',
    listed_calls: '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1, "b": "x"}}]',
    bare_calls: '<|python_tag|>{"name": "f", "parameters": {"a": 1, "b": "x"}}',
    written_calls: "<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\nx\n</parameter>\n</function>",
}


@pytest.mark.parametrize("parser", FORMATS, ids=lambda parser: parser.__name__)
def test_each_format_is_read(parser: Any) -> None:
    assert parser(FORMATS[parser]) == [ToolCall("f", {"a": 1, "b": "x"})]
    assert parser("The answer is 4.") == []


TEMPLATE = "{% for m in messages %}|{{ m.content }}{% for c in m.tool_calls or [] %}CALL{% endfor %}{% endfor %}"


def test_the_format_is_the_templates_own() -> None:
    assert parser_of(chats.tokenizer()) is tagged_calls
    call = "[TOOL_CALLS][{{ c.function | tojson }}]"
    assert parser_of(chats.tokenizer(TEMPLATE.replace("CALL", call))) is listed_calls
    bare = '{"name": {{ c.function.name | tojson }}, "parameters": {{ c.function.arguments | tojson }}}'
    template = TEMPLATE.replace("|{{ m.content }}", "").replace("CALL", bare)
    assert parser_of(chats.tokenizer(template)) is bare_calls
    with pytest.raises(ValueError, match="none of the known formats"):
        parser_of(chats.tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}"))


def test_a_tools_own_timeout_is_a_failure_of_it_and_not_the_limit() -> None:
    def impatient() -> None:
        raise TimeoutError("the server is slow")

    failures = Failures()
    with pytest.warns(UserWarning, match="'impatient' failed"):
        ran = run_tool(ToolCall("impatient", {}), {"impatient": impatient}, 5.0, failures)
    assert not ran.timed_out and "the server is slow" in ran.text


def test_prompts_go_on_from_a_checkpoint() -> None:
    rows = [{"prompt": str(number)} for number in range(5)]
    make = partial(conversation_vec_env, partial(counting, prompts=rows, max_new_tokens=2), 2)
    assert goes_on_exactly(make, before=7, after=9)
