"""Responses sampled from a causal language model, with the log-probabilities and values that PPO needs of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sb3_ppo_ext.language.model.cache import preallocated_cache, select_rows, selects_rows
from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.drawing import draw, noise_for
from sb3_ppo_ext.language.model.end_tokens import EndTokens, end_tokens
from sb3_ppo_ext.language.model.progress import RolloutProgress
from sb3_ppo_ext.language.model.tokens import RowLayout


class Response(NamedTuple):
    """Sampled responses, all [B, L]; after a response's end ``token`` is the padding id, the others 0 and False."""

    token: Tensor
    mask: Tensor  # up to and including the end-of-text token
    log_prob: Tensor  # in nats, of the distribution the token was drawn from
    value: Tensor  # by ``value_of`` from the state before the token

    def write(self, rows: Tensor, step: int, going: Tensor, drawn: tuple[Tensor, Tensor, Tensor | None]) -> None:
        """Puts token, log-probability and value, all [B'], into those of the ``rows`` [B'] that are ``going``."""
        token, log_prob, value = drawn
        self.token[rows, step] = torch.where(going, token, self.token[rows, step])
        self.log_prob[rows, step] = log_prob.masked_fill(~going, 0.0)
        self.mask[rows, step] = going
        if value is not None:
            self.value[rows, step] = value.masked_fill(~going, 0.0)


class Decoder:
    """Draws the tokens of one batch of responses; ``seen`` [B, S] is the mask of its prompts and responses."""

    shares_prompts = compacts = True  # a fixed shape allows neither

    def __init__(
        self, model: CausalLM, seen: Tensor, value_of: Callable[[Tensor], Tensor] | None, *, deterministic: bool
    ) -> None:
        self.model = model
        self.seen = seen
        self.value_of = value_of
        self.deterministic = deterministic
        self.cache = preallocated_cache(model, seen.shape[1])
        self.compacts = self.shares_prompts = self.compacts and selects_rows(self.cache)

    def draw(self, ids: Tensor, until: int, noise: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """One token [B] after ``ids`` [B, S'], the newest of the first ``until``; its log-probability, and value.

        ``noise`` [B] is uniform on [0, 1).
        """
        if self.cache.get_seq_length() or not self.shares_prompts:
            hidden = self._hidden(ids, self.seen[:, :until])
        else:
            hidden = self._of_prompts(ids, self.seen[:, :until])
        drawn, log_prob = draw(self.model.logits(hidden), None if self.deterministic else noise)
        return drawn, log_prob, None if self.value_of is None else self.value_of(hidden)

    def _of_prompts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The states [B, D] after the prompts, each of which goes through the model once, however often it occurs."""
        rows, index = torch.cat((ids, mask.long()), dim=1).unique(dim=0, return_inverse=True)
        if len(rows) == len(ids):
            return self._hidden(ids, mask)
        distinct, distinct_mask = rows.tensor_split(2, dim=1)
        hidden = self._hidden(distinct, distinct_mask.bool())
        select_rows(self.cache, index)
        return hidden[index]

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.hidden(ids, mask, RowLayout(ids.shape[1] - 1), cache=self.cache)[:, -1]

    def without_ended(self, going: Tensor) -> Tensor | None:
        """Goes on with the rows that are ``going`` [B] alone; their indices, or None where all have to stay."""
        if not self.compacts:
            return None
        (rows,) = going.nonzero(as_tuple=True)
        self.seen = self.seen[rows]
        select_rows(self.cache, rows)
        return rows


@torch.no_grad()
def generate(
    model: CausalLM,
    prompt: Tensor,
    prompt_mask: Tensor,
    *,
    max_new_tokens: int,
    eos_token_id: EndTokens,
    pad_token_id: int,
    value_of: Callable[[Tensor], Tensor] | None = None,
    deterministic: bool = False,
    decoder_of: Callable[..., Decoder] = Decoder,
    progress: RolloutProgress | None = None,
) -> Response:
    """Responses to prompts [B, P] padded on the left, token by token over a key-value cache, until every row has ended.

    Each token is drawn from the full distribution of ``model.logits`` (the likeliest if ``deterministic``), for that is
    the one that is trained. ``value_of`` maps states [B, D] to values [B]. Once half of the rows have ended, the others
    go on without them: every row has draws of its own.
    """
    ids, prompt_mask = trimmed_prompts(prompt, prompt_mask.bool())
    response = empty_response(len(ids), max_new_tokens, pad_token_id, ids.device)
    seen = torch.cat((prompt_mask, torch.ones_like(response.mask)), dim=1)
    decoder = decoder_of(model, seen, value_of, deterministic=deterministic)
    rows = torch.arange(len(ids), device=ids.device)  # those that are still computed
    going, ends = torch.ones_like(rows, dtype=torch.bool), torch.tensor(end_tokens(eos_token_id), device=ids.device)
    for step in range(max_new_tokens):
        noise = noise_for(len(response.token), ids.device)[rows]
        drawn = decoder.draw(ids, prompt_mask.shape[1] + step, noise)
        response.write(rows, step, going, drawn)
        going = going & ~torch.isin(drawn[0], ends)
        if (count := int(going.sum())) == 0:
            break
        if progress is not None:
            progress.after_token(response.mask, len(response.token) - count)
        ids = drawn[0][:, None]
        if 2 * count <= len(rows) and (left := decoder.without_ended(going)) is not None:
            rows, ids, going = rows[left], ids[left], going[left]
    if progress is not None:
        progress.after_batch(response.mask)
    return response


def trimmed_prompts(prompt: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask without the columns on the left that are padding in every row; masked ids are 0."""
    longest = max(int(mask.sum(-1).max()), 1)
    return prompt[:, -longest:].masked_fill(~mask[:, -longest:], 0), mask[:, -longest:]


def empty_response(rows: int, length: int, pad_token_id: int, device: torch.device) -> Response:
    """Responses [rows, length] without a token."""
    zeros = torch.zeros(rows, length, device=device)
    token = torch.full_like(zeros, pad_token_id, dtype=torch.long)
    return Response(token, torch.zeros_like(zeros, dtype=torch.bool), zeros, zeros.clone())
