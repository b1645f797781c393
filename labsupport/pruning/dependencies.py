"""Which channels belong together: a dependency trace of a network, by labels that travel with its activations.

The model is traced by torch.fx and run once on an example. Every layer that makes channels (linear, convolution) gives
each of them a fresh label, a unit; batch norm, activations and pooling pass the labels on, flattening repeats a
channel's label for each of its pixels, concatenation puts labels side by side, and an addition unites the labels of its
two sides. What each layer reads and writes then says which rows, columns and statistics belong to one unit, anywhere.

Why not Torch-Pruning: it is sound, but a dependency that nothing else here needs, and it guesses at operations it does
not know. Labels fit on a page, and what is not understood here is refused. For pruning by dependency graphs see Fang et
al. 2023, "DepGraph: Towards Any Structural Pruning" (arXiv 2301.12900).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from labsupport.lm.activations import evaluating
from labsupport.pruning.couplings import Channels, Couplings

CONVOLUTIONS = {nn.Conv1d: 3, nn.Conv2d: 4}  # with the number of dimensions of their input
PER_CHANNEL_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm1d, nn.InstanceNorm2d)
ACROSS_CHANNELS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Softmax, nn.LogSoftmax)
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Sigmoid, nn.Tanh, nn.Hardtanh,
    nn.Hardswish, nn.Hardsigmoid, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
)  # fmt: skip
POOLING = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
# Functions and methods, by name: torch.relu, F.relu and x.relu() are the same.
ELEMENTWISE_NAMES = {
    "add", "iadd", "sub", "isub", "mul", "imul", "truediv", "itruediv", "div", "maximum", "minimum", "neg", "pow",
    "abs", "exp", "sqrt", "clamp", "clone", "contiguous", "detach", "to", "float", "relu", "relu_", "relu6", "gelu",
    "silu", "leaky_relu", "elu", "mish", "softplus", "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid",
    "dropout", "dropout2d",
}  # fmt: skip
POOLING_NAMES = {"max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d", "interpolate"}
FLATTENING_NAMES = {"flatten", "view", "reshape"}


@torch.no_grad()
def trace(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> Couplings:
    """Follow all channels of a model through one forward pass in evaluation mode; the model is left as it was.

    Raises:
        ValueError: torch.fx cannot trace the model, or channels reach an operation that is not understood; which.
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    with evaluating(model):  # batch norm's statistics must not move
        try:
            graph = fx.symbolic_trace(model)
        except Exception as error:
            raise ValueError(f"model must be one that torch.fx can trace; it says: {error}") from error
        labels = _Labels(graph)
        labels.run(*inputs)
    return labels.found


