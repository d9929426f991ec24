"""TRL 1.12, the last release with a PPO, on the same batch. Its responses are of full length here: where one ends early
TRL lets the first padding token earn the score, which is not repeated.

Skipped unless that version can be imported, or SB3_PPO_EXT_TRL names a folder that holds it, as left there by

    pip download trl==1.12.0 --no-deps && unzip trl-1.12.0-*.whl -d FOLDER && pip install datasets
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import configure

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, SequenceRolloutBuffer
from sb3_ppo_ext.language.critics import SeparateCritic
from sb3_ppo_ext.language.loading import frozen_copy
from tests.language import setups, tiny

ROOT = Path(__file__).parents[2]
PROBE = "import importlib.metadata, sys; from trl.experimental import ppo; sys.exit(ppo.__file__ is None)"


def environment() -> dict[str, str]:
    path = [str(ROOT), *filter(None, [os.environ.get("SB3_PPO_EXT_TRL")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if subprocess.run([sys.executable, "-c", PROBE], env=environment(), capture_output=True, check=False).returncode:
        pytest.skip("trl 1.12.0 and datasets are not installed")
    path = tmp_path_factory.mktemp("trl") / "update.pt"
    script = Path(__file__).parent / "trl_reference.py"
    subprocess.run([sys.executable, str(script), str(path)], env=environment(), check=True, capture_output=True)
    kept: dict[str, Any] = torch.load(path)
    return kept


def same_setting(trl: dict[str, Any]) -> PPOX:
    """A model of PPOX that stands where TRL stood when its rollout was collected, and holds that rollout."""
    env = setups.env(n_envs=8, max_new_tokens=5, max_prompt_length=3, long_prompts="cut")
    model = setups.ppox(
        environment=env, n_steps=1, batch_size=8, n_epochs=2, gae_lambda=0.95, ref_kl_coef=0.05,
        vf_coef=0.1 * 0.5, clip_range_vf=0.2, value_clip="max", advantage_scope="rollout", max_grad_norm=1e9,
        rollout_buffer_kwargs={"whiten_rewards": True},
        policy_kwargs={
            "model": lambda: tiny.never_ending(0), "value": "separate", "temperature": 0.7,
            "optimizer_class": torch.optim.AdamW, "optimizer_kwargs": {"eps": 1e-8, "weight_decay": 0.0},
        },
    )  # fmt: skip
    policy, buffer = model.policy, model.rollout_buffer
    assert isinstance(policy, LanguageModelPolicy) and isinstance(buffer, SequenceRolloutBuffer)
    assert isinstance(policy.critic, SeparateCritic)
    policy.reference = frozen_copy(tiny.never_ending(1), vocab_size=24, temperature=0.7)
    policy.critic.trunk.load_state_dict(tiny.never_ending(2).base_model.state_dict())
    policy.critic.head.weight.data.copy_(trl["score_head"])
    policy.critic.head.bias.requires_grad_(False)  # TRL's head has none
    tokens, mask = trl["tokens"].numpy(), np.ones((8, 3), np.int8)
    observation = {"input_ids": tokens[:, :3], "attention_mask": mask}
    buffer.add(observation, tokens[:, 3:], trl["score"].numpy(), np.ones(8), trl["value"], trl["log_prob"])
    buffer.compute_returns_and_advantage(torch.zeros(8), np.ones(8))
    model.set_logger(configure(None, []))
    return model


def test_an_update_is_that_of_trl(trl: dict[str, Any]) -> None:
    model = same_setting(trl)
    policy, buffer = model.policy, model.rollout_buffer
    assert isinstance(policy, LanguageModelPolicy) and isinstance(buffer, SequenceRolloutBuffer)
    assert isinstance(policy.critic, SeparateCritic)
    model.train()
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(torch.from_numpy(buffer.token_rewards[0]), trl["reward"], **close)
    advantage = torch.from_numpy(buffer.advantages[0])
    torch.testing.assert_close((advantage - advantage.mean()) / advantage.std(), trl["advantage"], **close)
    logged, means = model.logger.name_to_value, trl["means"].mean(dim=0)
    assert logged["train/value_loss"] == pytest.approx(means[0].item(), rel=1e-4)
    assert logged["train/policy_gradient_loss"] == pytest.approx(means[2].item(), rel=1e-3, abs=1e-5)
    # Two steps of 1e-3 of Adam, which turns the rounding of a gradient of 0 (that of the keys' biases) into a step too.
    for own, theirs in ((policy.lm.plain, trl["policy"]), (policy.critic.trunk, trl["critic"])):
        names = [name for name, _ in own.named_parameters()]
        prefix = "" if names[0] in theirs else "transformer."
        gaps = torch.cat([(own.get_parameter(name) - theirs[prefix + name]).abs().flatten() for name in names])
        assert gaps.quantile(0.99) < 1e-6
    torch.testing.assert_close(policy.critic.head.weight.detach(), trl["critic"]["score.weight"], rtol=0, atol=2e-5)
