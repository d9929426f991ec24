"""Arrays out of a TensorDict, exactly: what is missing, or has another shape or type, is a ``ValueError``."""

from __future__ import annotations

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

Key = str | tuple[str, ...]

TIME = "time"
REMEDIES: dict[Key, str] = {
    "is_init": "; torchrl.envs.InitTracker writes it",
    "advantage": "; a value estimator such as torchrl.objectives.value.GAE writes it",
    "value_target": "; a value estimator such as torchrl.objectives.value.GAE writes it",
    "state_value": "; a value estimator such as torchrl.objectives.value.GAE writes it",
}


def steps_first(tensordict: TensorDictBase) -> TensorDictBase:
    """The tensordict as [T, N]."""
    names = list(tensordict.names)
    if TIME not in names or len(names) > 2:
        raise ValueError(
            f"the batch dimensions {tuple(tensordict.batch_size)} are named {names}; one or two are needed, "
            f'one of them named "{TIME}", as in tensordict.names = ["{TIME}", None]'
        )
    if len(names) == 1:
        return tensordict.unsqueeze(1)
    return tensordict if names[0] == TIME else tensordict.transpose(0, 1)


def array_of(rows: TensorDictBase, key: Key, shape: tuple[int, ...], dtype: object) -> np.ndarray:
    """``rows[key]`` as an array, if it is there, [T, N, *shape] and of ``dtype``."""
    value = rows.get(key, None)
    if not isinstance(value, Tensor):
        keys = sorted(rows.keys(True, True), key=str)
        problem = "is missing" if value is None else f"is a {type(value).__name__}, not a tensor"
        raise ValueError(f"the key {key!r} {problem}; there are {keys}" + REMEDIES.get(key, ""))
    wanted = (*rows.batch_size, *shape)
    if tuple(value.shape) != wanted:
        raise ValueError(f"the key {key!r} has shape {tuple(value.shape)}; {wanted} is needed")
    array: np.ndarray = value.detach().cpu().numpy()
    if array.dtype != dtype:
        raise ValueError(f"the key {key!r} is {array.dtype}; {np.dtype(dtype)} is needed")  # type: ignore[call-overload]
    return array


def numbers_of(
    rows: TensorDictBase,
    key: Key,
    trailing: bool,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] = (),
) -> np.ndarray:
    """``rows[key]`` [T, N, *shape], which TorchRL gives a ``trailing`` dimension of one, without it."""
    array = array_of(rows, key, (*shape, 1) if trailing else shape, np.bool_ if dtype is torch.bool else np.float32)
    return array[..., 0] if trailing else array
