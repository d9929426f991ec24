"""Environments with tools, in the form of TRL's ``environment_factory``, as conversations."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sb3_ppo_ext.language.envs.failures import Failures
from sb3_ppo_ext.language.envs.prompts import PromptOrder
from sb3_ppo_ext.language.envs.rewards import Rewards, accepted_columns, named_functions
from sb3_ppo_ext.language.envs.tables import from_table
from sb3_ppo_ext.language.envs.turns.conversation import ConversationEnv, Turn, reward_of
from sb3_ppo_ext.language.envs.turns.tool_calls import Parser, parser_of
from sb3_ppo_ext.language.envs.turns.tool_runs import Tool, run_tool
from sb3_ppo_ext.language.envs.turns.transcripts import ChatTurns, as_messages
from sb3_ppo_ext.language.inputs import in_order, number_of
from sb3_ppo_ext.unknown_arguments import accepts_only, require_choice

Factory = Callable[[], Any]
RESERVED = ("reset", "get_reward")  # public methods of an environment that are no tools


class ToolEnv(ConversationEnv):
    """Prompts that the model answers with the help of tools; a response without a call is its answer, and the last.

    The environment is an object as TRL's ``environment_factory`` makes it: ``reset(**columns)`` returns None or a text
    that the prompt ends with, its other public methods are tools (typed, and documented in Google's style), and
    ``get_reward()``, if it has that, is the reward of the episode. One object serves many episodes.

    :param environment_factory: makes such an object, or a mapping of several by name, of which the prompt's column
        "environment" takes one; None where the tools are functions alone
    :param prompts: prompts or a table of them with columns, as of ``PromptVecEnv``
    :param tools: functions that are tools in every episode
    :param reward_fn: as of ``PromptVecEnv``, called with the last response; it may also take ``environments``, the
        object, and ``messages``, the conversation as text. It is added to ``get_reward()``
    :param tool_calls: a function from a response to its list of ``ToolCall``; None: by the chat template's format
    :param time_limit: seconds that a call may take, or None
    """

    @accepts_only(ConversationEnv.__init__)
    def __init__(
        self,
        environment_factory: Factory | Mapping[str, Factory] | None,
        prompts: Any,
        tokenizer: Any,
        *,
        tools: Sequence[Tool] = (),
        reward_fn: Any = None,
        reward_weights: Any = None,
        tool_calls: Parser | None = None,
        time_limit: float | None = 10.0,
        prompt_column: str = "prompt",
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        if not isinstance(self.format, ChatTurns):
            raise ValueError("tools are written by a chat template, and the tokenizer has none (or chat=False)")
        values, self.columns = from_table(prompts, prompt_column)
        self.prompts = in_order(values) or []
        if not self.prompts:
            raise ValueError("prompts: at least one is needed")
        self.factories = environment_factory if isinstance(environment_factory, Mapping) else {"": environment_factory}
        self.objects: dict[str, Any] = {}
        self.kind, self.spoiled = "", False  # of the environment of this episode; whether a call of it still runs
        self.functions = {tool.__name__: tool for tool in tools}
        self.rewards = None if reward_fn is None else Rewards(named_functions(reward_fn), reward_weights)
        self.parser = parser_of(tokenizer) if tool_calls is None else tool_calls
        if time_limit is not None and not 0 < (number_of(time_limit) or 0.0) < math.inf:
            raise ValueError(f"time_limit={time_limit!r}: seconds above 0, or None, are needed")
        self.time_limit, self.failures = time_limit, Failures()
        self._check_rewards()

    def _check_rewards(self) -> None:
        for name in self.factories:
            made = self._object(name)
            if self.rewards is None and not hasattr(made, "get_reward"):
                raise ValueError(
                    f"{type(made).__name__} has no get_reward() and reward_fn=None: one of the two is needed"
                )

    def _object(self, name: str) -> Any:
        """The object of that environment, which is made once; None where there are functions alone."""
        factory = self.factories[name]
        if factory is not None and name not in self.objects:
            made = factory()
            if not callable(getattr(made, "reset", None)):
                raise ValueError(f"environment_factory made {made!r}, which has no method reset()")
            self.objects[name] = made
        return self.objects.get(name)

    @property
    def object(self) -> Any:
        """The environment of this episode; None where the tools are functions alone."""
        return self.objects.get(self.kind)

    @property
    def tools(self) -> list[Any] | None:
        """The tools of this episode, for the template."""
        return list(self.named_tools().values()) or None

    def named_tools(self) -> dict[str, Tool]:
        """The tools of this episode by name."""
        return {**self.functions, **tools_of_object(self.object)}

    def begin(self, seed: int) -> list[dict[str, Any]]:
        """Resets the object with the columns of the next prompt; all prompts are taken before one comes again."""
        if self.spoiled:
            self.objects.pop(self.kind, None)
            self.spoiled = False
        row = self._next_row()
        self.row = {name: values[row] for name, values in self.columns.items()}
        self.kind = "" if "" in self.factories else str(self.row.get("environment"))
        require_choice("the prompt's column 'environment'", self.kind, list(self.factories))
        made = self._object(self.kind)
        messages = [dict(message) for message in as_messages(self.prompts[row])]
        added = None if made is None else made.reset(**accepted_columns(made.reset, self.row))
        if added is not None:
            messages[-1] = {**messages[-1], "content": f"{messages[-1].get('content') or ''}{added}"}
        self.messages, self.calls, self.failed_calls = messages, 0, 0
        return messages

    def _next_row(self) -> int:
        """The prompt of this episode: the same for a group, and by the seed of all environments."""
        number = self.episode * self.n_groups + self.group
        size = len(self.prompts)
        order = PromptOrder(size, shuffle=True)
        order.seed((self.base_seed + number // size) % 2**32)
        return int(order.take(size)[number % size])

    def answer(self, response: str) -> Turn:
        """Runs the calls of a response; without one it is the answer."""
        calls = self.parser(self.written())
        self.messages.append({"role": "assistant", "content": response})
        if not calls:
            return Turn(reward=self._reward(response), done=True, info=self._counts())
        results = []
        for call in calls:
            ran = run_tool(call, self.named_tools(), self.time_limit, self.failures)
            self.calls += 1
            self.failed_calls += ran.failed
            results.append({"role": "tool", "name": call.name or "unknown", "content": ran.text})
            self.spoiled |= ran.timed_out  # what still runs may change the object later
        self.messages += results
        return Turn(results)

    def written(self) -> str:
        """The response with its special tokens, which may mark a call, up to its end."""
        ids = self.response[:-1] if self.response[-1] in self.vocabulary.ends else self.response
        text: str = self.vocabulary.tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def cut_short(self, reason: str) -> float:
        """The reward of what the object has reached, and of an empty answer."""
        return self._reward("")

    def _reward(self, response: str) -> float:
        reward = 0.0
        get_reward = getattr(self.object, "get_reward", None)
        if get_reward is not None:
            try:
                reward = get_reward()
            except Exception as error:  # whatever a user's function raises
                self.failures.add(f"{type(self.object).__name__}.get_reward", error, "the episode's reward is 0")
            reward = reward_of(reward, f"get_reward() of {type(self.object).__name__}")
        if self.rewards is not None:
            row = {**self.row, "environments": self.object, "messages": self.messages}
            columns = {name: [value] for name, value in row.items()}
            reward += float(self.rewards([self.messages[0].get("content")], [response], columns).total[0])
        return reward

    def _counts(self) -> dict[str, int]:
        return {"tool_calls": self.calls, "failed_tool_calls": self.failed_calls}


def tools_of_object(made: Any) -> dict[str, Tool]:
    """The public methods of an object but ``reset`` and ``get_reward``, by name; looked up in its class."""
    if made is None:
        return {}
    methods = inspect.getmembers(type(made), inspect.isfunction)
    names = [name for name, _ in methods if not name.startswith("_") and name not in RESERVED]
    return {name: getattr(made, name) for name in names}
