"""Steps of an environment that are recorded, to be taken again from the same state and compared to the last bit.

Two things are done with them. A trial of a few steps shows, when a run is resumed, that the saved state is all there is
of these environments. An episode, from its reset on, takes the place of a state that cannot be read.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from stable_baselines3.common.monitor import Monitor

from sb3_ppo_ext.checkpoints.environments.generators import process_generators, set_process_generators
from sb3_ppo_ext.checkpoints.environments.layers import env_layers
from sb3_ppo_ext.checkpoints.environments.snapshot import LeftOut, put, take

# start: a snapshot; generators: states of the process before events, where they have changed since the event before;
# events: position of the environment, method, argument; digests: of the results up to each event.
Recording = dict[str, Any]


def new_recording(layers: list[Any], left_out: LeftOut | None = None) -> Recording:
    """One that begins with the present state of the layers."""
    return {"start": take(layers, left_out), "generators": {0: generators_as_bytes()}, "events": [], "digests": []}


def add_event(recording: Recording, event: tuple[int, str, Any], result: Any) -> None:
    """Adds a call, and the checksum of what came of it."""
    digests = recording["digests"]
    recording["events"].append(event)
    digests.append(_digest_of_result(event[1], result, digests[-1] if digests else 0))


def play(envs: list[Any], recording: Recording) -> str | None:
    """Does again what was recorded; None if everything came out equal, else the first difference."""
    before, layers = process_generators(), [layer for env in envs for layer in env_layers(env)]
    try:
        put(layers, recording["start"], range(len(layers)))
        with _without_files(layers):
            return _difference(envs, recording)
    except Exception as error:  # whatever a user's environment raises
        return f"{type(error).__name__}: {error}"
    finally:
        set_process_generators(before)


def _difference(envs: list[Any], recording: Recording) -> str | None:
    digest, events = 0, recording["events"]
    for count, ((position, name, argument), expected) in enumerate(zip(events, recording["digests"], strict=True)):
        if count in recording["generators"]:
            set_process_generators(pickle.loads(recording["generators"][count]))
        result = envs[position].step(argument) if name == "step" else envs[position].reset(**argument)
        digest = _digest_of_result(name, result, digest)
        if digest != expected:
            return f"step {count + 1} of {len(events)} that were repeated gave another result"
    return None


def _digest_of_result(name: str, result: Any, digest: int) -> int:
    """Adds observation, reward and ends to a checksum; infos are left out, for they may hold the time of day."""
    return digest_of(result[:4] if name == "step" else result[0], digest)


def generators_as_bytes() -> bytes:
    """The states of the generators of this process."""
    return pickle.dumps(process_generators())


@contextmanager
def _without_files(layers: list[Any]) -> Iterator[None]:
    """Episodes that end meanwhile are no rows of a monitor file."""
    writers = [(layer, layer.results_writer) for layer in layers if isinstance(layer, Monitor)]
    for layer, _ in writers:
        layer.results_writer = None
    try:
        yield
    finally:
        for layer, writer in writers:
            layer.results_writer = writer


def digest_of(value: Any, digest: int) -> int:
    """A checksum of arrays and numbers in tuples and dicts, continued from ``digest``."""
    if isinstance(value, (tuple, list)):
        for entry in value:
            digest = digest_of(entry, digest)
        return digest
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            digest = digest_of(value[key], zlib.crc32(str(key).encode(), digest))
        return digest
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        return zlib.crc32(np.ascontiguousarray(value).tobytes(), digest)
    text = repr(value) if isinstance(value, (bool, int, float, str, bytes, type(None))) else type(value).__name__
    return zlib.crc32(text.encode(), digest)
