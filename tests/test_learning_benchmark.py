"""The benchmark of learning: its statistics, its file of records and its list of runs. No training is judged here."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from sb3_ppo_ext import PPOX
from tests.benchmarks.learning import averaging, intervals, records, runs, short
from tests.benchmarks.learning.__main__ import orders
from tests.benchmarks.learning.arms import ARMS, SUITE
from tests.benchmarks.learning.plan import EARLIER, PLAN, Stage, order_of
from tests.benchmarks.learning.screen import ON_REACHER, base_of


def test_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    # Of 1 .. 8, two are left out at each end: (3 + 4 + 5 + 6) / 4. The 100 counts for nothing.
    assert intervals.interquartile_mean(np.array([[8.0, 1, 2, 3, 4, 5, 6, 100]]))[0] == 4.5


def test_bootstrap_draws_a_tasks_runs_from_that_task() -> None:
    scores = {"a": np.array([1.0, 2.0]), "b": np.array([10.0, 20.0, 30.0])}
    samples = intervals.drawn(scores, 500, np.random.default_rng(0))
    assert set(samples[:, :2].ravel()) == {1.0, 2.0}
    assert set(samples[:, 2:].ravel()) == {10.0, 20.0, 30.0}


def test_interval_of_a_mean_is_that_of_the_bootstrap_in_scipy() -> None:
    from scipy.stats import bootstrap

    runs_ = np.random.default_rng(1).normal(3.0, 1.0, size=40)
    ours = intervals.interval({"task": runs_}, intervals.mean)
    theirs = bootstrap((runs_,), np.mean, method="percentile", n_resamples=20_000, rng=2).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert ours.value == pytest.approx(runs_.mean())


def test_difference_changes_sign_with_the_sides() -> None:
    better, worse = {"t": np.arange(5.0) + 10}, {"t": np.arange(5.0)}
    there = intervals.difference(better, worse, intervals.mean)
    back = intervals.difference(worse, better, intervals.mean)
    assert there.value == 10 == -back.value
    assert there.low > 0 > back.high


def test_probability_of_improvement_counts_ties_half() -> None:
    # (2 > 1), (2 = 2), (4 > 1), (4 > 2): (1 + 0.5 + 1 + 1) / 4.
    assert intervals.probability_of_improvement({"t": np.array([2.0, 4.0])}, {"t": np.array([1.0, 2.0])}) == 0.875


def test_normalised_score_of_the_reference_is_1_also_where_returns_are_negative() -> None:
    assert list(intervals.normalised(np.array([-40.0, -5.0, -12.0]), random=-40.0, reference=-5.0)) == [0, 1, 0.8]


def test_records_survive_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "new" / "runs.jsonl"
    first, second = {"task": "a", "seed": 0, "settings": {}}, {"task": "b", "seed": 0, "settings": {}}
    records.append(path, first)
    with path.open("a") as file:
        file.write('{"task": "cut off')
    assert records.read(path) == [first]
    records.append(path, second)
    assert records.read(path) == [first, second]


def test_a_run_is_its_settings_and_not_the_name_of_its_arm() -> None:
    order = {"task": "Hopper-v5", "seed": 3, "settings": ARMS["sb3"].settings("Hopper-v5")}
    renamed = json.loads(json.dumps({**order, "arm": "another name"}))
    assert records.identity(order) == records.identity(renamed)
    assert records.identity(order) != records.identity({**order, "seed": 4})


def test_every_arm_builds_on_every_task() -> None:
    for name, arm in ARMS.items():
        if arm.algorithm in ("SBX", "random") or not arm.everywhere:  # in an interpreter of its own; in the zoo's tests
            continue
        for task in SUITE[:1] if not arm.tasks else SUITE:
            settings = arm.settings(task)
            env = runs.environments("Pendulum-v1", 0, **settings["environment"])
            model = runs.model_of(settings["algorithm"], env, 0, {**settings["arguments"], "seed": None})
            assert model.n_steps * model.n_envs <= 4096, name


def test_an_entry_of_the_zoo_becomes_an_arm_in_plain_data() -> None:
    settings = ARMS["ppox.yml"].settings("HalfCheetah-v5")
    assert json.loads(json.dumps(settings)) == settings
    assert settings["environment"] == {"n_envs": 1, "normalize": {"norm_obs": True, "norm_reward": True}}
    assert settings["arguments"]["policy_kwargs"]["activation_fn"] == "ReLU"
    assert settings["arguments"]["gamma"] == 0.98
    assert settings["steps"] == 1_000_000
    with pytest.raises(ValueError, match="'Pusher-v5': the arm has settings for CartPole-v1"):
        ARMS["ppox.yml"].settings("Pusher-v5")


def test_every_entry_of_the_zoo_is_measured_by_some_stage() -> None:
    # What has the settings of an arm of the comparison is measured there, under that arm's name.
    of_others = [ARMS[name] for name in (*PLAN["confirm"].arms, *EARLIER)]
    for task in ARMS["ppox.yml"].tasks:
        settings = ARMS["ppox.yml"].settings(task)
        compared = task in SUITE and settings in [arm.settings(task) for arm in of_others]
        assert compared or task in PLAN["entries"].tasks, task
    assert ARMS["ppox.yml"].settings("Ant-v5") == ARMS["recipe"].settings("Ant-v5")


def test_one_change_of_the_settings_of_short_tasks_leaves_the_rest() -> None:
    arm = short.changed({"n_envs": 2}, clip_range=lambda own: own["clip_range"] / 2, kl_coef=1.0)
    for task, own in short.ZOO.items():
        assert arm.settings(task) == {
            **{"algorithm": "PPOX", "environment": {**own["environment"], "n_envs": 2}, "steps": own["steps"]},
            "arguments": {**own["arguments"], "clip_range": own["arguments"]["clip_range"] / 2, "kl_coef": 1.0},
        }


def test_a_record_holds_the_order_the_curve_and_both_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "EPISODES", 2)
    settings = {
        **{"algorithm": "PPOX", "environment": {"n_envs": 2, "normalize": {"norm_reward": True}}, "steps": 512},
        "arguments": {"n_steps": 64, "compile": False, "gamma": 0.9},
    }
    order = {"task": "CartPole-v1", "arm": "short", "seed": 0, "settings": settings}
    record = json.loads(json.dumps(runs.run(order)))
    assert {key: record[key] for key in order} == order
    assert [point[0] for point in record["curve"]] == [128, 256, 384, 512]
    assert len(record["deterministic"]) == len(record["sampled"]) == 2
    assert "averaged" not in record  # too short
    assert record["updates"]["clip_fraction"] >= 0
    assert record["versions"]["sb3_ppo_ext"] and record["versions"]["processor"]
    assert record["defaults"]["clip_range"] == 0.2
    assert "gamma" not in record["defaults"]


def test_parameters_are_averaged_over_the_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "STEPS", 32)
    model = PPOX("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, compile=False, seed=0, device="cpu")
    average, numbers = averaging.Average(), iter((1.0, 2.0, 3.0))

    def train() -> None:
        number = next(numbers)
        for parameter in model.policy.parameters():
            parameter.data.fill_(number)

    monkeypatch.setattr(model, "train", train)
    assert not average.put_into_policy()
    model.learn(96, callback=average)
    # 1, then 1 + (2 - 1) / 10 = 1.1, then 1.1 + (3 - 1.1) / 10 = 1.29
    assert average.put_into_policy()
    for parameter in model.policy.parameters():
        torch.testing.assert_close(parameter.data, torch.full_like(parameter, 1.29))


def test_random_actions_are_a_record_without_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "EPISODES", 3)
    record = runs.run(order_of(ARMS["random"], "random", "CartPole-v1", 0))
    assert record["settings"]["algorithm"] == "random" and "curve" not in record
    assert len(record["deterministic"]) == 3 and record["last_100"] == pytest.approx(
        np.mean(record["deterministic"]), rel=1e-4
    )


def test_a_stage_of_the_plan_names_what_its_records_lack() -> None:
    stage = Stage(("sb3", "recipe"), ("Hopper-v5", "Ant-v5"), range(2))
    planned = stage.orders()
    assert [(order["arm"], order["task"], order["seed"]) for order in planned[:3]] == [
        *(("sb3", "Hopper-v5", 0), ("recipe", "Hopper-v5", 0), ("sb3", "Ant-v5", 0)),
    ]
    assert stage.missing(planned[1:]) == planned[:1]
    fewer = Stage(("sb3", "a2c"), ("Hopper-v5",), range(3), {"a2c": range(1)})
    assert [(order["arm"], order["seed"]) for order in fewer.orders()] == [
        *(("sb3", 0), ("a2c", 0), ("sb3", 1), ("sb3", 2)),
    ]
    others = Stage(("sb3", "a2c"), ("Hopper-v5",), range(1), {"sb3": range(7, 8)})
    assert [(order["arm"], order["seed"]) for order in others.orders()] == [("a2c", 0), ("sb3", 7)]
    some = Stage(("sb3", "a2c"), ("Hopper-v5", "Ant-v5"), range(1), tasks_of={"a2c": ("Ant-v5",)})
    assert [(order["arm"], order["task"]) for order in some.orders()] == [
        *(("sb3", "Hopper-v5"), ("sb3", "Ant-v5"), ("a2c", "Ant-v5")),
    ]
    for name, part in PLAN.items():
        assert part.orders(), name


def test_the_options_choose_among_a_stage_and_leave_the_rest_of_its_plan() -> None:
    def chosen(**options: object) -> set[tuple[str, str, int]]:
        asked = Namespace(**{"file": "no_legs", "arms": None, "tasks": None, "seeds": None, "steps": None, **options})
        return {(order["arm"], order["task"], order["seed"]) for order in orders(asked)}

    on_reacher = ON_REACHER[0]
    assert chosen() == {(order["arm"], order["task"], order["seed"]) for order in PLAN["no_legs"].orders()}
    assert chosen(arms=[on_reacher]) == {(on_reacher, "Reacher-v5", 0)}  # one seed of one task, as planned
    assert chosen(arms=[on_reacher], tasks=["Swimmer-v5"], seeds=[7, 8]) == {(on_reacher, "Swimmer-v5", 7)}


def test_an_arm_of_the_screen_is_changed_from_the_nearest_before_it() -> None:
    assert base_of("lambda 0.9") == "falling"
    assert base_of("tianshou, lambda 0.9") == "tianshou"
    assert base_of("rate by KL, staggered") == "rate by KL"
    assert base_of("rate by KL, staggered, rate to 1e-5") == "rate by KL, staggered"
    assert base_of("rate by KL, staggered, rate to 1e-5, gamma 0.98") == "rate by KL, staggered, rate to 1e-5"


def test_a_training_that_diverges_is_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(*_: object, **__: object) -> None:
        raise ValueError("the KL is nan")

    monkeypatch.setattr(PPOX, "learn", diverges)
    settings = {"algorithm": "PPOX", "environment": {}, "arguments": {"compile": False}, "steps": 128}
    record = runs.run({"task": "CartPole-v1", "arm": "short", "seed": 0, "settings": settings})
    assert record["error"] == "ValueError: the KL is nan"
    assert "deterministic" not in record
