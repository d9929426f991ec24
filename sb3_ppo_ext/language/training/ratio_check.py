"""The first minibatch of a rollout: the policy is still the one that sampled it, so every ratio has to be 1.

Where one is not, what is trained is not what was sampled from, and training fails slowly and without a message: the
log-probabilities are computed again under each of the usual mistakes, to name the one that explains it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from unittest import mock

import torch
from torch import Tensor

from sb3_ppo_ext.distributed.processes import ALONE, Processes, together
from sb3_ppo_ext.language.model import causal_lm as lm
from sb3_ppo_ext.language.model.tokens import RowLayout, Tokens
from sb3_ppo_ext.monitoring.diagnostics import TrainingWarning
from sb3_ppo_ext.objective.batch import Minibatch

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy

# Greatest |log ratio| of a token. float32 leaves some 1e-6 to 1e-4 between one pass and token by token; halves 0.04,
# and more where the distribution is far from uniform.
TOLERANCE = 1e-3
TOLERANCE_OF_HALF = 0.2
ROWS = 8


class RatioError(ValueError):
    """The distribution that is trained is not the one that was sampled from."""


class RatioCheck:
    """Called once per rollout with the first minibatch and its greatest ``|log_ratio|``."""

    def __init__(self, policy: LanguageModelPolicy, processes: Processes = ALONE) -> None:
        self.policy, self.processes = policy, processes

    def __call__(self, minibatch: Minibatch, deviation: float) -> None:
        """Raises ``RatioError``, in all processes where one has the reason, or warns."""
        with together(self.processes, RatioError):
            self.judge(minibatch, deviation)

    def judge(self, minibatch: Minibatch, deviation: float) -> None:
        """Raises ``RatioError`` in float32; in half precision, where rounding alone can do it, warns."""
        lm = self.policy.lm
        half = (lm.compute_dtype or lm.plain.dtype) in (torch.float16, torch.bfloat16)
        if deviation <= (TOLERANCE_OF_HALF if half else TOLERANCE):
            return
        text = (
            f"the first minibatch's log-probabilities differ by up to {deviation:.3g} nats from those its tokens were "
            f"sampled with, though no step has been taken: {self.cause(minibatch)}"
        )
        if half:
            warnings.warn(text, TrainingWarning, stacklevel=4)
        else:
            raise RatioError(text)

    @torch.no_grad()
    def cause(self, minibatch: Minibatch) -> str:
        """The mistake under which the sampled log-probabilities come out, in words."""
        assert isinstance(minibatch.observation, dict) and minibatch.mask is not None
        rows = slice(ROWS)
        whole = self.policy.tokens(minibatch.observation, minibatch.action, minibatch.mask)
        tokens = Tokens(*(tensor[rows] for tensor in whole.apart())).trimmed()
        sampled = minibatch.action_log_prob[rows, : tokens.response.shape[1]]

        def gap() -> float:
            log_prob, _, _ = self.policy.evaluate_tokens(tokens, entropy_grad=False)
            return (log_prob - sampled).masked_fill(~tokens.mask, 0.0).abs().max().item()

        first, again = gap(), gap()
        if whole.layout.branches > 1 and first <= TOLERANCE:
            return (
                f"{type(self.policy.lm.plain).__name__} reads responses otherwise where several of them follow a "
                "prompt in one row; pass share_prompts=False"
            )
        if abs(first - again) > TOLERANCE:
            return (
                "two passes over the same tokens differ: dropout is on (something has put the model in training mode)"
            )
        found = {}
        for text, mistake in MISTAKES.items():
            with mistake(self.policy):
                found[text] = gap()
        text, smallest = min(found.items(), key=lambda item: item[1])
        if smallest < 0.1 * first:
            return text
        dtype = self.policy.lm.plain.dtype
        if first < TOLERANCE_OF_HALF:  # rounding leaves gaps of this size, on both sides of 0
            return (
                f"by its size it is rounding: they were sampled in another precision than that of the weights, {dtype} "
                "(a copy in half precision, a quantised one, or autocast on one side)"
            )
        return (
            f"none of the usual mistakes explains it (dtype {dtype}). Parameters that changed "
            "between sampling and training, or a model whose cache and full pass disagree, would do it"
        )


@contextlib.contextmanager
def _temperature_of_one(policy: LanguageModelPolicy) -> Iterator[None]:
    with mock.patch.object(policy.lm, "temperature", 1.0):
        yield


@contextlib.contextmanager
def _padding_counted(policy: LanguageModelPolicy) -> Iterator[None]:
    with mock.patch.object(lm, "positions", counted_from_the_left):
        yield


def counted_from_the_left(mask: Tensor, layout: RowLayout) -> Tensor:
    """Positions as a model makes them up without position ids: padding counts."""
    return torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)


@contextlib.contextmanager
def _padding_seen(policy: LanguageModelPolicy) -> Iterator[None]:
    hidden = policy.lm.hidden
    with mock.patch.object(policy.lm, "hidden", lambda ids, mask, layout: hidden(ids, torch.ones_like(mask), layout)):
        yield


MISTAKES: dict[str, Callable[[LanguageModelPolicy], contextlib.AbstractContextManager[None]]] = {
    "they were sampled at another temperature than they are evaluated at (1 on one side)": _temperature_of_one,
    "they were sampled without position ids, so that the padding on the left counted": _padding_counted,
    "they were sampled without an attention mask, so that the padding was read as text": _padding_seen,
}
