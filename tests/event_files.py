"""TensorBoard's own readers of the event files of a run."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout


def events(folder: Path | str) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def layout(accumulator: EventAccumulator) -> Layout:
    proto = Layout()
    proto.ParseFromString(accumulator.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    return proto


def titles(accumulator: EventAccumulator) -> list[str]:
    (category,) = layout(accumulator).category
    assert category.title == "PPOX"
    return [chart.title for chart in category.chart]