class _Labels(fx.Interpreter):
    """Runs the graph node by node; ``channels`` holds the labels of each node's result, None if all of it is fixed."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.extra_traceback = False
        self.found = Couplings()
        self.channels: dict[fx.Node, Channels | None] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        seen = [channels for source in n.all_input_nodes if (channels := self.channels.get(source)) is not None]
        self.channels[n] = None
        if n.op == "output":
            for channels in seen:
                self.found.fix(channels.units)
        elif n.op == "call_module":
            module: Any = self.module.get_submodule(str(n.target))
            self.channels[n] = self._module(n, module, seen, value)
        elif seen and n.op in ("call_function", "call_method") and _holds_tensors(value):
            name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", str(n.target))
            self.channels[n] = self._operation(n, name.strip("_"), seen, value)
        return value

    def _module(self, node: fx.Node, module: Any, seen: list[Channels], value: Any) -> Channels | None:
        name, kind = str(node.target), type(module)
        x = seen[0] if seen else None
        if kind is nn.Linear or (kind in CONVOLUTIONS and module.groups == 1):
            dim = value.dim() - 1 if kind is nn.Linear else 1
            if kind in CONVOLUTIONS and value.dim() != CONVOLUTIONS[kind]:
                raise _refusal(node, f"{name} needs a batch dimension")
            return self._layer(node, name, module, x, dim)
        if kind in CONVOLUTIONS and x is not None:
            if module.groups != module.in_channels or x.dim != 1:
                raise _refusal(node, f"{name} has groups={module.groups}: only 1 or depthwise is understood")
            units = x.units.repeat_interleave(module.out_channels // module.in_channels)
            self._own(name, module, ("weight", "bias"), units)
            return Channels(1, units)
        if x is None:  # everything it reads is fixed, so its output is too, whatever it does
            return None
        if kind in PER_CHANNEL_NORMS and x.dim == 1:
            self._own(name, module, ("weight", "bias", "running_mean", "running_var"), x.units)
            return x
        if kind in ACROSS_CHANNELS:
            self.found.fix(x.units)  # its output is fixed as well, so it has no labels
            return None
        if kind in ELEMENTWISE:
            return x
        if kind in POOLING and x.dim == 1 and isinstance(value, Tensor):
            return x
        if kind is nn.Flatten:
            return self._flatten(node, x, value)
        raise _refusal(node, f"{name} ({kind.__name__})")

    def _layer(self, node: fx.Node, name: str, module: Any, x: Channels | None, dim: int) -> Channels:
        if x is not None and x.dim != dim:
            raise _refusal(node, f"{name} reads dimension {dim}, channels lie in dimension {x.dim}")
        if name in self.found.producers and (x is None) != (name not in self.found.consumers):
            # a layer called twice, once on fixed inputs: then the other call's inputs are fixed too
            self.found.fix(x.units if x is not None else self.found.consumers[name])
        elif x is not None:
            self._slice(f"{name}.weight", 1, x.units)
            self.found.consumers[name] = x.units
        if name not in self.found.producers:
            self.found.producers[name] = self.found.fresh(module.weight.shape[0])
        units = self.found.producers[name]
        self._own(name, module, ("weight", "bias"), units)
        return Channels(dim, units)

    def _operation(self, node: fx.Node, name: str, seen: list[Channels], value: Any) -> Channels | None:
        x = seen[0]
        if not isinstance(value, Tensor):
            raise _refusal(node, name)
        if name in ELEMENTWISE_NAMES:
            return self._elementwise(node, name, value)
        if name in POOLING_NAMES and x.dim == 1:
            return x
        if name in ("softmax", "log_softmax", "layer_norm"):
            self.found.fix(x.units)  # its output is fixed as well, so it has no labels
            return None
        if name in FLATTENING_NAMES:
            return self._flatten(node, x, value)
        if name in ("mean", "sum") and len(node.all_input_nodes) == 1:
            return self._reduce(node, name, x, value)
        if name in ("cat", "concat", "concatenate"):
            return self._concatenate(node, name, value)
        raise _refusal(node, name)

    def _elementwise(self, node: fx.Node, name: str, value: Tensor) -> Channels | None:
        """Broadcasting aligns dimensions from the right, so channels must be at the same place counted from there."""
        shapes = [self.env[source].shape for source in node.all_input_nodes if isinstance(self.env[source], Tensor)]
        labels = [self.channels[source] for source in node.all_input_nodes if isinstance(self.env[source], Tensor)]
        places = {channels.dim - len(shape) for channels, shape in zip(labels, shapes, strict=True) if channels}
        if len(places) > 1:
            raise _refusal(node, f"{name} of channels in different dimensions")
        place = places.pop()
        size = value.shape[place]
        result: Tensor | None = None
        for channels in labels:
            if channels is None or len(channels.units) < size:
                continue
            if result is None:
                result = channels.units
            else:
                self.found.unite(result, channels.units)
        for channels, shape in zip(labels, shapes, strict=True):
            if channels is not None and len(channels.units) < size:
                self.found.fix(channels.units)  # one channel for all
            elif channels is None and result is not None and len(shape) >= -place and shape[place] > 1:
                self.found.fix(result)  # the other side does not shrink
        return None if result is None else Channels(value.dim() + place, result)

    def _concatenate(self, node: fx.Node, name: str, value: Tensor) -> Channels:
        sources = node.args[0] if node.args else node.kwargs.get("tensors")
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if not isinstance(sources, list | tuple) or not isinstance(dim, int):
            raise _refusal(node, name)
        dim %= value.dim()
        found = [self.channels[source] for source in sources if isinstance(source, fx.Node)]
        if len(found) != len(sources) or any(channels is not None and channels.dim != dim for channels in found):
            raise _refusal(node, f"{name} along dimension {dim}, which is not that of the channels")
        pieces = []
        for source, channels in zip(sources, found, strict=True):
            units = channels.units if channels is not None else self.found.fresh(self.env[source].shape[dim])
            if channels is None:
                self.found.fix(units)
            pieces.append(units)
        return Channels(dim, torch.cat(pieces))

    def _flatten(self, node: fx.Node, x: Channels, value: Tensor) -> Channels:
        """From [n, c, h, w] to [n, c·h·w], each channel becomes h·w features. The size must not be a literal number."""
        shape = self.env[node.all_input_nodes[0]].shape
        if value.shape == shape:
            return x
        start = next((i for i, (a, b) in enumerate(zip(shape, value.shape, strict=False)) if a != b), value.dim() - 1)
        stop = start + len(shape) - value.dim()  # dimensions start..stop have become one
        if stop < start or math.prod(shape[start : stop + 1]) != value.shape[start]:
            raise _refusal(node, f"{node.name} from {list(shape)} to {list(value.shape)}")
        if not start <= x.dim <= stop:
            return Channels(x.dim if x.dim < start else x.dim - (stop - start), x.units)
        written = node.args[1] if len(node.args) > 1 and isinstance(node.args[1], list | tuple) else node.args[1:]
        if "flatten" not in node.name and value.shape[start] in written:
            raise _refusal(node, f"{node.name} to {value.shape[start]} features (write -1, so that it can shrink)")
        after, before = math.prod(shape[x.dim + 1 : stop + 1]), math.prod(shape[start : x.dim])
        return Channels(start, x.units.repeat_interleave(after).repeat(before))

    def _reduce(self, node: fx.Node, name: str, x: Channels, value: Tensor) -> Channels:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        dims = [dims] if isinstance(dims, int) else dims
        size = self.env[node.all_input_nodes[0]].dim()
        if not isinstance(dims, list | tuple) or x.dim in (gone := [int(d) % size for d in dims]):  # type: ignore[arg-type]
            raise _refusal(node, f"{name} over channels")
        shift = 0 if value.dim() == size else sum(d < x.dim for d in gone)
        return Channels(x.dim - shift, x.units)

    def _own(self, name: str, module: Any, tensors: tuple[str, ...], units: Tensor) -> None:
        for each in tensors:
            if getattr(module, each, None) is not None:
                self._slice(f"{name}.{each}", 0, units)

    def _slice(self, tensor: str, dim: int, units: Tensor) -> None:
        known = self.found.slices.setdefault(tensor, {}).setdefault(dim, units)
        if known is not units:  # the module is called more than once
            self.found.unite(known, units)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_holds_tensors, value)))


def _refusal(node: fx.Node, what: str) -> ValueError:
    return ValueError(f"model must only use operations through which channels can be followed; got {what} at {node}")
