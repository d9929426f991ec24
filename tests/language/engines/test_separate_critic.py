"""Policy and critic beside each other: the same gradient and statistics, each on half of the threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sb3_ppo_ext.engines import selection as compilation
from sb3_ppo_ext.engines.cpu import libraries as artifacts
from sb3_ppo_ext.engines.cpu.libraries import CompileError
from sb3_ppo_ext.engines.cpu.without_gil import UnlockedLibrary
from sb3_ppo_ext.engines.graph_cache import Graphs
from sb3_ppo_ext.language.engines import engine as compilable
from sb3_ppo_ext.language.engines.separate_critic import HalvedGradients
from sb3_ppo_ext.language.training.token_update import EagerGradients, SequenceUpdate
from tests.engines.test_compiled import compiler  # noqa: F401  # a fixture
from tests.language import setups, tiny
from tests.language.engines.test_compiled import one_block
from tests.language.training.test_token_update import KNOBS, minibatch, updater
from tests.traced_graphs import Traced

CLIPPED = KNOBS._replace(clip_range_vf=0.3, vf_coef=0.7)
POLICIES: list[dict[str, Any]] = [
    {"value": "separate"},
    {"value": "separate", "lora": {"r": 2}, "model": partial(tiny.model, "llama")},
]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def in_halves(policy: Any, rows: int, batch: Any, graphs: Graphs) -> SequenceUpdate:
    update = updater(policy)
    assert isinstance(update.gradients, EagerGradients)
    update.gradients = HalvedGradients(update.gradients, graphs, rows)
    update.gradients.prepare(batch, CLIPPED)
    return update


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("policy_kwargs", POLICIES)
def test_two_halves_are_the_whole(policy_kwargs: dict[str, Any]) -> None:
    policy = setups.policy(**policy_kwargs)
    batch = minibatch(policy, rows=7)  # in parts of 4 and of 3
    graphs = Traced()
    halves, eager = in_halves(policy, 4, batch, graphs), updater(policy)
    found = []
    for update in (halves, eager):
        _, row = update.evaluate(batch, CLIPPED)
        gradients = [parameter.grad for parameter in update.parameters]
        found.append([row.nan_to_num(), *update.seen, *(one.flatten() for one in gradients if one is not None)])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert found[0][1][-1] > 0  # tokens whose value loss is the clipped one
    assert graphs.calls == {"gradient of tokens": 2, "gradient of values": 2}


@pytest.mark.usefixtures("two_threads")
def test_each_half_has_a_thread_and_nothing_else_loses_its_own() -> None:
    policy = setups.policy(value="separate")
    batch = minibatch(policy)
    update = in_halves(policy, 6, batch, Traced())
    gradients = update.gradients
    assert isinstance(gradients, HalvedGradients)
    seen: dict[str, tuple[int, int]] = {}

    def noted(name: str, results: list[Tensor], _: list[Tensor]) -> list[Tensor]:
        seen[name] = (threading.get_ident(), torch.get_num_threads())
        return results

    given = gradients._inputs(next(iter(gradients.parts(batch, loss_mean="token", max_tokens=None))), KNOBS)
    names = list(given["parameters"])
    sizes = [len([name for name in names if name.startswith("critic.") == critic]) for critic in (False, True)]
    ones = [torch.ones(()), torch.ones(10), torch.ones(4), torch.ones(())]
    of_policy = partial(noted, "policy", [*ones, *[torch.zeros(())] * sizes[0]])
    of_critic = partial(noted, "critic", [*[torch.full((), 2.0)] * 3, *[torch.ones(())] * sizes[1]])
    loss, row, extra, _, *each = gradients._computed(of_policy, of_critic, given)
    assert loss == 3 and row[2] == 2 and extra[3] == 2
    assert [bool(one) for one in each] == [name.startswith("critic.") for name in names]
    assert seen["policy"][0] == threading.get_ident() != seen["critic"][0]
    assert seen["policy"][1] == seen["critic"][1] == 1 and torch.get_num_threads() == 2

    def failing(_: list[Tensor]) -> list[Tensor]:
        raise CompileError("no such thing")

    with pytest.raises(CompileError, match="no such thing"):
        gradients._computed(of_policy, failing, given)
    assert torch.get_num_threads() == 2


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads", "compiler")
def test_training_in_halves_is_training_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[HalvedGradients] = []

    class Noted(HalvedGradients):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(compilable, "HalvedGradients", Noted)
    monkeypatch.setattr(compilation, "threads_for", lambda *_: 2)  # so small a model would get one
    models = []
    for compiled in (False, True):
        torch.manual_seed(0)
        kwargs = {"model": one_block, "value": "separate"}
        models.append(setups.ppox(policy_kwargs=kwargs, compile=compiled, ent_coef=0.01).learn(32))
    assert made and all(isinstance(call, partial) for one in made for call in one.calls.values())
    theirs = models[0].policy.state_dict()
    for name, tensor in models[1].policy.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=5e-4, msg=name)


@pytest.mark.usefixtures("compiler")
def test_a_library_without_the_lock_computes_the_same(tmp_path: Path) -> None:
    graphs, inputs = Graphs(), {"a": torch.randn(3, 5), "b": torch.randn(5)}
    graph = graphs.get("sums", lambda given: (given["a"] @ given["b"], given["a"].sum()), inputs, torch.nn.Identity())
    assert graph.path is not None and graph.path.parent == artifacts.folder()
    results = UnlockedLibrary(graph.path)(list(inputs.values()))
    torch.testing.assert_close(results, graph.call(list(inputs.values())), rtol=0, atol=0)
    other = tmp_path / "other.so"
    other.write_bytes(b"no library")
    with pytest.raises(CompileError, match="to another interface"):
        UnlockedLibrary(other)
