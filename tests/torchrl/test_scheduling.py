"""Schedules and controllers of a loss: moved by the loop or a trainer, by PPOX's own laws, and never by the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sb3_ppo_ext_torchrl import KnobScheduler, KnobSchedulerHook, PPOXLoss, actor_module, critic_module
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
from torchrl.envs import GymEnv
from torchrl.objectives import ClipPPOLoss

from sb3_ppo_ext import PPOX, AdaptiveClipFraction, AdaptiveKL, Linear, Threshold
from tests.torchrl.rollouts import collected, rollout_of


def loss_of(cls: Any = PPOXLoss, **arguments: Any) -> Any:
    policy = collected("discrete").policy
    return cls(actor_module(policy), critic_module(policy), **arguments)


def test_schedules_follow_the_frames_and_end_at_their_end() -> None:
    loss = loss_of(kl_coef=9.0, clip_value=0.5)
    optimizer = torch.optim.Adam(loss.parameters(), lr=9.0)
    knobs: dict[str, Any] = {
        "clip_epsilon": "linear:0.2:0.1",
        "lr": Linear(4e-3),
        "entropy_coeff": 0.3,
        "kl_coef": "cosine:1:0",
    }
    scheduler = KnobScheduler(loss, knobs, total_frames=400, optimizer=optimizer)
    rows = [(*scheduler.values.values(), float(loss.clip_value))]
    for frames in (100, 100, 200, 50):
        values = scheduler.step(frames)
        assert values["clip_epsilon"] == pytest.approx(float(loss.clip_epsilon))
        assert optimizer.param_groups[0]["lr"] == values["lr"] and float(loss.entropy_coeff) == pytest.approx(0.3)
        rows.append((*values.values(), float(loss.clip_value)))
    # a quarter, a half, all and more than all of the frames; cosine: (1 + cos(pi / 4)) / 2 = 0.853553
    assert rows == [
        pytest.approx(row, abs=1e-6)
        for row in (
            (0.2, 4e-3, 0.3, 1.0, 0.5),
            (0.175, 3e-3, 0.3, 0.853553, 0.5),
            (0.15, 2e-3, 0.3, 0.5, 0.5),
            (0.1, 0.0, 0.3, 0.0, 0.5),
            (0.1, 0.0, 0.3, 0.0, 0.5),
        )
    ]


def test_the_weight_of_the_deviation_answers_to_its_own_kl() -> None:
    loss = loss_of(kl_coef_std=1.0)
    assert float(loss.kl_coef) == 0.0  # the weight of the mean's KL, where none is named
    scheduler = KnobScheduler(loss, {"kl_coef_std": AdaptiveKL(1.0, 0.01, Threshold(1.5, 2.0))}, total_frames=1000)
    assert scheduler.step(10, {"kl": 1.0, "kl_std": torch.tensor([0.02, 0.04])}) == {"kl_coef_std": 2.0}
    assert scheduler.step(10, {"kl": 1.0, "kl_std": 0.001}) == {"kl_coef_std": 1.0}
    with pytest.raises(ValueError, match="answers to 'kl_std', which was not measured"):
        scheduler.step(10, {"kl": 1.0})


def test_controllers_move_the_way_of_their_coefficient() -> None:
    loss = loss_of(kl_coef=0.0)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    law = Threshold(1.5, 2.0)
    knobs = {
        "kl_coef": AdaptiveKL(1.0, 0.01, law),
        "lr": AdaptiveKL(1e-3, 0.01, law),
        "clip_epsilon": AdaptiveClipFraction(0.2, 0.1, law),
    }
    scheduler = KnobScheduler(loss, knobs, total_frames=1000, optimizer=optimizer)
    measured = {"kl": torch.tensor([0.02, 0.04]), "clip_fraction": torch.tensor([0.3, 0.1])}  # means 0.03 and 0.2
    assert scheduler.step(10, measured) == {"kl_coef": 2.0, "lr": 5e-4, "clip_epsilon": 0.4}
    assert float(loss.kl_coef) == 2.0 and optimizer.param_groups[0]["lr"] == 5e-4
    small = {"kl": torch.tensor(0.001), "clip_fraction": 0.1}
    assert scheduler.step(10, small) == {"kl_coef": 1.0, "lr": 1e-3, "clip_epsilon": 0.4}
    # no change at all, up to rounding, is no reason to move; and kl_approx stands in where the loss has no penalty
    same = {"kl_approx": torch.tensor(3e-7), "clip_fraction": 0.1}
    assert scheduler.step(10, same) == {"kl_coef": 1.0, "lr": 1e-3, "clip_epsilon": 0.4}
    for _ in range(40):
        scheduler.step(10, {"kl": 1.0, "clip_fraction": 0.1})
    assert scheduler.values == {"kl_coef": 1000.0, "lr": 1e-5, "clip_epsilon": 0.4}  # bounded


def test_a_stock_clip_loss_can_be_scheduled_too() -> None:
    loss = loss_of(ClipPPOLoss, clip_epsilon=(0.2, 0.3))
    scheduler = KnobScheduler(loss, {"clip_epsilon_low": "linear:0.2:0", "clip_epsilon_high": 0.4}, total_frames=10)
    scheduler.step(5)
    assert (float(loss.clip_epsilon_low), float(loss.clip_epsilon_high)) == pytest.approx((0.1, 0.4))


def test_the_state_continues() -> None:
    def made() -> tuple[Any, KnobScheduler]:
        loss = loss_of(kl_coef=0.0)
        knobs: dict[str, Any] = {"kl_coef": AdaptiveKL(1.0, 0.01), "clip_epsilon": "linear:0.2:0.1"}
        return loss, KnobScheduler(loss, knobs, total_frames=100)

    _, scheduler = made()
    for _ in range(3):
        scheduler.step(10, {"kl": 0.5})
    loss, continued = made()
    continued.load_state_dict(scheduler.state_dict())
    assert continued.values == scheduler.values == {"kl_coef": 8.0, "clip_epsilon": pytest.approx(0.17)}
    assert float(loss.kl_coef) == 8.0
    assert continued.step(10, {"kl": 0.5}) == scheduler.step(10, {"kl": 0.5})


def test_a_ppox_model_brings_its_knobs_along() -> None:
    settings: dict[str, Any] = {
        "kl_coef": AdaptiveKL(1.0, 10.0, bounds=(1e-6, 10)),
        "clip_range": "linear:0.2:0.1:horizon=1000",
        "learning_rate": "linear:1e-3:0",
        "vf_coef": 0.7,
    }
    model = collected("box", **settings).learn(128, reset_num_timesteps=True)
    loss = PPOXLoss.from_ppox(model)
    scheduler = KnobScheduler.from_ppox(model, loss, total_frames=200, optimizer=model.policy.optimizer)
    reached = model.knobs.values.kl_coef
    assert reached < 1.0  # far below its target, it was halved after some of the four rollouts
    # 32 timesteps of collected(), then 128: the horizon of 1000 goes on, the learning rate's progress starts anew
    done = model.timesteps_of_all_learns
    assert scheduler.values == {"lr": 1e-3, "clip_epsilon": pytest.approx(0.2 - 0.1 * done / 1000), "kl_coef": reached}
    scheduler.step(100, {"kl": 0.01})
    assert scheduler.values["kl_coef"] == pytest.approx(float(reached) / 2)
    assert scheduler.values["lr"] == pytest.approx(5e-4)
    assert model.knobs.values.kl_coef == reached  # a copy: the model's own does not move
    assert float(loss.critic_coeff) == pytest.approx(0.7)


def test_stepped_between_collecting_and_training_it_gives_ppoxs_values() -> None:
    seen: list[float] = []

    class Noting(PPOX):
        def train(self) -> None:
            super().train()
            seen.append(float(self.knobs.values.clip_range))

    Noting("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu", clip_range="linear:0.2:0.1", seed=0).learn(256)
    scheduler = KnobScheduler(loss_of(), {"clip_epsilon": "linear:0.2:0.1"}, total_frames=256)
    assert [scheduler.step(64)["clip_epsilon"] for _ in range(4)] == seen


def test_a_run_without_an_end_stays_at_the_start_of_its_schedules() -> None:
    scheduler = KnobScheduler(loss_of(), {"clip_epsilon": "linear:0.2:0.1"}, total_frames=float("inf"))
    assert scheduler.step(10**9) == {"clip_epsilon": 0.2}


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"clip": 0.1}, r"knobs has \['clip'\]; there are lr, clip_epsilon"),
        ({"lr": 0.1}, "pass optimizer="),
        ({"kl_coef": 0.1}, "'kl_coef', and PPOXLoss was built without it"),
        ({"clip_epsilon_low": 0.1}, "those of a pair"),
        ({"clip_epsilon": "cosine"}, "clip_range='cosine'"),
        ({"clip_epsilon": -1}, "out of range"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(knobs: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        KnobScheduler(loss_of(), knobs, total_frames=10)


def test_a_controller_wants_its_measurement() -> None:
    scheduler = KnobScheduler(loss_of(), {"clip_epsilon": AdaptiveKL(0.2, 0.01)}, total_frames=10)
    with pytest.raises(ValueError, match="answers to 'kl', which was not measured"):
        scheduler.step(5)
    with pytest.raises(ValueError, match="the policy has diverged"):
        scheduler.step(5, {"kl": float("nan")})
    for wrong in (0, float("nan")):
        with pytest.raises(ValueError, match=f"total_frames={wrong}"):
            KnobScheduler(loss_of(), {}, total_frames=wrong)


FRAMES, BATCHES, EPOCHS, SIZE = 64, 3, 2, 16


def trained(every: str, kl: float = 1e9) -> tuple[PPOX, Any, KnobScheduler, list[float]]:
    """TorchRL's own trainer over PPOXLoss, with a penalty that no measured KL comes near."""
    from torchrl.trainers.algorithms import PPOTrainer

    model = PPOX("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    loss = PPOXLoss.from_ppox(model, kl_coef=1.0)
    torch.manual_seed(0)
    env = GymEnv("CartPole-v1", categorical_action_encoding=True)
    env.set_seed(0)
    total = BATCHES * FRAMES
    collector = Collector(
        env, loss.actor_network, frames_per_batch=FRAMES, total_frames=total, auto_register_policy_transforms=True
    )
    scheduler = KnobScheduler(
        loss,
        {"kl_coef": AdaptiveKL(1.0, kl, bounds=(1e-9, 1), every=every), "clip_epsilon": "linear:0.2:0.05"},
        total_frames=total,
    )
    buffer = ReplayBuffer(storage=LazyTensorStorage(FRAMES), sampler=SamplerWithoutReplacement(), batch_size=SIZE)
    trainer = PPOTrainer(
        collector=collector,
        total_frames=total,
        frame_skip=1,
        optim_steps_per_batch=None,  # until the sampler is through: a number equal to that leaves epochs out
        num_epochs=EPOCHS,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=1e-2),  # so that no step leaves the KL below rounding
        replay_buffer=buffer,
        progress_bar=False,
        enable_logging=False,
    )
    KnobSchedulerHook(scheduler).register(trainer)
    clips: list[float] = []
    loss.register_forward_pre_hook(lambda *_: clips.append(float(loss.clip_epsilon)))
    trainer.train()
    return model, trainer, scheduler, clips


