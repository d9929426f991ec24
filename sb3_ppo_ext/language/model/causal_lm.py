"""A causal language model as PPO sees it: token ids and their mask to log-probabilities, entropy and hidden states.

Letters: B responses, P prompt slots (padded on the left), L response slots (padded on the right), S = P + L, V tokens
that may be chosen, D hidden size. Padding is known by mask alone, never by id: a tokenizer may pad with its
end-of-text token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

BLOCKS = ("layers", "h")  # under one of these names a model keeps its blocks

# Logits held at once, in numbers: 64 MB of float32, or 256 MB on a GPU, which small pieces do not fill. More of them
# are computed again for the gradient.
LOGITS_AT_ONCE = 2**24
LOGITS_AT_ONCE_ON_A_GPU = 2**26


class Tokens(NamedTuple):
    """Prompts [B, P] and responses [B, L] as token ids, each with the mask of what is not padding."""

    prompt: Tensor
    prompt_mask: Tensor
    response: Tensor
    mask: Tensor

    def trimmed(self) -> Tokens:
        """Without the columns that are padding in every row; at least one of the prompt and of the response stays."""
        prompt = max(int(self.prompt_mask.sum(-1).max()), 1)
        response = max(int(self.mask.sum(-1).max()), 1)
        return Tokens(
            self.prompt[:, -prompt:],
            self.prompt_mask[:, -prompt:],
            self.response[:, :response],
            self.mask[:, :response],
        )

    @property
    def first(self) -> int:
        """Of ``joined``, the last token of the prompts: before it, states matter to nothing but the states after."""
        return self.prompt.shape[1] - 1

    def joined(self) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, S - 1] of the tokens after which one was chosen: all but the last.

        Masked ids are 0, so that nothing depends on what stands there.
        """
        mask = torch.cat((self.prompt_mask, self.mask[:, :-1]), dim=1)
        return torch.cat((self.prompt, self.response[:, :-1]), dim=1).masked_fill(~mask, 0), mask


def positions(mask: Tensor) -> Tensor:
    """The position of every token among its row's tokens [B, S]: left padding does not count.

    Without them GPT-2 reads a padded prompt at the wrong places; rotary models see only differences.
    """
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def prepared_mask(mask: Tensor, queries: int, added_in: torch.dtype | None = None) -> Tensor:
    """Which of the tokens under ``mask`` [B, S] may be attended to [B, 1, queries, S]: by each of them, or by one.

    With ``added_in`` as numbers of that type, to be added to the scores: 0, or as good as minus infinity.
    """
    if queries == 1:
        allowed = mask[:, None, None]
    else:
        places = torch.arange(queries, device=mask.device)
        own, each = places[:, None], places[None]
        # Padding attends to itself: what attends to nothing is NaN in some kernels.
        allowed = ((mask[:, None] & (each <= own)) | (each == own)).unsqueeze(1)
    if added_in is None:
        return allowed
    return torch.zeros_like(allowed, dtype=added_in).masked_fill(~allowed, torch.finfo(added_in).min)


