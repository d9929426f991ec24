"""A frozen copy of the policy as the opponent in a game."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK, INPUT_IDS
from sb3_ppo_ext.language.envs.turns.transcripts import turns_of
from sb3_ppo_ext.language.envs.vocabulary import Vocabulary
from sb3_ppo_ext.language.inputs import at_least

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy


class PolicyOpponent(BaseCallback):
    """Plays by a frozen copy of the policy, which is taken anew every ``every`` rollouts; 0 keeps the first one.

    It is an opponent of ``TextGameEnv`` and a callback of ``learn`` at once. Its texts are prompts of one turn, in the
    tokenizer's chat template where it has one; the beginning of a text that is too long is left out. A resumed run
    takes up its weights and begins new games.

    :param tokenizer: that of the environment
    :param every: rollouts from one copy to the next
    :param before: plays until the first copy is taken, when ``learn`` begins; None: only ``update(policy)`` does then
    """

    def __init__(self, tokenizer: Any, *, every: int = 0, before: Callable[[str], str] | None = None) -> None:
        super().__init__()
        self.tokenizer, self.before = tokenizer, before
        self.every = at_least(0, "every", every)
        self.policy: LanguageModelPolicy | None = None
        self.weights: dict[str, Any] | None = None  # of the copy in a resumed run, until there is a policy to take them
        self.rollouts = 0

    def state_dict(self) -> dict[str, Any]:
        """The weights of the copy, and how many rollouts there were."""
        weights = None if self.policy is None else self.policy.state_dict()
        return {"rollouts": self.rollouts, "weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state_dict()``."""
        self.rollouts, self.weights = state["rollouts"], state["weights"]
        if self.policy is not None and self.weights is not None:
            self.policy.load_state_dict(self.weights)
            self.weights = None

    def update(self, policy: LanguageModelPolicy) -> None:
        """Plays by a copy of ``policy`` as it is now."""
        self.policy = copy.deepcopy(policy)
        self.policy.set_training_mode(False)

    def _on_training_start(self) -> None:
        if self.policy is None:
            self.update(self.model.policy)  # type: ignore[arg-type]  # a language model's
            if self.weights is not None:
                self.load_state_dict({"rollouts": self.rollouts, "weights": self.weights})

    def _on_rollout_end(self) -> None:
        self.rollouts += 1
        if self.every and self.rollouts % self.every == 0:
            self.update(self.model.policy)  # type: ignore[arg-type]  # a language model's

    def _on_step(self) -> bool:
        return True

    def __call__(self, text: str) -> str:
        """The move that the copy makes after ``text``."""
        if self.policy is None:
            if self.before is None:
                raise ValueError("PolicyOpponent has no policy yet: pass before=..., or call update(policy)")
            return self.before(text)
        policy = self.policy
        vocabulary = Vocabulary.of(self.tokenizer, policy.responses.vocab_size, policy.responses.eos_token_ids)
        ids = turns_of(vocabulary, chat=None, system=None, turn_format="{reply}\n").opening(text)
        prompt = torch.tensor([ids[-policy.prompt_length :]], device=policy.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.getrandbits(63))  # the game's random state while it plays
            response = policy.generate({INPUT_IDS: prompt, ATTENTION_MASK: torch.ones_like(prompt)})
        answer: str = vocabulary.text_of(response.token[0][response.mask[0]].tolist())
        return answer
