"""One of two processes of which the second fails: RANK COUNT FOLDER and the names of jobs; what each raised, and when.

Errors that are agreed on leave the processes together, so that many jobs follow each other; the last may end them.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.distributed.worker import meet

Outcome = tuple[str, str, float, Any]  # the error's type and text, the seconds it took, and more
SECOND = sys.argv[1:2] == ["1"]


def model(**options: Any) -> Any:
    from tests.distributed.jobs import case_model

    return case_model("box", **options)


def callback(act: Callable[[Any], object]) -> Any:
    """One that acts in the 20th step of the second process."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Acting(BaseCallback):
        def _on_step(self) -> bool:
            return not (SECOND and self.n_calls == 20) or act(self) is not False

    return Acting()


def raised(error: BaseException) -> Callable[[Any], object]:
    def act(_: Any) -> object:
        raise error

    return act


def in_callback(act: Callable[[Any], object]) -> int:
    learner = model()
    learner.learn(512, callback=callback(act))
    return int(learner.num_timesteps)


def other_arguments() -> None:
    model(n_steps=8 if SECOND else 16, learning_rate="linear:1e-3:0.0" if SECOND else 1e-3).learn(64)


def other_policy() -> None:
    model(policy_kwargs={"net_arch": [8 if SECOND else 4]}).learn(64)


def nan_reward() -> None:
    learner = model()
    inherited = learner.env.step_wait

    def step_wait() -> Any:
        observations, rewards, dones, infos = inherited()
        return observations, rewards * float("nan"), dones, infos

    if SECOND:
        learner.env.step_wait = step_wait
    learner.learn(128)


def drift() -> None:
    def move(acting: Any) -> None:
        acting.model.policy.value_net.bias.data += 1.0

    in_callback(move)


def refused_compiling(compile: bool | str) -> str:
    from sb3_ppo_ext.engines.cpu.engine import CpuEngine
    from sb3_ppo_ext.engines.errors import CompileError

    def prepare(self: Any, *_: Any) -> None:
        if SECOND:
            raise CompileError("no compiler on this machine")

    setattr(CpuEngine, "prepare", prepare)  # noqa: B010  # mypy: a method is not assigned to
    learner = model(compile=compile)
    learner._engines.compiles = True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learner.learn(128)
    return " ".join(str(warning.message) for warning in caught)


def in_update() -> None:
    import torch

    learner = model()
    learner.learn(64)
    inherited, calls = learner.policy.extract_features, []

    def extract_features(*arguments: Any) -> Any:
        calls.append(torch.is_grad_enabled())  # in the update alone
        if SECOND and sum(calls) == 10:
            raise RuntimeError("out of memory")
        return inherited(*arguments)

    learner.policy.extract_features = extract_features
    learner.learn(256)


def end(how: int) -> Callable[[Any], object]:
    return lambda _: os.kill(os.getpid(), how)


JOBS: dict[str, Callable[[], Any]] = {
    "arguments": other_arguments,
    "policy": other_policy,
    "False": partial(in_callback, lambda _: False),
    "exception": partial(in_callback, raised(KeyError("bad key"))),
    "interrupt": partial(in_callback, raised(KeyboardInterrupt())),
    "NaN": nan_reward,
    "drift": drift,
    "auto": partial(refused_compiling, "auto"),
    "compiled": partial(refused_compiling, True),
    "update": in_update,
    "afterwards": partial(in_callback, lambda _: None),
    "killed": partial(in_callback, end(signal.SIGKILL)),
    "hangs": partial(in_callback, end(signal.SIGSTOP)),
}


def outcome(job: Callable[[], Any]) -> Outcome:
    began = time.monotonic()
    try:
        found = job()
    except BaseException as error:
        return type(error).__name__, str(error), time.monotonic() - began, None
    return "", "", time.monotonic() - began, found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    directory = Path(sys.argv[3])
    meet(int(sys.argv[1]), int(sys.argv[2]), directory, timeout=60)
    if sys.argv[4:] == ["hangs"]:
        from sb3_ppo_ext.distributed.group import join_processes

        join_processes(timeout=3)
    outcomes = {name: outcome(JOBS[name]) for name in sys.argv[4:]}
    (directory / sys.argv[1]).write_bytes(pickle.dumps(outcomes))
