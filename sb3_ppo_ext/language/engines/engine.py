"""The engines of language models: eager, or by graphs on a CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch

from sb3_ppo_ext.engines.compile_progress import compile_progress
from sb3_ppo_ext.engines.cuda.engine import RECORDERS
from sb3_ppo_ext.engines.cuda.graph_cache import DeviceGraphs
from sb3_ppo_ext.engines.engine import MakeActor, MakeRunner
from sb3_ppo_ext.engines.graph_cache import Graphs
from sb3_ppo_ext.language.engines.actors import CompiledTokenActor, EagerTokenActor
from sb3_ppo_ext.language.engines.block_decoder import BlockTokenActor
from sb3_ppo_ext.language.engines.block_gradients import BlockGradients
from sb3_ppo_ext.language.engines.block_kinds import by_blocks
from sb3_ppo_ext.language.engines.compiled import CompiledDecoder, CompiledGradients
from sb3_ppo_ext.language.engines.cuda_decoder import RecordedDecoder
from sb3_ppo_ext.language.engines.sampler_actor import SamplerActor
from sb3_ppo_ext.language.engines.separate_critic import ConcurrentGradients
from sb3_ppo_ext.language.model.critics import SeparateCritic
from sb3_ppo_ext.language.training.critic import CriticTraining
from sb3_ppo_ext.language.training.ratio_check import RatioCheck
from sb3_ppo_ext.language.training.token_rollout import TokenRollout
from sb3_ppo_ext.language.training.token_update import (
    EagerGradients,
    MicroBatchGradients,
    TokenGradients,
    TokenUpdate,
    token_steps,
)
from sb3_ppo_ext.policies.adapter import unwrapped
from sb3_ppo_ext.rollout.actors import Actor
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.eager import EagerRunner
from sb3_ppo_ext.update.epochs import Runner, Update
from sb3_ppo_ext.update.step import EpochStatistics

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy


def language_model(run: Run) -> LanguageModelPolicy:
    """The policy of a run with a language model."""
    return cast("LanguageModelPolicy", unwrapped(run.policy))


class EagerTokenEngine:
    """PyTorch's own operations, one by one."""

    def prepare(self, run: Run, actor: MakeActor, runner: MakeRunner) -> None:
        """Does nothing."""

    def actor(self, run: Run) -> Actor:
        """The policy itself, or its sampler."""
        policy = language_model(run)
        if policy.sampler is not None:
            return SamplerActor(policy, run, policy.sampler)
        return EagerTokenActor(policy, run)

    def runner(self, run: Run, rollout: Rollout, update: Update) -> Runner:
        """The loop over minibatches with gradients by autograd."""
        assert isinstance(update, TokenUpdate)
        return token_runner(run, rollout, update, EagerGradients(update))


class CompiledTokenEngine:
    """Gradients and decoding by the graphs of one model."""

    def __init__(self, device_type: str) -> None:
        self.verbose = 0
        self.recorded = device_type in RECORDERS
        if self.recorded:
            self.graphs: Graphs = DeviceGraphs(device_type, lambda: compile_progress(self.verbose))
        else:
            self.graphs = Graphs(lambda: compile_progress(self.verbose))

    def prepare(self, run: Run, actor: MakeActor, runner: MakeRunner) -> None:
        """Does nothing: shapes follow from the lengths of responses, which are known after a rollout."""

    def actor(self, run: Run) -> Actor:
        """Responses by the graph of one token, or by the policy's sampler."""
        if (sampler := language_model(run).sampler) is not None:
            return SamplerActor(language_model(run), run, sampler)
        self.verbose = run.settings.verbose
        if by_blocks(language_model(run)):
            return BlockTokenActor(language_model(run), run, self.graphs)
        decoder = RecordedDecoder if self.recorded else CompiledDecoder
        return CompiledTokenActor(language_model(run), run, self.graphs, decoder)

    def runner(self, run: Run, rollout: Rollout, update: Update) -> Runner:
        """The loop over minibatches with gradients by graphs."""
        assert isinstance(update, TokenUpdate)
        self.verbose = run.settings.verbose
        policy = language_model(run)
        if by_blocks(policy):
            return token_runner(run, rollout, update, BlockGradients(EagerGradients(update), self.graphs))
        branches = cast(TokenRollout, rollout).branches
        prompts = min(run.batch_size, rollout.size) // branches
        if update.settings.micro_batch_tokens is not None:
            longest = policy.prompt_length + branches * policy.responses.max_new_tokens
            prompts = min(max(update.settings.micro_batch_tokens // longest, 1), prompts)
        separate = isinstance(policy.critic, SeparateCritic)
        concurrent = separate and not self.recorded and torch.get_num_threads() > 1
        gradients = (ConcurrentGradients if concurrent else CompiledGradients)(
            EagerGradients(update), self.graphs, prompts * branches, branches
        )
        gradients.prepare(rollout.rows, run.knobs.values)
        return token_runner(run, rollout, update, gradients)


class TokenRunner(EagerRunner):
    """The eager loop over minibatches, after which the value function may go on alone (``critic_epochs``)."""

    update: TokenUpdate

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.share = 1.0  # micro-batches have the weight of their tokens among those of all processes already

    def epochs(self) -> Iterator[EpochStatistics]:
        """Yields the statistics of each epoch of the whole loss, until ``target_kl`` stops them."""
        yield from super().epochs()
        update, run = self.update, self.run
        training = CriticTraining(
            *(update.adapter.policy, update.objective, update.settings),
            max_grad_norm=run.settings.max_grad_norm,
            processes=run.processes,
        )
        for _ in range((update.settings.critic_epochs or 0) - run.settings.n_epochs):
            with self.steps(update.optimizer, update.parameters) as step:
                training.epoch(self.rollout.minibatches(run.batch_size), run.knobs.values, step)


def token_runner(run: Run, rollout: Rollout, update: TokenUpdate, micro_batches: MicroBatchGradients) -> Runner:
    """The eager loop over minibatches, with gradients by ``micro_batches``."""
    gradients = TokenGradients(update, micro_batches, RatioCheck(update.adapter.policy, run.processes))
    return TokenRunner(run, rollout, update, gradients, token_steps)
