"""Stable-Baselines3's rollout buffer <-> TensorDict [T, N], under TorchRL's default keys and in its shapes.

==========================  =========================  ============================================================
key                         shape                      in the buffer
==========================  =========================  ============================================================
observation                 [T, N, ...]                observations; of a Dict space ("observation", name) each
action                      [T, N, ...]                actions, in the shape of the action space
action_log_prob             [T, N]                     log_probs
state_value                 [T, N, 1]                  values
advantage, value_target     [T, N, 1]                  advantages, returns
is_init                     [T, N, 1], bool            episode_starts (TorchRL's InitTracker writes the same)
("next", "reward")          [T, N, 1]                  rewards, with what was bootstrapped at a time limit added in
("next", "state_value")     [T, N, 1]                  the value of the state after the step  |  both only if the end
("next", "done")            [T, N, 1], bool            whether the episode ended there        |  of the rollout is given
("next", "terminated")      [T, N, 1], bool            the same as done: see ``rollout_to_tensordict``
==========================  =========================  ============================================================

The buffer of a language model holds tokens: ``action_log_prob`` is [T, N, L], values and advantages [T, N, L, 1].
There are ``mask`` [T, N, L], bool, True where a token counts, and ``ref_log_prob`` [T, N, L] if there is a reference.
It keeps the end of the rollout itself: ("next", "done") and ("next", "state_value") [T, N, 1], the value of the next
prompt, are always there.

T steps come first and carry the name "time", which is how TorchRL's value estimators find them: without it they take
the last dimension for the time, and are silently wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from sb3_ppo_ext.tensordicts.layouts import add_content, copied, further_attributes
from sb3_ppo_ext.tensordicts.reading import TIME, Key, array_of, numbers_of, steps_first

# One number for each step: key -> array of the buffer, and whether TorchRL gives it a trailing dimension of one.
NUMBERS: dict[Key, tuple[str, bool]] = {
    "action_log_prob": ("log_probs", False),
    "state_value": ("values", True),
    "advantage": ("advantages", True),
    "value_target": ("returns", True),
    ("next", "reward"): ("rewards", True),
}


def rollout_to_tensordict(
    buffer: RolloutBuffer,
    *,
    last_values: Tensor | None = None,
    dones: np.ndarray | None = None,
    device: torch.device | str | None = None,
) -> TensorDict:
    """A full rollout as TensorDict [T, N]; every array is copied once, straight to ``device`` (the buffer's own).

    ``last_values`` [N] and ``dones`` [N] are those of ``RolloutBuffer.compute_returns_and_advantage``, which the buffer
    does not keep: the value of the state after the rollout, and whether the last step ended an episode. With them
    TorchRL's ``GAE(gamma=..., lmbda=..., value_network=None)`` gives the buffer's advantages: to the bit where the
    float32 product gamma * lambda is the same as of Python's numbers, as for 0.99 and 0.95, else up to its rounding. A
    time limit counts as ``terminated``: Stable-Baselines3 has added the value it cut off to the reward already.

    ``ValueError`` for a buffer that is not full, or that ``get()`` has flattened already.
    """
    _require_steps(buffer)
    device = buffer.device if device is None else torch.device(device)
    content: dict[Key, Any] = {"observation": _observation(buffer, device)}
    actions = copied(buffer.actions, device).to(torch.from_numpy(np.zeros(0, _action_dtype(buffer))).dtype)
    content["action"] = actions.reshape(*buffer.actions.shape[:2], *_action_shape(buffer))
    for key, (name, trailing) in NUMBERS.items():
        numbers = copied(getattr(buffer, name), device)
        content[key] = numbers.unsqueeze(-1) if trailing else numbers
    content["is_init"] = torch.from_numpy(buffer.episode_starts).to(device).bool().unsqueeze(-1)
    last_values, dones = add_content(buffer, content, last_values, dones)
    if (last_values is None) != (dones is None):
        raise ValueError("last_values and dones describe the end of the rollout together: give both or neither")
    if last_values is not None and dones is not None:
        _add_next(content, buffer, last_values, dones)
    size = [buffer.buffer_size, buffer.n_envs]
    tensordict = TensorDict({}, batch_size=size, names=[TIME, None], device=device)
    for key, value in content.items():
        tensordict[key] = value
    return tensordict


def _add_next(content: dict[Key, Any], buffer: RolloutBuffer, last_values: Tensor, dones: np.ndarray) -> None:
    """Adds value and end of each step's next state, of which only the last is not in the buffer."""
    values, starts = content["state_value"], content["is_init"]
    last = _per_env("last_values", last_values.detach(), buffer).to(values)
    ended = _per_env("dones", torch.from_numpy(np.array(dones)), buffer).to(starts)
    content[("next", "state_value")] = torch.cat((_of_states(values)[1:], last))
    content[("next", "done")] = torch.cat((starts[1:], ended))
    content[("next", "terminated")] = content[("next", "done")].clone()


def _of_states(values: Tensor) -> Tensor:
    """[T, N, 1]: of tokens [T, N, L, 1] the first one's, which is that of the prompt."""
    return values if values.dim() == 3 else values[:, :, 0]


def tensordict_to_rollout(tensordict: TensorDictBase, buffer: RolloutBuffer) -> None:
    """Fills ``buffer`` from what ``rollout_to_tensordict`` makes, or from a batch that TorchRL collected; exactly.

    A batch dimension carries the name "time", the first or the second; the other, if any, counts the environments.
    ``ValueError`` for a key that is missing, or of another shape or type than the buffer's: nothing is broadcast or
    rounded. The buffer then trains as if it had been collected: ``advantage`` and ``value_target`` are taken as given.
    """
    rows = steps_first(tensordict)
    size = (buffer.buffer_size, buffer.n_envs)
    if tuple(rows.batch_size) != size:
        raise ValueError(
            f"the tensordict has (steps, environments) {tuple(rows.batch_size)}, the buffer {size}; "
            "make the buffer with buffer_size and n_envs of the tensordict"
        )
    arrays = {
        name: numbers_of(rows, key, trailing, shape=getattr(buffer, name).shape[2:])
        for key, (name, trailing) in NUMBERS.items()
    }
    attributes = further_attributes(buffer, rows)
    arrays["episode_starts"] = numbers_of(rows, "is_init", True, torch.bool)
    actions = array_of(rows, "action", _action_shape(buffer), _action_dtype(buffer)).reshape(buffer.actions.shape)
    observations = _observations_back(rows, buffer)
    buffer.reset()
    for name, array in arrays.items():
        _fill(getattr(buffer, name), array)
    for name, array in attributes.items():
        setattr(buffer, name, np.array(array))
    _fill(buffer.actions, actions)
    for key, array in observations.items():
        _fill(buffer.observations[key] if isinstance(buffer, DictRolloutBuffer) else buffer.observations, array)
    buffer.pos, buffer.full = buffer.buffer_size, True


def _require_steps(buffer: RolloutBuffer) -> None:
    name = type(buffer).__name__
    if not buffer.full:
        raise ValueError(f"{name} holds {buffer.pos} of {buffer.buffer_size} steps; convert it when it is full")
    if buffer.generator_ready:
        raise ValueError(
            f"{name}.get() has flattened this rollout already, steps and environments cannot be told apart; "
            "convert it before get() is called (PPO.train() calls it), for example in a callback's on_rollout_end"
        )


def _fill(column: np.ndarray | Tensor, array: np.ndarray) -> None:
    if isinstance(column, Tensor):
        column.copy_(torch.from_numpy(array))
    else:
        column[:] = array


def _observation(buffer: RolloutBuffer, device: torch.device) -> Tensor | dict[str, Tensor]:
    if isinstance(buffer, DictRolloutBuffer):
        return {key: copied(array, device) for key, array in buffer.observations.items()}
    return copied(buffer.observations, device)


def _dtype(array: np.ndarray | Tensor) -> np.dtype[Any]:
    return array[:0].cpu().numpy().dtype if isinstance(array, Tensor) else array.dtype


def _action_dtype(buffer: RolloutBuffer) -> np.dtype[Any]:
    # On a device choices are kept as floats.
    return np.dtype(buffer.action_space.dtype) if isinstance(buffer.actions, Tensor) else buffer.actions.dtype


def _action_shape(buffer: RolloutBuffer) -> tuple[int, ...]:
    shape = buffer.action_space.shape
    assert shape is not None, "the spaces that Stable-Baselines3 has distributions for are arrays"
    return () if isinstance(buffer.action_space, spaces.Discrete) else tuple(shape)


def _per_env(name: str, tensor: Tensor, buffer: RolloutBuffer) -> Tensor:
    """[N] as [1, N, 1]; a value network's [N, 1] is taken too."""
    if tensor.numel() != buffer.n_envs or tensor.shape[0] != buffer.n_envs:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; one number for each of {buffer.n_envs} environments")
    return tensor.reshape(1, -1, 1)


def _observations_back(rows: TensorDictBase, buffer: RolloutBuffer) -> dict[str, np.ndarray]:
    if not isinstance(buffer, DictRolloutBuffer):
        array = buffer.observations
        return {"observation": array_of(rows, "observation", array.shape[2:], _dtype(array))}
    return {
        name: array_of(rows, ("observation", name), array.shape[2:], _dtype(array))
        for name, array in buffer.observations.items()
    }
