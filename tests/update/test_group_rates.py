"""The ratio of a parameter group belongs to the group: it survives loading, exchange and growth of the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import PPO

from sb3_ppo_ext import PPOX, AdaptiveKL, Cosine, Linear, Warmup
from sb3_ppo_ext.update.optimizers import RATIO, GroupRates
from tests.cases import TwoRates, body_and_head
from tests.environments import Toy

SETTINGS: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}


@dataclass(frozen=True)
class Twice:
    """A law that wants half of whatever was measured."""

    def __call__(self, excess: float, samples: int) -> float:
        return 2.0


def falling(policy: Any = TwoRates) -> PPOX:
    """Its controller halves the learning rate after each rollout."""
    return PPOX(policy, Toy(), learning_rate=AdaptiveKL(1e-3, 0.01, Twice()), **SETTINGS)


def rates(model: PPO) -> list[float]:
    return [float(group["lr"]) for group in model.policy.optimizer.param_groups]


def assert_one_to_ten(model: PPOX, rate: float | None = None) -> None:
    rate = float(model.knobs.values.learning_rate) if rate is None else rate
    assert rates(model) == pytest.approx([rate, 10 * rate])


def test_parameter_groups_keep_the_ratios_of_their_rates(tmp_path: Path) -> None:
    model = PPOX(TwoRates, Toy(), learning_rate=Cosine(1e-3, 1e-4), **SETTINGS).learn(64)
    assert_one_to_ten(model, 1e-4)
    model.save(tmp_path / "model")
    assert_one_to_ten(PPOX.load(tmp_path / "model", env=Toy(), learning_rate=2e-3).learn(64), 2e-3)


def test_a_loaded_controller_goes_on_with_the_ratios_it_had(tmp_path: Path) -> None:
    model = falling().learn(96)
    assert model.knobs.values.learning_rate == 1e-3 / 8
    model.save(tmp_path / "model")
    for _ in range(2):  # and what was loaded and saved again as well
        loaded = PPOX.load(tmp_path / "model", env=Toy()).learn(32, reset_num_timesteps=False)
        assert_one_to_ten(loaded)
        loaded.save(tmp_path / "model")
    assert loaded.knobs.values.learning_rate == pytest.approx(1e-3 / 32)


@pytest.mark.parametrize("to_zero", [True, False])
def test_a_schedule_that_has_ended_at_zero_leaves_the_ratios_known(tmp_path: Path, to_zero: bool) -> None:
    model = PPOX(TwoRates, Toy(), learning_rate=Linear(1e-3, 0.0 if to_zero else 1e-4), **SETTINGS).learn(64)
    model.save(tmp_path / "model")
    loaded = PPOX.load(tmp_path / "model", env=Toy(), learning_rate=5e-4)
    assert_one_to_ten(loaded.learn(32), 5e-4)
    parameters: Any = model.get_parameters()
    fresh = PPOX(TwoRates, Toy(), learning_rate=5e-4, **SETTINGS)
    fresh.set_parameters(parameters)
    assert_one_to_ten(fresh.learn(32), 5e-4)


def test_a_file_without_ratios_leaves_those_the_policy_was_built_with(tmp_path: Path) -> None:
    model = falling().learn(96)
    for group in model.policy.optimizer.param_groups:
        del group[RATIO]
    model._rates.ratios = lambda: []  # type: ignore[attr-defined]  # as before there was one in the group
    model.save(tmp_path / "older")
    assert_one_to_ten(PPOX.load(tmp_path / "older", env=Toy()).learn(32))
    ppo = PPO(TwoRates, Toy(), learning_rate=1e-3, **SETTINGS).learn(64)
    assert rates(ppo) == [1e-3, 1e-3]  # PPO has one rate only
    ppo.save(tmp_path / "ppo")
    assert_one_to_ten(PPOX.load(tmp_path / "ppo", env=Toy()).learn(32), 1e-3)


def test_plain_ppo_loads_an_optimizer_with_ratios(tmp_path: Path) -> None:
    PPOX(TwoRates, Toy(), learning_rate=1e-3, **SETTINGS).learn(64).save(tmp_path / "model")
    assert rates(PPO.load(tmp_path / "model", env=Toy()).learn(32)) == [1e-3, 1e-3]


@pytest.mark.parametrize("start", [1e-3, None], ids=["the first rate", "the rate in force"])
@pytest.mark.parametrize("named", [True, False], ids=["as the default", "in each group"])
def test_an_exchanged_optimizer_keeps_the_ratios_it_was_built_with(start: float | None, named: bool) -> None:
    model = falling().learn(96)
    rate = start or rates(model)[0]
    body, head = body_and_head(model.policy)
    default: Any = {"lr": rate} if named else {}
    groups = [{"params": head, "lr": 10 * rate}, {"params": body} if named else {"params": body, "lr": rate}]
    model.policy.optimizer = torch.optim.AdamW(groups, **default)
    model.learn(32, reset_num_timesteps=False)
    assert model.knobs.values.learning_rate == 1e-3 / 16
    assert rates(model) == pytest.approx([10e-3 / 16, 1e-3 / 16])


def test_groups_of_an_exchanged_optimizer_are_taken_over_with_their_ratios() -> None:
    model = falling().learn(96)
    model.policy.optimizer = torch.optim.AdamW(model.policy.optimizer.param_groups)
    assert_one_to_ten(model.learn(32, reset_num_timesteps=False))


@pytest.mark.parametrize(("options", "ratio"), [({}, 1.0), ({"lr": 5e-4}, 4.0), ({"lr": 5e-4, RATIO: 0.5}, 0.5)])
def test_a_group_that_is_added_keeps_its_rate_over_the_one_in_force(options: dict[str, float], ratio: float) -> None:
    model = falling("MlpPolicy").learn(96)
    assert rates(model) == [1e-3 / 8]
    model.policy.extra = torch.nn.Linear(2, 2)
    model.policy.optimizer.add_param_group({"params": list(model.policy.extra.parameters()), **options})
    model.learn(32, reset_num_timesteps=False)
    assert rates(model) == pytest.approx([1e-3 / 16, ratio * 1e-3 / 16])


def test_rates_may_be_tensors() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [
        {"params": [parameter], "lr": torch.tensor(rate)}
        for parameter, rate in zip(parameters, (0.5, 2.0), strict=True)
    ]
    optimizer = torch.optim.Adam(groups)
    GroupRates(optimizer, 0.5).apply(0.25)
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.25, 1.0]


def test_a_loaded_state_that_names_no_ratios_is_of_the_groups_that_had_them() -> None:
    def optimizer_at(rate: float) -> torch.optim.Optimizer:
        parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
        return torch.optim.SGD([{"params": parameters[:1], "lr": rate}, {"params": parameters[1:], "lr": 3 * rate}])

    optimizer = optimizer_at(1.0)
    group_rates = GroupRates(optimizer, 1.0)
    optimizer.load_state_dict(optimizer_at(0.125).state_dict())
    group_rates.apply(0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.5]


def test_ratios_that_cannot_be_read_are_refused_when_training_starts() -> None:
    with pytest.raises(ValueError, match=r'starts at 0.*"lr_ratio"'):
        PPOX(TwoRates, Toy(), learning_rate=Warmup(0.1, Cosine(1e-3)), **SETTINGS).learn(64)


def test_a_policy_may_state_the_ratio_itself() -> None:
    class Stated(TwoRates):
        def _build(self, lr_schedule: Any) -> None:
            super()._build(lr_schedule)
            self.optimizer.param_groups[1][RATIO] = 10.0

    model = PPOX(Stated, Toy(), learning_rate="warmup:0.5:1e-3", **SETTINGS)
    assert rates(model) == [0.0, 0.0]
    assert_one_to_ten(model.learn(64), 1e-3)
