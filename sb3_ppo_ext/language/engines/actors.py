"""Actors of a rollout of responses: the policy itself, or with the graph of one token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from sb3_ppo_ext.engines.graph_cache import Graphs
from sb3_ppo_ext.language.engines.compiled import DECODING, CompiledDecoder
from sb3_ppo_ext.language.engines.traced_tokens import require_traceable
from sb3_ppo_ext.language.envs.prompt_vec_env import group_ids_of, successes_of
from sb3_ppo_ext.language.model.drawing import noise_for
from sb3_ppo_ext.language.model.generation import Decoder
from sb3_ppo_ext.language.training.token_buffer import SequenceRolloutBuffer
from sb3_ppo_ext.objective.batch import Observation
from sb3_ppo_ext.rollout.actors import Acted, predicted_values
from sb3_ppo_ext.run import Run

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy


class EagerTokenActor:
    """Responses by the policy itself; the run counts the seconds of generation."""

    def __init__(self, policy: LanguageModelPolicy, run: Run) -> None:
        self.policy = policy
        self.run = run
        self.buffer = cast(SequenceRolloutBuffer, run.buffer)
        self.buffer.last_successes = None if run.env is None else partial(successes_of, run.env)
        self.decoder_of: Callable[..., Decoder] = Decoder

    def act(self, observation: Observation) -> Acted:
        """Responses, and value and log-probability of every token, all [N, L]."""
        if (groups := group_ids_of(self.run.env)) is not None:
            self.buffer.group_ids[self.buffer.pos] = groups
        started, scoring = time.perf_counter(), self.run.seconds.get("rescoring", 0.0)
        responses, values, log_probs = self.sampled(observation)
        on_host = responses.cpu().numpy()
        scoring -= self.run.seconds.get("rescoring", 0.0)
        self.spent("generation", time.perf_counter() - started + scoring)
        return Acted(on_host, responses, values, log_probs)

    @torch.no_grad()
    def sampled(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Responses, and value and log-probability of every token, all [N, L]."""
        found: tuple[Tensor, Tensor, Tensor] = self.policy(
            observation, decoder_of=self.decoder_of, progress=self.run.progress
        )
        return found

    def spent(self, work: str, seconds: float) -> None:
        """Adds the seconds to those of this part of the run's work."""
        self.run.seconds[work] = self.run.seconds.get(work, 0.0) + seconds

    def terminal_values(self, observations: list[Observation]) -> Iterator[Tensor]:
        """Values [1] of the last observations of episodes that a time limit has cut."""
        for observation in observations:
            yield predicted_values(self.policy, observation)[0]

    def last_values(self, observation: Observation, dones: np.ndarray) -> Tensor:
        """Values [N, 1] of the next prompts: a pass over all of them, unless every episode has ended."""
        if np.all(dones):
            return torch.zeros(len(dones), 1, device=self.policy.device)
        return predicted_values(self.policy, observation)


class CompiledTokenActor(EagerTokenActor):
    """Responses by ``CompiledDecoder`` or a class derived from it."""

    def __init__(
        self,
        policy: LanguageModelPolicy,
        run: Run,
        graphs: Graphs,
        decoder: Callable[..., Decoder] = CompiledDecoder,
    ) -> None:
        """``CompileError`` where the model cannot be compiled."""
        super().__init__(policy, run)
        require_traceable(policy)
        self.decoder_of = partial(decoder, policy=policy, graphs=graphs)
        # A rollout whose prompts do not fit this graph makes another on the way.
        if policy.responses.max_new_tokens > 1 and not graphs.knows(DECODING):
            self._compile(policy, run.n_envs if run.shards is None else run.n_envs // len(run.shards.own))

    @torch.no_grad()
    def _compile(self, policy: LanguageModelPolicy, n_envs: int) -> None:
        model, device = policy.lm, policy.device
        token = torch.zeros(n_envs, 1, dtype=torch.long, device=device)
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
            seen = torch.ones(n_envs, 2, dtype=torch.bool, device=device)
            decoder = self.decoder_of(model, seen, None, deterministic=False)
            for until in (1, 2):
                decoder.draw(token, until, noise_for(n_envs, device))
