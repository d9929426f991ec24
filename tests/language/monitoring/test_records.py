from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_ppo_ext import AdaptiveKL
from sb3_ppo_ext.language import PromptEnv, SampleTable, SequenceRolloutBuffer
from sb3_ppo_ext.language.envs.prompt_vec_env import take_scoring_seconds
from sb3_ppo_ext.language.monitoring.findings import PATIENCE, Findings
from sb3_ppo_ext.language.monitoring.records import distinct_pairs, speeds
from sb3_ppo_ext.language.monitoring.samples import as_text
from sb3_ppo_ext.monitoring.charts import CHARTS, LANGUAGE_CHARTS, LANGUAGE_TITLES, charts_of
from sb3_ppo_ext.monitoring.diagnostics import TrainingWarning
from tests.event_files import events, layout, titles
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
    assert logged["lm/cut_off_rate"] == pytest.approx(buffer.cut_off().mean()) == 1 - logged["lm/eos_rate"]


def test_the_dashboard_shows_what_a_language_model_records(tmp_path: Path) -> None:
    model = setups.ppox(ref_kl_coef=0.1, tensorboard_log=str(tmp_path))
    model.learn(16)
    drawn = {
        tag.removesuffix("$")
        for chart in layout(events(tmp_path / "PPOX_1")).category[0].chart
        for tag in chart.multiline.tag
    }
    recorded = {name for name in model.logger.name_to_value if name.startswith("lm/") or name.endswith("per_second")}
    assert recorded - drawn == {"lm/cut_off_rate", "lm/kl_ref_per_token"}  # what is shown says the same
    assert len(recorded) > 10


def test_a_language_models_charts_come_first_and_say_responses_and_tokens(tmp_path: Path) -> None:
    model = setups.ppox(tensorboard_log=str(tmp_path))
    model.learn(16)
    shown = titles(events(tmp_path / "PPOX_1"))
    assert shown[:3] == [
        "Score, its spread, and less the KL penalty",
        "KL to the reference (nats per response)",
        "Length of a response (tokens)",
    ]
    assert not [title for title in shown if "steps" in title or "per action" in title or "samples" in title]
    assert len(shown) == len(set(shown)) == len(CHARTS) + len(LANGUAGE_CHARTS)


def test_titles_are_changed_of_charts_that_there_are() -> None:
    assert set(LANGUAGE_TITLES) <= set(CHARTS)
    assert list(charts_of(["train/loss"])) == list(CHARTS)  # of another policy


def test_samples_give_a_terminal_no_orders() -> None:
    table = as_text([("best", "1", "0", "a\nb", "\x1b[2Jé\r" + "x" * 40)], width=20)
    assert "\x1b" not in table and "\r" not in table and "a\\nb" in table and "\\x1b[2Jé\\rxxxxxxx..." in table


def test_the_speeds_of_the_parts_add_up_to_that_of_all() -> None:
    records = speeds(60, {"generation": 2.0, "training": 4.0})
    assert records == {
        "time/generation_tokens_per_second": 30.0,
        "time/training_tokens_per_second": 15.0,
        "time/tokens_per_second": 10.0,
    }
    model = setups.ppox()
    model.learn(16)
    logged = model.logger.name_to_value
    parts = [logged[f"time/{part}_tokens_per_second"] for part in ("generation", "scoring", "reference", "training")]
    assert 1 / sum(1 / part for part in parts) == pytest.approx(logged["time/tokens_per_second"])


def test_the_time_of_reward_functions_is_asked_of_the_environment() -> None:
    env = setups.env()
    env.task.scoring_seconds = 3.0
    assert take_scoring_seconds(env) == 3.0  # one task for all rows
    assert take_scoring_seconds(env) == 0.0
    single = [PromptEnv(setups.PROMPTS, setups.low_ids, max_new_tokens=4, vocab_size=24, eos_token_id=1) for _ in "ab"]
    for seconds, one in enumerate(single, start=1):
        one.task.scoring_seconds = float(seconds)
    assert take_scoring_seconds(DummyVecEnv([lambda one=one: one for one in single])) == 3.0  # type: ignore[misc]  # 1 + 2
    assert take_scoring_seconds(make_vec_env("CartPole-v1")) is None


FAULTS: dict[str, tuple[dict[str, float], str]] = {
    "negative_kl": ({"lm/kl_ref": -1.5}, "no true KL can be"),
    "never_ends": ({"lm/eos_rate": 0.01}, "eos_token_id"),
    "no_spread": ({"lm/score_std": 0.0}, "nothing to learn"),
    "collapsed": ({"lm/distinct_2": 0.05}, "repeats itself"),
    "far_sampler": ({"sampler/effective_fraction": 0.4}, "another distribution"),
}
# Close to those, and nothing to warn about: chance, a hard task, a policy that found its way.
HARMLESS = {
    "negative_kl": {"lm/kl_ref": -0.9},
    "never_ends": {"lm/eos_rate": 0.06},
    "no_spread": {"lm/score_std": 1e-3},
    "collapsed": {"lm/distinct_2": 0.1},
    "far_sampler": {"sampler/effective_fraction": 0.6},
}


@pytest.mark.parametrize("subject", HARMLESS)
def test_what_is_only_near_to_wrong_is_not_reported(subject: str) -> None:
    findings = Findings()
    findings.of(HEALTHY, ref_kl=2.0, ref_kl_target=6.0)
    for _ in range(2 * PATIENCE):
        assert not findings.of({**HEALTHY, **HARMLESS[subject]}, ref_kl=17.9, ref_kl_target=6.0)


@pytest.mark.parametrize("subject", FAULTS)
def test_what_is_wrong_now_and_then_is_not_reported(subject: str) -> None:
    findings, fault = Findings(), FAULTS[subject][0]
    findings.of(HEALTHY, ref_kl=2.0, ref_kl_target=6.0)
    for rollout in range(4 * PATIENCE):
        now = HEALTHY if rollout % PATIENCE == 0 else {**HEALTHY, **fault}
        assert not findings.of(now, ref_kl=2.0, ref_kl_target=6.0)


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
    assert not findings.of(HEALTHY, ref_kl=20.0, ref_kl_target=None)  # a coefficient without a target has no budget


def test_a_run_warns_once() -> None:
    env = setups.env_of(lambda prompts, answers: [1.0] * len(answers))
    model = setups.ppox(environment=env, ref_kl_coef=AdaptiveKL(0.1, 1.0), learning_rate=1e-4)
    with pytest.warns(TrainingWarning, match="nothing to learn") as caught:
        model.learn(16 * (PATIENCE + 3))
    assert len([one for one in caught if "nothing to learn" in str(one.message)]) == 1


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
