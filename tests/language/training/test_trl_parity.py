"""TRL 1.12, the last release with a PPO, on the same batch.

Of full length, its responses go through the whole of PPOX. Where one ends early, TRL lets the first padding token earn
the score and has it in the value loss; that is repeated here, from the parts, and nowhere else.

Skipped unless that version can be imported, or SB3_PPO_EXT_TRL names a folder that holds it, as left there by

    pip download trl==1.12.0 --no-deps && unzip trl-1.12.0-*.whl -d FOLDER && pip install datasets

(with datasets in a folder too, SB3_PPO_EXT_TRL=FOLDER:ITS_FOLDER).
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
from sb3_ppo_ext.language.model.critics import SeparateCritic
from sb3_ppo_ext.language.model.loading import frozen_copy
from sb3_ppo_ext.language.model.tokens import Tokens
from sb3_ppo_ext.language.monitoring.trl_names import trl_records
from sb3_ppo_ext.language.training.credit import token_advantages, token_kl, token_rewards, whitened
from sb3_ppo_ext.objective.batch import Evaluation, Minibatch
from sb3_ppo_ext.objective.statistics import statistics, value_clipped
from sb3_ppo_ext.objective.terms import KnobValues, Objective, ppo_terms
from tests.language import setups, tiny

ROOT = Path(__file__).parents[2]
NEVER, SOMETIMES = -400.0, 1.5  # logits of the end-of-text token
PROBE = "import importlib.metadata, sys; from trl.experimental import ppo; sys.exit(ppo.__file__ is None)"


def environment() -> dict[str, str]:
    path = [str(ROOT), *filter(None, [os.environ.get("SB3_PPO_EXT_TRL")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"}


def update_of_trl(tmp_path_factory: pytest.TempPathFactory, ending: float) -> dict[str, Any]:
    if subprocess.run([sys.executable, "-c", PROBE], env=environment(), capture_output=True, check=False).returncode:
        pytest.skip("trl 1.12.0 and datasets are not installed")
    path = tmp_path_factory.mktemp("trl") / "update.pt"
    script = Path(__file__).parent / "trl_reference.py"
    command = [sys.executable, str(script), str(path), str(ending)]
    subprocess.run(command, env=environment(), check=True, capture_output=True)
    kept: dict[str, Any] = torch.load(path)
    return kept


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Responses of full length."""
    return update_of_trl(tmp_path_factory, NEVER)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Responses some of which end early."""
    return update_of_trl(tmp_path_factory, SOMETIMES)


def same_models(trl: dict[str, Any], ending: float) -> PPOX:
    """A model of PPOX that stands where TRL stood when its rollout was collected."""
    env = setups.env(n_envs=8, max_new_tokens=5, max_prompt_length=3, long_prompts="cut")
    model = setups.ppox(
        environment=env, n_steps=1, batch_size=8, n_epochs=2, gae_lambda=0.95, ref_kl_coef=0.05,
        vf_coef=0.1 * 0.5, clip_range_vf=0.2, value_clip="max", advantage_scope="rollout", max_grad_norm=1e9,
        rollout_buffer_kwargs={"whiten_rewards": True},
        policy_kwargs={
            "model": lambda: tiny.never_ending(0, ending=ending), "value": "separate", "temperature": 0.7,
            "optimizer_class": torch.optim.AdamW, "optimizer_kwargs": {"eps": 1e-8, "weight_decay": 0.0},
        },
    )  # fmt: skip
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy) and isinstance(policy.critic, SeparateCritic)
    policy.reference = frozen_copy(tiny.never_ending(1, ending=ending), vocab_size=24, temperature=0.7)
    policy.critic.trunk.load_state_dict(tiny.never_ending(2).base_model.state_dict())
    policy.critic.head.weight.data.copy_(trl["score_head"])
    policy.critic.head.bias.requires_grad_(False)  # TRL's head has none
    model.set_logger(configure(None, []))
    return model


def with_rollout(model: PPOX, trl: dict[str, Any]) -> PPOX:
    """The same, with TRL's rollout in its buffer."""
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceRolloutBuffer)
    tokens, mask = trl["tokens"].numpy(), np.ones((8, 3), np.int8)
    observation = {"input_ids": tokens[:, :3], "attention_mask": mask}
    buffer.add(observation, tokens[:, 3:], trl["score"].numpy(), np.ones(8), trl["value"], trl["log_prob"])
    buffer.compute_returns_and_advantage(torch.zeros(8), np.ones(8))
    return model


def test_an_update_is_that_of_trl(trl: dict[str, Any]) -> None:
    model = with_rollout(same_models(trl, NEVER), trl)
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
    same_names = trl_records(logged, model.last_update.epochs)  # type: ignore[union-attr]  # there was one
    for name, value in trl["logged"].items():
        if name not in ("eps", "episode", "epoch", "step", "val/num_eos_tokens"):  # those a run counts
            assert same_names[name] == pytest.approx(value, rel=2e-3, abs=1e-5), name
    assert 0 < trl["logged"]["val/clipfrac_avg"] < 1 and 0 < trl["logged"]["policy/clipfrac_avg"] < 1
    assert_same_parameters(policy, trl)


