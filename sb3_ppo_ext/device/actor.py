"""Acting while a rollout is collected: the policy's forward pass as one recording."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.utils import _pytree as pytree

from sb3_ppo_ext.actors import refuse_nan
from sb3_ppo_ext.compiled import ActorGraph, exploration_of
from sb3_ppo_ext.compiled_actor import acting_inputs, values_of
from sb3_ppo_ext.device.update import DeviceRecordings
from sb3_ppo_ext.minibatches import Observation
from sb3_ppo_ext.policies import unvalidated_distributions
from sb3_ppo_ext.tracing import Inputs, Noise, fingerprint, noise_as_inputs, signature, tensors_of, trace


class DeviceActor:
    """As the policy's own ``forward`` up to rounding; noise is drawn by torch's generator of the device."""

    def __init__(self, policy: ActorCriticPolicy, recordings: DeviceRecordings, observation: Observation) -> None:
        """For batches of the size of ``observation``."""
        self.policy = policy
        inputs = acting_inputs(policy, observation)
        places = tuple(tensor.data_ptr() for tensor in inputs["constants"].values())
        key = ("acting", fingerprint(policy), places, signature(inputs))
        self._forward: Forward = recordings.get(key, lambda: Forward(policy, inputs, recordings))
        self._explores = bool(inputs["exploration"])
        self._rows = len(pytree.tree_leaves(observation)[0])

    def act(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Actions [N, ...], values [N, 1] and log-probabilities [N]."""
        self._forward.draw()
        actions, values, log_probs = self._run(observation)
        refuse_nan(self.policy, observation, log_probs)
        return actions, values, log_probs

    def _run(self, observation: Observation) -> tuple[Tensor, ...]:
        # Read anew each time: they are drawn again in the middle of a rollout.
        exploration = exploration_of(self.policy) if self._explores else {}
        return self._forward({"exploration": exploration, "observation": observation})

    def terminal_values(self, observations: list[Observation]) -> Iterator[Tensor]:
        """The value [1] of each observation, as many at a time as there are environments; draws nothing."""
        yield from values_of(observations, self._rows, lambda batch: self._run(batch)[1])


class Forward:
    """The recording, the tensors it reads from, and those it writes to."""

    def __init__(self, policy: ActorCriticPolicy, inputs: Inputs, recordings: DeviceRecordings) -> None:
        given = {name: inputs[name] for name in ("exploration", "observation")}
        self.given: Inputs = pytree.tree_map(torch.clone, given)
        with unvalidated_distributions():
            traced = trace(ActorGraph(policy), {**inputs, **self.given})
        draws = noise_as_inputs(traced)
        device = tensors_of(self.given)[0].device
        self.noise = [torch.ones(one.shape, device=device) for one in draws]
        self.kinds: list[Noise] = draws
        tensors = [*tensors_of({"constants": inputs["constants"], **self.given}), *self.noise]
        self.results = [result.clone() for result in traced(*tensors)]

        def run() -> None:
            for kept, result in zip(self.results, traced(*tensors), strict=True):
                kept.copy_(result)

        self._replay = recordings.recorder.record(run, self.results)

    def draw(self) -> None:
        """Fresh noise for the next call."""
        for noise, one in zip(self.noise, self.kinds, strict=True):
            one.fill(noise)

    def __call__(self, given: Inputs) -> tuple[Tensor, ...]:
        """Copies of the results: callbacks may keep them."""
        for kept, new in zip(tensors_of(self.given), tensors_of(given), strict=True):
            kept.copy_(new)
        self._replay()
        return tuple(result.clone() for result in self.results)
