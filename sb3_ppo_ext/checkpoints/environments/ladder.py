"""Saving and restoring a vector environment with everything around and below it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_ppo_ext.checkpoints.environments import workers
from sb3_ppo_ext.checkpoints.environments.layers import CARRIERS, has_state_dict, name_of, split_layers
from sb3_ppo_ext.checkpoints.environments.memory import Loss
from sb3_ppo_ext.checkpoints.environments.one_process import REMEDY, EnvironmentGroup
from sb3_ppo_ext.checkpoints.environments.snapshot import require_same_layers
from sb3_ppo_ext.vec_env.envpool_env import EnvPoolVecEnv
from sb3_ppo_ext.vec_env.episodes import EpisodeVecEnv

POOL_REMEDY = "GymnasiumVecEnv has the same task with environments that can be saved"


class Restored(list[str]):
    """Lines on what could not be restored exactly: none where everything was.

    Where ``new_episodes`` is true, the environment has to be reset before its next step.
    """

    def __init__(self, lines: list[str] = [], *, new_episodes: bool = False) -> None:  # noqa: B006  # not changed
        super().__init__(lines)
        self.new_episodes = new_episodes


def prepare_environments(vec_env: VecEnv) -> list[str]:
    """Begins what later checkpoints need; lines on what they will not restore, as far as it shows before a step.

    To be called before the first reset; otherwise ``save_environments`` does it, and an episode that goes on then
    cannot be repeated.
    """
    group = _group(vec_env)
    losses = [*group.prepare(), *_new_episodes(group), *_gaps(group)]
    below = workers.workers_of(group.around[-1])
    if below is not None:
        losses += [loss for found in below.call(workers.prepare) for loss in found]
    return _lines(losses)


def save_environments(vec_env: VecEnv) -> dict[str, Any]:
    """The state of the vector environment: its wrappers, itself, and every environment with its wrappers.

    A dict of plain values, arrays and bytes; ``lines`` say what will not be restored. Generators of worker processes
    are in it; those of this process are the caller's to save, and to restore after the environments.
    """
    group = _group(vec_env)
    state: dict[str, Any] = {"format": 1, "here": group.save(), "workers": []}
    below = workers.workers_of(group.around[-1])
    if below is not None:
        state["workers"] = below.call(workers.save)
        _drop_equal_trials(state["workers"])
    losses = [Loss(*loss) for saved in (state["here"], *state["workers"]) for loss in saved["losses"]]
    state["lines"] = _lines([*losses, *_new_episodes(group), *_gaps(group)])
    return state


def restore_environments(vec_env: VecEnv, state: dict[str, Any]) -> Restored:
    """Puts a state into a vector environment that was made as the saved one; says what could not be restored.

    Recorded steps are repeated and compared before the state counts. Where one environment does not repeat them, or
    cannot be restored, all begin new episodes; wrappers around them keep their statistics.

    ``ValueError`` where the environment is made of other classes, or of another number of environments.
    """
    group = _group(vec_env)
    require_same_layers(group.layers, state["here"]["snapshot"])
    below = workers.workers_of(group.around[-1])
    _require_as_many(vec_env, below, state)
    losses = group.restore(state["here"], with_generators=False)
    losses += _new_episodes(group)
    if below is not None:
        losses += [loss for found in below.call_each(workers.restore, state["workers"]) for loss in found]
    wrappers = sum(isinstance(layer, VecEnvWrapper) for layer in group.around)
    gaps = _gaps(group)
    failed = group.put_around(state["here"], wrappers if losses else len(group.around))
    if losses or failed:
        group.put_counters(state["here"])
        if below is not None:
            below.call_each(workers.put_counters, state["workers"])
    return Restored(_lines([*losses, *failed, *gaps]), new_episodes=bool(losses or failed))


def layers_in_this_process(vec_env: VecEnv) -> list[Any]:
    """The vector environment, its wrappers, and the environments in this process with theirs."""
    return _group(vec_env).layers


def _group(vec_env: VecEnv) -> EnvironmentGroup:
    around, envs = split_layers(vec_env)
    return EnvironmentGroup(around, envs, vec_env.unwrapped)


def _new_episodes(group: EnvironmentGroup) -> Iterator[Loss]:
    """Vector environments whose own state is not complete."""
    for index, layer in enumerate(group.around):
        carries = isinstance(layer, CARRIERS)
        reason = group.unread(range(index, index + 1))
        if isinstance(layer, EnvPoolVecEnv):
            yield Loss(layer.task, f"EnvPool does not give its state; {POOL_REMEDY}")
        elif not carries and not isinstance(layer, EpisodeVecEnv) and not has_state_dict(layer):
            yield Loss(name_of(layer), f"{type(layer).__name__} does not save itself; {REMEDY}")
        elif reason is not None and not carries:
            yield Loss(name_of(layer), f"{reason}; {REMEDY}")


def _gaps(group: EnvironmentGroup) -> Iterator[str]:
    """Attributes of wrappers that are not saved, where episodes go on all the same."""
    for index, layer in enumerate(group.around):
        if isinstance(layer, CARRIERS):
            for name, reason in group.memory.left_out.get(index, {}).items():
                yield f"{type(layer).__name__}.{name} cannot be saved ({reason}) and begins anew; {REMEDY}"


def _lines(losses: list[Any]) -> list[str]:
    """One line for each kind of thing, in the order they came."""
    lines = [loss if isinstance(loss, str) else f"{loss.name} begins new episodes: {loss.reason}" for loss in losses]
    return list(dict.fromkeys(lines))


def _drop_equal_trials(states: list[dict[str, Any]]) -> None:
    """One trial is enough of workers with the same layers."""
    seen: set[tuple[str, ...]] = set()
    for state in states:
        kind = tuple(state["snapshot"]["layers"])
        if state["trial"] is not None and kind in seen:
            state["trial"], state["tried"] = None, []
        elif state["trial"] is not None:
            seen.add(kind)


def _require_as_many(vec_env: VecEnv, below: workers.Workers | None, state: dict[str, Any]) -> None:
    saved, found = len(state["workers"]), vec_env.num_envs if below is not None else 0
    if saved != found:
        raise ValueError(f"env: {found} environments in processes of their own, but the checkpoint is of {saved}")
