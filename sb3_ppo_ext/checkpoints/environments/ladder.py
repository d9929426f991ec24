"""Saving and restoring a vector environment with everything around and below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gymnasium.vector import VectorEnv
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_ppo_ext.checkpoints.environments import workers
from sb3_ppo_ext.checkpoints.environments.dividing import UNDIVIDED, Piece, is_divided, put_divided
from sb3_ppo_ext.checkpoints.environments.layers import CARRIERS, has_state_dict, name_of, split_layers, vec_layers
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


def prepare_environments(vec_env: VecEnv, shards: int = 0) -> list[str]:
    """Begins what later checkpoints need; lines on what they will not restore, as far as it shows before a step.

    To be called before the first reset; otherwise ``save_environments`` does it, and an episode that goes on then
    cannot be repeated. ``shards`` as there.
    """
    group, of_shards = _groups(vec_env, shards)
    losses: list[Any] = [loss for found in (group, *of_shards) for loss in found.prepare()]
    losses += [*_new_episodes(group), *_gaps(group)]
    below = workers.workers_of(group.around[-1])
    if below is not None:
        losses += [loss for found in below.call(workers.prepare) for loss in found]
    return _lines(losses)


def save_environments(vec_env: VecEnv, shards: int = 0) -> dict[str, Any]:
    """The state of the vector environment: its wrappers, itself, and every environment with its wrappers.

    A dict of plain values, arrays and bytes; ``lines`` say what will not be restored. Generators of worker processes
    are in it; those of this process are the caller's to save, and to restore after the environments. Where they are
    the environments of ``shards``, each shard has a state of its own, with which another process can go on.
    """
    group, of_shards = _groups(vec_env, shards)
    state: dict[str, Any] = {"format": 1, "here": group.save(), "shards": [shard.save() for shard in of_shards]}
    below, state["workers"] = workers.workers_of(group.around[-1]), []
    if below is not None:
        state["workers"] = below.call(workers.save)
        _drop_equal_trials(state["workers"])
    states = (state["here"], *state["shards"], *state["workers"])
    losses = [Loss(*loss) for saved in states for loss in saved["losses"]]
    state["lines"] = _lines([*losses, *_new_episodes(group), *_gaps(group)])
    return state


def restore_environments(vec_env: VecEnv, state: dict[str, Any]) -> Restored:
    """Puts a state into a vector environment that was made as the saved one; says what could not be restored.

    Recorded steps are repeated and compared before the state counts. Where one environment does not repeat them, or
    cannot be restored, all begin new episodes; wrappers around them keep their statistics.

    ``ValueError`` where the environment is made of other classes, or of another number of environments.
    """
    return _restored(vec_env, state, lambda group, count: group.put_around(state["here"], count))


def restore_divided(vec_env: VecEnv, pieces: Sequence[Piece]) -> Restored:
    """The same with the ``pieces`` of what several processes have saved, in the order of the environments."""
    first = pieces[0].state
    if not first["shards"] and not first["workers"]:  # the environments are one object
        whole = is_divided(vec_env.unwrapped)
        layers = [layer for layer in vec_layers(vec_env) if whole or isinstance(layer, VecEnvWrapper)]
        losses = [] if whole else [Loss(name_of(vec_env), f"its environments are saved together; {UNDIVIDED}")]
        losses += put_divided(layers, pieces)
        return Restored(_lines(losses), new_episodes=bool(losses))
    state = {
        "here": first["here"],
        "shards": [piece.state["shards"][shard] for piece in pieces if first["shards"] for shard in piece.shards],
        "workers": [piece.state["workers"][row] for piece in pieces if first["workers"] for row in piece.rows],
    }
    return _restored(vec_env, state, lambda group, count: put_divided(group.layers[:count], pieces))


def _restored(
    vec_env: VecEnv, state: dict[str, Any], put_around: Callable[[EnvironmentGroup, int], list[Loss]]
) -> Restored:
    group, of_shards = _groups(vec_env, len(state["shards"]))
    require_same_layers(group.layers, state["here"]["snapshot"])
    below = workers.workers_of(group.around[-1])
    _require_as_many(vec_env, below, state)
    parts = [(group, state["here"]), *zip(of_shards, state["shards"], strict=True)]
    losses = [loss for part, saved in parts for loss in part.restore(saved, with_generators=False)]
    losses += _new_episodes(group)
    if below is not None:
        losses += [loss for found in below.call_each(workers.restore, state["workers"]) for loss in found]
    wrappers = sum(isinstance(layer, VecEnvWrapper) for layer in group.around)
    gaps = _gaps(group)
    failed = put_around(group, wrappers if losses else len(group.around))
    if losses or failed:
        for part, saved in parts:
            part.put_counters(saved)
        if below is not None:
            below.call_each(workers.put_counters, state["workers"])
    return Restored(_lines([*losses, *failed, *gaps]), new_episodes=bool(losses or failed))


def layers_in_this_process(vec_env: VecEnv) -> list[Any]:
    """The vector environment, its wrappers, and the environments in this process with theirs."""
    return _groups(vec_env, 0)[0].layers


def _groups(vec_env: VecEnv, shards: int) -> tuple[EnvironmentGroup, list[EnvironmentGroup]]:
    """The layers around the environments, and the environments of each shard; without shards all are in the first."""
    around, envs = split_layers(vec_env)
    if not shards or not envs or any(isinstance(env, VectorEnv) for env in envs):
        return EnvironmentGroup(around, envs, vec_env.unwrapped), []
    each = len(envs) // shards
    of_shards = [envs[first : first + each] for first in range(0, len(envs), each)]
    group = EnvironmentGroup(around, [], vec_env.unwrapped)
    return group, [EnvironmentGroup([], shard, shard[0]) for shard in of_shards]


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
