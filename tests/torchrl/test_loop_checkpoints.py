"""A loop over PPOXLoss that is interrupted and resumed ends as one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sb3_ppo_ext_torchrl import KnobScheduler, LoopCheckpoints, PPOXLoss, actor_module, critic_module
from tensordict import TensorDict

from sb3_ppo_ext import AdaptiveKL
from tests.torchrl.rollouts import collected, rows_of

BATCHES, FRAMES = 6, 32


class Interrupted(Exception):
    pass


def trained(folder: Path, stop_at: int | None) -> tuple[PPOXLoss, torch.optim.Optimizer, KnobScheduler]:
    """What a program does each time it is started."""
    model = collected("box")
    rows = rows_of(model)
    loss = PPOXLoss(actor_module(model.policy), critic_module(model.policy), kl_coef=1.0)
    optimizer = torch.optim.Adam(loss.parameters())
    knobs: dict[str, Any] = {"lr": "linear:1e-2:0", "kl_coef": AdaptiveKL(1.0, 1e-4), "clip_epsilon": "cosine:0.3:0.1"}
    scheduler = KnobScheduler(loss, knobs, total_frames=BATCHES * FRAMES, optimizer=optimizer)
    checkpoints = LoopCheckpoints(folder, loss=loss, optimizer=optimizer, scheduler=scheduler)
    torch.manual_seed(7)
    done = checkpoints.resume() // FRAMES
    for batch in range(done, BATCHES):
        if batch == stop_at:
            raise Interrupted
        measured = []
        for chosen in torch.randperm(len(rows)).split(16):
            losses = loss(rows[chosen])
            (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
            optimizer.step()
            optimizer.zero_grad()
            measured.append(losses.detach())
        scheduler.step(FRAMES, TensorDict.stack(measured).mean(dim=0))
        checkpoints.save((batch + 1) * FRAMES)
    return loss, optimizer, scheduler


def test_a_loop_interrupted_after_every_batch_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    loss, optimizer, scheduler = trained(tmp_path / "a", None)
    for stop in range(1, BATCHES):
        with pytest.raises(Interrupted):
            trained(tmp_path / "b", stop)
    resumed, its_optimizer, its_scheduler = trained(tmp_path / "b", None)
    expected = loss.state_dict()
    for name, tensor in resumed.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    for mine, theirs in zip(
        its_optimizer.state_dict()["state"].values(), optimizer.state_dict()["state"].values(), strict=True
    ):
        assert torch.equal(mine["exp_avg_sq"], theirs["exp_avg_sq"])
    assert its_scheduler.state_dict() == scheduler.state_dict() and its_scheduler.values == scheduler.values
    assert len(list((tmp_path / "b/checkpoints").iterdir())) == 3


def test_a_loop_with_other_objects_is_refused(tmp_path: Path) -> None:
    layer = torch.nn.Linear(1, 1)
    LoopCheckpoints(tmp_path, loss=layer).save(1)
    with pytest.raises(ValueError, match="its checkpoints hold loss, and this loop has actor"):
        LoopCheckpoints(tmp_path, actor=layer).resume()
    with pytest.raises(ValueError, match="it has no state_dict"):
        LoopCheckpoints(tmp_path, loss=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to save"):
        LoopCheckpoints(tmp_path)
