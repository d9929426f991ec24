"""TRL's names for those who come from there; their numbers are compared with TRL's own in ``test_trl_parity``."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from stable_baselines3.common.logger import configure

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import TRLNames
from sb3_ppo_ext.objective.batch import Evaluation, Minibatch
from sb3_ppo_ext.objective.statistics import Statistics, statistics
from sb3_ppo_ext.objective.terms import KnobValues, Objective, ppo_terms
from tests.language import setups

# What trl.experimental.ppo.PPOTrainer of TRL 1.12 logs, but for "epoch" and "step".
NAMES = [
    *("objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward", "objective/scores"),
    *("policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg", "loss/value_avg"),
    *("val/clipfrac_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode", "eps"),
]


def test_every_update_is_logged_under_all_of_them_but_not_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = setups.ppox(ref_kl_coef=0.1, clip_range_vf=0.2)
    model.set_logger(configure(str(tmp_path), ["csv", "stdout"]))
    model.learn(48, callback=TRLNames())
    model.logger.close()
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    updates = [row for row in rows if row["objective/kl"]]
    assert [float(row["episode"]) for row in updates] == [16, 32, 48]
    for row in updates:
        assert all(math.isfinite(float(row[name])) for name in NAMES)
        assert float(row["objective/scores"]) == pytest.approx(float(row["lm/score"]))
        assert float(row["val/num_eos_tokens"]) == pytest.approx(16 * float(row["lm/eos_rate"]))
    assert "objective" not in capsys.readouterr().out


def test_without_the_callback_nothing_is_logged_twice() -> None:
    model = setups.ppox(ref_kl_coef=0.1)
    model.learn(16)
    assert not {*NAMES} & {*model.logger.name_to_value}


def test_other_policies_are_refused() -> None:
    model = PPOX("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, compile=False, device="cpu")
    with pytest.raises(ValueError, match="TRLNames is for a LanguageModelPolicy"):
        model.learn(8, callback=TRLNames())


def test_fractions_are_of_the_tokens_whose_loss_is_the_clipped_one() -> None:
    # Ratios 2, 2, 1/2 and a hole, advantages 1, -1, -1: with 0.2 the first and the third are clipped to their harm.
    log_ratio = torch.tensor([[math.log(2), math.log(2), -math.log(2), 9.0]])
    advantage, mask = torch.tensor([[1.0, -1.0, -1.0, 1.0]]), torch.tensor([[True, True, True, False]])
    # Values 0, were 1: clipped to 0.8. Targets 2, 0, 0: only towards 0 is the clipped error the larger one.
    zero, one, target = torch.zeros(1, 4), torch.ones(1, 4), torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    batch = Minibatch(zero, zero, zero, one, advantage, target, mask=mask)
    new = Evaluation(log_ratio, None, zero, mask=mask)

    def found(knobs: KnobValues) -> Statistics:
        terms = ppo_terms(new, batch, Objective(), knobs)
        return statistics(new, batch, terms, terms.weighted(knobs).total(), Objective(), knobs)

    clipped = found(KnobValues(clip_range=0.2, clip_range_vf=0.2))
    expected = [4.5 / 3, math.log(2) ** 2 / 2, 2 / 3, 2 / 3]
    measured = (clipped.ratio_mean, clipped.kl_k2, clipped.policy_clipped, clipped.value_clipped)
    torch.testing.assert_close(torch.stack(measured), torch.tensor(expected))
    torch.testing.assert_close(clipped.log_ratio_max, torch.tensor(math.log(2)))
    wide = found(KnobValues(clip_range=1.5))
    assert wide.policy_clipped == wide.value_clipped == 0
