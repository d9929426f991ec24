"""Values are plain, and saved as they are, if they mean the same in any process."""

from __future__ import annotations

import datetime
import enum
import pathlib
import random
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import torch

LEAVES = (
    *(bool, int, float, complex, str, bytes, type(None), enum.Enum, pathlib.PurePath, random.Random),
    *(np.generic, np.dtype, np.random.Generator, np.random.RandomState, torch.Tensor),
    *(datetime.datetime, datetime.date, datetime.timedelta),
)
SEQUENCES = (list, tuple, set, frozenset, deque)
MAPPINGS = (dict, OrderedDict, defaultdict, Counter)


def is_plain(value: Any) -> bool:
    """True for a number, a text, an array, a generator, or a container of such values."""
    if isinstance(value, np.ndarray):
        return bool(value.dtype != object)
    if type(value) in MAPPINGS:
        return all(is_plain(key) and is_plain(entry) for key, entry in value.items()) and (
            getattr(value, "default_factory", None) in (None, int, float, list, dict, set)
        )
    if type(value) in SEQUENCES:
        return all(is_plain(entry) for entry in value)
    return isinstance(value, LEAVES)
