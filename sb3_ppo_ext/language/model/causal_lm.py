"""A causal language model for PPO: from token ids and their mask to hidden states, log-probabilities and entropy.

Letters: see ``tokens``, and V tokens that may be chosen, D hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sb3_ppo_ext.language.model.tokens import PLAIN_ROWS, RowLayout, Tokens, positions, prepared_mask

BLOCKS = ("layers", "h")  # under one of these names a model keeps its blocks

# The most logits held at a time: 64 MB of float32, or 256 MB on a GPU, which fewer do not fill. More of them are
# computed again for the gradient.
LOGITS_AT_ONCE = 2**24
LOGITS_AT_ONCE_ON_A_GPU = 2**26


@contextmanager
def skip_prompt_in_last_mlp(trunk: nn.Module, first_scored: int) -> Iterator[None]:
    """Spares the last block's MLP the tokens before ``first_scored``, the final states of which nothing reads.

    The MLP is half of a block's work or more, and works token by token. A mixture of experts is left alone.
    """
    blocks = next((found for name in BLOCKS if isinstance(found := getattr(trunk, name, None), nn.ModuleList)), None)
    mlp = None if blocks is None else getattr(blocks[-1], "mlp", None)
    if first_scored == 0 or mlp is None or any("expert" in name for name, _ in mlp.named_modules()):
        yield
        return
    handles = (
        mlp.register_forward_pre_hook(lambda _, args: (args[0][:, first_scored:].contiguous(), *args[1:])),
        mlp.register_forward_hook(lambda _, args, output: pad(output, (0, 0, first_scored, 0))),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class CausalLM(nn.Module):
    """The model being fine-tuned, which samples its tokens at ``temperature`` from the first ``vocab_size`` logits.

    Log-probabilities are those of that distribution, so that what is trained is what was sampled from.
    """

    def __init__(self, lm: PreTrainedModel | PeftModel, *, vocab_size: int, temperature: float) -> None:
        super().__init__()
        self.lm = lm
        self.vocab_size = vocab_size
        self.temperature = temperature
        self.compute_dtype: torch.dtype | None = None  # of products in passes over whole sequences; None: the weights'
        self.prepares_mask = False
        self.prepared: Tensor | None = None  # a mask that holds for every call
        accepted = inspect.signature(self.trunk.forward).parameters
        self._cache_argument = "cache" if "cache" in accepted else "past_key_values"  # transformers 5.24 renamed it

    @property
    def plain(self) -> PreTrainedModel:
        """The Hugging Face model itself, with the layers of an adapter in it."""
        inner = self.lm.get_base_model() if isinstance(self.lm, PeftModel) else self.lm
        return cast(PreTrainedModel, inner)

    @property
    def trunk(self) -> PreTrainedModel:
        """The model below its output layer."""
        return cast(PreTrainedModel, self.plain.base_model)

    def hidden(self, ids: Tensor, mask: Tensor, layout: RowLayout = PLAIN_ROWS, *, cache: Any = None) -> Tensor:
        """Final hidden states [G, S', D] of ``ids`` [G, S'], the last of the tokens under ``mask`` [G, S].

        A cache holds the S - S' tokens before them, and takes them in. States before ``layout.first_scored`` may be
        anything.
        """
        arguments = {} if cache is None else {self._cache_argument: cache}
        with skip_prompt_in_last_mlp(self.trunk, layout.first_scored), self.computing(one_token=cache is not None):
            output = self.trunk(
                input_ids=ids,
                attention_mask=self.attention_mask(mask, ids.shape[1], layout),
                position_ids=positions(mask, layout)[:, -ids.shape[1] :],
                use_cache=cache is not None,
                **arguments,
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def computing(self, *, one_token: bool = False) -> AbstractContextManager[Any]:
        """Products in ``compute_dtype`` until the end of the block, over weights that stay as they are.

        ``one_token`` leaves them out: the weights would be converted anew for every token. Logits are always computed
        in the weights' precision: those of 16 and more are 0.1 apart in bfloat16.
        """
        if self.compute_dtype is None or one_token:
            return nullcontext()
        return torch.autocast(self.plain.device.type, self.compute_dtype)

    def attention_mask(self, mask: Tensor, queries: int, layout: RowLayout = PLAIN_ROWS) -> Tensor:
        """The Hugging Face model's argument for ``mask`` [G, S] and the last ``queries`` tokens.

        From a mask that is not prepared the model itself reads what it can leave out: fast, but not traceable, and for
        rows of one response alone.
        """
        if not self.prepares_mask and layout.branches == 1:
            return mask.long()
        if self.prepared is not None:
            return self.prepared
        added_in = None if self.plain.config._attn_implementation == "sdpa" else self.plain.dtype
        return prepared_mask(mask, queries, added_in, layout)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the sampled distribution [..., V], in float32 at least, temperature applied."""
        logits: Tensor = self.plain.get_output_embeddings()(hidden)
        return widened(logits[..., : self.vocab_size]) / self.temperature

    def by_rows(self, function: Callable[..., Any], *columns: Tensor) -> list[Any]:
        """``function`` of some rows of the ``columns`` [n, ...] at a time, so that memory does not grow with n V.

        With a gradient to come, all but a single group of rows are computed again for it.
        """
        at_once = LOGITS_AT_ONCE_ON_A_GPU if columns[0].device.type == "cuda" else LOGITS_AT_ONCE
        rows = max(at_once // self.vocab_size, 1)
        groups = list(zip(*(column.split(rows) for column in columns), strict=True))
        if len(groups) == 1 or not torch.is_grad_enabled():
            return [function(*group) for group in groups]
        return [checkpointed(function, *group) for group in groups]

    def log_prob_and_entropy(self, hidden: Tensor, token: Tensor, *, entropy_grad: bool) -> tuple[Tensor, Tensor]:
        """log p(token) and the entropy, both [n] in nats, of the distributions after ``hidden`` [n, D]."""

        def of_some(hidden: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
            log_p = self.logits(hidden).log_softmax(dim=-1)
            return log_p.gather(-1, token[:, None])[:, 0], entropy_of(log_p if entropy_grad else log_p.detach())

        log_prob, entropy = map(torch.cat, zip(*self.by_rows(of_some, hidden, token), strict=True))
        return log_prob, entropy

    def token_log_prob_and_entropy(
        self, hidden: Tensor, tokens: Tokens, *, entropy_grad: bool, every_slot: bool = False
    ) -> tuple[Tensor, Tensor]:
        """log p and entropy [B, L] of the responses' tokens in nats, after ``hidden`` [B, L, D]; 0 in masked slots."""
        rows = tokens.gathered(hidden, every_slot=every_slot)
        chosen = tokens.gathered(tokens.response.masked_fill(~tokens.mask, 0), every_slot=every_slot)
        log_prob, entropy = self.log_prob_and_entropy(rows, chosen, entropy_grad=entropy_grad)
        return tokens.scattered(log_prob, every_slot=every_slot), tokens.scattered(entropy, every_slot=every_slot)


def checkpointed(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``, whose intermediate tensors are not kept, but computed again for the gradient.

    A graph traced of it has both computations. It must draw no numbers: the state of torch's generator is not kept.
    """
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32 where it was in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def entropy_of(log_p: Tensor) -> Tensor:
    """``-sum_v p_v log p_v`` over the last dimension; a token of probability 0 adds nothing."""
    return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(dim=-1)
