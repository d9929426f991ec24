"""Vector environments as SB3 VecEnvs: Gymnasium's here, EnvPool's in ``envpool_env``.

In SB3 the step that ends an episode has the first observation of the next one, and the last observation beside it.
Gymnasium has three ways ("autoreset modes"); each is turned into SB3's without a row that is no transition.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_ppo_ext.vec_env.autoreset import REMEDY, AnyVectorEnv, autoreset_mode, each, restart_cart_poles, vector_env
from sb3_ppo_ext.vec_env.envpool_env import EnvPoolVecEnv
from sb3_ppo_ext.vec_env.episodes import (
    Array,
    EpisodeVecEnv,
    Observation,
    Step,
    copied,
    put,
    require_supported,
    rows,
    same,
    take,
)
from sb3_ppo_ext.vec_env.infos import Info, copied_columns, info_row
from sb3_ppo_ext.vec_env.vector_wrappers import SameStepEnds, WrapperWatch, without_lists

__all__ = ["EnvPoolVecEnv", "GymnasiumVecEnv"]


class GymnasiumVecEnv(EpisodeVecEnv):
    """Any Gymnasium vector environment, or the id or EnvSpec of one for ``gym.make_vec``, as a VecEnv.

    Seeds are those of ``DummyVecEnv`` (``seed + i`` for environment ``i``) wherever the environment takes one each, and
    the spaces are the environment's own, so that models and VecNormalize statistics move between the two. An
    environment whose episodes cannot be restarted one by one is refused: its row after an episode's end would be a
    transition that never was. So is, at the latest when the first episode ends, a vector wrapper whose numbers would be
    wrong from then on (see ``vector_wrappers``).
    """

    def __init__(
        self,
        env: AnyVectorEnv | str | EnvSpec,
        n_envs: int | None = None,
        seed: int | None = None,
        *,
        monitor_file: str | None = None,
        **make_vec_kwargs: Any,
    ) -> None:
        self.env: AnyVectorEnv = without_lists(vector_env(env, n_envs, make_vec_kwargs))
        self._mode = autoreset_mode(self.env)
        require_supported(self.env.single_observation_space, self.env.single_action_space)
        name = self.env.spec.id if self.env.spec is not None else type(self.env.unwrapped).__name__
        super().__init__(
            self.env.num_envs,
            self.env.single_observation_space,
            self.env.single_action_space,
            monitor_file=monitor_file,
            name=name,
        )
        self.metadata = {**self.env.metadata, **self.metadata}
        # These two restart exactly the rows of a mask. Wrappers and other classes may ignore it, and are watched.
        self._trusted = type(self.env) in (SyncVectorEnv, AsyncVectorEnv)
        self._is_cart_pole = type(self.env) is CartPoleVectorEnv
        self._watch = WrapperWatch(self.env, self._mode)
        wrapped = self._mode is AutoresetMode.SAME_STEP and self._watch.wrappers
        self._ends = SameStepEnds(self.env) if wrapped else None
        if not (self._trusted or self._is_cart_pole or self._mode is AutoresetMode.SAME_STEP or self.num_envs == 1):
            self._try_partial_reset()
        if seed is not None:
            self.seed(seed)

    def _begin(self) -> tuple[Observation, Info]:
        seeds: Any = self._seeds
        if not isinstance(self.env.unwrapped, (SyncVectorEnv, AsyncVectorEnv)):
            seeds = self._seeds[0]  # one generator for all of them
        if any(options != self._options[0] for options in self._options):
            raise ValueError(f"options={self._options}: a vector environment takes the same options for all")
        observation, info = self.env.reset(seed=seeds, options=self._options[0] or None)
        self._watch.begin()
        return copied(observation, self.observation_space), info

    def _advance(self, actions: Array) -> Step:
        observation, reward, terminated, truncated, info = self.env.step(actions)
        observation = copied(observation, self.observation_space)
        if info and not self._trusted:  # dicts are made of it later
            info = copied_columns(info)
        return Step(observation, np.asarray(reward), np.asarray(terminated), np.asarray(truncated), info)

    def _restart(self, ended: Array, step: Step) -> tuple[list[Observation], Info]:
        if self._mode is AutoresetMode.SAME_STEP:
            last, last_info, first_info = self._restarted_by_env(ended, step)
        else:
            last, last_info = rows(step.observation, ended), step.info
            first, first_info = self._first_observations(ended, step.observation)
            put(step.observation, ended, first)
        for row in ended.tolist():
            self.reset_infos[row] = info_row(first_info, row)
        return last, last_info

    def _restarted_by_env(self, ended: Array, step: Step) -> tuple[list[Observation], Info, Info]:
        info = step.info
        if not np.broadcast_to(info.get("_final_obs", "final_obs" in info), self.num_envs)[ended].all():
            raise ValueError(
                f"{self.env} ended an episode in SAME_STEP mode without info['final_obs'], so nothing restarted it; "
                "where a wrapper ended it, make the environments with autoreset_mode=AutoresetMode.DISABLED; " + REMEDY
            )
        of_last_step: Info = {}
        if self._ends is not None:
            self._ends.check(step.observation, info["final_obs"])
            info, of_last_step = self._ends.split(info)
        last = [copied(observation, self.observation_space) for observation in each(info["final_obs"], ended)]
        first_info = {key: column for key, column in info.items() if key.lstrip("_") not in ("final_obs", "final_info")}
        return last, {**info.get("final_info", {}), **of_last_step}, first_info

    def _done(self, ended: Array) -> Array:
        done = np.zeros(self.num_envs, np.bool_)
        done[ended] = True
        return done

    def _first_observations(self, ended: Array, before: Observation) -> tuple[Observation, Info]:
        if self._is_cart_pole:
            return restart_cart_poles(self.env, ended), {}
        done = self._done(ended)
        observation, info = self._watch.restart(done)
        observation = copied(observation, self.observation_space)
        if not self._trusted and not same(take(observation, ~done), take(before, ~done)):
            raise ValueError(f"{self.env} changed environments outside options['reset_mask']; {REMEDY}")
        return take(observation, ended), info

    def _try_partial_reset(self) -> None:
        """Refuses what can be seen to ignore a mask now, rather than at the end of the first episode."""
        observation, _ = self.env.reset()
        self._watch.begin()
        before = copied(observation, self.observation_space)
        first = np.arange(self.num_envs) == 0
        try:
            observation, _ = self._watch.restart(first)
        except Exception as error:
            raise ValueError(f"env={self.env}: it cannot restart one environment alone ({error}); {REMEDY}") from error
        if not same(take(copied(observation, self.observation_space), ~first), take(before, ~first)):
            raise ValueError(
                f"env={self.env}: it ignores options['reset_mask'] and restarts every environment; {REMEDY}"
            )

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each sub-environment; of an environment without any, its own, once per row."""
        base = self.env.unwrapped
        if isinstance(base, SyncVectorEnv):
            values = [env.get_wrapper_attr(attr_name) for env in base.envs]
        elif isinstance(base, AsyncVectorEnv):
            values = list(base.get_attr(attr_name))
        else:
            values = [getattr(self.env, attr_name)] * self.env.num_envs
        return values if indices is None else [values[row] for row in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of each sub-environment; of an environment without any, its own, for all rows at once."""
        base = self.env.unwrapped
        chosen = list(self._get_indices(indices))
        if isinstance(base, SyncVectorEnv):
            for row in chosen:
                base.envs[row].set_wrapper_attr(attr_name, value)
            return
        self._require_all(chosen, f"set_attr({attr_name!r})")
        if isinstance(base, AsyncVectorEnv):
            base.set_attr(attr_name, [value] * self.num_envs)
        else:
            setattr(base, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method of each sub-environment."""
        base = self.env.unwrapped
        chosen = list(self._get_indices(indices))
        if isinstance(base, SyncVectorEnv):
            return [base.envs[row].get_wrapper_attr(method_name)(*method_args, **method_kwargs) for row in chosen]
        self._require_all(chosen, f"env_method({method_name!r})")
        if isinstance(base, AsyncVectorEnv):
            return list(base.call(method_name, *method_args, **method_kwargs))
        raise AttributeError(
            f"env_method({method_name!r}): {self.env} has no sub-environments; call it on .env instead"
        )

    def _require_all(self, chosen: list[int], what: str) -> None:
        if sorted(chosen) != list(range(self.num_envs)):
            raise ValueError(f"{what}, indices={chosen}: {self.env} only does this for all at once, indices=None")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Sub-environments of this process with this wrapper; ``Monitor`` is True, since its statistics are kept."""
        found = super().env_is_wrapped(wrapper_class, indices)
        base = self.env.unwrapped
        if isinstance(base, SyncVectorEnv):
            chosen = [base.envs[row] for row in self._get_indices(indices)]
            found = [done or is_wrapped(env, wrapper_class) for done, env in zip(found, chosen, strict=True)]
        return found

    def get_images(self) -> list[Array | None]:
        """One picture per environment."""
        pictures: Any = self.env.render() or [None] * self.num_envs
        return list(pictures)

    def render(self, mode: str | None = None) -> Array | None:
        """A picture of all environments; ``render_mode="human"`` is left to the environment."""
        if self.render_mode == "human":
            self.env.render()
            return None
        return super().render(mode)

    def close(self) -> None:
        """Closes the environment and the monitor file."""
        super().close()
        self.env.close()
