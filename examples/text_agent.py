"""Does a language model that knows the words learn a game sooner? The same network, pretrained against newly drawn.

The game is TextGrid-v0: a sentence says where two things lie, the agent walks to the one asked for. The
pretraining text (examples/text_tasks/scenes.py) says what the words mean; it has none of the game's things, and
never an action where there is a choice. After Carta et al. 2023 (GLAM), in miniature.

    python examples/text_agent.py                  # one seed, a few minutes
    python examples/text_agent.py --seeds 5

Needs both extras: pip install "sb3_ppo_ext[lm,zoo]".
"""

import argparse
import statistics
from collections import deque
from dataclasses import replace

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from text_tasks.grid import MODEL, TextGridPolicy, text_grid

from sb3_ppo_ext import PPOX

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seeds", type=int, default=1)
parser.add_argument("--timesteps", type=int, default=60_000, help="at the most; a run ends when it succeeds")
parser.add_argument("--success-rate", type=float, default=0.8, help="of the last 200 episodes")
parser.add_argument("--pretraining-steps", type=int, default=MODEL.steps)
options = parser.parse_args()


class UntilSuccess(BaseCallback):
    """Ends the run when the success rate is reached; then ``reached_at`` is the number of steps it took."""

    def __init__(self) -> None:
        super().__init__()
        self.successes: deque[bool] = deque(maxlen=200)
        self.reached_at: int | None = None

    def _on_step(self) -> bool:
        self.successes.extend(info["is_success"] for info in self.locals["infos"] if "is_success" in info)
        if len(self.successes) == 200 and sum(self.successes) >= options.success_rate * 200:
            self.reached_at = self.num_timesteps
        return self.reached_at is None


def steps_needed(pretraining_steps: int, seed: int) -> int | None:
    """Environment steps until the success rate is reached; None where ``--timesteps`` were too few."""
    model = PPOX(
        TextGridPolicy,
        make_vec_env(text_grid, n_envs=16, seed=seed),
        policy_kwargs={"model": replace(MODEL, seed=seed, steps=pretraining_steps), "score": "first_token"},
        n_steps=32,
        batch_size=64,
        n_epochs=4,
        gamma=0.95,
        learning_rate=3e-4,
        ent_coef=0.01,
        seed=seed,
        device="cpu",
    )
    callback = UntilSuccess()
    model.learn(options.timesteps, callback=callback, log_interval=None)
    return callback.reached_at


def shown(steps: int | None) -> str:
    return f"> {options.timesteps}" if steps is None else str(steps)


print(f"environment steps until {options.success_rate:.0%} of 200 episodes succeed")
print("seed | pretrained | re-initialised", flush=True)
needed: list[tuple[int | None, int | None]] = []
for seed in range(options.seeds):
    needed.append((steps_needed(options.pretraining_steps, seed), steps_needed(0, seed)))
    print(f"{seed:4} | {shown(needed[-1][0]):>10} | {shown(needed[-1][1]):>14}", flush=True)
at_least = [[options.timesteps if one is None else one for one in column] for column in zip(*needed, strict=True)]
pretrained, drawn = map(statistics.median_high, at_least)
print(f"median: {pretrained} and {drawn}, {drawn / pretrained:.1f} times as many")
