"""On a signal to stop a run is saved, after its update or in the middle of a rollout, and ends with that status."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_ppo_ext import PPOX, Checkpoints
from sb3_ppo_ext.checkpoints import folder
from sb3_ppo_ext.checkpoints.reading import required
from tests.checkpoints.runs import SETTINGS, Noisy, Steps, assert_same
from tests.environments import walk

TOTAL = 96


class Signalled(BaseCallback):
    """Sends the process a signal at a timestep."""

    def __init__(self, timestep: int = -1, number: int = signal.SIGTERM, times: int = 1) -> None:
        super().__init__()
        self.timestep, self.number, self.times = timestep, number, times

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def _on_step(self) -> bool:
        for _ in range(self.times if self.num_timesteps == self.timestep else 0):
            os.kill(os.getpid(), self.number)
        return True


def made(**options: Any) -> PPOX:
    return PPOX("MlpPolicy", options.pop("env", walk)(), seed=1, **SETTINGS, **options)


def stopped(model: PPOX, folder: Path, callback: BaseCallback, grace: str) -> int:
    checkpoint = Checkpoints(folder, every="1h", grace=grace)
    with pytest.raises(SystemExit) as ended:
        model.learn(TOTAL, CallbackList([Steps(), callback]), checkpoint=checkpoint)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    return int(str(ended.value.code))


def whole_run(folder: Path, **options: Any) -> PPOX:
    return made(**options).learn(TOTAL, checkpoint=Checkpoints(folder, every="1h"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 128 + signal.SIGUSR1)])
def test_with_time_left_the_update_is_finished_first(number: int, status: int, tmp_path: Path) -> None:
    assert stopped(made(), tmp_path / "a", Signalled(20, number, times=2), grace="1h") == status
    assert required(tmp_path / "a").manifest["step"] == 32
    resumed = PPOX.resume(tmp_path / "a", walk(), CallbackList([Steps(), Signalled()]), device="cpu").learn()
    assert_same(resumed, whole_run(tmp_path / "b"))


def in_update(patch: pytest.MonkeyPatch) -> None:
    train = PPOX.train

    def signalled(self: PPOX) -> None:
        if self.num_timesteps == 32:
            os.kill(os.getpid(), signal.SIGTERM)
        train(self)

    patch.setattr(PPOX, "train", signalled)


def in_save(patch: pytest.MonkeyPatch) -> None:
    written = folder._written

    def signalled(path: Path, write: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return written(path, write)

    patch.setattr(folder, "_written", signalled)


@pytest.mark.parametrize(("moment", "step"), [(in_update, 32), (in_save, 16)])
def test_an_update_or_a_checkpoint_in_which_the_signal_comes_is_completed(
    moment: Callable[[pytest.MonkeyPatch], None], step: int, tmp_path: Path
) -> None:
    unbroken = made().learn(TOTAL)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="143"):
        moment(patch)
        made().learn(TOTAL, checkpoint=Checkpoints(tmp_path, every=0, grace=0))
    assert all(path.name.startswith("step_") for path in (tmp_path / "checkpoints").iterdir())
    assert required(tmp_path).manifest["step"] == step
    assert_same(PPOX.resume(tmp_path, walk(), device="cpu").learn(), unbroken)


def boxes() -> Noisy:
    return Noisy(action="box", length=5)


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "walk": (walk, {}),
    "gSDE": (boxes, {"use_sde": True, "sde_sample_freq": 3}),
    "gSDE once a rollout": (boxes, {"use_sde": True}),
    "Dict": (lambda: Noisy("dict"), {}),
}


# 17: the first step of a rollout. 31: one before its last. 18 to 27: ends of episodes, by themselves or cut.
@pytest.mark.parametrize("timestep", [1, 17, 20, 27, 31])
@pytest.mark.parametrize("case", list(CASES))
def test_without_it_the_rollout_is_saved_as_far_as_it_is(case: str, timestep: int, tmp_path: Path) -> None:
    env, options = CASES[case]
    policy = "MultiInputPolicy" if case == "Dict" else "MlpPolicy"

    def make() -> PPOX:
        return PPOX(policy, env(), seed=1, **SETTINGS, **options)

    unbroken = make()
    steps = Steps()
    unbroken.learn(TOTAL, steps)
    assert stopped(make(), tmp_path, Signalled(timestep), grace="0s") == 143
    assert required(tmp_path).manifest["step"] == timestep
    mine = Steps()
    resumed = PPOX.resume(tmp_path, env(), CallbackList([mine, Signalled()]), device="cpu").learn()
    assert_same(resumed, unbroken)
    assert mine.rewards == steps.rewards


class SignalledWithWorkers(Signalled):
    """The scheduler signals every process of the job."""

    def _on_step(self) -> bool:
        if self.num_timesteps == self.timestep:
            env: Any = self.training_env
            for process in env.processes:
                os.kill(process.pid, self.number)
        return super()._on_step()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("grace", ["1h", "0s"])
def test_worker_processes_that_are_signalled_too_live_until_they_are_saved(grace: str, tmp_path: Path) -> None:
    def env() -> SubprocVecEnv:
        return SubprocVecEnv([walk, walk], "fork")

    unbroken = made(env=env).learn(TOTAL)
    model = made(env=env)
    assert stopped(model, tmp_path, SignalledWithWorkers(20), grace=grace) == 143
    vec_env: Any = model.env
    assert all(process.is_alive() for process in vec_env.processes)
    callbacks = CallbackList([Steps(), SignalledWithWorkers()])
    resumed = PPOX.resume(tmp_path, env(), callbacks, device="cpu").learn()
    assert_same(resumed, unbroken)
    for each in (unbroken, model, resumed):
        assert each.env is not None
        each.env.close()


def test_a_handler_of_the_program_is_called_too_and_comes_back(tmp_path: Path) -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: called.append(number))
    try:
        stopped(made(), tmp_path, Signalled(20, signal.SIGUSR1), grace="1h")
        os.kill(os.getpid(), signal.SIGUSR1)
        assert called == [signal.SIGUSR1] * 2
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_interrupting_is_as_ever(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            made().learn(TOTAL, Signalled(40, signal.SIGINT), checkpoint=Checkpoints(tmp_path, every=0))
    finally:
        signal.signal(signal.SIGINT, before)
    assert required(tmp_path).manifest["step"] == 32


def test_in_another_thread_learning_sets_no_handlers(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(signal.getsignal(signal.SIGTERM))
            return True

    thread = threading.Thread(target=lambda: made().learn(32, Look(), checkpoint=Checkpoints(tmp_path)))
    thread.start()
    thread.join()
    assert required(tmp_path).manifest["finished"] and set(seen) == {before}