@contextmanager
def last_mlp_from(trunk: nn.Module, first: int) -> Iterator[None]:
    """Spares the last block's MLP the tokens before ``first``: of the prompt but its last, nobody asks their states.

    That is the half of a block's work or more, and it looks at one token at a time. A mixture of experts is left alone.
    """
    blocks = next((one for name in BLOCKS if isinstance(one := getattr(trunk, name, None), nn.ModuleList)), None)
    mlp = None if blocks is None else getattr(blocks[-1], "mlp", None)
    if first == 0 or mlp is None or any("expert" in name for name, _ in mlp.named_modules()):
        yield
        return
    handles = (
        mlp.register_forward_pre_hook(lambda _, given: (given[0][:, first:].contiguous(), *given[1:])),
        mlp.register_forward_hook(lambda _, given, output: pad(output, (0, 0, first, 0))),
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
        self.prepares_mask = False
        self.prepared: Tensor | None = None  # a mask that holds for every call
        accepted = inspect.signature(self.trunk.forward).parameters
        self._cache_argument = "cache" if "cache" in accepted else "past_key_values"  # transformers 5.24 renamed it

    @property
    def plain(self) -> PreTrainedModel:
        """The Hugging Face model itself, which an adapter has been put into."""
        inner = self.lm.get_base_model() if isinstance(self.lm, PeftModel) else self.lm
        return cast(PreTrainedModel, inner)

    @property
    def trunk(self) -> PreTrainedModel:
        """The model below its output layer."""
        return cast(PreTrainedModel, self.plain.base_model)

    def hidden(self, ids: Tensor, mask: Tensor, *, cache: Any = None, first: int = 0) -> Tensor:
        """Final hidden states [B, S', D] of ``ids`` [B, S'], the last of the tokens under ``mask`` [B, S].

        With a cache of the S - S' before them, which takes them in. Those before ``first`` may be anything.
        """
        arguments = {} if cache is None else {self._cache_argument: cache}
        with last_mlp_from(self.trunk, first):
            output = self.trunk(
                input_ids=ids,
                attention_mask=self.attention_mask(mask, ids.shape[1]),
                position_ids=positions(mask)[:, -ids.shape[1] :],
                use_cache=cache is not None,
                **arguments,
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def attention_mask(self, mask: Tensor, queries: int) -> Tensor:
        """What the Hugging Face model is told of ``mask`` [B, S] for the last ``queries`` tokens.

        Not prepared, it looks into the mask to see what it can leave out: fast, and nothing that a graph can do.
        """
        if not self.prepares_mask:
            return mask.long()
        if self.prepared is not None:
            return self.prepared
        added_in = None if self.plain.config._attn_implementation == "sdpa" else self.plain.dtype
        return prepared_mask(mask, queries, added_in)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the sampled distribution [..., V], in float32 at least, temperature applied."""
        logits: Tensor = self.plain.get_output_embeddings()(hidden)
        return widened(logits[..., : self.vocab_size]) / self.temperature

    def rows_at_once(self, device: torch.device) -> int:
        """Of how many states the logits are held at a time."""
        at_once = LOGITS_AT_ONCE_ON_A_GPU if device.type == "cuda" else LOGITS_AT_ONCE
        return max(at_once // self.vocab_size, 1)

    def log_prob_and_entropy(self, hidden: Tensor, token: Tensor, *, entropy_grad: bool) -> tuple[Tensor, Tensor]:
        """log p(token) and the entropy, both [n], of the distributions after ``hidden`` [n, D]; in nats.

        The output layer is applied to ``rows_at_once`` of them at a time, so that memory does not grow with n V.
        """
        rows = self.rows_at_once(hidden.device)
        pieces = list(zip(hidden.split(rows), token.split(rows), strict=True))
        if len(pieces) == 1 or not torch.is_grad_enabled():
            parts = [self._piece(*piece, entropy_grad) for piece in pieces]
        else:
            parts = [computed_twice(self._piece, *piece, entropy_grad) for piece in pieces]
        log_prob, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
        return log_prob, entropy

    def _piece(self, hidden: Tensor, token: Tensor, entropy_grad: bool) -> tuple[Tensor, Tensor]:
        log_p = self.logits(hidden).log_softmax(dim=-1)
        kept = log_p if entropy_grad else log_p.detach()
        return log_p.gather(-1, token[:, None])[:, 0], entropy_of(kept)


def computed_twice(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` without what it holds on the way, which is computed again for the gradient.

    Traced into a graph it is there twice too. It must draw no numbers: the state of torch's generator is not kept.
    """
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def widened(tensor: Tensor) -> Tensor:
    """In float32 where it was in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def entropy_of(log_p: Tensor) -> Tensor:
    """``-sum_v p_v log p_v`` over the last dimension; a token of probability 0 adds nothing."""
    return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(dim=-1)


def before_response(states: Tensor, prompt_length: int) -> Tensor:
    """Of one state per token of ``joined`` [B, S - 1, ...], those the response's tokens were chosen from [B, L, ...].

    The first of them belongs to the last token of the prompt.
    """
    return states[:, prompt_length - 1 :]


def scattered(kept: Tensor, mask: Tensor) -> Tensor:
    """The values [n] of the slots where ``mask`` [B, L] is True in their places; 0 elsewhere."""
    return kept.new_zeros(mask.shape).masked_scatter(mask, kept)
