"""Environments of openenv as conversations: those of the package where it is installed, and of its interface."""

from __future__ import annotations

import importlib
import importlib.util
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from sb3_ppo_ext.language import OpenEnvAdapter
from tests.language import chats


class Action(BaseModel):
    model_config = ConfigDict(extra="forbid")
    metadata: dict[str, Any] = {}


class Observation(BaseModel):
    model_config = ConfigDict(extra="forbid")
    done: bool = False
    reward: bool | int | float | None = None
    metadata: dict[str, Any] = {}


STAND_IN = SimpleNamespace(Action=Action, Observation=Observation, Environment=object)


def package_of(name: str) -> Any:
    return STAND_IN if name == "interface" else pytest.importorskip("openenv.core")


def adding(package: Any) -> tuple[type, type, type]:
    """An environment in which the numbers of two responses are added to one that depends on the seed."""

    class Say(package.Action):  # type: ignore[misc]  # of the package or the stand-in
        text: str

    class Heard(package.Observation):  # type: ignore[misc]
        text: str = ""

    class Adding(package.Environment):  # type: ignore[misc]
        def reset(self, seed: int | None = None, episode_id: str | None = None, **options: Any) -> Any:
            random.seed(seed)
            self.total, self.step_count = options.get("start", random.randrange(10)), 0
            return Heard(text=f"from {self.total}")

        def step(self, action: Any, timeout_s: float | None = None, **options: Any) -> Any:
            self.total += int(action.text)
            self.step_count += 1
            return Heard(text=f"now {self.total}", reward=self.total / 10, done=self.step_count == 2)

        @property
        def state(self) -> Any:
            return {"step_count": self.step_count}

    return Adding, Say, Heard


def adapter(make: Any, action: Any, **options: Any) -> OpenEnvAdapter:
    settings: dict[str, Any] = {"max_new_tokens": 4, "max_prompt_length": 160, **options}
    return OpenEnvAdapter(make, chats.tokenizer(), action=action, **settings)


def say(env: OpenEnvAdapter, text: str) -> Any:
    return env.step(chats.response(text, 4))


@pytest.mark.parametrize("name", ["interface", "package"])
def test_an_environment_in_process_is_a_conversation_with_rewards_of_its_steps(name: str) -> None:
    make, action, _ = adding(package_of(name))
    env = adapter(make, action)
    env.reset(seed=3)
    start = env.env.total
    assert f"from {start}<|end|>" in chats.text_of(env)
    _, reward, terminated, _, _ = say(env, "2")
    assert (reward, terminated) == ((start + 2) / 10, False)
    assert chats.text_of(env).endswith(f"2<|end|>\n<|start|>user\nnow {start + 2}<|end|>\n<|start|>assistant\n")
    _, _, terminated, _, info = say(env, "9")
    assert terminated and info["turns"] == 2 and info["is_success"] == (2 * start + 13 >= 10)
    env.reset(seed=3)
    assert env.env.total == start


def test_reset_gets_options_and_only_the_arguments_it_takes() -> None:
    make, action, _ = adding(STAND_IN)
    env = adapter(make, action, reset_options={"start": 7})
    env.reset(seed=0)
    assert "from 7" in chats.text_of(env)

    class Bare:
        def reset(self) -> Any:
            return SimpleNamespace(done=False, reward=None, board=[1, 2])

        def step(self, action: dict[str, str]) -> Any:
            return SimpleNamespace(done=True, reward=float(action["move"]), board=[])

    env = adapter(Bare, "move")
    env.reset(seed=0)
    assert '{"board": [1, 2]}' in chats.text_of(env)
    assert say(env, "1")[1:3] == (1.0, True)


def test_a_response_that_is_no_action_is_answered_with_the_error() -> None:
    make, action, _ = adding(STAND_IN)

    def positive(response: str) -> Any:
        if not response.isdecimal():
            raise ValueError("write a number")
        return action(text=response)

    env = adapter(make, positive)
    env.reset(seed=0)
    _, reward, terminated, _, info = say(env, "no")
    assert (reward, terminated, info["invalid_action"]) == (0.0, False, True)
    assert "error: write a number" in chats.text_of(env) and not env.failures.counts


def test_a_step_that_fails_ends_the_episode_counted_and_warned_of_once() -> None:
    make, action, _ = adding(STAND_IN)
    env = adapter(make, action, success_score=0.0)  # which the reward of a failure reaches
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="Adding failed .ValueError: invalid literal") as caught:
        _, reward, terminated, _, info = say(env, "no")
        env.reset()
        say(env, "no")
    assert (reward, terminated, info["is_success"]) == (0.0, True, False)
    assert env.failures.counts == {"Adding": 2} and len(caught) == 1


def test_text_as_a_reward_and_what_is_no_observation_are_refused() -> None:
    class Odd:
        def reset(self) -> Any:
            return SimpleNamespace(done=False, reward=None, text="go")

        def step(self, action: Any) -> Any:
            return SimpleNamespace(done=True, reward="good", text="")

    env = adapter(Odd, "move")
    env.reset()
    with pytest.raises(ValueError, match="the reward of Odd is 'good': a finite number is needed"):
        say(env, "1")
    with pytest.raises(ValueError, match="returned 'go': an observation with done and reward"):
        adapter(lambda: SimpleNamespace(reset=lambda: "go"), "move").reset()
    with pytest.raises(ValueError, match="has the fields metadata, name, text: not one text alone"):
        adapter(Odd, type("Two", (Action,), {"__annotations__": {"name": str, "text": str}}))


def test_a_client_is_recognised_by_its_results() -> None:
    @dataclass
    class StepResult:
        observation: Any
        reward: float | None = None
        done: bool = False

    class Client:
        def reset(self, **options: Any) -> Any:
            return StepResult({"text": f"seed {options['seed'] % 2}", "metadata": {}})

        def step(self, action: dict[str, str]) -> Any:
            return StepResult({"text": action["text"]}, 1.0, True)

    env = adapter(Client, "text")
    env.reset(seed=0)
    assert "<|start|>user\nseed " in chats.text_of(env)
    assert say(env, "hi")[1:3] == (1.0, True)

    class Asynchronous:
        async def reset(self, **options: Any) -> Any:
            return None

    with pytest.raises(ValueError, match=r"is asynchronous; pass the synchronous client: client\.sync"):
        adapter(Asynchronous, "text").reset()


@pytest.fixture
def address() -> Iterator[str]:
    """The address of a server of the package with an environment that adds."""
    pytest.importorskip("openenv.core")
    uvicorn = importlib.import_module("uvicorn")
    make, action, observation = adding(importlib.import_module("openenv.core"))
    application: Callable[..., Any] = importlib.import_module("openenv.core.env_server.http_server").create_fastapi_app
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(application(make, action, observation), host="127.0.0.1", port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(5)


@pytest.mark.filterwarnings("ignore")  # of the server's packages
def test_a_server_of_the_package_is_reached_by_its_address(address: str) -> None:
    env = adapter(address, "text")
    env.reset(seed=3)
    assert "from " in chats.text_of(env)
    assert not say(env, "2")[2] and say(env, "3")[2]
    env.close()


def test_an_address_without_the_package_names_the_extra() -> None:
    if importlib.util.find_spec("openenv") is not None:
        pytest.skip("the package is here")
    with pytest.raises(ImportError, match=r"sb3_ppo_ext\[openenv\]"):
        adapter("http://127.0.0.1:1", "text")
