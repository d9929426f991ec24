"""Methods in place of an environment's ``step`` and ``reset``, by which every call of them is recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sb3_ppo_ext.checkpoints.environments.recording import Recording, add_event


class Hook:
    """Replaces ``step`` and ``reset`` of an environment until it is removed, and calls a recorder around each."""

    def __init__(self, env: Any, position: int, recorder: Recorder) -> None:
        self.env, self.position, self._recorder = env, position, recorder
        self._replaced = {name: vars(env)[name] for name in ("step", "reset") if name in vars(env)}
        self._step, self._reset = env.step, env.reset
        self._inside = False  # of a step that resets by itself
        env.step, env.reset = self.step, self.reset

    def remove(self) -> None:
        """Gives the environment its methods back."""
        for name in ("step", "reset"):
            if getattr(vars(self.env).get(name), "__self__", None) is self:
                del vars(self.env)[name]
        vars(self.env).update(self._replaced)

    def step(self, action: Any) -> Any:
        """Steps."""
        taken = np.array(action) if isinstance(action, np.ndarray) else action
        return self._call(self._step, ("step", taken), (action,), {})

    def reset(self, **arguments: Any) -> Any:
        """Resets."""
        return self._call(self._reset, ("reset", arguments), (), arguments)

    def _call(self, method: Callable[..., Any], event: tuple[str, Any], args: Any, kwargs: Any) -> Any:
        if self._inside:
            return method(*args, **kwargs)
        self._recorder.before(self.position, event[0])
        self._inside = True
        try:
            result = method(*args, **kwargs)
        finally:
            self._inside = False
        self._recorder.after(self.position, event, result)
        return result


class Recorder:
    """Records the calls of environments and checksums of their results."""

    def __init__(self, envs: list[Any]) -> None:
        self.envs = envs
        self.recording: Recording | None = None
        self._hooks = [Hook(env, position, self) for position, env in enumerate(envs)]

    def remove(self) -> None:
        """Ends the recording."""
        for hook in self._hooks:
            hook.remove()

    def before(self, position: int, name: str) -> None:
        """Is called before each ``step`` and ``reset``."""

    def after(self, position: int, event: tuple[str, Any], result: Any) -> None:
        """Is called after each; adds the call to the recording."""
        if self.recording is not None:
            add_event(self.recording, (position, *event), result)
