"""Runs with a name: ``train --run NAME`` saves them, ``--resume`` goes on with them, ``enjoy --run`` plays them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rl_zoo3.utils
from stable_baselines3.common.callbacks import ProgressBarCallback

from sb3_ppo_ext import PPOX, Checkpoints
from sb3_ppo_ext.checkpoints.folder import stored
from sb3_ppo_ext.checkpoints.reading import required
from sb3_ppo_ext.saving import save_atomically

FILE = "run.json"  # in the folder of a run

# Options that may change when a run is resumed: its length, its device, and those of output.
CHANGEABLE = {
    *("n_timesteps", "device", "num_threads", "verbose", "progress", "log_interval", "tensorboard_log", "log_folder"),
    *("seed", "command", "uuid", "track", "wandb_project_name", "wandb_entity", "wandb_group", "wandb_tags"),
}


@dataclass(frozen=True)
class NamedRun:
    """The options that make a training one that can be resumed."""

    name: str
    resume: bool
    every: str
    seed_is_given: bool

    def is_begun(self, folder: Path) -> bool:
        """True where the run has checkpoints; ``ValueError`` if it has and ``--resume`` is not given."""
        begun = bool(stored(folder))
        if begun and not self.resume:
            raise ValueError(
                f"--run {self.name}: {folder} has checkpoints of a run; add --resume to go on with it, or give a new "
                "one another name"
            )
        return begun

    def seed(self, folder: Path, seed: int) -> int:
        """The seed of the run where it has begun, else ``seed``."""
        if not self.is_begun(folder):
            return seed
        before = int(_read(folder)["seed"])
        if self.seed_is_given and seed != before:
            raise ValueError(f"--seed {seed}: the run {self.name} was begun with {before}; leave --seed out")
        return before

    def require_same(self, folder: Path, settings: Mapping[str, Any], seed: int) -> None:
        """``ValueError`` for settings other than the run's; they are written down where it begins."""
        texts = {name: repr(value) for name, value in settings.items() if name not in CHANGEABLE}
        if not self.is_begun(folder):
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"settings": texts, "seed": seed}, indent=1, sort_keys=True)
            save_atomically(folder / FILE, lambda file: _write(file, text))
            return
        before = _read(folder)["settings"]
        changed = [name for name in sorted({*before, *texts}) if before.get(name) != texts.get(name)]
        if changed:
            pairs = ", ".join(f"{name} is {texts.get(name)} and was {before.get(name)}" for name in changed)
            raise ValueError(
                f"--resume: the run {self.name} has other settings: {pairs}. Leave them as they were, or give a new "
                "run another name by --run"
            )

    def checkpoints(self, folder: Path) -> Checkpoints:
        """The checkpoints of the run."""
        return Checkpoints(folder, every=self.every)


def _write(file: Any, text: str) -> None:
    file.write(text.encode())


def _read(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / FILE} cannot be read ({error}); the run was not begun by ppox train") from error
    return content


def run_options(command: str, arguments: Sequence[str]) -> tuple[list[str], NamedRun | None]:
    """The arguments that are rl_zoo3's, and the run, where one is named."""
    parser = argparse.ArgumentParser(prog=f"ppox {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--run")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--checkpoint-every", default="60s")
    found, rest = parser.parse_known_args(arguments)
    if found.run is None:
        if found.resume or "--checkpoint-every" in arguments:
            parser.error("argument --run: needed with --resume and --checkpoint-every; it names the run's folder")
        return rest, None
    if not found.run or found.run != Path(found.run).name:
        parser.error(f"argument --run: {found.run!r} is not the name of a folder")
    if command == "train":
        try:
            Checkpoints(found.run, every=found.checkpoint_every)
        except ValueError as error:
            parser.error(f"argument --checkpoint-every: {error}")
        if any(option in rest for option in ("-i", "--trained-agent", "--optimize-hyperparameters", "-optimize")):
            parser.error("argument --run: not allowed with --trained-agent or a search")
    return rest, NamedRun(found.run, found.resume, found.checkpoint_every, "--seed" in rest)


def resumed(folder: Path, env: Any, n_timesteps: int, device: str, verbose: int) -> PPOX:
    """The model of a run that has begun; ``n_timesteps`` may be another end."""
    total = None if _length(folder) == n_timesteps else n_timesteps
    return PPOX.resume(folder, env, total_timesteps=total, device=device, verbose=verbose)


def _length(folder: Path) -> int:
    return int(required(folder).manifest["last_timestep"])


def learn(model: PPOX, n_timesteps: int, callbacks: list[Any], log_interval: int, checkpoints: Checkpoints) -> None:
    """Trains as rl_zoo3's ``learn`` does. A finished run calls no callback."""
    interval = 1 if log_interval == -1 else log_interval if log_interval > -1 else None
    try:
        model.learn(n_timesteps, callbacks or None, interval, checkpoint=checkpoints)
    except KeyboardInterrupt:
        print("Interrupted: the model is saved; --resume goes on from the last checkpoint")
    finally:
        for callback in callbacks:
            if isinstance(callback, ProgressBarCallback) and "pbar" in vars(callback):
                callback.on_training_end()
        if model.env is not None:
            with contextlib.suppress(EOFError):
                model.env.close()


@contextlib.contextmanager
def playing(run: NamedRun | None) -> Iterator[None]:
    """rl_zoo3's scripts find the model of the run: the last one, or that of its newest checkpoint while it trains."""
    if run is None:
        yield
        return
    original = rl_zoo3.utils.get_model_path

    def get_model_path(exp_id: int, folder: str, algo: str, env_name: Any, *which: Any, **options: Any) -> Any:
        path = Path(folder, algo, run.name)
        wanted = [*which, *options.values()]
        if path.is_dir() and not any(wanted) and not (path / f"{env_name}.zip").is_file():
            checkpoint = required(path).path
            statistics = checkpoint / "vecnormalize.pkl"
            if statistics.is_file():
                shutil.copy(statistics, path / str(env_name) / statistics.name)
            return f"{checkpoint.name}-{env_name}", str(checkpoint / "model.zip"), str(path)
        return original(-1, os.path.join(folder, algo), run.name, env_name, *which, **options)

    scripts = [rl_zoo3.utils, *([sys.modules["rl_zoo3.enjoy"]] if "rl_zoo3.enjoy" in sys.modules else [])]
    for script in scripts:
        vars(script)["get_model_path"] = get_model_path
    try:
        yield
    finally:
        for script in scripts:
            vars(script)["get_model_path"] = original
