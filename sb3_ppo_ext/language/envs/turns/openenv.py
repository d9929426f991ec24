"""Environments of the package openenv as conversations: in this process, or through a client.

Nothing here imports the package, except for a client that is given by its address: an environment is recognised by the
shape of what it returns. In process that is an ``Observation`` with ``done`` and ``reward``; a client's is a result
that has these beside its ``observation``.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from sb3_ppo_ext.language.envs.failures import Failures
from sb3_ppo_ext.language.envs.turns.conversation import ConversationEnv, Turn, reward_of
from sb3_ppo_ext.language.envs.turns.random_state import RandomState
from sb3_ppo_ext.optional_packages import optional_package
from sb3_ppo_ext.unknown_arguments import accepts_only

NO_TEXT = ("done", "reward", "metadata")  # fields of every observation


class OpenEnvAdapter(ConversationEnv):
    """An ``openenv`` environment: responses become its actions, its observations are what the model reads.

    An action that cannot be made of a response is answered with the error as text. A step that fails ends the episode
    with the reward 0, which is counted in ``failures`` and warned of once.

    :param make_env: a function that makes an ``Environment`` or a synchronous client (``client.sync()``), or the
        address of a server (extra ``openenv``)
    :param action: how a response becomes an action: a class of actions with one text field besides its metadata, the
        name of the field (of a client's dict), or a function; ``ValueError`` from it is an error of the model's
    :param text: the text of an observation; None takes its only text field, or all of its fields as JSON
    :param reset_options: further arguments of ``reset``, such as ``split`` and ``index`` of a task
    """

    @accepts_only(ConversationEnv.__init__)
    def __init__(
        self,
        make_env: str | Callable[[], Any],
        tokenizer: Any,
        *,
        action: str | type | Callable[[str], Any],
        text: Callable[[Any], str] | None = None,
        reset_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        self.env = client_of(make_env) if isinstance(make_env, str) else make_env()
        self.name = type(self.env).__name__
        self.action_of = action_maker(action)
        self.text_of = text_of_fields if text is None else text
        self.reset_options = dict(reset_options or {})
        self.failures = Failures()

    def begin(self, seed: int) -> str:
        """Resets the environment; with its seed, unless ``reset`` takes none."""
        self.random = RandomState(seed)
        with self.random:
            result = self.env.reset(**{**seed_argument(self.env.reset, seed), **self.reset_options})
        if inspect.isawaitable(result):
            close = getattr(result, "close", None)
            if close is not None:
                close()  # it is never awaited
            raise ValueError(f"{self.name} is asynchronous; pass the synchronous client: client.sync()")
        observation, _, done = parts(result, self.name)
        if done:
            raise ValueError(f"{self.name}: an episode is over when it begins, with {observation!r}")
        return self.text_of(observation)

    def answer(self, response: str) -> Turn:
        """Takes a step by the action that the response stands for."""
        try:
            action = self.action_of(response)
        except (ValueError, TypeError) as error:
            return Turn(f"error: {error}", info={"invalid_action": True})
        try:
            with self.random:
                observation, reward, done = parts(self.env.step(action), self.name)
        except Exception as error:  # whatever the environment or the connection raises
            self.failures.add(self.name, error, "the episode ends with the reward 0")
            return Turn(done=True, success=False, info={"failed": str(error)})
        return Turn(self.text_of(observation), reward_of(reward, f"the reward of {self.name}"), done)

    def close(self) -> None:
        """Closes the environment or the connection."""
        close = getattr(self.env, "close", None)
        if close is not None:
            close()


def client_of(address: str) -> Any:
    """A synchronous client of the server at ``address``, whose actions and observations are dicts."""
    package = optional_package("openenv.core", "OpenEnvAdapter of a server's address", '"sb3_ppo_ext[openenv]"')
    return package.GenericEnvClient(base_url=address).sync()


def seed_argument(reset: Callable[..., Any], seed: int) -> dict[str, int]:
    """The seed as an argument, where the function takes it."""
    parameters = inspect.signature(reset).parameters.values()
    takes = any(parameter.name == "seed" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return {"seed": seed} if takes else {}


def parts(result: Any, name: str) -> tuple[Any, Any, bool]:
    """Observation, reward and end of what an environment or a client returned."""
    if not (hasattr(result, "done") and hasattr(result, "reward")):
        raise ValueError(f"{name} returned {result!r}: an observation with done and reward is needed")
    of_client = hasattr(result, "observation") and not hasattr(result, "model_dump")
    return (result.observation if of_client else result), result.reward, bool(result.done)


def text_of_fields(observation: Any) -> str:
    """The only text among an observation's fields, or all of them as JSON; without reward, end and metadata."""
    if isinstance(observation, str):
        return observation
    if hasattr(observation, "model_dump"):
        fields = observation.model_dump(mode="json")
    else:
        fields = dict(observation) if isinstance(observation, Mapping) else vars(observation)
    shown = {name: value for name, value in fields.items() if name not in NO_TEXT}
    texts = [value for value in shown.values() if isinstance(value, str)]
    return texts[0] if len(texts) == 1 else json.dumps(shown, default=str)


def action_maker(action: Any) -> Callable[[str], Any]:
    """The function from a response to an action; ``ValueError`` where a class has not just one field for it."""
    if isinstance(action, str):
        return lambda response: {action: response}
    if isinstance(action, type) and hasattr(action, "model_fields"):
        fields = action.model_fields
        texts = [name for name, field in fields.items() if field.annotation is str]
        if len(texts) != 1 or any(field.is_required() for name, field in fields.items() if name not in texts):
            raise ValueError(
                f"action={action.__name__} has the fields {', '.join(fields)}: not one text alone, so that a function "
                "from a response to an action is needed"
            )
        return lambda response: action(**{texts[0]: response})
    if not callable(action):
        raise ValueError(f"action={action!r}: a class of actions, the name of a field, or a function is needed")
    made: Callable[[str], Any] = action
    return made
