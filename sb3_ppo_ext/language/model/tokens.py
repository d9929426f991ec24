"""Prompts and responses as one pass of a model has them: a row for each response, or for all responses to a prompt.

Letters: B responses to G prompts, P prompt slots (padded on the left), L response slots (padded on the right), S slots
of a row. Padding is known by the mask alone, never by id: a tokenizer may pad with its end-of-text token.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class RowLayout(NamedTuple):
    """What the slots of a row are: a prompt, and after it ``branches`` responses of equal width, apart from each other.

    ``first_scored`` is the index of the prompt's last slot, the first whose state is used.
    """

    first_scored: int = 0
    branches: int = 1


PLAIN_ROWS = RowLayout()  # one response or text a row, every state of which may be used


class Tokens(NamedTuple):
    """Prompts [G, P] and responses [B, L] as token ids, each with the mask of what is not padding.

    With fewer prompts than responses each prompt has B / G responses, which follow each other.
    """

    prompt: Tensor
    prompt_mask: Tensor
    response: Tensor
    mask: Tensor

    @property
    def layout(self) -> RowLayout:
        """That of ``joined``."""
        return RowLayout(self.prompt.shape[1] - 1, len(self.response) // len(self.prompt))

    def sharing(self, branches: int) -> Tokens:
        """The same with one prompt for every ``branches`` responses, whose prompts are equal."""
        return self._replace(prompt=self.prompt[::branches], prompt_mask=self.prompt_mask[::branches])

    def apart(self) -> Tokens:
        """The same with a prompt for every response."""
        branches = self.layout.branches
        prompt, mask = (tensor.repeat_interleave(branches, dim=0) for tensor in (self.prompt, self.prompt_mask))
        return self._replace(prompt=prompt, prompt_mask=mask)

    def of_prompts(self, rows: list[int]) -> tuple[Tokens, list[int]]:
        """Those of the prompts of these numbers, and the numbers of their responses."""
        branches = self.layout.branches
        responses = responses_of(rows, branches)
        return Tokens(
            self.prompt[rows], self.prompt_mask[rows], self.response[responses], self.mask[responses]
        ), responses

    def slots(self) -> list[int]:
        """The slots that each of the G rows takes by itself."""
        prompts, responses = (mask.sum(-1).cpu().numpy() for mask in (self.prompt_mask, self.mask))
        slots: list[int] = slots_of_rows(prompts, responses).tolist()
        return slots

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

    def joined(self) -> tuple[Tensor, Tensor]:
        """Ids and mask [G, S] of the tokens after which another was chosen: all but the last. Masked ids are 0."""
        last = self.response.shape[1] - 1
        slots = (len(self.prompt), self.layout.branches * last)
        mask = torch.cat((self.prompt_mask, self.mask[:, :last].reshape(slots)), dim=1)
        ids = torch.cat((self.prompt, self.response[:, :last].reshape(slots)), dim=1)
        return ids.masked_fill(~mask, 0), mask

    def response_states(self, states: Tensor) -> Tensor:
        """The states [B, L, ...] before each token of a response, of those [G, S, ...] after each of ``joined``."""
        first_scored, branches = self.layout
        if branches == 1:
            return states[:, first_scored:]
        after_prompt = states[:, None, first_scored : first_scored + 1]
        after_tokens = states[:, first_scored + 1 :].unflatten(1, (branches, self.response.shape[1] - 1))
        shape = (-1, branches, *after_prompt.shape[2:])
        return torch.cat((after_prompt.expand(shape), after_tokens), dim=2).flatten(0, 1)

    def gathered(self, states: Tensor, *, every_slot: bool = False) -> Tensor:
        """The rows [n, ...] of ``states`` [B, L, ...] where a response has a token, or of ``every_slot``."""
        return states.flatten(0, 1) if every_slot else states[self.mask]

    def scattered(self, rows: Tensor, *, every_slot: bool = False) -> Tensor:
        """The numbers [B, L] that ``gathered`` has made ``rows`` [n] of; 0 where there is no token."""
        if every_slot:
            return rows.view(self.mask.shape).masked_fill(~self.mask, 0.0)
        return scattered(rows, self.mask)


def slots_of_rows(prompts: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """The slots [G] of rows, by the lengths of their prompts [G] and of the responses [B] that follow these."""
    branches = len(responses) // len(prompts)
    slots: np.ndarray = prompts + branches * responses.reshape(-1, branches).max(axis=1)
    return slots


def responses_of(prompts: list[int], branches: int) -> list[int]:
    """The numbers of the responses to the prompts of these numbers."""
    return [prompt * branches + branch for prompt in prompts for branch in range(branches)]


def scattered(values: Tensor, mask: Tensor) -> Tensor:
    """The ``values`` [n] in the slots where ``mask`` [B, L] is True; 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def positions(mask: Tensor, layout: RowLayout = PLAIN_ROWS) -> Tensor:
    """The position [G, S] of every token among those of its prompt and response, left padding not counted.

    Without them GPT-2 reads a padded prompt at the wrong places; rotary models see only differences.
    """
    first_scored, branches = layout
    if branches == 1:
        return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)
    prompt, responses = mask.long().tensor_split([first_scored + 1], dim=-1)
    of_prompt, of_each = prompt.cumsum(dim=-1), responses.unflatten(1, (branches, -1)).cumsum(dim=-1)
    of_responses = (of_prompt[:, -1, None, None] + of_each).flatten(1)
    return (torch.cat((of_prompt, of_responses), dim=-1) - 1).clamp(min=0)


def prepared_mask(
    mask: Tensor, queries: int, added_in: torch.dtype | None = None, layout: RowLayout = PLAIN_ROWS
) -> Tensor:
    """True [G, 1, queries, S] where a query may attend to a token under ``mask`` [G, S].

    ``queries`` is S, or 1 for the newest token. With ``added_in`` the result has numbers of that type, to be added to
    the scores: 0, or as good as minus infinity.
    """
    first_scored, branches = layout
    if queries == 1:
        allowed = mask[:, None, None]
    else:
        slots = torch.arange(queries, device=mask.device)
        query, token = slots[:, None], slots[None]
        before = token <= query
        if branches > 1:
            width = max((queries - first_scored - 1) // branches, 1)
            branch = torch.div(slots - first_scored - 1, width, rounding_mode="floor")
            before = before & ((token <= first_scored) | (branch[:, None] == branch[None]))
        # Padding attends to itself: what attends to nothing is NaN in some kernels.
        allowed = ((mask[:, None] & before) | (token == query)).unsqueeze(1)
    if added_in is None:
        return allowed
    return torch.zeros_like(allowed, dtype=added_in).masked_fill(~allowed, torch.finfo(added_in).min)
