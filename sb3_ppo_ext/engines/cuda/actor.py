"""Acting while a rollout is collected: the policy's forward pass as one recording, its results read at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from sb3_ppo_ext.engines.cpu.actor import acting_inputs, values_of
from sb3_ppo_ext.engines.cuda.update import DeviceRecordings
from sb3_ppo_ext.engines.fingerprints import fingerprint, signature
from sb3_ppo_ext.engines.noise import Noise, noise_as_inputs
from sb3_ppo_ext.engines.substitution import refuse_writes
from sb3_ppo_ext.engines.traced_actor import ActorGraph, exploration_of
from sb3_ppo_ext.engines.tracing import Inputs, tensors_of, trace
from sb3_ppo_ext.host.pytorch import trees
from sb3_ppo_ext.objective.batch import Observation
from sb3_ppo_ext.policies.adapter import unvalidated_distributions
from sb3_ppo_ext.rollout.actors import Acted, check_distribution, predicted_values

DRAWS = 64  # of noise at a time


class DeviceActor:
    """As the policy's own ``forward`` up to rounding; noise is drawn by torch's generator of the device."""

    def __init__(self, policy: ActorCriticPolicy, recordings: DeviceRecordings, observation: Observation) -> None:
        """For batches of the size of ``observation``."""
        self.policy = policy
        inputs = acting_inputs(policy, observation)
        places = tuple(tensor.data_ptr() for tensor in inputs["constants"].values())
        key = ("acting", fingerprint(policy), places, signature(inputs))
        self._forward: Forward = recordings.get(key, lambda: Forward(policy, inputs, recordings))
        self._forward.forget_noise()
        self._explores = bool(inputs["exploration"])
        self._keys = list(observation) if isinstance(observation, dict) else []
        self._rows = len(trees.tree_leaves(observation)[0])

    def act(self, observation: Observation) -> Acted:
        """See ``Actor``; ``sampled`` has the type of the values."""
        forward = self._forward
        forward.draw()
        packed = forward(self._given(observation))
        kept = forward.packing.unpacked(packed)  # while the device computes
        actions, finite = forward.packing.read(packed)
        if not finite:
            check_distribution(self.policy, observation)
        return Acted(actions, *kept)

    def _given(self, observation: Observation) -> list[Tensor]:
        # Read anew each time: they are drawn again in the middle of a rollout.
        exploration = exploration_of(self.policy).values() if self._explores else ()
        parts = [observation[key] for key in self._keys] if isinstance(observation, dict) else [observation]
        return [*exploration, *parts]

    def terminal_values(self, observations: list[Observation]) -> Iterator[Tensor]:
        """The value [1] of each observation, as many at a time as there are environments; draws nothing."""
        yield from values_of(observations, self._rows, self._values)

    def last_values(self, observation: Observation, dones: np.ndarray) -> Tensor:
        """See ``Actor``."""
        return predicted_values(self.policy, observation)

    def _values(self, observation: Observation) -> Tensor:
        values = self._forward.packing.unpacked(self._forward(self._given(observation)))[1]
        self._forward.keep_noise()
        return values


class Packing:
    """``ActorGraph`` with its results end to end in one tensor; their shapes are known when it has been traced."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.act = ActorGraph(policy)
        self.shapes: list[torch.Size] = []
        self.sizes: list[int] = []
        self.type = torch.float32
        self.array_type: Any = np.float32  # of the actions

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Choices become floats, as the rollout buffer keeps them."""
        results = self.act(inputs)
        self.shapes = [result.shape for result in results]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.type, self.array_type = results[1].dtype, _array_type(results[0].dtype)
        return (torch.cat([result.reshape(-1).to(self.type) for result in results]),)

    def unpacked(self, packed: Tensor) -> list[Tensor]:
        """Actions, values and log-probabilities as parts of the tensor."""
        parts = torch.split_with_sizes(packed, self.sizes)
        return [part if len(shape) == 1 else part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def read(self, packed: Tensor) -> tuple[np.ndarray, bool]:
        """Actions as the policy returns them, and whether all log-probabilities are finite; waits for the device."""
        host = packed.cpu().numpy()
        choices, rest = host[: self.sizes[0]].reshape(self.shapes[0]), host[len(host) - self.sizes[2] :]
        return choices.astype(self.array_type, copy=False), bool(np.isfinite(rest).all())


def _array_type(dtype: torch.dtype) -> Any:
    """NumPy's name of a type; of no tensor, for there are only fake ones while a policy is traced."""
    return np.dtype(str(dtype).removeprefix("torch."))


class Forward:
    """The recording, the tensors it reads from, and the one it writes to.

    Noise is drawn for many calls at once; each call takes the next of it, ``turn``. One more than is drawn is never
    used: calls that need no noise read it when there is no other.
    """

    def __init__(self, policy: ActorCriticPolicy, inputs: Inputs, recordings: DeviceRecordings) -> None:
        given = {name: inputs[name] for name in ("exploration", "observation")}
        self.given: Inputs = trees.tree_map(torch.clone, given)
        self.packing = Packing(policy)
        with unvalidated_distributions():
            traced = trace(self.packing, {**inputs, **self.given}, policy, draws=True)
        refuse_writes(traced, {**inputs, **self.given})
        self.kinds: list[Noise] = noise_as_inputs(traced)
        self.places = tensors_of(self.given)
        device = self.places[0].device
        self.noise = [torch.ones((DRAWS + 1, *one.shape), device=device) for one in self.kinds]
        self.turn = torch.zeros(1, dtype=torch.long, device=device)
        self.left = 0
        tensors = [*tensors_of({"constants": inputs["constants"]}), *self.places]
        call = recordings.finish(traced, [*tensors, *self._next_noise()])
        self.packed = torch.zeros(sum(self.packing.sizes), dtype=self.packing.type, device=device)

        def run() -> None:
            self.packed.copy_(call(*tensors, *self._next_noise())[0])
            self.turn.add_(1)

        self._replay = recordings.recorder.record(run, [self.packed, self.turn])

    def _next_noise(self) -> list[Tensor]:
        return [noise.index_select(0, self.turn).squeeze(0) for noise in self.noise]

    def forget_noise(self) -> None:
        """At the start of a rollout: a saved model goes on from torch's generator alone."""
        self.left = 0
        self.turn.zero_()

    def draw(self) -> None:
        """Sees to it that the next call has noise of its own."""
        if self.left == 0:
            for noise, kind in zip(self.noise, self.kinds, strict=True):
                kind.fill(noise[:-1])
            self.turn.zero_()
            self.left = len(self.noise[0]) - 1 if self.noise else 1
        self.left -= 1

    def keep_noise(self) -> None:
        """After a call that needed none: the next one has what that one did not use."""
        self.turn.sub_(1)

    def __call__(self, given: list[Tensor]) -> Tensor:
        """A copy of the results, packed: callbacks may keep it."""
        for kept, new in zip(self.places, given, strict=True):
            kept.copy_(new)
        self._replay()
        return self.packed.clone()
