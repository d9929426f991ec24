"""What the driver remembers of each environment: enough to make it once more, in another worker, as it stood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

LONGEST = 100_000  # steps of an episode that is repeated

MakeEnv = Callable[[], gym.Env[Any, Any]]


class Call(NamedTuple):
    """A change of an environment outside of its steps: ``set_attr``, ``env_method``, or a function of it.

    A setting remains for later episodes; what is no setting puts a state into the environment, from which it goes on.
    """

    kind: str  # "set_attr", "env_method" or "function"
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    function: Callable[..., Any] | None = None
    setting: bool = True

    def on(self, env: Any) -> Any:
        """Does it; what it returns."""
        if self.function is not None:
            return self.function(env, *self.args)
        if self.kind == "set_attr":
            return setattr(env, self.name, *self.args)  # the outermost wrapper's, as in DummyVecEnv
        return env.get_wrapper_attr(self.name)(*self.args, **self.kwargs)


class Start(NamedTuple):
    """The beginning of an episode: generators before ``reset``, its arguments, and the start of the monitor's clock."""

    generators: list[Any]
    arguments: dict[str, Any]
    clock: float | None


@dataclass
class EnvRecord:
    """One environment: how it was made, what was set in it, and its current episode."""

    make: MakeEnv
    made: bool = False  # in some worker, before
    settings: dict[tuple[str, str], Call] = field(default_factory=dict)  # of earlier episodes, the last by name
    start: Start | None = None
    events: list[Any] = field(default_factory=list)  # actions and calls since the start
    checksum: int = 0  # of the observations and rewards since the start
    obstacle: str | None = None  # why the episode is not repeated
    seed: int | None = None  # of its last reset with one
    losses: int = 0  # episodes that were cut

    @property
    def begun(self) -> bool:
        """True where an episode, or a state that was put into the environment, goes on."""
        return self.start is not None or bool(self.events)

    def begin(self, start: Start | None) -> None:
        """Forgets the last episode, except for what was set in it."""
        for event in self.events:
            if isinstance(event, Call) and event.setting:
                self._keep(event)
        self.start, self.events, self.checksum, self.obstacle = start, [], 0, None
        if start is not None and start.arguments.get("seed") is not None:
            self.seed = start.arguments["seed"]

    def add(self, action: Any) -> None:
        """An action in the episode."""
        if self.obstacle is None:
            self.events.append(action)
            if len(self.events) > LONGEST:
                self.cut(f"its episode has more than {LONGEST} steps")

    def add_call(self, call: Call) -> None:
        """A call, in the episode or before it."""
        if not call.setting:
            self.begin(None)
        if self.begun or not call.setting:
            self.events.append(call)
        else:
            self._keep(call)

    def cut(self, reason: str) -> None:
        """Gives the episode up."""
        self.obstacle = reason
        self.events = [event for event in self.events if isinstance(event, Call)]

    def calls(self) -> list[Call]:
        """What was set in the episode."""
        return [event for event in self.events if isinstance(event, Call) and event.setting]

    def next_seed(self) -> int | None:
        """The seed of the episode after one that was cut; None for an environment that was never seeded."""
        if self.seed is None:
            return None
        state = np.random.SeedSequence([self.seed % 2**32, self.losses + 1]).generate_state(1)
        return int(state[0]) >> 1

    def _keep(self, call: Call) -> None:
        self.settings.pop((call.kind, call.name), None)  # the last one comes after those of other names
        self.settings[call.kind, call.name] = call
