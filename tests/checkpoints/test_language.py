"""Runs over language models: prompts in their order, adapters, unfinished rollouts."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from sb3_ppo_ext import PPOX, AdaptiveKL, Checkpoints
from sb3_ppo_ext.checkpoints.folder import stored
from sb3_ppo_ext.checkpoints.reading import required
from sb3_ppo_ext.language import PromptVecEnv, ValuePretraining
from tests.checkpoints.runs import Steps, assert_same, every_update, trained
from tests.language import setups

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")

TOTAL, STOPS = 96, [17, 40, 50, 70]  # rollouts of 2 steps of 8 prompts
LORA: dict[str, Any] = {"policy_kwargs": {"lora": {"r": 2}}, "ref_kl_coef": AdaptiveKL(0.1, 0.5)}
CASES: dict[str, dict[str, Any]] = {
    "whole": {"compile": False, "ref_kl_coef": 0.1},
    "LoRA": {"compile": False, **LORA},
    "value warm-up": {"compile": False, "policy_kwargs": {"value_warmup": 3, "value": "separate"}},
}
WITHOUT_CRITIC: dict[str, Any] = {
    **{"compile": False, "policy_kwargs": {"value": "none"}},
    "rollout_buffer_kwargs": {"group_advantage": "rloo", "dynamic_sampling": "mask"},
}


def steps() -> list[BaseCallback]:
    return [Steps()]


def grouped_env() -> PromptVecEnv:
    return setups.env(group_size=4)


@pytest.mark.parametrize("case", list(CASES))
def test_a_run_stopped_after_every_update_ends_as_an_unbroken_one(case: str, tmp_path: Path) -> None:
    def make() -> PPOX:
        return setups.ppox(environment=setups.env(), **CASES[case])

    unbroken, theirs = trained(make, setups.env, tmp_path / "a", total=TOTAL, stops=[], callbacks=steps)
    broken, mine = trained(make, setups.env, tmp_path / "b", total=TOTAL, stops=STOPS, callbacks=steps)
    assert_same(broken, unbroken)
    assert vars(mine.callbacks[0])["rewards"] == vars(theirs.callbacks[0])["rewards"]


def test_groups_and_pretrained_values_go_on(tmp_path: Path) -> None:
    def make() -> PPOX:
        settings = {"group_advantage": "leave_one_out", "critic_epochs": 3, "value_lambda": 1.0}
        return setups.ppox(environment=grouped_env(), compile=False, rollout_buffer_kwargs=settings)

    def callbacks() -> list[BaseCallback]:
        return [Steps(), ValuePretraining(16, epochs=2, learning_rate=1e-2)]

    unbroken, _ = trained(make, grouped_env, tmp_path / "a", total=TOTAL, stops=[], callbacks=callbacks)
    broken, _ = trained(make, grouped_env, tmp_path / "b", total=TOTAL, stops=[40, 50, 70], callbacks=callbacks)
    assert_same(broken, unbroken)


@pytest.mark.parametrize("case", ["LoRA", "groups without a critic"])
def test_an_unfinished_rollout_of_responses_goes_on(case: str, tmp_path: Path) -> None:
    environment, settings = (setups.env, LORA) if case == "LoRA" else (grouped_env, WITHOUT_CRITIC)

    class Signalled(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 40 and not list((tmp_path / "b").glob("checkpoints/*")):
                os.kill(os.getpid(), signal.SIGTERM)
            return True

    def make() -> PPOX:
        return setups.ppox(environment=environment(), n_steps=4, **{"compile": False, **settings})

    unbroken = make().learn(TOTAL, Steps())
    with pytest.raises(SystemExit, match="143"):
        make().learn(TOTAL, [Steps(), Signalled()], checkpoint=Checkpoints(tmp_path / "b", grace=0))
    assert required(tmp_path / "b").manifest["step"] == 40
    assert_same(PPOX.resume(tmp_path / "b", environment(), [Steps(), Signalled()], device="cpu").learn(), unbroken)


def test_a_checkpoint_holds_the_adapter_and_not_the_model(tmp_path: Path) -> None:
    sizes = {}
    for name, options in (("whole", {}), ("adapter", LORA)):
        model = setups.ppox(compile=False, **options)
        model.learn(16, checkpoint=every_update(tmp_path / name))
        sizes[name] = (stored(tmp_path / name)[0] / "model.zip").stat().st_size
        trainable = sum(parameter.numel() for parameter in model.policy.parameters() if parameter.requires_grad)
        saved = torch.load(stored(tmp_path / name)[0] / "state.pt", weights_only=False)
        assert trainable and saved["partial"] is None
    assert sizes["adapter"] < sizes["whole"]
