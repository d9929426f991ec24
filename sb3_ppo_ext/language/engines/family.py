"""Language models trained token by token: what PPOX does differently for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypedDict, cast

from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy

from sb3_ppo_ext.distributed.shards import Shards
from sb3_ppo_ext.engines.cuda.engine import RECORDERS
from sb3_ppo_ext.engines.engine import Engine
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.knobs.controllers import Controller
from sb3_ppo_ext.language.arguments import check_algorithm, check_division
from sb3_ppo_ext.language.engines.block_kinds import by_blocks
from sb3_ppo_ext.language.engines.engine import CompiledTokenEngine, EagerTokenEngine, language_model
from sb3_ppo_ext.language.envs.shares import share_order
from sb3_ppo_ext.language.model.packed_layers import Layout
from sb3_ppo_ext.language.model.progress import progress_of
from sb3_ppo_ext.language.model.samplers import CopySampler
from sb3_ppo_ext.language.monitoring.findings import Findings, refill_findings
from sb3_ppo_ext.language.monitoring.records import response_records
from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy
from sb3_ppo_ext.language.training.baselines import check_groups
from sb3_ppo_ext.language.training.refill import Group
from sb3_ppo_ext.language.training.shared_prompts import check_shared_prompts
from sb3_ppo_ext.language.training.token_buffer import SequenceRolloutBuffer
from sb3_ppo_ext.language.training.token_rollout import TokenRollout
from sb3_ppo_ext.language.training.token_update import token_update
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.epochs import Update


class Carried(TypedDict):
    """What a model's file has of a run besides the model, for the next rollout."""

    waiting: list[Group]
    layout: Layout | None


class Costs(NamedTuple):
    """Seconds on one type of device."""

    saved_per_state: float  # token, layer and channel trained on
    saved_per_decoded_layer: float  # and token
    compile_time_per_layer: float  # of one graph


class BlockCosts(NamedTuple):
    """Seconds on a CPU where the blocks of a model are compiled."""

    saved_per_state: float  # token, block and channel trained on
    saved_per_decoded_block: float  # and token
    compile_time: float  # of the gradient, however many blocks there are
    compile_time_of_token: float


# By type of device: of a GPT-2 of 4 layers of width 128 on one thread, and of the shape of Qwen2-0.5B on an H200.
COSTS = {"cpu": Costs(40e-9, 1e-3, 7.5), "cuda": Costs(1e-9, 1e-3, 1.6)}
COSTS_OF_BLOCKS = BlockCosts(15e-9, 0.5e-3, 30.0, 15.0)  # of SmolLM2-135M on two threads


class TokenFamily:
    """Language models trained token by token."""

    buffer_class: type[RolloutBuffer] | None = SequenceRolloutBuffer
    compilable = True

    def __init__(self) -> None:
        self.eager: Engine = EagerTokenEngine()
        self._findings = Findings()

    def check(self, arguments: Any) -> None:
        """Raises ``ValueError`` for arguments of PPOX that do not go with a language model."""
        check_algorithm(arguments, SequenceRolloutBuffer)
        check_groups(arguments)

    def check_shards(self, arguments: Any, shards: Shards) -> None:
        """Raises ``ValueError`` for groups and samplers that cannot be divided."""
        check_division(arguments, shards)
        check_shared_prompts(arguments, shards.count)

    def place_environments(self, model: Any) -> None:
        """Gives the prompts of all processes one order."""
        if model._shards is not None:
            share_order(model.env, model._shards, model._processes)

    @contextmanager
    def collecting(self, run: Run, callback: BaseCallback) -> Iterator[None]:
        """Reports the progress of a rollout, which may take minutes."""
        with progress_of(run, callback) as run.progress:
            try:
                yield
            finally:
                run.progress = None

    def rollout(self, run: Run) -> Rollout:
        """The responses that ``run.buffer`` has collected, with their KL to the reference."""
        return TokenRollout(run, cast(SequenceRolloutBuffer, run.buffer), language_model(run))

    def update(self, run: Run, rollout: Rollout) -> Update:
        """The update over the rollout's tokens."""
        return token_update(run, cast(TokenRollout, rollout))

    def carried(self, buffer: RolloutBuffer, policy: BasePolicy) -> Carried:
        """The groups that wait for the next rollout, and how the weights of the sampler's copy are laid out."""
        waiting = buffer.draws["waiting"] if isinstance(buffer, SequenceRolloutBuffer) and buffer.draws else []
        sampler = cast(LanguageModelPolicy, policy).sampler
        return {"waiting": waiting, "layout": sampler.layout if isinstance(sampler, CopySampler) else None}

    def take_carried(self, buffer: RolloutBuffer, policy: BasePolicy, carried: Carried | None) -> None:
        """Lets the groups wait in this buffer, unless it draws for itself alone now; the copy begins as it was.

        Measured again, another layout may be the fastest by chance, and rounds otherwise.
        """
        if carried is None:
            return
        if isinstance(buffer, SequenceRolloutBuffer) and buffer.draws:
            buffer.draws["waiting"] = carried["waiting"]
        sampler = cast(LanguageModelPolicy, policy).sampler
        if isinstance(sampler, CopySampler) and (layout := carried["layout"]) is not None:
            sampler.begin_with(layout)

    def compiled(self, run: Run) -> Engine:
        """The engine by graphs, which itself refuses devices and types that are not compiled."""
        if run.device.type in RECORDERS and run.shards is not None:
            raise CompileError("CUDA graphs of language models are for one process without shards")
        return CompiledTokenEngine(run.device.type)

    def on_device(self, device_type: str) -> bool:
        """False: responses are kept on the host."""
        return False

    def savings(self, run: Run, epochs: int, steps: int) -> tuple[float, float] | None:
        """Seconds that compiling saves, and seconds it takes; None where neither was measured."""
        costs = COSTS.get(run.device.type)
        if costs is None:
            return None
        policy = language_model(run)
        config, longest = policy.lm.plain.config.get_text_config(), policy.responses.max_new_tokens
        layers = config.num_hidden_layers
        branches = 1
        if cast(SequenceRolloutBuffer, run.buffer).settings.share_prompts and run.env is not None:
            branches = run.env.get_attr("group_size")[0]
        slots = epochs * run.settings.n_steps * run.of_all(run.n_envs) * (policy.prompt_length / branches + longest)
        channels = slots * layers * config.hidden_size
        decoded = steps * longest * layers if policy.sampler is None else 0
        if by_blocks(policy):
            costs_of_blocks = COSTS_OF_BLOCKS
            takes = costs_of_blocks.compile_time + (costs_of_blocks.compile_time_of_token if decoded else 0.0)
            saved = channels * costs_of_blocks.saved_per_state + decoded * costs_of_blocks.saved_per_decoded_block
            return saved, takes
        saved = channels * costs.saved_per_state + decoded * costs.saved_per_decoded_layer
        return saved, 2 * layers * costs.compile_time_per_layer

    def records(self, run: Run, rollout: Rollout) -> dict[str, float]:
        """The log's values of the responses themselves, under full keys."""
        return response_records(cast(TokenRollout, rollout))

    def findings(self, run: Run, rollout: Rollout, records: Mapping[str, float]) -> dict[str, str]:
        """Warnings about the responses: subject -> text."""
        controller = run.knobs.knobs["ref_kl_coef"]
        target = controller.target if isinstance(controller, Controller) else None
        found = self._findings.of(records, ref_kl=rollout.controller_inputs.get("ref_kl"), ref_kl_target=target)
        return found | refill_findings(records)
