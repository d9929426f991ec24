"""What travels between the driver and its workers: stacked observations as arrays, everything else as one pickle."""

from __future__ import annotations

import pickle
import traceback
import zlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env.util import obs_space_info

from sb3_ppo_ext.vec_env.remote.episodes import Start

Array = npt.NDArray[Any]
Columns = dict[Any, Array]  # an array [n, ...] per key of the observation; the key is None where there is one array

LOST = "worker_lost"  # in the info of a step that was not taken


class Reply(NamedTuple):
    """The results of a reset or step in the rows of a worker, in their order.

    ``packed`` holds the infos; the ``Start`` and the info of each episode that began, by position; a checksum per row.
    """

    observation: Columns
    reward: Array
    done: Array
    packed: bytes


class Failure(NamedTuple):
    """An exception in a worker: what can be said of it anywhere, and itself where it can be pickled."""

    row: int | None
    action: str  # what was done: "step", "reset", ...
    kinds: tuple[str, ...]  # the names of its class and of the classes above
    text: str
    trace: str
    error: bytes | None


class Block:
    """The observations, rewards and ends of some environments, as ``DummyVecEnv`` would hold them."""

    def __init__(self, space: spaces.Space[Any], rows: int) -> None:
        self.observation = empty_columns(space, rows)
        self.reward = np.zeros(rows, np.float32)
        self.done = np.zeros(rows, np.bool_)
        self.infos: list[dict[str, Any]] = [{} for _ in range(rows)]
        self.begun: dict[int, tuple[Start, dict[str, Any]]] = {}
        self.checksums = [0] * rows

    def put(self, index: int, observation: Any, checksum: int = 0) -> int:
        """Stores an observation; the checksum of it and of what came before."""
        for key, column in self.observation.items():
            column[index] = observation if key is None else observation[key]
            checksum = zlib.crc32(column[index].tobytes(), checksum)
        self.checksums[index] = checksum
        return checksum

    def begin(self, index: int, observation: Any, info: dict[str, Any], start: Start) -> int:
        """Stores the first observation of an episode; its checksum."""
        self.begun[index] = (start, info)
        return self.put(index, observation)

    def reply(self) -> Reply:
        """What the worker returns."""
        rest = packed((self.infos, self.begun, self.checksums))
        return Reply(self.observation, self.reward, self.done, rest)


def with_reward(reward: Any, checksum: int) -> int:
    """Adds a reward to the checksum."""
    return zlib.crc32(np.float64(reward).tobytes(), checksum)


def empty_columns(space: spaces.Space[Any], rows: int) -> Columns:
    """Arrays for the observations of ``rows`` environments."""
    keys, shapes, dtypes = obs_space_info(space)
    return {key: np.zeros((rows, *shapes[key]), dtype=dtypes[key]) for key in keys}


def packed(value: Any) -> bytes:
    """A pickle for the driver; Ray's pickler takes what the standard one does not, lambdas for example."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:  # whatever a user's object raises
        return packed_with_code(value)


def packed_with_code(value: Any) -> bytes:
    """A pickle for a worker, with the functions and classes of the program's main file.

    Arguments are sent so and not as they are, since arrays that Ray unpacks cannot be written to.
    """
    from ray import cloudpickle

    return bytes(cloudpickle.dumps(value))


def failure_of(error: Exception, row: int | None, action: str) -> Failure:
    """The report of an exception."""
    itself: bytes | None = None
    try:
        itself = packed(error)
        pickle.loads(itself)
    except Exception:  # whatever its class raises
        itself = None
    kinds = tuple(name_of_class(kind) for kind in type(error).__mro__)
    return Failure(row, action, kinds, str(error), traceback.format_exc(), itself)


def name_of_class(kind: type) -> str:
    """Module and name."""
    return f"{kind.__module__}.{kind.__qualname__}"
