"""The user's choice of the folder of checkpoints, of their interval and number."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from sb3_ppo_ext.checkpoints.folder import stored

UNITS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}  # seconds
FORM = re.compile(r"\s*([0-9.]+(?:e[-+]?[0-9]+)?)\s*([a-z]+)\s*")


@dataclass(frozen=True)
class Checkpoints:
    """
    Checkpoints of a run, from which ``PPOX.resume(folder, env)`` goes on as if the run had never stopped.

    :param folder: of the run; the checkpoints are in ``folder/checkpoints``
    :param every: the least time from one to the next, as "30s", "5min" or "1h", or a number of seconds; 0 writes one
        after every update. A rollout that takes longer is saved before it is complete
    :param keep: how many stay, the newest ones
    :param grace: the time that is left between a signal to stop and the end, in the same form: SIGTERM and SIGUSR1 have
        the run saved after its update, or in the middle of the rollout where that would come too late
    :param signals: whether ``learn()`` answers those signals
    """

    folder: str | Path
    every: str | float = "60s"
    keep: int = 3
    grace: str | float = "20s"
    signals: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.folder, (str, Path)) or not str(self.folder):
            raise ValueError(f"folder={self.folder!r}: the path of a folder is needed")
        seconds("every", self.every)
        seconds("grace", self.grace)
        if isinstance(self.keep, bool) or not isinstance(self.keep, int) or self.keep < 1:
            raise ValueError(f"keep={self.keep!r}: a whole number of checkpoints, at least 1, is needed")
        if not isinstance(self.signals, bool):
            raise ValueError(f"signals={self.signals!r}: True or False is needed")

    def exist(self) -> bool:
        """True where the folder has checkpoints. ``PPOX.resume`` continues that run, and no other begins there."""
        return bool(stored(self.run))

    @property
    def run(self) -> Path:
        """The absolute path of the run's folder."""
        return Path(self.folder).expanduser().absolute()

    @property
    def interval(self) -> float:
        """``every`` in seconds."""
        return seconds("every", self.every)

    @property
    def notice(self) -> float:
        """``grace`` in seconds."""
        return seconds("grace", self.grace)


def settings_of(checkpoint: Checkpoints | str | Path | None) -> Checkpoints | None:
    """The argument of ``learn()``: a folder alone has the default settings."""
    if checkpoint is None or isinstance(checkpoint, Checkpoints):
        return checkpoint
    if isinstance(checkpoint, (str, Path)):
        return Checkpoints(checkpoint)
    raise ValueError(f"checkpoint={checkpoint!r}: a Checkpoints(folder, ...), or the path of a folder, is needed")


def seconds(name: str, value: object) -> float:
    """A duration given as text or as a number of seconds; ``ValueError`` for what is neither."""
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str) and (match := FORM.fullmatch(value)) is not None and match[2] in UNITS:
        number = _number(match[1]) * UNITS[match[2]]
    if not 0 <= number < math.inf:
        raise ValueError(
            f"{name}={value!r}: a duration is needed, as '30s', '5min' or '1h' (units: {', '.join(UNITS)}), "
            "or a number of seconds, 0 or more"
        )
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # "1.2.3"
        return math.nan
