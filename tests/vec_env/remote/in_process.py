"""What ``RayVecEnv`` uses of Ray, without processes: actors are objects, and a test decides what becomes of calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

cloudpickle: Any = pytest.importorskip("ray.cloudpickle")
exceptions: Any = pytest.importorskip("ray.exceptions")


class Call:
    """The result of a call, or what stands in its way: "dead", "hung"."""

    def __init__(self, result: Any, state: str) -> None:
        self.result, self.state = result, state


class Actor:
    def __init__(self, ray: InProcessRay, behind: Any, number: int) -> None:
        self._ray, self._behind, self.number, self.alive = ray, behind, number, True

    def end(self) -> None:
        """What the end of a process does: files are closed."""
        self.alive = False
        self._behind.close()

    def __getattr__(self, name: str) -> Any:
        return Method(self, name)


class Method:
    def __init__(self, actor: Actor, name: str) -> None:
        self._actor, self._name = actor, name

    def remote(self, *arguments: Any) -> Call:
        actor = self._actor
        fate = actor._ray.fate(actor.number, self._name) if actor.alive else "dead"
        if fate == "dead":
            actor.end()
        if fate != "":
            return Call(None, fate)
        taken = cloudpickle.loads(cloudpickle.dumps(arguments))
        for array in taken:
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        result = getattr(actor._behind, self._name)(*taken)
        return Call(cloudpickle.loads(cloudpickle.dumps(result)), "")


class InProcessRay:
    """The module ``ray``. ``fate(actor, method)`` says what becomes of a call: "" is an answer."""

    exceptions = exceptions

    def __init__(self, fate: Callable[[int, str], str] = lambda actor, method: "") -> None:
        self.fate = fate
        self.actors: list[Actor] = []
        self.options: dict[str, Any] = {}

    def remote(self, kind: type) -> Any:
        ray = self

        class ActorClass:
            @staticmethod
            def options(**options: Any) -> Any:
                ray.options = options
                return ActorClass

            @staticmethod
            def remote() -> Actor:
                ray.actors.append(Actor(ray, kind(), len(ray.actors)))
                return ray.actors[-1]

        return ActorClass

    def get(self, call: Any, timeout: float | None = None) -> Any:
        if isinstance(call, list):
            return [self.get(entry) for entry in call]
        if call.state == "hung":
            raise exceptions.GetTimeoutError
        if call.state == "dead":
            raise exceptions.ActorDiedError
        return call.result

    def wait(self, calls: list[Call], num_returns: int = 1, timeout: float | None = None) -> Any:
        ready = [call for call in calls if call.state != "hung"][:num_returns]
        return ready, [call for call in calls if call not in ready]

    def kill(self, actor: Actor, no_restart: bool) -> None:
        actor.end()

    def is_initialized(self) -> bool:
        return True

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    cluster_resources = available_resources
