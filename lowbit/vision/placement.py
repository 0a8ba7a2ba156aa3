"""Where Q/DQ pairs stand in a network: BatchNorm folded, residual additions found, one pair a quantized tensor.

openvino, tensorrt: on the input of every convolution and Linear layer, and on the shortcut of every residual addition.
The main branch of an addition has none, nor has a convolution's output: its activation is fused to it.
onnxruntime: on every tensor that an operator of floats would else make or take, as its kernels of integers take 8 bits
in and give 8 bits out. Only what ReLU takes stays as it is, and the logits.
"""

import copy
import operator

import torch
from torch import fx, nn
from torch.nn import functional

from lowbit.pipeline.errors import UserError
from lowbit.training.lsq import TARGETS
from lowbit.vision.simulation import FoldedLayer, Pair, Sum

PAIRS = "pairs"  # the submodule that holds them
ADDITIONS = (operator.add, operator.iadd, torch.add)
DROPPED = (nn.Dropout, nn.Dropout2d, nn.Identity)
RELUS = (functional.relu, functional.relu6, torch.relu, nn.ReLU, nn.ReLU6)
PASSING = (nn.MaxPool2d, nn.Flatten, nn.ZeroPad2d, functional.max_pool2d, functional.pad, torch.flatten,
           operator.getitem)  # their values are those that they are given, and zeros


def kind_of(node: fx.Node, modules: dict[str, nn.Module]):
    """A node's function, or the class of its module; None for another node."""
    if node.op == "call_module":
        return type(modules[node.target])
    return node.target if node.op == "call_function" else None


def fold(model: nn.Module) -> fx.GraphModule:
    """A copy of a network of FoldedLayers in place of convolution, BatchNorm and Linear, additions as Sum modules.

    Computes what `model` computes in eval mode. Raises UserError for a network that cannot be traced, or that calls a
    layer twice.
    """
    model = copy.deepcopy(model).eval()
    try:
        graph = fx.Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError) as error:
        raise UserError(f"MODEL cannot be traced ({str(error).splitlines()[0]}): its forward must not depend on the "
                        "picture") from None
    modules = dict(model.named_modules())
    for node in list(graph.nodes):
        kind = kind_of(node, modules)
        if kind in DROPPED or getattr(kind, "__name__", "") == "stochastic_depth":
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif kind in (nn.SiLU, functional.silu):
            _split_silu(graph, node)
        elif kind in ADDITIONS and all(isinstance(given, fx.Node) for given in node.args):
            _name_addition(model, graph, node)
        elif node.op == "call_method" and node.target == "view" and node.args[2:] == (-1,):
            with graph.inserting_before(node):  # of [batch, -1]: without the batch's size, which is no tensor
                node.replace_all_uses_with(graph.call_function(torch.flatten, (node.args[0], 1)))
            graph.erase_node(node)
    _fold_layers(model, graph)
    folded = fx.GraphModule(model, graph)
    folded.graph.eliminate_dead_code()
    folded.graph.lint()
    folded.recompile()
    return folded.eval()


def _split_silu(graph: fx.Graph, node: fx.Node) -> None:
    """x * sigmoid(x): the two operators that a file has of it."""
    with graph.inserting_before(node):
        gate = graph.call_function(torch.sigmoid, (node.args[0],))
        node.replace_all_uses_with(graph.call_function(operator.mul, (node.args[0], gate)))
    graph.erase_node(node)


def _name_addition(model: nn.Module, graph: fx.Graph, node: fx.Node) -> None:
    """A Sum whose first operand is the main branch: what a layer makes for it alone, of two such what is made last."""
    order, modules = {known: place for place, known in enumerate(graph.nodes)}, dict(model.named_modules())
    main, shortcut = sorted(node.args, reverse=True, key=lambda given: (
        kind_of(given, modules) in (nn.Conv2d, nn.Linear, nn.BatchNorm2d) and len(given.users) == 1, order[given]))
    name = f"sum_{node.name}"
    model.add_module(name, Sum())
    with graph.inserting_before(node):
        node.replace_all_uses_with(graph.call_module(name, (main, shortcut)))
    graph.erase_node(node)


