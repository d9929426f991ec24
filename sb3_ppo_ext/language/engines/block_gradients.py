"""The gradient of an update with the blocks of the model compiled, and everything around them by PyTorch."""

from __future__ import annotations

from collections.abc import Iterable

from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.graph_cache import Graphs
from sb3_ppo_ext.language.engines.blocks import CompiledBlocks
from sb3_ppo_ext.language.engines.traced_tokens import require_traceable
from sb3_ppo_ext.language.training.micro_batches import MicroBatch
from sb3_ppo_ext.language.training.token_update import EagerGradients
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.statistics import Statistics
from sb3_ppo_ext.objective.terms import KnobValues


class BlockGradients:
    """Gradients by autograd over compiled blocks, in the micro-batches of ``eager``."""

    def __init__(self, eager: EagerGradients, graphs: Graphs) -> None:
        """Compiles the blocks; ``CompileError`` with the reason where that cannot be."""
        require_traceable(eager.update.adapter.policy)
        if eager.update.adapter.full_kl:
            raise CompileError("the exact KL to the reference over the vocabulary is not compiled")
        self.eager = eager
        self.blocks = CompiledBlocks(eager.update.adapter.policy, graphs)

    def split(self, minibatch: Minibatch) -> Iterable[MicroBatch]:
        """Micro-batches within ``micro_batch_tokens``, without padding."""
        return self.eager.split(minibatch)

    def add(self, micro_batch: MicroBatch, knobs: KnobValues) -> Statistics:
        """Adds the micro-batch's gradient to that of the parameters; its statistics."""
        with self.blocks.installed():
            return self.eager.add(micro_batch, knobs)
