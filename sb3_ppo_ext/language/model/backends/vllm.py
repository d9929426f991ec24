"""Responses by vLLM, in this process or beside it. The weights go to the engine through a folder."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from sb3_ppo_ext.language.model.backends.structure import take_weights
from sb3_ppo_ext.language.model.backends.vllm_host import DECIDED, drawn, engine_of, reload, vllm_module
from sb3_ppo_ext.language.model.generators import Generated, Request

FOLDER = "folder"


class VLLMGenerator:
    """A ``Generator``. The engine begins with the first weights, so that a model that is only loaded has none."""

    def __init__(self, model: PreTrainedModel, **options: Any) -> None:
        """``options`` are arguments of ``vllm.LLM``; ``folder`` is where that of the weights is made (/dev/shm, say).

        With ``enable_sleep_mode`` the engine sleeps whenever it does not generate, and leaves its memory to the
        training.
        """
        vllm_module()
        if decided := [name for name in DECIDED if name in options]:
            raise ValueError(
                f'sampler={{"vllm": ...}}: {decided[0]} is not an option, it is set as the training needs it'
            )
        self.model, self.version = model, 0
        self._parent = options.pop(FOLDER, None)
        if self._parent is not None and not Path(self._parent).is_dir():
            raise ValueError(f'sampler={{"vllm": {{"folder": {self._parent!r}}}}}: there is no such folder')
        self._folder: Path | None = None  # made with the first weights
        self.options = {"dtype": str(model.dtype).removeprefix("torch."), **options}
        self.sleeps = bool(options.get("enable_sleep_mode"))
        self.engine: Any = None
        self.asleep = False

    def update_weights(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Writes the weights, adapters merged, and lets the engine read them."""
        take_weights(self.model, weights)
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="weights-", dir=self._parent))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        folder = self._folder
        with tempfile.TemporaryDirectory(dir=folder.parent) as written, without_progress_bars():
            self.model.save_pretrained(written)
            for file in os.listdir(written):  # the engine may still have the old files in its memory
                os.replace(Path(written, file), folder / file)
        if self.engine is None:
            self.engine = engine_of(str(folder), self.options)
        else:
            self._wake()
            reload(self.engine)
        self.version = version

    def generate(self, prompts: list[list[int]], request: Request) -> Generated:
        """A response to each of the prompts, with a seed each from torch's generator."""
        seeds = torch.randint(2**31 - 1, (len(prompts),)).tolist()
        self._wake()
        found = drawn(self.engine, prompts, request, seeds, self.model.config.get_text_config().vocab_size)
        if self.sleeps:
            self.engine.sleep(level=1)  # 2 would forget the weights
            self.asleep = True
        return Generated([tokens for tokens, _ in found], [log_probs for _, log_probs in found], self.version)

    def _wake(self) -> None:
        if self.asleep:
            self.engine.wake_up()
            self.asleep = False


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """transformers writes without its bars, which would come with every rollout."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
