import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common import distributions as sb3
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal, kl_divergence

from sb3_ppo_ext.objective.distributions import (
    Bernoulli,
    Categorical,
    Gaussian,
    concatenated,
    exact_kl,
    gathered,
    parameters_of,
    split_kl,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_gaussian_kl_is_torchs_summed_over_dimensions() -> None:
    old = Gaussian(random(5, 3), random(5, 3, seed=1).exp())
    new = Gaussian(random(5, 3, seed=2), random(5, 3, seed=3).exp())
    expected = kl_divergence(Normal(*old), Normal(*new)).sum(-1)
    torch.testing.assert_close(exact_kl(old, new), expected)
    assert not torch.allclose(exact_kl(new, old), expected)  # not symmetric: old comes first


def test_the_kl_of_mean_and_of_deviation_are_torchs_with_the_other_as_it_was() -> None:
    old = Gaussian(random(5, 3), random(5, 3, seed=1).exp())
    new = Gaussian(random(5, 3, seed=2).requires_grad_(), random(5, 3, seed=3).exp().requires_grad_())
    of_mean, of_deviation = split_kl(old, new)
    torch.testing.assert_close(of_mean, kl_divergence(Normal(*old), Normal(new.loc, old.scale)).sum(-1))
    torch.testing.assert_close(of_deviation, kl_divergence(Normal(*old), Normal(old.loc, new.scale)).sum(-1))
    assert torch.autograd.grad(of_mean.sum(), new.scale, allow_unused=True)[0] is None
    assert torch.autograd.grad(of_deviation.sum(), new.loc, allow_unused=True)[0] is None


def test_mean_and_deviation_add_up_to_the_whole_kl_to_the_second_order() -> None:
    # s = 1, m' = .01, s' = 1.01: .01^2 / 2 = 5e-5 and log 1.01 + 1 / (2 * 1.0201) - .5 = 9.8356e-5; the whole has
    # .01^2 / (2 * 1.0201) = 4.9015e-5 for the first of them.
    old = Gaussian(torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    new = Gaussian(old.loc + 0.01, old.scale + 0.01)
    of_mean, of_deviation = split_kl(old, new)
    assert (of_mean.item(), of_deviation.item()) == pytest.approx((5e-5, 9.8356e-5), rel=1e-4)
    assert exact_kl(old, new).item() == pytest.approx(4.9015e-5 + 9.8356e-5, rel=1e-4)


def test_actions_that_are_not_gaussian_have_no_deviation() -> None:
    bits = Bernoulli(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="kl_coef_std: a Bernoulli has no mean and deviation"):
        split_kl(bits, bits)


def test_categorical_kl_sums_over_the_choices() -> None:
    old, new = random(4, 5), random(4, 5, seed=1)
    expected = sum(
        kl_divergence(TorchCategorical(logits=old[:, part]), TorchCategorical(logits=new[:, part]))
        for part in (slice(0, 2), slice(2, 5))
    )
    torch.testing.assert_close(exact_kl(Categorical(old, (2, 3)), Categorical(new, (2, 3))), expected)


def test_bernoulli_kl_is_torchs_summed_over_bits_also_far_out() -> None:
    old, new = random(4, 3) * 30, random(4, 3, seed=1) * 30
    expected = kl_divergence(TorchBernoulli(logits=old.double()), TorchBernoulli(logits=new.double())).sum(-1)
    torch.testing.assert_close(exact_kl(Bernoulli(old), Bernoulli(new)).double(), expected, rtol=1e-4, atol=1e-6)


def test_impossible_actions_contribute_nothing_and_pass_no_nan() -> None:
    infinity = float("inf")
    old = Categorical(torch.tensor([[0.0, 0.0, -infinity]]), (3,))
    logits = torch.tensor([[0.0, 1.0, -infinity]], requires_grad=True)
    # halves against (1, e) / (1 + e): log(1 + e) - log 2 - 1 / 2 = 0.120115
    divergence = exact_kl(old, Categorical(logits, (3,)))
    torch.testing.assert_close(divergence, torch.tensor([0.1201145]))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (3,), np.float32),
        spaces.Discrete(4),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary(3),
    ],
    ids=lambda space: type(space).__name__,
)
def test_parameters_of_sb3s_distributions_give_its_kl_summed(space: "spaces.Space[object]") -> None:
    def build(seed: int) -> sb3.Distribution:
        distribution = sb3.make_proba_distribution(space)
        if isinstance(distribution, sb3.DiagGaussianDistribution):
            return distribution.proba_distribution(random(6, 3, seed=seed), random(3, seed=seed + 9))
        width = {spaces.Discrete: 4, spaces.MultiDiscrete: 5, spaces.MultiBinary: 3}[type(space)]
        return distribution.proba_distribution(action_logits=random(6, width, seed=seed))

    old, new = build(0), build(1)
    divergence = sb3.kl_divergence(old, new)
    summed = divergence if divergence.ndim == 1 else divergence.sum(-1)
    torch.testing.assert_close(exact_kl(parameters_of(old), parameters_of(new)), summed)


def test_rows_are_gathered_and_joined() -> None:
    rows = torch.tensor([2, 0])
    for distribution in (
        Gaussian(random(3, 2), random(3, 2).exp()),
        Categorical(random(3, 5), (2, 3)),
        Bernoulli(random(3, 2)),
    ):
        picked = gathered(distribution, rows)
        joined = concatenated([picked, picked])
        torch.testing.assert_close(picked[0], distribution[0][rows])
        torch.testing.assert_close(joined[0], torch.cat([distribution[0][rows]] * 2))
        torch.testing.assert_close(exact_kl(joined, joined), torch.zeros(4), atol=1e-6, rtol=0)


def test_kinds_do_not_mix() -> None:
    with pytest.raises(ValueError, match=r"Gaussian.*Bernoulli"):
        exact_kl(Gaussian(random(1, 1), torch.ones(1, 1)), Bernoulli(random(1, 1)))
