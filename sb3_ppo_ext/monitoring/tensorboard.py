"""A run in TensorBoard, besides its scalars: a dashboard, the hyper-parameters, the last update.

Nothing here computes or judges a number; the warnings about them are in :mod:`sb3_ppo_ext.monitoring.diagnostics`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

from stable_baselines3.common.logger import DISABLED, HParam, KVWriter, Logger, TensorBoardOutputFormat
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule

from sb3_ppo_ext.knobs.controllers import Controller
from sb3_ppo_ext.monitoring.charts import charts_of

# The columns of the HPARAMS tab that are results; TensorBoard fills them with the last value of the scalar.
METRICS = (
    "rollout/ep_rew_mean",
    "eval/mean_reward",
    "train/approx_kl",
    "train/explained_variance",
    "train/value_loss",
    "time/fps",
)

# What write_pending() wrote last, per logger: the values stay in the logger, so it has to be known that they are old.
_written: WeakKeyDictionary[Logger, dict[str, Any]] = WeakKeyDictionary()


def write_dashboard(logger: Logger) -> None:
    """Lays out the "PPOX" dashboard in TensorBoard's Custom Scalars tab; without a TensorBoard output, does nothing.

    Call it when the first update has been recorded and not yet dumped: the optional charts are chosen by that.
    """
    charts = charts_of(logger.name_to_value)
    # Tags are regular expressions matched at the start of a name: "train/clip_range" alone takes in "..._high" too.
    layout = {"PPOX": {title: ["Multiline", [f"{tag}$" for tag in tags]] for title, tags in charts.items()}}
    for output in _tensorboards(logger):
        output.writer.add_custom_scalars(layout)
        output.writer.flush()


def write_hyperparameters(logger: Logger, hyperparameters: Mapping[str, object]) -> None:
    """Writes ``hyperparameters`` to TensorBoard's HPARAMS tab; without a TensorBoard output, does nothing.

    Numbers stay numbers. What may be something else in another run is to come :func:`as_text`: TensorBoard has one
    list of columns for all runs, taken from one of them, and fails to sort a column of numbers and texts.
    ``logger.record`` is not used: the other outputs cannot write it, and nothing is left in the logger.
    """
    readable = {name: value if _is_number(value) else as_text(value) for name, value in hyperparameters.items()}
    entry = HParam(readable, dict.fromkeys(METRICS, 0.0))
    for output in _tensorboards(logger):
        output.write({"hyperparameters": entry}, {"hyperparameters": ("",)})


def as_text(value: object) -> str:
    """A hyper-parameter as a person writes it: SB3's wrappers are taken off, numbers are short."""
    while isinstance(value, FloatSchedule):
        value = value.value_schedule
    if isinstance(value, ConstantSchedule):
        value = value.val
    if _is_number(value):
        return f"{value:g}"
    if isinstance(
        value, Controller
    ):  # its repr has the current value, by which a run would differ from its continuation
        return value.settings()
    if isinstance(value, type) or inspect.isroutine(value):  # their repr is a memory address
        return value.__qualname__
    return str(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)  # TensorBoard would show True as 1


def write_pending(logger: Logger, step: int) -> None:
    """Writes to every output what is recorded but not dumped, and leaves it recorded.

    SB3 dumps before it updates, so the last update of a run waits for a dump that is never made; and ``Logger.dump``
    empties ``name_to_value``, which is read after ``learn()``. Writes nothing where nothing is new.
    """
    pending = dict(logger.name_to_value)
    if logger.level == DISABLED or not unwritten(logger):
        return
    excluded = {name: logger.name_to_excluded.get(name, ("",)) for name in pending}
    # What places the row in tables and files; TensorBoard has the step itself.
    row = {"time/total_timesteps": step, **pending}
    excluded = {"time/total_timesteps": ("tensorboard",), **excluded}
    for output in logger.output_formats:
        if isinstance(output, KVWriter) and _is_open(output):
            output.write(row, excluded, step)
    _written[logger] = pending


def unwritten(logger: Logger) -> list[str]:
    """The names that have been recorded since the last dump, without what ``write_pending`` has written."""
    before = _written.get(logger, {})
    return [name for name, value in logger.name_to_value.items() if name not in before or before[name] is not value]


def forget_written(logger: Logger) -> None:
    """Drops what ``write_pending`` wrote last and nothing has replaced: the next dump would write it a second time."""
    for name, value in _written.pop(logger, {}).items():
        if name in logger.name_to_value and logger.name_to_value[name] is value:
            for records in (logger.name_to_value, logger.name_to_count, logger.name_to_excluded):
                records.pop(name, None)


def _tensorboards(logger: Logger) -> Iterator[TensorBoardOutputFormat]:
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat) and _is_open(output):
            yield output


def _is_open(output: KVWriter) -> bool:
    """True where ``output`` can still be written: users and callbacks close loggers before ``learn()`` returns."""
    if isinstance(output, TensorBoardOutputFormat):
        return not output._is_closed
    file = getattr(output, "file", None)  # SB3's other outputs have one; a user's own may not
    return not getattr(file, "closed", False)
