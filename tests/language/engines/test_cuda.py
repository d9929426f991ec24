"""On a GPU: compiled gradients and recorded tokens are the eager ones of that GPU up to rounding."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sb3_ppo_ext import PPOX
from tests.language import setups, tiny

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore"),  # compilers have much to say, once in a process, on any machine
]

KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama, branch, LoRA": {"model": partial(tiny.model, "llama"), "lora": {"r": 2}, "value": "branch"},
    "qwen3, separate": {"model": partial(tiny.model, "qwen3"), "value": "separate"},
    "pythia": {"model": partial(tiny.model, "pythia")},
}


def trained(compile: bool, updates: int, policy_kwargs: dict[str, Any], **options: Any) -> PPOX:  # PPOX's name
    torch.manual_seed(0)
    settings = {"ent_coef": 0.01, "ref_kl_coef": 0.1, **options}
    return setups.ppox(policy_kwargs=policy_kwargs, device="cuda", compile=compile, **settings).learn(updates * 16)


def parameters_of(model: PPOX) -> torch.Tensor:
    return torch.cat([parameter.detach().float().flatten() for parameter in model.policy.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_what_it_is_eagerly(kind: str) -> None:
    eager, graphs = (trained(compiled, 2, KINDS[kind]) for compiled in (False, True))
    assert not (graphs._compilation.update_refused or graphs._compilation.actor_refused)
    assert graphs.rollout_buffer.actions.tolist() == eager.rollout_buffer.actions.tolist()
    # Adam turns rounding of tiny gradients into steps of up to the learning rate, 1e-3.
    torch.testing.assert_close(parameters_of(graphs), parameters_of(eager), rtol=0, atol=5e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind: str) -> None:
    before, after = (trained(True, updates, {**KINDS[kind], "dtype": "bfloat16"}) for updates in (1, 3))
    compilation = after._compilation
    assert not (compilation.update_refused or compilation.actor_refused)
    assert parameters_of(after).isfinite().all() and not parameters_of(after).equal(parameters_of(before))
    assert after.logger.name_to_value["train/approx_kl"] >= 0


def test_a_saved_model_goes_on(tmp_path: Path) -> None:
    model = trained(True, 1, {})
    model.save(tmp_path / "model")
    loaded = PPOX.load(tmp_path / "model", env=setups.env(), device="cuda")
    for one in (model, loaded):
        one.set_random_seed(5)
        one.learn(16)
    torch.testing.assert_close(parameters_of(loaded), parameters_of(model), rtol=0, atol=5e-4)
