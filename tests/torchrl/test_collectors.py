"""A policy of Stable-Baselines3 in TorchRL's collectors, in this process and in others: they act by its own weights."""

from __future__ import annotations

import warnings
from datetime import timedelta
from typing import Any

import pytest
import torch
from sb3_ppo_ext_torchrl import actor_module
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.envs import GymEnv

from sb3_ppo_ext import PPOX


def cartpole() -> GymEnv:
    return GymEnv("CartPole-v1", categorical_action_encoding=True)


def ray_collector(actor: Any, **options: Any) -> Any:  # of the fixture ``cluster``
    from torchrl.collectors.distributed import RayCollector

    return RayCollector(
        [cartpole],
        actor,
        sync=True,
        remote_configs={"num_cpus": 1, "num_gpus": 0, "memory": 512 * 1024**2},
        collector_kwargs={"auto_register_policy_transforms": True},
        **options,
    )


def local(actor: Any, **options: Any) -> Any:
    return Collector(cartpole(), actor, auto_register_policy_transforms=True, **options)


def processes(actor: Any, **options: Any) -> Any:
    return MultiSyncCollector([cartpole], actor, auto_register_policy_transforms=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("make", [local, processes, ray_collector])
def test_what_is_collected_is_by_the_weights_of_the_learner(
    make: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if make is ray_collector:  # its worker imports torch first, which takes as long as a busy machine wants
        request.getfixturevalue("cluster")
        monkeypatch.setattr("torchrl.weight_update._ray._DIST_TIMEOUT", timedelta(minutes=10))
    model = PPOX("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    actor = actor_module(model.policy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ray and of TorchRL's processes, about themselves
        collector = make(actor, frames_per_batch=64, total_frames=192)
        # Within this process the parameters are the same ones, and TorchRL takes no module there.
        weights = () if make is local else (actor,)
        try:
            collector.update_policy_weights_(*weights)
            for batch in collector:
                assert batch.numel() == 64 and batch.names[-1] == "time"
                with torch.no_grad():
                    now = actor.get_dist(batch.clone()).log_prob(batch["action"])
                    torch.testing.assert_close(now, batch["action_log_prob"], rtol=1e-5, atol=1e-6)
                    for parameter in model.policy.parameters():
                        parameter.add_(0.3 * torch.randn_like(parameter))
                collector.update_policy_weights_(*weights)
        finally:
            collector.shutdown()
