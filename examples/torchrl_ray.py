"""Collection spread over Ray workers, one learner: PPOX's policy and loss on CartPole-v1, TorchRL's RayCollector.

Two workers on this machine by default; ``RayCollector`` reaches a cluster by the same call.
"""

import argparse

import ray
import torch
from sb3_ppo_ext_torchrl import KnobScheduler, PPOXLoss
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from tensordict import TensorDict
from torchrl.collectors.distributed import RayCollector
from torchrl.envs import GymEnv
from torchrl.objectives.value import GAE

from sb3_ppo_ext import PPOX

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--frames", type=int, default=40_960)
parser.add_argument("--workers", type=int, default=2)
options = parser.parse_args()
torch.set_num_threads(1)

FRAMES_PER_BATCH = 1024

model = PPOX(
    "MlpPolicy",
    "CartPole-v1",
    batch_size=256,
    gamma=0.98,
    gae_lambda=0.9,
    learning_rate="linear:1e-3:1e-4",
    clip_range="linear:0.2:0.05",
    device="cpu",
    seed=0,
)
loss = PPOXLoss.from_ppox(model)
optimizer = model.policy.optimizer
scheduler = KnobScheduler.from_ppox(model, loss, total_frames=options.frames, optimizer=optimizer)
gae = GAE(gamma=model.gamma, lmbda=model.gae_lambda, value_network=loss.critic_network)


def make_env() -> GymEnv:
    return GymEnv("CartPole-v1", categorical_action_encoding=True)


collector = RayCollector(
    [make_env] * options.workers,
    loss.actor_network,
    frames_per_batch=FRAMES_PER_BATCH,
    total_frames=options.frames,
    sync=True,
    ray_init_config={"num_cpus": options.workers, "include_dashboard": False, "log_to_driver": False},
    remote_configs={"num_cpus": 1, "num_gpus": 0, "memory": 512 * 1024**2},
    collector_kwargs={"auto_register_policy_transforms": True},
)
collector.update_policy_weights_(loss.actor_network)
for batch in collector:
    with torch.no_grad():
        gae(batch)
    rows = batch.select("observation", "action", "action_log_prob", "advantage", "value_target").reshape(-1)
    measured = []
    for _ in range(model.n_epochs):
        for chosen in torch.randperm(len(rows)).split(model.batch_size):
            losses = loss(rows[chosen])
            (losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]).backward()
            torch.nn.utils.clip_grad_norm_(model.policy.parameters(), model.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            measured.append(losses.detach())
    scheduler.step(batch.numel(), TensorDict.stack(measured).mean(dim=0))
    collector.update_policy_weights_(loss.actor_network)
collector.shutdown()
ray.shutdown()
score = evaluate_policy(model, make_vec_env("CartPole-v1", 4, seed=1000), n_eval_episodes=20)[0]
print(f"greedy score after {scheduler.frames} frames of {options.workers} workers: {score:.1f} (500 is the most)")
