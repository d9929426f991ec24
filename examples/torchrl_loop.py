"""A plain TorchRL loop with PPOXLoss: CartPole-v1, a clip range and a learning rate that shrink, a penalty that adapts.

Writes to the folder ``tensorboard`` (``tensorboard --logdir tensorboard``); prints the greedy score at the end.
"""

import argparse

import torch
from sb3_ppo_ext_torchrl import KnobScheduler, PPOXLoss
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch.utils.tensorboard import SummaryWriter
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
from torchrl.envs import ExplorationType, GymEnv, RewardSum, SerialEnv, TransformedEnv, set_exploration_type
from torchrl.modules import MLP, ProbabilisticActor, ValueOperator
from torchrl.objectives.value import GAE

from sb3_ppo_ext import AdaptiveKL

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--frames", type=int, default=51_200)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
torch.manual_seed(options.seed)
torch.set_num_threads(1)  # faster for a network this small

FRAMES_PER_BATCH, EPOCHS, MINIBATCH = 1024, 10, 256


def make_env() -> GymEnv:
    return GymEnv("CartPole-v1", categorical_action_encoding=True)


env = TransformedEnv(SerialEnv(8, make_env), RewardSum())
env.set_seed(options.seed)
actor = ProbabilisticActor(
    TensorDictModule(MLP(4, 2, num_cells=[64, 64], activation_class=torch.nn.Tanh), ["observation"], ["logits"]),
    in_keys=["logits"],
    distribution_class=torch.distributions.Categorical,
    return_log_prob=True,
)
critic = ValueOperator(MLP(4, 1, num_cells=[64, 64], activation_class=torch.nn.Tanh), in_keys=["observation"])

loss = PPOXLoss(actor, critic, kl_coef=0.0, loss_critic_type="l2", critic_coeff=0.5, normalize_advantage=True)
optimizer = torch.optim.Adam(loss.parameters(), eps=1e-5)
scheduler = KnobScheduler(
    loss,
    {"clip_epsilon": "linear:0.2:0.05", "lr": "linear:1e-3:1e-4", "kl_coef": AdaptiveKL(0.2, 0.01)},
    total_frames=options.frames,
    optimizer=optimizer,
)
gae = GAE(gamma=0.98, lmbda=0.9, value_network=critic)
minibatches = ReplayBuffer(
    storage=LazyTensorStorage(FRAMES_PER_BATCH), sampler=SamplerWithoutReplacement(), batch_size=MINIBATCH
)
writer = SummaryWriter("tensorboard")
collector = Collector(
    env,
    actor,
    frames_per_batch=FRAMES_PER_BATCH,
    total_frames=options.frames,
    auto_register_policy_transforms=True,
)
for batch in collector:
    measured = []
    for _ in range(EPOCHS):
        with torch.no_grad():
            gae(batch)
        minibatches.extend(batch.reshape(-1))
        for minibatch in minibatches:
            losses = loss(minibatch)
            (losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]).backward()
            torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            measured.append(losses.detach())
    means = TensorDict.stack(measured).mean(dim=0)
    for name, value in {**means.to_dict(), **scheduler.values}.items():
        writer.add_scalar(f"train/{name}", value, scheduler.frames)
    finished = batch["next", "episode_reward"][batch["next", "done"]]
    if len(finished):
        writer.add_scalar("rollout/ep_rew_mean", finished.mean(), scheduler.frames)
    scheduler.step(batch.numel(), means)  # the values for the next batch
collector.shutdown()
writer.close()

test_env = TransformedEnv(make_env(), RewardSum())
test_env.set_seed(1000)
with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
    scores = [float(test_env.rollout(500, actor)["next", "episode_reward"][-1]) for _ in range(20)]
print(f"greedy score after {scheduler.frames} frames: {sum(scores) / len(scores):.1f} (500 is the most)")
