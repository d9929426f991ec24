from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_ppo_ext import AdaptiveKL
from sb3_ppo_ext.diagnostics import TrainingWarning
from sb3_ppo_ext.divergence import DivergedError
from sb3_ppo_ext.language import SampleTable, SequenceRolloutBuffer
from sb3_ppo_ext.language.findings import PATIENCE, Findings
from sb3_ppo_ext.language.monitoring import distinct_pairs
from tests.language import setups

HEALTHY = {"lm/eos_rate": 0.9, "lm/score_std": 1.0, "lm/score": 0.5, "lm/distinct_2": 0.8, "lm/kl_ref": 2.0}


def test_distinct_pairs_are_counted_within_responses() -> None:
    token = np.array([[5, 6, 5, 6], [5, 6, 9, 9]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    # Pairs: 56, 65, 56 and 56; two of the four are different.
    assert distinct_pairs(token, mask) == 0.5


def test_records_are_those_of_the_rollout() -> None:
    model = setups.ppox(ref_kl_coef=0.1)
    model.learn(48)
    buffer, logged = model.rollout_buffer, model.logger.name_to_value
    assert isinstance(buffer, SequenceRolloutBuffer) and buffer.ref_log_probs is not None
    log_ratio = (buffer.log_probs - buffer.ref_log_probs)[buffer.masks]
    assert logged["lm/kl_ref"] == pytest.approx(log_ratio.sum() / 16, rel=1e-4)
    assert logged["lm/kl_ref_per_token"] == pytest.approx(log_ratio.mean(), rel=1e-4)
    assert logged["lm/kl_ref_k3"] == pytest.approx((np.exp(-log_ratio) - 1 + log_ratio).sum() / 16, rel=1e-4)
    assert logged["lm/rlhf_reward"] == pytest.approx(buffer.rewards.mean() - 0.1 * logged["lm/kl_ref"], rel=1e-4)
    assert logged["lm/response_length"] == pytest.approx(buffer.masks.sum() / 16)
    assert logged["lm/score"] == pytest.approx(buffer.rewards.mean())  # raw: without the penalty


FAULTS: dict[str, tuple[dict[str, float], str]] = {
    "negative_kl": ({"lm/kl_ref": -1.5}, "no true KL can be"),
    "never_ends": ({"lm/eos_rate": 0.01}, "eos_token_id"),
    "no_spread": ({"lm/score_std": 0.0}, "nothing to learn"),
    "collapsed": ({"lm/distinct_2": 0.05}, "repeats itself"),
}


@pytest.mark.parametrize("subject", FAULTS)
def test_what_stays_wrong_is_reported_with_its_remedy(subject: str) -> None:
    fault, text = FAULTS[subject]
    findings = Findings()
    assert not findings.of(HEALTHY, ref_kl=2.0, ref_kl_target=6.0)
    for _ in range(PATIENCE - 1):
        assert not findings.of({**HEALTHY, **fault}, ref_kl=2.0, ref_kl_target=6.0)
    found = findings.of({**HEALTHY, **fault}, ref_kl=2.0, ref_kl_target=6.0)
    assert list(found) == [subject] and text in found[subject]
    assert not findings.of(HEALTHY, ref_kl=2.0, ref_kl_target=6.0)


def test_a_kl_far_over_its_target_is_reported() -> None:
    findings = Findings()
    for _ in range(PATIENCE):
        found = findings.of(HEALTHY, ref_kl=20.0, ref_kl_target=6.0)
    assert "3.3 times the target" in found["over_budget"]


def test_a_run_warns_once() -> None:
    env = setups.env()
    env.task.reward_fn = lambda prompts, answers: [1.0] * len(answers)
    model = setups.ppox(environment=env, ref_kl_coef=AdaptiveKL(0.1, 1.0), learning_rate=1e-4)
    with pytest.warns(TrainingWarning, match="nothing to learn") as caught:
        model.learn(16 * (PATIENCE + 3))
    assert len([one for one in caught if "nothing to learn" in str(one.message)]) == 1


@pytest.mark.parametrize(
    ("part", "message"),
    [("lm", "values at step 0, env 0"), ("reference", "reference's log-probability of response 0")],
)
def test_a_nan_in_a_weight_is_found_before_anything_is_trained(part: str, message: str) -> None:
    model = setups.ppox()
    before = [parameter.clone() for parameter in model.policy.parameters()]
    weight = next(model.policy.get_submodule(part).parameters())
    with torch.no_grad():
        weight[0, 0] = float("nan")
    with pytest.raises(DivergedError, match=message):
        model.learn(16)
    for parameter, value in zip(model.policy.parameters(), before, strict=True):
        assert parameter is weight or parameter.equal(value)


class Scores(BaseCallback):
    """Keeps the scores of every rollout while its buffer still holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts: list[np.ndarray] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.rollouts.append(self.locals["rollout_buffer"].rewards.flatten())


def test_samples_are_shown_with_score_and_kl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, scores = setups.ppox(tensorboard_log=str(tmp_path)), Scores()
    model.learn(48, callback=[scores, SampleTable(every=2, verbose=1)])
    cells = [[cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()]
    best = [float(row[1]) for row in cells if row[0] == "best"]
    worst = [float(row[1]) for row in cells if row[0] == "worst"]
    shown = [scores.rollouts[0], scores.rollouts[2]]
    assert best == [rollout.max() for rollout in shown] and worst == [rollout.min() for rollout in shown]
    assert all(float(row[2]) == pytest.approx(0, abs=1e-4) for row in cells[1:5])  # the KL of the first rollout
    events = EventAccumulator(str(next(tmp_path.iterdir()))).Reload()
    texts: Any = events.Tensors("lm/samples/text_summary")
    assert len(texts) == 2 and b"| best |" in texts[0].tensor_proto.string_val[0]


def test_a_sample_stands_beside_its_score() -> None:
    table = SampleTable(random_rows=8)
    setups.ppox().learn(16, callback=table)
    for _, score, _, _, answer in table.rows():
        assert float(score) == setups.low_ids([], [ast.literal_eval(answer)])[0]
