"""Train PPOX in Stable-Baselines3, continue in TorchRL, and compare with a twin that continues where it was.

Both halves minimise the same loss over the same policy; what differs is who steps the environments, and their episodes.
"""

import argparse

import torch
from sb3_ppo_ext_torchrl import KnobScheduler, PPOXLoss
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, SerialEnv
from torchrl.objectives.value import GAE

from sb3_ppo_ext import PPOX, AdaptiveKL, Threshold

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=20_480, help="of each half")
options = parser.parse_args()
torch.set_num_threads(1)  # faster for a network this small

model = PPOX(
    "MlpPolicy",
    make_vec_env("CartPole-v1", 8, seed=0),
    n_steps=128,
    batch_size=256,
    gamma=0.98,
    gae_lambda=0.9,
    learning_rate=AdaptiveKL(5e-4, 0.01, Threshold(1.5, 1.2)),  # so does what it has reached
    clip_range="linear:0.2:0.05:horizon=40_960",  # goes on from one half to the other
    seed=1,
    device="cpu",
)


def score(trained: PPOX) -> float:
    """The mean return of 20 greedy episodes."""
    mean, _ = evaluate_policy(trained, make_vec_env("CartPole-v1", 4, seed=1000), n_eval_episodes=20)
    return float(mean)  # type: ignore[arg-type]  # a list only if asked for one


print(f"before training         {score(model):6.1f}")
model.learn(options.timesteps)
model.save("half")
print(f"after half, here        {score(model):6.1f}")


# TorchRL: the loss over the model's own policy, its schedules and controllers, its optimizer with Adam's moments.
loss = PPOXLoss.from_ppox(model)
optimizer = model.policy.optimizer
scheduler = KnobScheduler.from_ppox(model, loss, total_frames=options.timesteps, optimizer=optimizer)
print("coefficients taken along", {name: round(value, 5) for name, value in scheduler.values.items()})
gae = GAE(gamma=model.gamma, lmbda=model.gae_lambda, value_network=loss.critic_network)


def make_env() -> GymEnv:
    return GymEnv("CartPole-v1", categorical_action_encoding=True)


collector = Collector(
    SerialEnv(8, make_env),
    loss.actor_network,
    frames_per_batch=model.n_steps * 8,
    total_frames=options.timesteps,
    auto_register_policy_transforms=True,
)
for batch in collector:
    with torch.no_grad():
        gae(batch)
    rows = batch.reshape(-1)
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
collector.shutdown()
print(f"continued in TorchRL    {score(model):6.1f}")
model.save("continued_in_torchrl")  # a PPOX model like any other

twin = PPOX.load("half", env=make_vec_env("CartPole-v1", 8, seed=1), device="cpu")
twin.learn(options.timesteps, reset_num_timesteps=False)
print(f"continued here          {score(twin):6.1f}")
