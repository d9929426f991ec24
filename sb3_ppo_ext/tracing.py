"""A policy's computation as one graph of tensor operations, with nothing of the policy baked into it.

Parameters and buffers are inputs, and so is the noise of sampled actions: drawn outside, from torch's generator, in
the order in which the policy itself would draw it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sb3_ppo_ext.artifacts import CompileError, first_line

Inputs = dict[str, Any]
aten = torch.ops.aten

# Tracing and compiling replace methods of torch's classes until they end, for the whole process.
ONE_AT_A_TIME = threading.RLock()


@contextmanager
def substituted(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """``module`` with other tensors for its parameters and buffers, by name, until the end of the block.

    Not ``torch.func.functional_call``: a feature extractor that actor and critic share is registered under three names,
    and that function then leaves the other tensors in the module.
    """
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    other = {id(own[name]): tensor for name, tensor in tensors.items()}
    places = [
        (table, name, tensor)
        for part in module.modules()
        for table in (part._parameters, part._buffers)
        for name, tensor in table.items()
        if id(tensor) in other
    ]
    try:
        for table, name, tensor in places:
            table[name] = other[id(tensor)]  # type: ignore[assignment]  # a plain tensor where a Parameter stood
        yield
    finally:
        for table, name, tensor in places:
            table[name] = tensor  # type: ignore[assignment]  # its own


def trace(function: Callable[[Inputs], tuple[Tensor, ...]], inputs: Inputs) -> fx.GraphModule:
    """``function`` of the tensors among ``inputs``, in the order of ``tensors_of``; ``CompileError`` if it cannot be.

    On fake tensors, so that tracing takes no step and draws no number.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # slow to import, for who compiles

    leaves, structure = pytree.tree_flatten(inputs)
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return function(pytree.tree_unflatten(filled, structure))

    try:
        with ONE_AT_A_TIME:
            traced = make_fx(flat, DECOMPOSED, tracing_mode="fake")(*(leaves[place] for place in places))
    except Exception as error:  # whatever a policy's own code may raise where its numbers are not known
        raise CompileError(f"the policy cannot be traced ({type(error).__name__}: {first_line(error)})") from error
    return traced


def _product(a: Tensor, b: Tensor) -> Any:
    """A matrix product that is no work for a matrix library: heads of one or two outputs, inputs of a few numbers.

    Written out, it is a loop of its own among the others; to call MKL for it takes longer than to compute it.
    """
    (rows, inner), columns = a.shape, b.shape[1]
    if min(rows, inner, columns) > 4 or rows * inner * columns > 2**16:
        return NotImplemented
    return (a.unsqueeze(2) * b.unsqueeze(0)).sum(1)


def _product_and_bias(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """The bias is added among what follows: the matrix library would copy it to every row first.

    Not to the product as it stands, for the compiler would make one call of the two again.
    """
    if not beta == alpha == 1:
        return NotImplemented
    product = _product(a, b)
    return (torch.mm(a, b)[None] + bias)[0] if product is NotImplemented else product + bias


DECOMPOSED: dict[Any, Callable[..., Any]] = {aten.mm.default: _product, aten.addmm.default: _product_and_bias}


def tensors_of(inputs: Any) -> list[Tensor]:
    """The tensors among the inputs, in the order a graph takes them."""
    return [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]


def signature(inputs: Inputs) -> Any:
    """What a graph was made for: structure, shapes and types of its inputs, and the plain values among them."""
    leaves, structure = pytree.tree_flatten(inputs)
    shapes = (
        (leaf.shape, leaf.dtype, leaf.stride(), leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves
    )
    return (structure, *shapes)


def fingerprint(policy: nn.Module) -> Any:
    """Changes when a part of the policy is replaced, switched or set to another value; tensors are not looked at."""
    return tuple(
        (id(part), type(part), tuple((name, _told(value)) for name, value in vars(part).items()))
        for part in policy.modules()
    )


def _told(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return id(value) if callable(value) else None


class Noise(NamedTuple):
    """One draw of random numbers: "normal", "uniform" or "exponential", and the shape."""

    kind: str
    shape: tuple[int, ...]

    def draw(self) -> Tensor:
        """The numbers, from torch's generator, to the bit those of ``Normal``, ``Bernoulli`` and ``Categorical``."""
        return self.fill(torch.empty(self.shape))

    def fill(self, numbers: Tensor) -> Tensor:
        """The numbers written into a tensor of this shape."""
        if self.kind == "normal":
            return numbers.normal_()
        return numbers.uniform_() if self.kind == "uniform" else numbers.exponential_()


def noise_as_inputs(traced: fx.GraphModule) -> list[Noise]:
    """Makes every draw of the graph an input after its others; returns them in the order of drawing."""
    graph = traced.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    drawn: list[Noise] = []
    for node in list(graph.nodes):
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            continue
        replace = _SAMPLERS.get(node.target)
        if replace is None or (node.target is aten.multinomial.default and node.args[1] != 1):
            raise CompileError(f"the policy draws by {node.target}, whose numbers cannot be drawn beforehand")
        kind, rewrite = replace
        sample = node.meta["val"]
        shape = node.args[0].meta["val"].shape
        with graph.inserting_after(last):
            last = graph.placeholder(f"noise_{len(drawn)}")
        last.meta["val"] = sample.new_empty(shape, dtype=torch.float32)
        with graph.inserting_before(node):
            node.replace_all_uses_with(rewrite(graph, node, last))
        graph.erase_node(node)
        drawn.append(Noise(kind, tuple(shape)))
    graph.lint()
    traced.recompile()
    return drawn


def _normal(graph: fx.Graph, node: fx.Node, noise: fx.Node) -> fx.Node:
    mean, std = node.args[:2]
    return graph.call_function(aten.add.Tensor, (mean, graph.call_function(aten.mul.Tensor, (std, noise))))


def _filled(graph: fx.Graph, node: fx.Node, noise: fx.Node) -> fx.Node:
    """``empty.normal_(mean, std)``."""
    mean = node.args[1] if len(node.args) > 1 else 0.0
    std = node.args[2] if len(node.args) > 2 else 1.0
    return graph.call_function(aten.add.Tensor, (graph.call_function(aten.mul.Tensor, (noise, std)), mean))


def _multinomial(graph: fx.Graph, node: fx.Node, noise: fx.Node) -> fx.Node:
    race = graph.call_function(aten.div.Tensor, (node.args[0], noise))
    return graph.call_function(aten.argmax.default, (race, -1, True))


def _bernoulli(graph: fx.Graph, node: fx.Node, noise: fx.Node) -> fx.Node:
    below = graph.call_function(aten.lt.Tensor, (noise, node.args[0]))
    return graph.call_function(aten._to_copy.default, (below,), {"dtype": node.meta["val"].dtype})


# As torch computes them on a CPU, of one sample each.
_SAMPLERS: dict[Any, tuple[str, Callable[[fx.Graph, fx.Node, fx.Node], fx.Node]]] = {
    aten.normal.Tensor_Tensor: ("normal", _normal),
    aten.normal_.default: ("normal", _filled),
    aten.multinomial.default: ("exponential", _multinomial),
    aten.bernoulli.default: ("uniform", _bernoulli),
}
