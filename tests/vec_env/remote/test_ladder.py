"""What becomes of episodes whose worker is lost, step by step, with workers that are objects of this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_ext.vec_env import RayVecEnv, RayWorkerError, RayWorkerWarning
from sb3_ppo_ext.vec_env.remote import episodes
from tests.environments import Toy
from tests.vec_env.remote.in_process import InProcessRay
from tests.vec_env.remote.same import assert_same, step_both
from tests.vec_env.remote.tasks import Drunkard

Make = Callable[..., RayVecEnv]
CHANCE = np.random.default_rng(0)


class Separate(Toy):
    """A ``Toy`` with spaces, and so generators, of its own."""

    def __init__(self, observation: str, action: str, length: int) -> None:
        super().__init__(observation, action, length)
        self.observation_space, self.action_space = deepcopy((self.observation_space, self.action_space))


class Fates:
    """The fate of the calls of a method, one after the other; later ones are answered."""

    def __init__(self, method: str, *fates: str) -> None:
        self.method, self.fates = method, list(fates)

    def __call__(self, actor: int, method: str) -> str:
        return self.fates.pop(0) if method == self.method and self.fates else ""


def actions(n_envs: int = 4) -> np.ndarray[Any, Any]:
    return CHANCE.uniform(-1, 1, (n_envs, 2)).astype(np.float32)


def losing(env: RayVecEnv, method: str, *fates: str) -> None:
    """The next calls of the method have these fates, worker by worker."""
    env._crew.ray.fate = Fates(method, *fates)


@pytest.mark.parametrize("observation", ["vector", "double", "image", "dict"])
@pytest.mark.parametrize("action", ["box", "discrete", "multidiscrete", "multibinary"])
def test_steps_are_those_of_dummy_vec_env(in_process: Make, observation: str, action: str) -> None:
    make: list[Any] = [partial(Separate, observation, action, length) for length in (3, 5, 4)]
    ours, theirs = in_process(InProcessRay(), make, envs_per_worker=2), DummyVecEnv(make)
    for env in (ours, theirs):
        env.seed(3)
        env.action_space.seed(0)
    assert_same(ours.reset(), theirs.reset())
    for _ in range(12):
        taken = np.array([ours.action_space.sample() for _ in make])
        step_both(ours, theirs, taken)


@pytest.mark.parametrize("fates", [("dead",), ("", "dead"), ("dead", "dead"), ("hung",), ("dead", "", "dead")])
def test_lost_workers_change_no_number(in_process: Make, fates: Sequence[str]) -> None:
    # Fates are of worker 0, worker 1, and of the workers in their place in the same step.
    ours, theirs = in_process(InProcessRay(), [Drunkard] * 4, seed=1), DummyVecEnv([Drunkard] * 4)
    theirs.seed(1)
    assert_same(ours.reset(), theirs.reset())
    for step in range(40):
        if step % 7 == 5:  # in the midst of episodes, and in last steps of some
            losing(ours, "step", *fates)
            with pytest.warns(RayWorkerWarning, match="went on as they were"):
                step_both(ours, theirs, actions())
        else:
            step_both(ours, theirs, actions())
    assert ours.replacements >= 5 and ours.lost_episodes == 0


def test_settings_reach_the_worker_in_the_place_of_another(in_process: Make) -> None:
    ours, theirs = in_process(InProcessRay(), [Drunkard] * 4, seed=1), DummyVecEnv([Drunkard] * 4)
    theirs.seed(1)
    for env in (ours, theirs):
        env.set_attr("colour", "red", indices=[1])
        env.env_method("set_stride", 0.5, indices=0)
    assert_same(ours.reset(), theirs.reset())
    for step in range(30):
        if step in (4, 12):
            for env in (ours, theirs):  # in an episode, from this step on
                env.env_method("set_stride", 2.0 + step, indices=[0, -1])
        if step in (6, 25):
            losing(ours, "step", "dead", "dead")
            with pytest.warns(RayWorkerWarning, match="went on as they were"):
                step_both(ours, theirs, actions())
        step_both(ours, theirs, actions())
    assert ours.get_attr("colour", indices=1) == ["red"] and not ours.has_attr("colour")
    assert ours.get_attr("stride") == [14.0, 1.0, 1.0, 14.0]


@pytest.mark.parametrize("method", ["reset", "look", "call"])
def test_a_worker_lost_outside_of_steps_is_replaced_as_well(in_process: Make, method: str) -> None:
    ours, theirs = in_process(InProcessRay(), [Drunkard] * 4, seed=1), DummyVecEnv([Drunkard] * 4)
    theirs.seed(1)
    assert_same(ours.reset(), theirs.reset())
    step_both(ours, theirs, actions())
    losing(ours, method, "dead")
    with pytest.warns(RayWorkerWarning, match="worker 0"):
        if method == "reset":
            assert_same(ours.reset(), theirs.reset())
        elif method == "look":
            assert_same(ours.get_attr("left"), theirs.get_attr("left"))
        else:
            assert_same(ours.env_method("set_stride", 3.0), theirs.env_method("set_stride", 3.0))
    for _ in range(12):
        step_both(ours, theirs, actions())


def test_an_episode_that_does_not_repeat_is_cut_as_by_a_time_limit(in_process: Make) -> None:
    make: list[Any] = [Drunkard, partial(Drunkard, memory=True), Drunkard, Drunkard]
    ours, theirs = in_process(InProcessRay(), make, seed=1), DummyVecEnv(make)
    theirs.seed(1)
    ours.reset(), theirs.reset()
    while ours._records[1].seed is not None and ours.get_attr("episodes")[1] < 2:
        step_both(ours, theirs, actions())
    before: Any = ours.step(taken := actions())[0]
    theirs.step(taken)
    losing(ours, "step", "dead")
    taken = actions()
    with pytest.warns(RayWorkerWarning, match="environment 1 begins a new episode: .* gave other numbers"):
        obs, rewards, dones, infos = ours.step(taken)
        assert isinstance(obs, np.ndarray)
    obs_there, rewards_there, dones_there, _ = theirs.step(taken)
    assert isinstance(obs_there, np.ndarray)
    others = [0, 2, 3]
    np.testing.assert_array_equal(obs[others], obs_there[others])
    np.testing.assert_array_equal(rewards[others], rewards_there[others])
    np.testing.assert_array_equal(dones[others], dones_there[others])
    assert dones[1] and rewards[1] == 0 and obs[1, 2] == 1  # the first episode of the new object
    assert infos[1].keys() == {"TimeLimit.truncated", "worker_lost", "terminal_observation"}
    assert infos[1]["TimeLimit.truncated"] and infos[1]["worker_lost"]
    np.testing.assert_array_equal(infos[1]["terminal_observation"], before[1])
    assert ours.lost_episodes == 1 and not any("worker_lost" in infos[row] for row in others)
    # Its first state is none that the run has had; seeded, so that the run is the same if it is so once more.
    assert ours._records[1].start is not None and ours._records[1].start.arguments["seed"] not in (None, 1, 2)
    assert not ours.step(actions())[2][1]


def test_a_cut_episode_is_cut_once_where_the_next_worker_dies_too(in_process: Make) -> None:
    ours = in_process(InProcessRay(), [partial(Drunkard, memory=True)], seed=1)
    ours.reset()
    while ours.get_attr("episodes")[0] < 2:
        ours.step(actions(1))
    losing(ours, "step", "dead", "dead")
    with pytest.warns(RayWorkerWarning, match="begins a new episode"):
        _, _, dones, infos = ours.step(actions(1))
    assert dones[0] and infos[0]["worker_lost"]
    assert "worker_lost" not in ours.step(actions(1))[3][0]


def test_a_step_that_kills_its_workers_is_given_up_after_the_third(in_process: Make) -> None:
    ours = in_process(InProcessRay(), [Drunkard] * 2, seed=1, envs_per_worker=2)
    ours.reset()
    ours.step(actions(2))
    losing(ours, "step", "dead", "dead", "dead")
    with pytest.warns(RayWorkerWarning) as warned:
        _, _, dones, infos = ours.step(actions(2))
    assert dones.all() and all(info["worker_lost"] for info in infos)
    assert "its worker was lost 3 times in the same step" in str(warned[-1].message)


def test_long_episodes_and_slow_repetitions_are_cut(in_process: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "LONGEST", 2)
    ours = in_process(InProcessRay(), [Drunkard], seed=1)
    ours.reset()
    while ours._records[0].obstacle is None:
        ours.step(actions(1))
    losing(ours, "step", "dead")
    with pytest.warns(RayWorkerWarning, match="begins a new episode: its episode has more than 2 steps"):
        ours.step(actions(1))
    slow = in_process(InProcessRay(), [Drunkard], seed=1, replay_timeout=0.0)
    slow.reset()
    slow.step(actions(1))
    losing(slow, "step", "dead")
    with pytest.warns(RayWorkerWarning, match="longer than replay_timeout"):
        slow.step(actions(1))


def test_what_an_environment_raises_is_raised_with_worker_environment_and_cause(in_process: Make) -> None:
    ours = in_process(InProcessRay(), [Drunkard] * 4, seed=1)
    ours.reset()
    ours.set_attr("failing", KeyError, indices=3)
    with pytest.raises(
        KeyError, match=r"worker 1 \(environments 2 to 3\): environment 3 raised KeyError in step"
    ) as it:
        ours.step(actions())
    assert isinstance(it.value, RayWorkerError) and type(it.value.__cause__) is KeyError
    assert "raise self.failing" in str(it.value)  # the traceback from there
    assert ours.replacements == 0
    with pytest.raises(AttributeError, match="environment 0 raised AttributeError"):
        ours.get_attr("nothing")


def test_exceptions_of_replace_on_are_answered_like_deaths(in_process: Make) -> None:
    ours = in_process(InProcessRay(), [Drunkard] * 2, seed=1, replace_on=(OSError,))
    theirs = DummyVecEnv([Drunkard] * 2)
    theirs.seed(1)
    assert_same(ours.reset(), theirs.reset())
    ours._crew.ray.actors[0]._behind._envs[0].failing = ConnectionError  # not by set_attr, which would be repeated
    with pytest.warns(RayWorkerWarning, match="worker 0 .* raised builtins.ConnectionError in environment 0: on purp"):
        step_both(ours, theirs, actions(2))


def test_too_many_replacements_are_an_error(in_process: Make) -> None:
    ours = in_process(InProcessRay(), [Drunkard], seed=1, max_replacements=1)
    ours.reset()
    losing(ours, "step", "dead")
    with pytest.warns(RayWorkerWarning):
        ours.step(actions(1))
    losing(ours, "step", "dead")
    with pytest.raises(RayWorkerError, match=r"worker 0 .environment 0. died.*max_replacements=1 have been within"):
        ours.step(actions(1))
    assert not any(actor.alive for actor in ours._crew.ray.actors)


@pytest.mark.parametrize("deaths", [2, 3])
def test_a_worker_that_dies_in_construction_is_started_three_times(in_process: Make, deaths: int) -> None:
    ray = InProcessRay(Fates("build", *["dead"] * deaths))
    if deaths < 3:
        in_process(ray, [Drunkard], seed=1).reset()
        return
    with pytest.raises(RayWorkerError, match=r"died.*while its environments were made, the 3rd time"):
        in_process(ray, [Drunkard])
    assert not any(actor.alive for actor in ray.actors)


def test_environments_of_workers_that_do_not_come_are_shared_by_the_others(in_process: Make) -> None:
    make, theirs = [Drunkard] * 4, DummyVecEnv([Drunkard] * 4)
    arguments: dict[str, Any] = {"seed": 1, "envs_per_worker": 1, "start_timeout": 0}
    with pytest.raises(RayWorkerError, match=r"2 workers run, and 4 are needed.*'CPU': 1.*min_workers"):
        in_process(InProcessRay(Fates("build", "", "hung", "", "hung")), make, **arguments)
    ours = in_process(InProcessRay(Fates("build", "", "hung", "", "hung")), make, min_workers=2, **arguments)
    theirs.seed(1)
    assert [worker.rows for worker in ours._crew.workers] == [[0, 1], [2, 3]]
    assert_same(ours.reset(), theirs.reset())
    for step in range(20):
        if step == 9:
            losing(ours, "step", "dead")
            with pytest.warns(RayWorkerWarning, match="environments 0 to 1 went on"):
                step_both(ours, theirs, actions())
        step_both(ours, theirs, actions())


def no_actor_in_place_of_the_first() -> Callable[[int, str], str]:
    builds = itertools.count()

    def fate(actor: int, method: str) -> str:
        if method == "build":
            return "hung" if next(builds) == 0 else ""
        return "dead" if method == "step" and actor == 0 else ""

    return fate


def test_environments_move_to_another_worker_where_none_can_be_started(in_process: Make) -> None:
    ours = in_process(InProcessRay(), [Drunkard] * 4, seed=1, envs_per_worker=2, min_workers=1, start_timeout=0)
    theirs = DummyVecEnv([Drunkard] * 4)
    theirs.seed(1)
    assert_same(ours.reset(), theirs.reset())
    for step in range(30):
        if step == 10:
            ours._crew.ray.fate = no_actor_in_place_of_the_first()
            with pytest.warns(RayWorkerWarning, match="environments 0 to 1 went on"):
                step_both(ours, theirs, actions())
            assert [worker.rows for worker in ours._crew.workers] == [[0, 1, 2, 3]]
        step_both(ours, theirs, actions())


def test_monitor_files_and_clocks_go_on_in_another_worker(in_process: Make, tmp_path: Path) -> None:
    def make(number: int) -> Callable[[], gym.Env[Any, Any]]:
        return lambda: Monitor(Drunkard(), str(tmp_path / str(number)))

    ours = in_process(InProcessRay(), [make(0), make(1)], seed=1)
    ours.reset()
    ended: list[list[Any]] = [[], []]
    for step in range(60):
        if step in (20, 40):
            losing(ours, "step", "dead", "dead")
            with pytest.warns(RayWorkerWarning):
                *_, infos = ours.step(actions(2))
        else:
            *_, infos = ours.step(actions(2))
        for row, info in enumerate(infos):
            ended[row] += [info["episode"]] if "episode" in info else []
    for row, found in enumerate(ended):
        lines = (tmp_path / f"{row}.monitor.csv").read_text().splitlines()[2:]
        assert lines == [f"{episode['r']},{episode['l']},{episode['t']}" for episode in found]
        times = [episode["t"] for episode in found]
        assert times == sorted(times)


def test_make_vec_env_takes_it(in_process: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(InProcessRay(), "CartPole-v1")  # sets Ray
    kind: Any = RayVecEnv
    ours = make_vec_env("CartPole-v1", 3, seed=4, vec_env_cls=kind, vec_env_kwargs={"envs_per_worker": 2})
    theirs = make_vec_env("CartPole-v1", 3, seed=4)
    also = RayVecEnv("CartPole-v1", 3, seed=4)
    first = ours.reset()
    assert_same(first, theirs.reset())
    assert_same(first, also.reset())
    assert ours.env_is_wrapped(Monitor) == also.env_is_wrapped(Monitor) == [True] * 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"env_fns": []}, "env_fns=.*a list of functions"),
        ({"env_fns": [Drunkard()]}, "env_fns: functions are needed"),
        ({"env_fns": [Drunkard], "n_envs": 2}, "n_envs=2: there are 1 functions"),
        ({"env_fns": [Drunkard], "env_kwargs": {"memory": True}}, "env_kwargs=.*for a task's id"),
        ({"env_fns": "CartPole-v1", "n_envs": 0}, "n_envs=0"),
        ({"env_fns": [Drunkard], "envs_per_worker": 0}, "envs_per_worker=0"),
        ({"env_fns": [Drunkard], "step_timeout": -1}, "step_timeout=-1"),
        ({"env_fns": [Drunkard], "max_replacements": 1.5}, "max_replacements=1.5"),
        ({"env_fns": [Drunkard], "replace_on": ("OSError",)}, "replace_on=.*classes of exceptions"),
        ({"env_fns": [Drunkard], "resources": {"CPU": "1"}}, "resources=.*amounts by name"),
    ],
)
def test_wrong_arguments_are_refused(in_process: Make, arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        in_process(InProcessRay(), **arguments)


def test_functions_that_return_the_same_environment_are_refused(in_process: Make) -> None:
    env = Drunkard()
    with pytest.raises(ValueError, match="env_fns: each function has to return an environment of its own"):
        in_process(InProcessRay(), [lambda: env, lambda: env], envs_per_worker=2)


def test_resources_are_those_of_each_worker(in_process: Make) -> None:
    ray = InProcessRay()
    in_process(ray, [Drunkard], resources={"CPU": 2, "GPU": 0.5, "licence": 1})
    assert (ray.options["num_cpus"], ray.options["num_gpus"], ray.options["resources"]) == (2, 0.5, {"licence": 1})
    assert ray.options["max_restarts"] == ray.options["max_task_retries"] == 0
