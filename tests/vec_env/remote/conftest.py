"""Ray without processes, for what does not need them; ``cluster`` is the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sb3_ppo_ext.vec_env import RayVecEnv
from tests.vec_env.remote.in_process import InProcessRay


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RayVecEnv]]:
    """Makes a ``RayVecEnv`` whose workers are objects of this process."""
    rays: list[InProcessRay] = []

    def make(ray: InProcessRay, env_fns: Any, **arguments: Any) -> RayVecEnv:
        rays.append(ray)
        monkeypatch.setattr("sb3_ppo_ext.vec_env.remote.ray_vec_env.imported_ray", lambda: ray)
        return RayVecEnv(env_fns, **arguments)

    yield make
    for ray in rays:
        for actor in ray.actors:
            actor.end()