@pytest.mark.filterwarnings("ignore:PPOTrainer is an experimental:UserWarning")
@pytest.mark.filterwarnings("ignore:.*will be replaced by OptimizationStepper:FutureWarning")
@pytest.mark.parametrize(("every", "moves"), [("rollout", BATCHES), ("epoch", BATCHES * EPOCHS), ("minibatch", 24)])
def test_torchrls_trainer_steps_it_at_the_moments_it_names(every: str, moves: int) -> None:
    model, trainer, scheduler, clips = trained(every)
    # Halved at each moment whose KL is below the target; of the first minibatch of a rollout the KL is exactly 0.
    still = BATCHES if every == "minibatch" else 0
    assert scheduler.values["kl_coef"] == pytest.approx(0.5 ** (moves - still))
    assert [clips[0], clips[8], clips[16]] == pytest.approx([0.2, 0.15, 0.1])
    assert scheduler.values["clip_epsilon"] == pytest.approx(0.05)
    assert scheduler.frames == BATCHES * FRAMES and len(clips) == 24
    state = trainer._modules["knob_scheduler"].state_dict()  # the collector, gone by now, has none
    assert state["scheduler"]["controllers"]["kl_coef"]["state"]["value"] == scheduler.values["kl_coef"]
    assert next(iter(model.policy.optimizer.param_groups))["lr"] == 3e-4  # the trainer's optimizer is another


def test_evaluating_the_loss_moves_nothing() -> None:
    loss = loss_of(kl_coef=1.0)
    scheduler = KnobScheduler(loss, {"kl_coef": AdaptiveKL(1.0, 1e-9)}, total_frames=10)
    hook = KnobSchedulerHook(scheduler)
    loss.register_forward_hook(hook.record)
    batch = rollout_of(collected("discrete"))
    with torch.no_grad():
        loss(batch)
    assert hook.rows == []
    loss(batch)
    assert len(hook.rows) == 1 and float(loss.kl_coef) == 1.0
