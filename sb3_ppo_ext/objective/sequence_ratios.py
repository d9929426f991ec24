"""Surrogates for the tokens of a language model's responses: tensors [B, L] with a mask.

Letters as in ``losses``; sg(x) is x without gradient. In tensors [B] every action is a response of its own.
"""

from __future__ import annotations

from torch import Tensor

from sb3_ppo_ext.objective.losses import Reduce, Scalar, clipped_surrogate, fill_masked, masked_mean
from sb3_ppo_ext.objective.registration import surrogate

LARGEST_LOG_RATIO = 10.0  # verl (core_algos.py, gspo): of a sequence


def response_log_ratio(log_ratio: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of ``log_ratio`` [B, L] over the tokens of each response, at every one of them; of [B] itself."""
    if log_ratio.dim() < 2:
        return log_ratio
    log_ratio = fill_masked(log_ratio, mask)
    count = log_ratio.shape[-1] if mask is None else (mask > 0).sum(dim=-1, keepdim=True).clamp(min=1)
    mean = log_ratio.sum(dim=-1, keepdim=True) / count
    return mean.clamp(max=LARGEST_LOG_RATIO).expand_as(log_ratio)


@surrogate("gspo")
def gspo_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    low: Scalar,
    high: Scalar,
    mask: Tensor | None = None,
    reduce: Reduce = masked_mean,
) -> Tensor:
    """The clipped loss with one ratio per response, s = exp(mean over its tokens of log r), for each of its tokens.

    Zheng et al. 2025 (GSPO), eq. 5 - 7. The mean moves little, so their clip range is 3e-4 below and 4e-4 above
    (``clip_range``, ``clip_range_high``). The loss of the paper is the mean over responses, ``loss_mean="response"``.
    """
    return clipped_surrogate(
        response_log_ratio(log_ratio, mask), advantage, low=low, high=high, mask=mask, reduce=reduce
    )


@surrogate("cispo")
def cispo_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    *,
    low: Scalar,
    high: Scalar,
    mask: Tensor | None = None,
    reduce: Reduce = masked_mean,
) -> Tensor:
    """``-E[sg(clip(r, 1 - low, 1 + high)) A log r]``: the weight of a token is clipped, and none loses its gradient.

    MiniMax 2025 (MiniMax-M1, CISPO), eq. 4 - 5, which clips above only: ``clip_range=1``, ``clip_range_high`` say 0.2.
    log r has the gradient of log pi.
    """
    log_ratio, advantage = fill_masked(log_ratio, mask), fill_masked(advantage, mask)
    weight = log_ratio.detach().exp().clamp(1 - low, 1 + high)  # type: ignore[arg-type]  # numbers or tensors
    return -reduce(weight * advantage * log_ratio, mask)
