"""Parameter groups of an optimizer that a KnobScheduler moves keep the ratios of their learning rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sb3_ppo_ext_torchrl import KnobScheduler, PPOXLoss, actor_module, critic_module
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_ppo_ext import PPOX
from tests.torchrl.rollouts import collected


def loss_of() -> Any:
    policy = collected("discrete").policy
    return PPOXLoss(actor_module(policy), critic_module(policy))


def two_groups(loss: Any, rate: float) -> torch.optim.Optimizer:
    """The critic's rate is ten times the actor's."""
    critic: dict[str, Any] = {"params": list(loss.critic_network_params.values(True, True)), "lr": 10 * rate}
    return torch.optim.Adam([{"params": list(loss.actor_network_params.values(True, True))}, critic], lr=rate)


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_parameter_groups_keep_their_ratios_when_a_run_is_taken_up_again() -> None:
    knobs: dict[str, Any] = {"lr": "linear:1e-3:0"}
    loss = loss_of()
    optimizer = two_groups(loss, 1e-3)
    scheduler = KnobScheduler(loss, knobs, total_frames=100, optimizer=optimizer)
    scheduler.step(75)
    assert rates(optimizer) == pytest.approx([2.5e-4, 2.5e-3])

    taken_up = two_groups(loss, 1e-3)
    taken_up.load_state_dict(optimizer.state_dict())  # before there is a scheduler
    continued = KnobScheduler(loss, knobs, total_frames=100, optimizer=taken_up)
    assert rates(taken_up) == pytest.approx([1e-3, 1e-2])
    continued.load_state_dict(scheduler.state_dict())
    assert rates(taken_up) == pytest.approx([2.5e-4, 2.5e-3])
    scheduler.step(25)
    last = two_groups(loss, 1e-3)
    last.load_state_dict(optimizer.state_dict())  # all rates are 0 there
    KnobScheduler(loss, {"lr": 5e-4}, total_frames=100, optimizer=last)
    assert rates(last) == pytest.approx([5e-4, 5e-3])


def test_an_optimizer_in_the_middle_of_another_schedule_keeps_its_ratios() -> None:
    loss = loss_of()
    optimizer = two_groups(loss, 1e-3)
    for group in optimizer.param_groups:
        group["lr"] *= 0.25
    KnobScheduler(loss, {"lr": 1e-3}, total_frames=100, optimizer=optimizer)
    assert rates(optimizer) == pytest.approx([1e-3, 1e-2])


class TwoRates(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        head, rate = list(self.value_net.parameters()), lr_schedule(1)
        body = [p for p in self.parameters() if all(p is not q for q in head)]
        self.optimizer = torch.optim.Adam([{"params": body, "lr": rate}, {"params": head, "lr": 10 * rate}])


def test_a_ppox_model_in_mid_schedule_brings_its_ratios_along() -> None:
    model = PPOX(TwoRates, "CartPole-v1", n_steps=64, batch_size=64, device="cpu", learning_rate="linear:1e-3:1e-4")
    model.learn(128)
    optimizer = model.policy.optimizer
    assert rates(optimizer) == pytest.approx([1e-4, 1e-3])
    scheduler = KnobScheduler.from_ppox(model, PPOXLoss.from_ppox(model), total_frames=100, optimizer=optimizer)
    assert rates(optimizer) == pytest.approx([1e-3, 1e-2])
    scheduler.step(50)
    assert rates(optimizer) == pytest.approx([5.5e-4, 5.5e-3])
