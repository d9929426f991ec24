"""Each assumption about PyTorch's insides, by name: what an upgrade breaks fails here first."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn

from sb3_ppo_ext.host.pytorch import compile_worker, compilers, graphs, layouts, modules, optimizers, sampling, trees
from sb3_ppo_ext.host.pytorch.graphs import aten
from sb3_ppo_ext.host.pytorch.without_gil import LibraryWithoutGIL, without_gil

# Trees


class Pair(NamedTuple):
    first: Any
    second: Any


def test_trees_are_taken_apart_in_the_order_of_their_keys_and_named_tuples_are_put_together_again() -> None:
    tree = {"z": Pair(1, [2, 3]), "a": (4,)}
    assert trees.tree_leaves(tree) == [1, 2, 3, 4]
    leaves, structure = trees.tree_flatten(tree)
    assert trees.tree_unflatten(leaves, structure) == tree
    assert trees.tree_map(lambda a, b: a + b, tree, tree) == {"z": Pair(2, [4, 6]), "a": (8,)}


def test_a_trees_paths_begin_with_its_keys() -> None:
    leaves: list[tuple[Any, Any]] = trees.tree_flatten_with_path({"constants": {"weight": 1}})[0]
    ((path, leaf),) = leaves
    assert [step.key for step in path] == ["constants", "weight"] and leaf == 1


# Modules


def test_a_tensor_in_a_modules_parameter_table_is_what_the_module_computes_with() -> None:
    layer = nn.Linear(1, 1)
    modules.parameter_table(layer)["weight"] = torch.full((1, 1), 2.0)
    modules.parameter_table(layer)["bias"] = None
    assert layer(torch.ones(1, 1)).item() == 2.0


def test_assigning_a_buffer_writes_to_the_modules_buffer_table() -> None:
    layer = nn.BatchNorm1d(1)
    layer.running_mean = torch.full((1,), 3.0)
    assert modules.buffer_table(layer)["running_mean"] is layer.running_mean


def nothing(*_: Any) -> None: ...


@pytest.mark.parametrize(
    "register",
    [
        nn.Module.register_forward_hook,
        nn.Module.register_forward_pre_hook,
        nn.Module.register_full_backward_hook,
        nn.Module.register_full_backward_pre_hook,
    ],
    ids=lambda register: register.__name__,
)
def test_hooks_of_a_module_are_in_its_tables(register: Callable[..., Any]) -> None:
    layer = nn.Tanh()
    tables = modules.hook_tables(layer)
    assert not any(tables)
    register(layer, nothing)
    assert any(tables)  # the same objects


@pytest.mark.parametrize(
    "register",
    [
        torch.nn.modules.module.register_module_forward_hook,
        torch.nn.modules.module.register_module_forward_pre_hook,
        torch.nn.modules.module.register_module_full_backward_hook,
        torch.nn.modules.module.register_module_full_backward_pre_hook,
    ],
    ids=lambda register: register.__name__,
)
def test_hooks_on_all_modules_are_in_the_shared_tables(register: Callable[..., Any]) -> None:
    tables = modules.shared_hook_tables()
    assert not any(tables)
    handle = register(nothing)
    assert any(tables)
    handle.remove()
    assert not any(tables)


def test_a_parameters_gradient_hooks_are_seen() -> None:
    parameter = nn.Parameter(torch.ones(1))
    assert not modules.has_gradient_hooks(parameter)
    parameter.register_hook(lambda gradient: gradient)
    assert modules.has_gradient_hooks(parameter)


def test_convolutions_normalizations_and_dropouts_are_told_apart_by_their_base_classes() -> None:
    assert all(map(modules.is_convolution, (nn.Conv1d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1))))
    keeping = (nn.BatchNorm1d(1), nn.SyncBatchNorm(1), nn.InstanceNorm1d(1, track_running_stats=True))
    assert all(map(modules.keeps_running_statistics, keeping))
    others = (nn.LayerNorm(1), nn.GroupNorm(1, 1), nn.RMSNorm(1), nn.InstanceNorm1d(1))
    assert not any(map(modules.keeps_running_statistics, others))
    assert all(map(modules.is_dropout, (nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout())))


def test_tensors_share_a_storage_id_where_they_share_memory() -> None:
    whole = torch.zeros(4)
    assert modules.storage_id(whole) == modules.storage_id(whole[1:].view(3, 1))
    assert modules.storage_id(whole) != modules.storage_id(whole.clone())


# Optimizers


def optimizer_of(**options: Any) -> tuple[nn.Parameter, torch.optim.Adam]:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([0.5, -0.25])
    return parameter, torch.optim.Adam([parameter], **options)


def test_hooks_on_an_optimizers_step_are_seen() -> None:
    optimizer = optimizer_of()[1]
    optimizer.register_step_pre_hook(nothing)
    assert optimizers.hooks_before_step(optimizer) == [nothing] and optimizers.hooks_after_step(optimizer) == []
    optimizer.register_step_post_hook(nothing)
    assert optimizers.hooks_after_step(optimizer) == [nothing]


def test_hooks_on_the_steps_of_all_optimizers_are_seen() -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    optimizer = optimizer_of()[1]
    for register, hooks in (
        (register_optimizer_step_pre_hook, optimizers.hooks_before_step),
        (register_optimizer_step_post_hook, optimizers.hooks_after_step),
    ):
        handle = register(nothing)
        assert hooks(optimizer) == [nothing]
        handle.remove()
        assert hooks(optimizer) == []


def test_a_fused_adam_divides_its_gradients_by_grad_scale() -> None:
    parameter, optimizer = optimizer_of(fused=True)
    with optimizers.gradients_divided_by(optimizer, torch.tensor(4.0)):
        optimizer.step()
    # The first moment is 1 - beta1 of the gradient.
    torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], 0.1 * torch.tensor([0.125, -0.0625]))
    assert not hasattr(optimizer, "grad_scale")


def test_a_fresh_adam_state_is_what_adam_makes_in_its_first_step() -> None:
    parameter, optimizer = optimizer_of()
    optimizer.step()
    made, ours = optimizer.state[parameter], optimizers.fresh_adam_state(parameter)
    assert made.keys() == ours.keys()
    assert all((made[name].shape, made[name].dtype) == (ours[name].shape, ours[name].dtype) for name in made)
    stepped, theirs = optimizer_of()
    theirs.state[stepped].update(ours)
    theirs.step()
    assert torch.equal(stepped, parameter)


def test_a_group_states_whether_its_weight_decay_is_decoupled() -> None:
    parameter = nn.Parameter(torch.ones(1))
    for kind, decoupled in ((torch.optim.Adam, False), (torch.optim.AdamW, True)):
        optimizer = kind([parameter], weight_decay=0.1)
        assert optimizers.decouples_weight_decay(optimizer, optimizer.param_groups[0]) is decoupled
    either = torch.optim.Adam([parameter], weight_decay=0.1, decoupled_weight_decay=True)
    assert optimizers.decouples_weight_decay(either, either.param_groups[0])


# Graphs


def graph_of(function: Callable[..., Any], *tensors: Tensor, rules: Any = None) -> fx.GraphModule:
    return graphs.aten_graph(function, tensors, rules or {})


def nodes_of(graph: fx.GraphModule, target: Any = None) -> list[fx.Node]:
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    return [node for node in calls if target is None or node.target is target]


def test_a_graph_has_the_gradient_and_tracing_writes_to_nothing() -> None:
    tensor = torch.ones(3)

    def squared(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad((leaf**2).sum(), [leaf])
        x.add_(1)
        return gradient

    graph = graph_of(squared, tensor)
    assert torch.equal(tensor, torch.ones(3))
    torch.testing.assert_close(graph(tensor), torch.full((3,), 2.0))
    assert torch.equal(tensor, torch.full((3,), 2.0))


def test_tracing_draws_nothing() -> None:
    before = torch.get_rng_state()
    graph_of(torch.bernoulli, torch.full((3,), 0.5))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rule_rewrites_its_operation_unless_it_is_not_implemented() -> None:
    def rule(a: Tensor, b: Tensor) -> Any:
        return (a.unsqueeze(2) * b.unsqueeze(0)).sum(1) if len(a) == 1 else NotImplemented

    for rows, products in ((1, 0), (2, 1)):
        graph = graph_of(torch.mm, torch.ones(rows, 2), torch.ones(2, 3), rules={aten.mm.default: rule})
        assert len(nodes_of(graph, aten.mm.default)) == products


def test_a_nodes_result_has_its_shape_and_type() -> None:
    (node,) = nodes_of(graph_of(torch.mm, torch.ones(2, 3), torch.ones(3, 4)))
    assert graphs.result_of(node).shape == (2, 4) and graphs.result_of(node).dtype == torch.float32
    graphs.set_result(node, torch.ones(1))
    assert graphs.result_of(node).shape == (1,)


def test_what_an_operation_writes_to_is_in_its_schema_and_shares_the_storage_of_the_input() -> None:
    graph = graph_of(lambda x, y: x[1:].add_(y), torch.ones(3), torch.ones(2))
    x, y = (node for node in graph.graph.nodes if node.op == "placeholder")
    written = [modules.storage_id(tensor) for node in graph.graph.nodes for tensor in graphs.written_by(node)]
    assert written == [modules.storage_id(graphs.result_of(x))] != [modules.storage_id(graphs.result_of(y))]


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_that_updates_its_statistics_is_seen(training: bool) -> None:
    layer = nn.BatchNorm1d(2).train(training)
    tensors = [torch.ones(3, 2), torch.zeros(2), torch.ones(2)]
    graph = graph_of(lambda x, mean, var: nn.functional.batch_norm(x, mean, var, training=layer.training), *tensors)
    assert any(map(graphs.updates_batch_statistics, graph.graph.nodes)) is training


@pytest.mark.parametrize(
    "draw", [torch.bernoulli, torch.rand_like, lambda p: torch.multinomial(p, 1), torch.randn_like]
)
def test_operations_that_draw_are_tagged(draw: Callable[[Tensor], Tensor]) -> None:
    assert any(map(graphs.draws, graph_of(draw, torch.full((3, 2), 0.5)).graph.nodes))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_attention_draws_only_for_its_dropout(rate: float) -> None:
    def attention(q: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, q, q, dropout_p=rate)

    assert any(map(graphs.draws, graph_of(attention, torch.ones(1, 1, 4, 8)).graph.nodes)) is (rate > 0)


def test_a_graph_can_be_pickled_once_its_tracer_is_forgotten() -> None:
    graph = graph_of(torch.sin, torch.ones(2))
    graphs.make_picklable(graph)
    assert torch.equal(pickle.loads(pickle.dumps(graph))(torch.ones(2)), torch.ones(2).sin())


# Sampling


DRAWS: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "torch.normal": (torch.normal, [torch.arange(6.0).view(2, 3), torch.full((2, 3), 0.5)]),
    "normal_": (lambda x: torch.empty_like(x).normal_(1.5, 0.5), [torch.ones(2, 3)]),
    "multinomial": (lambda p: torch.multinomial(p, 1, True), [torch.rand(33, 5)]),
    "bernoulli": (torch.bernoulli, [torch.rand(33)]),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_is_its_formula_of_numbers_drawn_before_to_the_bit(name: str) -> None:
    function, tensors = DRAWS[name]
    graph = graph_of(function, *tensors)
    (node,) = filter(graphs.draws, nodes_of(graph))
    sampler = sampling.sampler_of(node)
    assert sampler is not None
    kind, rewrite = sampler
    with graph.graph.inserting_before(node):
        noise = graph.graph.placeholder("noise")
        node.replace_all_uses_with(rewrite(graph.graph, node, noise))
    graph.graph.erase_node(node)
    graph.recompile()
    torch.manual_seed(3)
    expected = function(*tensors)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    numbers = sampling.filled(torch.empty(tensors[0].shape), kind)
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(graph(*tensors, numbers), expected)


def test_several_samples_at_a_time_have_no_formula() -> None:
    (node,) = filter(graphs.draws, nodes_of(graph_of(lambda p: torch.multinomial(p, 2), torch.ones(3, 4))))
    assert sampling.sampler_of(node) is None


# Compilers


class Library(NamedTuple):
    """The library of ``affine`` for vectors of 3, and the kinds of files that inductor has built for it, in order."""

    path: Path
    built: list[str]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    from torch._inductor.cpp_builder import CppBuilder, get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        pytest.skip(f"no C++ compiler here: {error}")
    names: list[str] = []
    build = CppBuilder.build

    def noted(self: Any) -> None:
        names.append(self._name.rpartition(".")[2] if "." in self._name else "library")
        build(self)

    path = tmp_path_factory.mktemp("library") / "graph.so"
    vector = ((3,), (1,), torch.float32)
    with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's own, as in the child process
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(path.parent))
        monkeypatch.setattr(CppBuilder, "build", noted)
        compile_worker.compile_graph(graph_of(affine, torch.ones(3), torch.ones(3)), [vector, vector], str(path), 1)
    return Library(path, names)


def affine(a: Tensor, b: Tensor) -> tuple[Tensor]:
    return (2 * a + b,)


EXPECTED = torch.tensor([2.0, 3.0, 4.0])  # 2 a + b of ones and 0, 1, 2


def test_a_graph_is_compiled_to_a_library_that_torch_loads(library: Library) -> None:
    call = compilers.load_library(library.path)
    torch.testing.assert_close(call([torch.ones(3), torch.arange(3.0)])[0], EXPECTED)


def test_a_library_needs_no_regular_expressions_of_the_standard_library(library: Library) -> None:
    assert b"regex_traits" not in library.path.read_bytes()  # with which it would have been compiled another time


def test_the_table_of_result_types_is_one_object_that_is_filled_anew_for_every_operation() -> None:
    from torch._inductor.dtype_propagation import DtypePropagationOpsHandler

    handler, rule = DtypePropagationOpsHandler(), vars(DtypePropagationOpsHandler())["add"]
    with compile_worker.rules_of_types_once():
        kept = [vars(DtypePropagationOpsHandler())["add"] for _ in range(2)]
    assert kept[0] is kept[1] is not rule
    assert DtypePropagationOpsHandler() is handler and vars(handler)["add"] is not kept[0]


def test_a_library_has_the_c_interface_that_is_called_without_the_gil(library: Library, tmp_path: Path) -> None:
    assert without_gil(library.path) is without_gil(library.path)
    torch.testing.assert_close(without_gil(library.path)([torch.ones(3), torch.arange(3.0)])[0], EXPECTED)
    other = tmp_path / "other.so"
    other.write_bytes(b"no library")
    with pytest.raises(RuntimeError, match="to another interface"):
        LibraryWithoutGIL(other)


def test_what_is_no_library_is_refused_by_torch(tmp_path: Path) -> None:
    (tmp_path / "other.so").write_bytes(b"no library")
    with pytest.raises(RuntimeError):
        compilers.load_library(tmp_path / "other.so")


def test_inductor_has_the_options_that_libraries_are_compiled_with() -> None:
    from torch._inductor import config

    known = config.get_config_copy()
    assert set(compile_worker.OPTIONS) <= known.keys()
    assert {"cpp.threads", "cpp.vec_isa_ok", "aot_inductor.output_path", *compilers.COMBO_KERNELS} <= known.keys()


def test_inductor_tries_an_instruction_set_out_by_check_build_unless_it_is_stated_to_be_there() -> None:
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import VecISA

    class Unheard(VecISA):
        """An instruction set that no processor has."""

        tried = 0

        def __str__(self) -> str:
            return "unheard"

        __hash__ = VecISA.__hash__

        def check_build(self, code: str) -> bool:
            self.tried += 1
            return False

    unheard: Any = Unheard()
    with config.patch({"cpp.vec_isa_ok": True}):
        assert bool(unheard) and unheard.tried == 0
    with config.patch({"cpp.vec_isa_ok": None}):
        assert not bool(unheard) and unheard.tried == 1
    with compile_worker.no_trial_builds():
        assert VecISA().check_build("int main() {}") is False


def test_inductor_builds_a_wrapper_and_kernels_and_links_them_last(library: Library) -> None:
    assert sorted(library.built[:2]) == ["kernel", "wrapper"] and library.built[-1] == "library"


@pytest.mark.usefixtures("compiler")
def test_inductor_compiles_a_graph_in_this_process() -> None:
    call = compilers.inductor(graph_of(affine, torch.ones(3), torch.ones(3)), [torch.ones(3)] * 2)
    torch.testing.assert_close(call(torch.ones(3), torch.arange(3.0))[0], EXPECTED)


# Layouts of weights


@pytest.mark.parametrize("dtype", layouts.TYPES)
def test_a_packed_weight_gives_the_products_of_the_weight(dtype: torch.dtype) -> None:
    if not layouts.has_packed_products(dtype):
        pytest.skip(f"oneDNN has no {dtype} here")
    states, weight, bias = torch.randn(2, 5, 32), torch.randn(24, 32), torch.randn(24)
    exact = nn.functional.linear(states, weight, bias)
    for rows in (10, 1):  # the number that it is packed for is a hint
        packed = layouts.pack_weight(weight.to(dtype), rows)
        for shift in (None, bias.to(dtype)):
            result = layouts.packed_linear(states.to(dtype), packed, shift)
            expected = exact if shift is not None else exact - bias
            assert result.dtype is dtype
            torch.testing.assert_close(result.float(), expected, rtol=0, atol=1e-4 if dtype is torch.float32 else 0.3)


def test_other_types_have_no_packed_products() -> None:
    assert not layouts.has_packed_products(torch.float16)
