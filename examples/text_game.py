"""Does credit turn by turn help in a game of several turns? A critic against baselines of groups, at equal responses.

The game: a text says how far a treasure lies to the north and east, the model answers with a move, five times. It wins
if it stands on the treasure in the end, and nothing else is rewarded. The critic's value function judges each move;
RLOO and GRPO give all moves of a game the credit of its outcome, against seven other games from the same position.
A small language model begins all runs of a seed: it has read games of random moves, so that it knows how a game goes.

    python examples/text_game.py                                   # one seed, some minutes
    python examples/text_game.py --seeds 3 --learning-rates 1e-4 3e-4 1e-3
"""

from __future__ import annotations

import argparse
import random
import statistics
from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import ConversationEnv, LanguageModelPolicy, Turn, conversation_vec_env

MOVES = {"north": (1, 0), "south": (-1, 0), "east": (0, 1), "west": (0, -1), "stay": (0, 0)}
TURNS, FARTHEST, GROUP = 5, 3, 8
WORDS = ["<pad>", "<eos>", *MOVES, *map(str, range(FARTHEST + TURNS + 1)), "move"]

LENGTHS: dict[str, Any] = {"max_new_tokens": 2, "max_prompt_length": 5, "turn_format": "{reply}"}

# What differs between the arms: the policy's and the buffer's settings.
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "critic": ({"value": "shared"}, {"turn_lambda": 0.9}),
    "separate": ({"value": "separate"}, {"turn_lambda": 0.9}),
    "rloo": ({"value": "none"}, {"group_advantage": "rloo"}),
    "grpo": ({"value": "none"}, {"group_advantage": "grpo"}),
}


class Treasure(ConversationEnv):
    """Five moves towards a treasure, at most three steps away; standing on it after the last one wins."""

    def begin(self, seed: int) -> str:
        draw = random.Random(seed)
        place = (0, 0)
        while not 0 < abs(place[0]) + abs(place[1]) <= FARTHEST:
            place = draw.randint(-FARTHEST, FARTHEST), draw.randint(-FARTHEST, FARTHEST)
        self.north, self.east = place
        return self.text()

    def text(self) -> str:
        vertical, horizontal = "north" if self.north > 0 else "south", "east" if self.east > 0 else "west"
        return f" {vertical} {abs(self.north)} {horizontal} {abs(self.east)} move"

    def answer(self, response: str) -> Turn:
        north, east = MOVES.get(response.strip(), (0, 0))
        self.north, self.east = self.north - north, self.east - east
        done = len(self.responses) == TURNS
        won = done and (self.north, self.east) == (0, 0)
        return Turn(self.text(), reward=float(won), done=done, afresh=True)  # the text says all there is to know


def tokenizer() -> PreTrainedTokenizerFast:
    """Every word is a token."""
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def treasures(n_envs: int, group_size: int = GROUP) -> VecEnv:
    return conversation_vec_env(partial(Treasure, tokenizer(), **LENGTHS), n_envs, group_size=group_size)


def after_random_games(steps: int, seed: int) -> PreTrainedModel:
    """A small model that has read games of random moves."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=8, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    game, draw = Treasure(tokenizer(), **LENGTHS), random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        read = []
        for _ in range(16):
            game.reset(seed=draw.randrange(2**31))
            for _ in range(TURNS):
                move = [WORDS.index(draw.choice(list(MOVES))), WORDS.index("<eos>")]
                read.append([*game.ids, *move])
                game.step(np.array(move))
        ids = torch.tensor(read)
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def success_rate(model: PPOX, games: int, seed: int) -> float:
    """The fraction of new games that the policy wins, as it samples."""
    env = treasures(games, group_size=1)
    env.seed(10**6 + seed)
    observation: Any = env.reset()
    infos: list[dict[str, Any]] = []
    for _ in range(TURNS):
        observation, _, _, infos = env.step(model.predict(observation)[0])
    return float(np.mean([info["is_success"] for info in infos]))


def trained(arm: str, start: PreTrainedModel, options: argparse.Namespace, rate: float, seed: int) -> PPOX:
    policy, buffer = ARMS[arm]
    model = PPOX(
        LanguageModelPolicy,
        treasures(options.n_envs),
        policy_kwargs={"model": start, **policy},
        rollout_buffer_kwargs=buffer,
        n_steps=TURNS,
        batch_size=80,
        n_epochs=2,
        gamma=1.0,
        learning_rate=rate,
        seed=seed,
        device="cpu",
    )
    return model.learn(options.timesteps, log_interval=None)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[3e-4])
    parser.add_argument("--timesteps", type=int, default=32_000, help="responses")
    parser.add_argument("--n-envs", type=int, default=64)
    parser.add_argument("--warm-up", type=int, default=200, help="supervised steps on random games")
    parser.add_argument("--games", type=int, default=512, help="new games that measure the success")
    options = parser.parse_args(arguments)
    print("arm      | learning rate | success on new games, seed by seed | mean", flush=True)
    starts = [after_random_games(options.warm_up, seed) for seed in range(options.seeds)]
    for arm in options.arms:
        for rate in options.learning_rates:
            found = []
            for seed, start in enumerate(starts):
                model = trained(arm, start, options, rate, seed)
                found.append(success_rate(model, options.games, seed))
            each = " ".join(f"{rate:.2f}" for rate in found)
            print(f"{arm:8} | {rate:13} | {each:34} | {statistics.mean(found):.2f}", flush=True)


if __name__ == "__main__":
    main()