def _fold_layers(model: nn.Module, graph: fx.Graph) -> None:
    modules = dict(model.named_modules())
    seen = set()
    for node in list(graph.nodes):
        if kind_of(node, modules) not in (nn.Conv2d, nn.Linear):
            continue
        if node.target in seen:
            raise UserError(f"MODEL uses the layer {node.target} twice, and one scale does not fit both its inputs")
        seen.add(node.target)
        user, norm = next(iter(node.users), None), None
        if len(node.users) == 1 and kind_of(user, modules) is nn.BatchNorm2d:
            norm = modules[user.target]
            user.replace_all_uses_with(node)
            graph.erase_node(user)
        parent, _, last = node.target.rpartition(".")
        layer = FoldedLayer(modules[node.target], norm)
        setattr(model.get_submodule(parent), last, layer)
    left = [node.target for node in graph.nodes if kind_of(node, modules) is nn.BatchNorm2d]
    if left:
        raise UserError(f"MODEL has a BatchNorm that follows no convolution: {left[0]}")


def layers_of(model: nn.Module) -> dict[str, FoldedLayer]:
    """Name -> layer, in the order of the graph."""
    found = {node.target: model.get_submodule(node.target) for node in model.graph.nodes if node.op == "call_module"}
    return {name: module for name, module in found.items() if isinstance(module, FoldedLayer)}


def pairs_of(model: nn.Module) -> dict[str, Pair]:
    """Name -> pair."""
    return dict(getattr(model, PAIRS, {}).items())


def place_pairs(folded: fx.GraphModule, target: str, bits: int, floats: tuple[str, ...] = ()) -> fx.GraphModule:
    """A copy of a folded network with the arithmetic of the Q/DQ file; scales are 1 until calibrated or loaded.

    `floats` are layers that stay FP32, with their inputs. Raises UserError for an unknown target or layer.
    """
    if target not in TARGETS:
        raise UserError(f"TARGET is {target!r}; choose {', '.join(TARGETS)}")
    model = copy.deepcopy(folded)
    graph, modules = model.graph, dict(model.named_modules())
    unknown = [name for name in floats if name not in layers_of(model)]
    if unknown:
        raise UserError(f"the network has no layer {unknown[0]!r}; it has {', '.join(layers_of(model))}")
    model.add_module(PAIRS, nn.ModuleDict())
    integer = {node for node in graph.nodes if kind_of(node, modules) is FoldedLayer and node.target not in floats}
    uses = (_uses_of_everything if TARGETS[target] == torch.uint8 else _uses_of_layers)(graph, modules, integer)
    origins = {tensor: _origin(tensor, modules) if TARGETS[target] == torch.uint8 else tensor for tensor in uses}
    for tensor, users in uses.items():
        name = origins[tensor].name
        if name not in model.pairs:
            model.pairs[name] = Pair(TARGETS[target])
        with graph.inserting_after(tensor):
            placed = graph.call_module(f"{PAIRS}.{name}", (tensor,))
        for user in users:
            user.replace_input_with(tensor, placed)
    for node in integer:
        source = model.get_submodule(node.args[0].target) if TARGETS[target] == torch.uint8 else None
        modules[node.target].quantize(bits, source)
    graph.lint()
    model.recompile()
    return model.eval()


def _uses_of_layers(graph, modules, integer: set[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Tensor -> nodes that take it quantized: layers, and the additions whose main branch ends in one."""
    uses: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if node in integer:
            uses.setdefault(node.args[0], []).append(node)
        elif kind_of(node, modules) is Sum and node.args[0] in integer and len(node.args[0].users) == 1:
            uses.setdefault(node.args[1], []).append(node)
    return uses


def _uses_of_everything(graph, modules, integer: set[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Tensor -> all its users; without float layers' inputs and outputs, what a ReLU takes, and the logits."""
    uses = {}
    for tensor in graph.nodes:
        if tensor.op not in ("placeholder", "call_module", "call_function"):
            continue
        kind = kind_of(tensor, modules)
        users = [user for user in tensor.users if user.op != "output" and not (
            kind_of(user, modules) is FoldedLayer and user not in integer)]
        if kind is FoldedLayer and tensor not in integer:
            users = [user for user in users if user in integer]
        if kind in (FoldedLayer, Sum) and len(tensor.users) == 1 and users and kind_of(users[0], modules) in RELUS:
            continue
        if users:
            uses[tensor] = users
    return uses


def _origin(tensor: fx.Node, modules) -> fx.Node:
    """The tensor whose values another holds unchanged, so that one scale fits both."""
    while kind_of(tensor, modules) in PASSING and isinstance(tensor.args[0], fx.Node):
        tensor = tensor.args[0]
    return tensor
