"""The state of simulators that pickle would leave out, or would save in a form that cannot be put back."""

from __future__ import annotations

import importlib
import pickle
import sys
import zlib
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

_models: WeakKeyDictionary[Any, bytes] = WeakKeyDictionary()  # a model of MuJoCo -> its bytes


class MuJoCoData:
    """The whole of ``MjData``: positions and velocities alone leave out the warm start and what lags by a step.

    ``pickle`` of it gives one byte, the model and the data. The model is that of the resumed program and is compared,
    so that only the data are saved, without the words that are zero.
    """

    def state(self, value: Any) -> dict[str, Any]:
        """Words of the data that are not zero, and the checksum of the model."""
        whole, model = value.__getstate__(), self._model_bytes(value.model)
        if not whole.startswith(model, 1):  # it was changed after it was made: another friction, say
            model = _models[value.model] = value.model.__getstate__()
            if not whole.startswith(model, 1):
                raise TypeError(f"MjData.__getstate__() of this MuJoCo ({_version()}) does not begin with the model")
        return {"head": whole[:1], "model": zlib.crc32(model), "mujoco": _version(), **_sparse(whole[1 + len(model) :])}

    def restore(self, value: Any, state: dict[str, Any]) -> None:
        """Copies the saved data into ``value``."""
        mujoco: Any = importlib.import_module("mujoco")
        if state["mujoco"] != _version():
            raise ValueError(f"it was saved with MuJoCo {state['mujoco']}, and this is {_version()}")
        model = value.model.__getstate__()
        if state["model"] != zlib.crc32(model):
            raise ValueError("its MuJoCo model is another, or was changed after it was made")
        saved = mujoco.MjData.__new__(mujoco.MjData)
        saved.__setstate__(state["head"] + model + _dense(state))
        mujoco.mj_copyData(value, value.model, saved)

    def _model_bytes(self, model: Any) -> bytes:
        if model not in _models:
            _models[model] = model.__getstate__()
        return _models[model]


class MadeByTheProgram:
    """What the program makes anew and nothing changes: a simulator's model, compared with its data; a tokenizer."""

    def state(self, value: Any) -> None:
        """Returns None."""

    def restore(self, value: Any, state: Any) -> None:
        """Does nothing."""


class Atari:
    """The console's state with its generator, without which sticky actions differ at once."""

    def state(self, value: Any) -> bytes:
        """A clone, pickled."""
        return pickle.dumps(value.cloneState(include_rng=True))

    def restore(self, value: Any, state: bytes) -> None:
        """Goes on from the clone."""
        value.restoreState(pickle.loads(state))


SIMULATORS: dict[str, Any] = {
    "mujoco._structs.MjData": MuJoCoData(),
    "mujoco._structs.MjModel": MadeByTheProgram(),
    "ale_py._ale_py.ALEInterface": Atari(),
    "transformers.tokenization_utils_base.PreTrainedTokenizerBase": MadeByTheProgram(),
}


def _version() -> str:
    return str(sys.modules["mujoco"].__version__)


def _sparse(data: bytes) -> dict[str, Any]:
    words = np.frombuffer(data + bytes(-len(data) % 8), np.uint64)
    where = np.flatnonzero(words).astype(np.uint32)
    return {"size": len(data), "where": where, "words": words[where]}


def _dense(state: dict[str, Any]) -> bytes:
    words = np.zeros(-(-state["size"] // 8), np.uint64)
    words[state["where"]] = state["words"]
    return words.tobytes()[: state["size"]]
