"""A small GPT-2 and its byte-level BPE tokenizer, trained on lines of text; the model is stored on disk.

Training one leaves the process's random streams unchanged: a seeded run does not depend on whether its model was
stored by an earlier run.
"""

from __future__ import annotations

import functools
import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from text_tasks.storage import store, stored

PAD, EOS = "<pad>", "<eos>"
# Deviation of the initial weights. GPT-2's 0.02 is meant for twelve times the width: attention would take thousands of
# steps to form.
INITIAL_DEVIATION = 0.1


@dataclass(frozen=True)
class Pretrained:
    """The recipe of a model; a call returns the model, ready to be trained further.

    :param name: the task's name, printed to the user
    :param corpus: returns the lines of text, the same at every call; each line ends with an end-of-text token
    :param vocabulary: number of tokens, 256 bytes and two special tokens included
    :param positions: length of the longest line, in tokens
    :param steps: AdamW steps on ``batch_size`` lines each, with a learning rate that falls to 0; 0 leaves the initial
        weights
    """

    name: str
    corpus: Callable[[], Sequence[str]]
    vocabulary: int
    positions: int
    steps: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 0

    def __call__(self) -> PreTrainedModel:
        """The stored model, or a new one, which is then stored."""
        if self.steps == 0:
            return new_model(self)
        folder = stored(self.folder_name())
        if folder is None:
            return _make_and_store(self)
        with without_progress_bars():
            loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
        return loaded

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, one object per process."""
        return byte_level_bpe(self.corpus, self.vocabulary)

    def folder_name(self) -> str:
        """The name of the folder: it has a digest of the text, the tokenizer and every setting."""
        text = hashlib.sha256("\n".join(self.corpus()).encode())
        text.update(self.tokenizer().backend_tokenizer.to_str().encode())
        settings = {name: value for name, value in vars(self).items() if name not in ("name", "corpus")}
        text.update(repr(sorted(settings.items())).encode())
        return f"{self.name}-{text.hexdigest()[:16]}"


@functools.cache
def byte_level_bpe(corpus: Callable[[], Sequence[str]], vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of ``vocabulary`` tokens, trained on the corpus; its alphabet is all bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, padding_side="left")


def new_model(recipe: Pretrained) -> GPT2LMHeadModel:
    """The model with its initial weights, drawn from the recipe's seed."""
    eos = recipe.tokenizer().eos_token_id
    config = GPT2Config(
        vocab_size=len(recipe.tokenizer()),
        n_positions=recipe.positions,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=recipe.tokenizer().pad_token_id,
        initializer_range=INITIAL_DEVIATION,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return GPT2LMHeadModel(config)


def pretrained(recipe: Pretrained) -> GPT2LMHeadModel:
    """A new model, trained for ``steps`` steps on the corpus."""
    model = new_model(recipe)
    ids, lengths = _lines(recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / recipe.steps)
    order = random.Random(recipe.seed)
    for _ in range(recipe.steps):
        rows = torch.tensor(order.choices(range(len(ids)), k=recipe.batch_size))
        longest = int(lengths[rows].max())
        tokens = ids[rows, :longest]
        mask = torch.arange(longest)[None] < lengths[rows, None]
        logits = model(input_ids=tokens, attention_mask=mask.long()).logits
        loss = cross_entropy(logits[:, :-1][mask[:, 1:]], tokens[:, 1:][mask[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    return model


def _lines(recipe: Pretrained) -> tuple[torch.Tensor, torch.Tensor]:
    """The corpus as ids [M, longest], padded on the right, and the lengths [M] with the end-of-text token."""
    tokenizer: Any = recipe.tokenizer()
    lines = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(recipe.corpus()))["input_ids"]]
    longest = max(map(len, lines))
    if longest > recipe.positions:
        raise ValueError(f"a line of the text for {recipe.name} has {longest} tokens, positions={recipe.positions}")
    ids = torch.full((len(lines), longest), tokenizer.pad_token_id)
    for row, line in enumerate(lines):
        ids[row, : len(line)] = torch.tensor(line)
    return ids, torch.tensor([len(line) for line in lines])


def _make_and_store(recipe: Pretrained) -> PreTrainedModel:
    """The new model; where no folder can be written, the next process trains it again."""
    print(f"{recipe.name}: pretraining its language model, once on this machine ...", end=" ", flush=True)
    started = time.perf_counter()
    model = pretrained(recipe)
    took = f"{time.perf_counter() - started:.0f} s"

    def write(folder: Path) -> None:
        with without_progress_bars():
            model.save_pretrained(folder)
        recipe.tokenizer().save_pretrained(folder)

    try:
        print(f"{took}; stored in {store(recipe.folder_name(), write)}")
    except OSError as error:
        print(f"{took}; it cannot be stored ({error}): name a folder that can be written to in SB3_PPO_EXT_CACHE_DIR")
    return model


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hides transformers' progress bars, which it shows for the smallest file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
