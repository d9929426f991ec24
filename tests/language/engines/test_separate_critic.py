"""Policy and critic beside each other: the same gradient and statistics, each on half of the threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sb3_ppo_ext.engines import selection
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.graph_cache import Graphs
from sb3_ppo_ext.language.engines.separate_critic import ConcurrentGradients
from sb3_ppo_ext.language.training.token_update import EagerGradients, TokenGradients
from sb3_ppo_ext.objective.statistics import Statistics
from tests.language import setups, tiny
from tests.language.tiny import one_block
from tests.language.token_updates import KNOBS, gradients_of, minibatch, updater
from tests.traced_graphs import Traced, trace_only

VALUES = "gradient of values"
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


def in_halves(policy: Any, rows: int, batch: Any, graphs: Graphs) -> ConcurrentGradients:
    halves = ConcurrentGradients(EagerGradients(updater(policy)), graphs, rows)
    halves.prepare(batch, CLIPPED)
    return halves


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("policy_kwargs", POLICIES)
def test_two_halves_are_the_whole(policy_kwargs: dict[str, Any]) -> None:
    policy = setups.policy(**policy_kwargs)
    batch = minibatch(policy, rows=7)  # in parts of 4 and of 3
    graphs = Traced()
    halves = in_halves(policy, 4, batch, graphs)
    found = []
    for gradients in (TokenGradients(halves.update, halves, None), gradients_of(updater(policy))):
        statistics, _ = gradients.evaluate(batch, CLIPPED)
        tensors = [parameter.grad for parameter in gradients.update.parameters]
        found.append([statistics.row().nan_to_num(), *(one.flatten() for one in tensors if one is not None)])
        assert statistics.value_clipped > 0
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert graphs.calls == {"gradient of tokens": 2, "gradient of values": 2}


@pytest.mark.usefixtures("two_threads")
def test_each_half_has_a_thread_and_nothing_else_loses_its_own() -> None:
    policy = setups.policy(value="separate")
    batch = minibatch(policy)
    gradients = in_halves(policy, 6, batch, Traced())
    seen: dict[str, tuple[int, int]] = {}

    def noted(name: str, results: list[Tensor], _: list[Tensor]) -> list[Tensor]:
        seen[name] = (threading.get_ident(), torch.get_num_threads())
        return results

    given = gradients._inputs(next(iter(gradients.split(batch))), KNOBS)
    names = list(given["parameters"])
    sizes = [len([name for name in names if name.startswith("critic.") == critic]) for critic in (False, True)]
    of_policy = partial(noted, "policy", [torch.ones(len(Statistics._fields)), *[torch.zeros(())] * sizes[0]])
    of_critic = partial(noted, "critic", [torch.full((3,), 2.0), *[torch.ones(())] * sizes[1]])
    row, *each = gradients._computed(of_policy, of_critic, given)
    found = Statistics.of_row(row)
    measured = (found.loss, found.value_loss, found.value_clipped, found.approx_kl)
    assert [number.item() for number in measured] == [3, 2, 2, 1]
    assert [bool(one) for one in each] == [name.startswith("critic.") for name in names]
    assert seen["policy"][0] == threading.get_ident() != seen["critic"][0]
    assert seen["policy"][1] == seen["critic"][1] == 1 and torch.get_num_threads() == 2

    def failing(_: list[Tensor]) -> list[Tensor]:
        raise CompileError("no such thing")

    with pytest.raises(CompileError, match="no such thing"):
        gradients._computed(of_policy, failing, given)
    assert torch.get_num_threads() == 2


class ValuesCompiled(Traced):
    """Compiles the graph of the values alone: ``test_compiled`` compiles all that the policy's consists of."""

    def _finish(self) -> None:
        entries = self._pending or []
        self._pending = [entry for entry in entries if entry[0][0] != VALUES]
        super()._finish()
        self._pending = [entry for entry in entries if entry[0][0] == VALUES]
        Graphs._finish(self)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads", "compiler")
def test_training_in_halves_is_training_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "threads_for", lambda *_: 2)  # so small a model would get one
    models = []
    for compiled in (False, True):
        torch.manual_seed(0)
        kwargs = {"model": one_block, "value": "separate"}
        models.append(setups.ppox(policy_kwargs=kwargs, compile=compiled, ent_coef=0.01))
        models[-1]._engines.actor_refused = True  # what decodes is compiled in ``test_compiled``
        if compiled:
            graphs = trace_only(models[-1], ValuesCompiled())
        models[-1].learn(32)
    compiled_kinds = {key[0]: graph.path is not None for key, graph in graphs.known.items()}
    assert compiled_kinds == {"gradient of tokens": False, VALUES: True}
    theirs = models[0].policy.state_dict()
    for name, tensor in models[1].policy.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=5e-4, msg=name)
