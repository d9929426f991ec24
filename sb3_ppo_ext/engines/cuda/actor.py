"""Acting while a rollout is collected: the policy's forward pass as one CUDA graph, its results copied at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from sb3_ppo_ext.engines.cpu.actor import acting_inputs, keys_of, values_of, variable_inputs
from sb3_ppo_ext.engines.cuda.update import CudaGraphCache
from sb3_ppo_ext.engines.fingerprints import fingerprint, signature
from sb3_ppo_ext.engines.noise import Noise, noise_as_inputs
from sb3_ppo_ext.engines.substitution import refuse_writes
from sb3_ppo_ext.engines.traced_actor import ActorGraph
from sb3_ppo_ext.engines.tracing import Inputs, tensors_of, trace
from sb3_ppo_ext.host.pytorch import trees
from sb3_ppo_ext.objective.batch import Observation
from sb3_ppo_ext.policies.adapter import unvalidated_distributions
from sb3_ppo_ext.rollout.actors import Acted, check_distribution, predicted_values

DRAWS = 64  # of noise at a time, where all of it is of one stream


class DeviceActor:
    """An ``Actor`` that equals the policy's ``forward`` up to rounding; torch's generator of the device draws noise."""

    def __init__(
        self, policy: ActorCriticPolicy, recordings: CudaGraphCache, observation: Observation, *, by_shards: bool
    ) -> None:
        """The actor for batches of the size of ``observation``; ``by_shards``: each call draws from another stream."""
        self.policy, draws = policy, 1 if by_shards else DRAWS
        inputs = acting_inputs(policy, observation)
        addresses = tuple(tensor.data_ptr() for tensor in inputs["constants"].values())
        key = ("acting", fingerprint(policy), addresses, signature(inputs), draws)
        self._forward: RecordedForward = recordings.get(key, lambda: RecordedForward(policy, inputs, recordings, draws))
        self._forward.discard_noise()
        self._keys = keys_of(observation)
        self._rows = len(trees.tree_leaves(observation)[0])

    def act(self, observation: Observation) -> Acted:
        """Actions, values and log-probabilities; ``sampled`` has the type of the values."""
        self._forward.require_noise()
        packed = self._packed(observation)
        results = self._forward.outputs.unpacked(packed)  # while the device computes
        actions, finite = self._forward.outputs.read(packed)
        if not finite:
            check_distribution(self.policy, observation)
        return Acted(actions, *results)

    def _packed(self, observation: Observation) -> Tensor:
        return self._forward(variable_inputs(self.policy, observation, self._keys))

    def terminal_values(self, observations: list[Observation]) -> Iterator[Tensor]:
        """The value [1] of each observation, in batches of the number of environments; draws nothing."""
        yield from values_of(observations, self._rows, self._values)

    def last_values(self, observation: Observation, dones: np.ndarray) -> Tensor:
        """Values [N, 1] of the observations after the last step."""
        return predicted_values(self.policy, observation)

    def _values(self, observation: Observation) -> Tensor:
        values = self._forward.outputs.unpacked(self._packed(observation))[1]
        self._forward.rewind_noise()
        return values


class PackedOutputs:
    """``ActorGraph`` with its results end to end in one tensor; their shapes are known once it has been traced."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.act = ActorGraph(policy)
        self.shapes: list[torch.Size] = []
        self.sizes: list[int] = []
        self.dtype = torch.float32
        self.action_dtype: Any = np.float32

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """The results as one vector of the values' type: choices become floats, as the rollout buffer stores them."""
        results = self.act(inputs)
        self.shapes = [result.shape for result in results]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        # NumPy's type by its name: while a policy is traced there is no tensor to convert.
        self.dtype, self.action_dtype = results[1].dtype, np.dtype(str(results[0].dtype).removeprefix("torch."))
        return (torch.cat([result.reshape(-1).to(self.dtype) for result in results]),)

    def unpacked(self, packed: Tensor) -> list[Tensor]:
        """Actions, values and log-probabilities as views of the vector."""
        vectors = torch.split_with_sizes(packed, self.sizes)
        return [v if len(shape) == 1 else v.view(shape) for v, shape in zip(vectors, self.shapes, strict=True)]

    def read(self, packed: Tensor) -> tuple[np.ndarray, bool]:
        """Actions as the policy returns them, and whether all log-probabilities are finite; waits for the device."""
        host = packed.cpu().numpy()
        actions, log_probs = host[: self.sizes[0]].reshape(self.shapes[0]), host[len(host) - self.sizes[2] :]
        return actions.astype(self.action_dtype, copy=False), bool(np.isfinite(log_probs).all())


class RecordedForward:
    """The CUDA graph of the forward pass, the tensors it reads from, and the one it writes to.

    Noise is drawn for several calls at once, and each call reads the row ``noise_index``. The last row is never
    drawn: calls whose noise does not matter read it when all others are used.
    """

    def __init__(self, policy: ActorCriticPolicy, inputs: Inputs, recordings: CudaGraphCache, draws: int) -> None:
        variable = {name: inputs[name] for name in ("exploration", "observation")}
        self.variable: Inputs = trees.tree_map(torch.clone, variable)
        self.outputs = PackedOutputs(policy)
        with unvalidated_distributions():
            traced = trace(self.outputs, {**inputs, **self.variable}, policy, draws=True)
        refuse_writes(traced, {**inputs, **self.variable})
        self.draws: list[Noise] = noise_as_inputs(traced)
        self.variables = tensors_of(self.variable)
        device = self.variables[0].device
        self.noise = [torch.ones((draws + 1, *draw.shape), device=device) for draw in self.draws]
        self.noise_index = torch.zeros(1, dtype=torch.long, device=device)
        self.draws_left = 0
        tensors = [*tensors_of({"constants": inputs["constants"]}), *self.variables]
        call = recordings.compile(traced, [*tensors, *self._next_noise()])
        self.packed = torch.zeros(sum(self.outputs.sizes), dtype=self.outputs.dtype, device=device)

        def run() -> None:
            self.packed.copy_(call(*tensors, *self._next_noise())[0])
            self.noise_index.add_(1)

        self._replay = recordings.recorder.record(run, [self.packed, self.noise_index])

    def _next_noise(self) -> list[Tensor]:
        return [noise.index_select(0, self.noise_index).squeeze(0) for noise in self.noise]

    def discard_noise(self) -> None:
        """Leaves no noise over, at the start of a rollout: a saved model goes on from torch's generator alone."""
        self.draws_left = 0
        self.noise_index.zero_()

    def require_noise(self) -> None:
        """Draws noise where none is left for the next call."""
        if self.draws_left == 0:
            for noise, draw in zip(self.noise, self.draws, strict=True):
                draw.fill(noise[:-1])
            self.noise_index.zero_()
            self.draws_left = len(self.noise[0]) - 1 if self.noise else 1
        self.draws_left -= 1

    def rewind_noise(self) -> None:
        """Gives back the draw of a call that used none."""
        self.noise_index.sub_(1)

    def __call__(self, variables: list[Tensor]) -> Tensor:
        """A copy of the packed results for these tensors: callbacks may keep it."""
        for mine, new in zip(self.variables, variables, strict=True):
            mine.copy_(new)
        self._replay()
        return self.packed.clone()