def assert_same_parameters(policy: LanguageModelPolicy, trl: dict[str, Any]) -> None:
    """After the update."""
    assert isinstance(policy.critic, SeparateCritic)
    # Two steps of 1e-3 of Adam, which turns the rounding of a gradient of 0 (that of the keys' biases) into a step too.
    for own, theirs in ((policy.lm.plain, trl["policy"]), (policy.critic.trunk, trl["critic"])):
        names = [name for name, _ in own.named_parameters()]
        prefix = "" if names[0] in theirs else "transformer."
        gaps = torch.cat([(own.get_parameter(name) - theirs[prefix + name]).abs().flatten() for name in names])
        assert gaps.quantile(0.99) < 1e-6
    torch.testing.assert_close(policy.critic.head.weight.detach(), trl["critic"]["score.weight"], rtol=0, atol=2e-5)


KNOBS = KnobValues(clip_range=0.2, clip_range_vf=0.2, vf_coef=0.1 * 0.5)  # its value loss has a factor 1/2
OBJECTIVE = Objective(value_clip="max", normalize_advantage=False)


def batch_of_trl(policy: LanguageModelPolicy, trl: dict[str, Any]) -> tuple[Minibatch, torch.Tensor]:
    """Its batch from our parts, and its mask with one slot more: the first padding token, which earns the score."""
    tokens = trl["tokens"]
    prompt, response = tokens[:, :3], tokens[:, 3:]
    mask = torch.from_numpy(setups.env(max_new_tokens=5).task.action_space.mask_of(response.numpy()))
    slots = torch.arange(mask.shape[1])
    longer = slots <= mask.sum(-1, keepdim=True)
    yes = torch.ones_like(prompt, dtype=torch.bool)
    log_prob, value = trl["log_prob"].masked_fill(~mask, 0.0), trl["value"].masked_fill(~longer, 0.0)
    ref_log_prob = policy.reference_log_prob(Tokens(prompt, yes, response, mask))
    kl = token_kl(log_prob.numpy(), ref_log_prob.numpy(), mask.numpy(), "k1")[None]
    here = longer.numpy()[None]
    reward = whitened(token_rewards(trl["score"].numpy()[None], here, kl=kl, ref_kl_coef=0.05), here, shift_mean=False)
    np.testing.assert_allclose(reward[0], trl["reward"].masked_fill(~longer, 0.0), rtol=1e-4, atol=1e-5)
    advantage = token_advantages(
        reward, value.numpy()[None], here, last_value=np.zeros(8), ended=np.ones((1, 8), bool), gamma=1.0,
        gae_lambda=0.95,
    )  # fmt: skip
    white = torch.from_numpy(whitened(advantage, mask.numpy()[None], shift_mean=True)[0])
    torch.testing.assert_close(white, trl["advantage"].masked_fill(~mask, 0.0), rtol=1e-4, atol=1e-5)
    target = torch.from_numpy(advantage[0]) + value
    observation = {"input_ids": prompt, "attention_mask": yes}
    return Minibatch(observation, response, log_prob, value, white, target, mask=mask), longer


def evaluated(policy: LanguageModelPolicy, batch: Minibatch, mask: torch.Tensor) -> Evaluation:
    tokens = policy.tokens(batch.observation, batch.action, mask)
    return Evaluation(*policy.evaluate_tokens(tokens, entropy_grad=False), mask=mask)


def test_an_update_with_responses_that_end_early_is_that_of_trl(ragged: dict[str, Any]) -> None:
    model = same_models(ragged, SOMETIMES)
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy)
    batch, longer = batch_of_trl(policy, ragged)
    assert batch.mask is not None and int((~batch.mask).sum()) > 3 and int((longer != batch.mask).sum()) > 2
    for vf_loss, vf_clipped, pg_loss, pg_clipped in ragged["means"].tolist():
        tokens, values = evaluated(policy, batch, batch.mask), evaluated(policy, batch, longer)
        terms = ppo_terms(tokens, batch, OBJECTIVE, KNOBS)
        loss = terms.policy
        value_loss = ppo_terms(values, batch, OBJECTIVE, KNOBS).value
        seen = statistics(tokens, batch, terms, terms.weighted(KNOBS).total(), OBJECTIVE, KNOBS)
        clipped_values = value_clipped(values.value, longer, batch, KNOBS).item()
        assert value_loss.item() == pytest.approx(vf_loss, rel=1e-4)
        assert loss.item() == pytest.approx(pg_loss, rel=1e-3, abs=1e-5)
        assert seen.policy_clipped.item() == pytest.approx(pg_clipped, abs=1e-6)
        assert clipped_values == pytest.approx(vf_clipped, abs=1e-6)
        policy.optimizer.zero_grad()
        (loss + KNOBS.vf_coef * value_loss).backward()
        policy.optimizer.step()
    assert pg_clipped > 0 < vf_clipped  # of the second epoch
    assert_same_parameters(policy, ragged)
