"""Training in the processes of Ray Train: the workers train one model, and the run survives the loss of one.

The two shards fix the numbers: one worker or two, unbroken or killed and restarted, the parameters at the end are the
same up to rounding. With ``--kill`` a worker is killed in the midst of the run. Ray Train starts the workers again, as
many as there are places for, and the run goes on from its newest checkpoint; with ``--no-checkpoints`` from its start.
``--storage`` is a folder that all machines of the cluster share.
"""

import argparse
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_ppo_ext import PPOX, Checkpoints
from sb3_ppo_ext.distributed import join_processes

SHARDS = 2
N_ENVS = 8
REPORT_EVERY = 10  # rollouts


def train(settings: dict[str, Any]) -> None:
    """Runs in every worker; Ray Train has made the group of processes before."""
    torch.set_num_threads(1)
    processes = join_processes()
    run = Path(settings["run"])
    if processes.rank == 0:
        fetch_reported(run)
    processes.objects(None)  # the others wait until it is there
    env = make_vec_env("CartPole-v1", N_ENVS // processes.count)
    callback = Reporting(run, settings["kill"], processes.rank)
    checkpoints = Checkpoints(run, every=0) if settings["checkpoints"] else None
    if checkpoints is not None and checkpoints.exist():
        model = PPOX.resume(run, env, callback)
        model.learn()
    else:
        model = PPOX("MlpPolicy", env, n_steps=64, batch_size=128, n_epochs=4, seed=0, shards=SHARDS, compile=False)
        model.learn(settings["timesteps"], callback, checkpoint=checkpoints)
    figures = {
        "timesteps": model.num_timesteps,
        "sum_of_parameters": sum(value.double().sum().item() for value in model.policy.parameters()),
    }
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")  # rank 0 writes it
        ray.train.report(figures, checkpoint=Checkpoint.from_directory(folder) if processes.rank == 0 else None)


def fetch_reported(run: Path) -> None:
    """Copies the reported checkpoint to the folder of the run, where this machine does not have it."""
    reported = ray.train.get_checkpoint()
    if reported is not None:
        with reported.as_directory() as folder:
            for found in Path(folder).glob("step_*"):
                if not (run / "checkpoints" / found.name).exists():
                    shutil.copytree(found, run / "checkpoints" / found.name)


class Reporting(BaseCallback):
    """Reports to Ray Train, with the newest checkpoint, which takes seconds; kills a worker once, with ``kill``."""

    def __init__(self, run: Path, kill: bool, rank: int) -> None:
        super().__init__()
        self.run, self.rank = run, rank
        self.marker = run / "killed" if kill and rank == join_processes().count - 1 else None
        self.rollouts = 0

    def _on_rollout_start(self) -> None:
        if self.rollouts % REPORT_EVERY == 0:
            self.report()
        self.rollouts += 1

    def _on_step(self) -> bool:
        if self.marker is not None and self.rollouts == 2 * REPORT_EVERY and not self.marker.exists():
            self.marker.parent.mkdir(parents=True, exist_ok=True)
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    def report(self) -> None:
        """All workers call it equally often: Ray Train waits for all."""
        metrics = {"timesteps": self.num_timesteps}
        stored = sorted((self.run / "checkpoints").glob("step_*"))
        if self.rank > 0 or not stored:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(stored[-1], Path(folder) / stored[-1].name)
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=20_000)
    parser.add_argument("--workers", type=int, nargs=2, default=(1, 2), metavar=("LEAST", "MOST"))
    parser.add_argument("--storage", default=tempfile.mkdtemp())
    parser.add_argument("--name", default="cartpole")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--no-checkpoints", action="store_true")
    options = parser.parse_args()
    # CPUs are counted, not measured: two workers fit on any machine.
    ray.init(num_cpus=max(options.workers[1], 1), include_dashboard=False)
    trainer = TorchTrainer(
        train,
        train_loop_config={
            "run": str(Path(options.storage) / options.name / "run"),
            "timesteps": options.timesteps,
            "kill": options.kill,
            "checkpoints": not options.no_checkpoints,
        },
        scaling_config=ScalingConfig(num_workers=tuple(options.workers)),
        run_config=RunConfig(
            name=options.name,
            storage_path=options.storage,
            failure_config=FailureConfig(max_failures=3),  # by default there is none, and the first one ends the run
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    result = trainer.fit()
    assert result.metrics is not None
    print(f"{result.metrics['timesteps']} timesteps, sum of parameters {result.metrics['sum_of_parameters']:.9f}")


if __name__ == "__main__":
    main()
