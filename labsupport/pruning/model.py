"""`prune_model`: any method of this chapter on every linear layer of a language model's blocks.

The methods differ in what they know about a layer's inputs (lm/calibrate.py runs the calibration text):

    magnitude    nothing: the smallest weights of each layer go, or of all layers together (scope="global")
    wanda        the norm of each input; the weights that stay are not changed
    sparsegpt    how the inputs correlate; the weights that stay compensate for those that go

Each layer sees its inputs as the already pruned layers before it produce them. The result computes with dense matrices:
zeros alone save neither time nor memory. Embedding, norms and head stay as they are.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.lm.calibrate import (
    NUM_STAGES,
    HiddenStates,
    Stage,
    check_calibration,
    check_model,
    error_share,
    first_windows,
    squared_sums,
    stages_of,
)
from labsupport.lm.config import LlamaConfig
from labsupport.numerics.devices import to_host
from labsupport.numerics.hessian import HessianAccumulator
from labsupport.progress import progress_bar
from labsupport.pruning.magnitude import check_sparsity, global_magnitude_masks, magnitude_mask
from labsupport.pruning.report import LayerReport, PruningReport
from labsupport.pruning.semi_structured import check_nm, nm_mask, parse_pattern
from labsupport.pruning.sparsegpt import sparsegpt_prune_together
from labsupport.pruning.wanda import InputNorm, wanda_mask

LINEARS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
ERROR_TOKENS = 128  # of each stage, for the report's errors


@torch.no_grad()
def prune_model(
    model: nn.Module,
    calibration: Sequence[Int64[Tensor, " time"]],
    method: str = "magnitude",
    sparsity: float = 0.5,
    pattern: str | None = None,
    *,
    scope: str = "layer",
    damping: float = 0.01,
    block_size: int = 128,
    progress: bool = True,
) -> nn.Module:
    """A new model with zeros in the linear layers of its blocks; ``model`` is not changed.

    calibration: windows of token ids of any length, for all methods (magnitude only measures errors on them).
    method: "magnitude" | "wanda" | "sparsegpt", see above.
    sparsity: share of zeros in each layer, exact to the element (wanda: to the element of each row).
    pattern: None, or n kept of every m neighbours in a row, such as "2:4". It fixes the sparsity at 1 - n/m; any other
        is refused.
    scope: magnitude only. "global" ranks the weights of all layers together; their shares then differ.
    damping, block_size: sparsegpt only, see `sparsegpt_prune`.

    The result's ``pruning_report`` is a `PruningReport`, with the sparsity counted in the result.

    Raises:
        ValueError: no such method or scope; a sparsity outside 0..1 or other than the pattern's; a pattern whose m does
            not divide a layer's inputs; calibration that is not a list of token tensors; a model whose blocks lack an
            nn.Linear where a Llama has one.
    """
    _check_options(method, sparsity, pattern, scope)
    check_model(model)
    _check_layers(model, pattern)
    llama: Any = model
    windows = check_calibration(calibration, llama.config.vocab_size)
    start = time.perf_counter()
    pruned = copy.deepcopy(llama)
    masks = None
    if scope == "global":
        weights = {f"layers.{i}.{name}": layer.get_submodule(name).weight
                   for i, layer in enumerate(pruned.layers) for name in LINEARS}  # fmt: skip
        masks = global_magnitude_masks(weights, sparsity)
    run = PruningRun.of(pruned, windows, method, sparsity, pattern, damping, block_size, masks)
    report = PruningReport(method, sparsity, pattern, scope)
    with progress_bar(None, method, "stage", progress, total=NUM_STAGES * len(llama.layers)) as bar:
        for index, layer in enumerate(pruned.layers):
            report.layers += run.layer(index, layer, bar.update)
    report.seconds = time.perf_counter() - start
    pruned.pruning_report = report
    return pruned


# From a stage to a sample of its inputs and the new weights of its layers
Prune = Callable[[Stage], tuple[Float[Tensor, "tokens in"], Sequence[Float[Tensor, "out in"]]]]


@dataclass
class PruningRun:
    """`prune_model` one layer at a time, in order. What it keeps from layer to layer is ``states``.

    hidden: the inputs of the next layer, as the pruned layers before it compute them
    """

    config: LlamaConfig
    prune: Prune
    hidden: HiddenStates

    @classmethod
    def of(
        cls, model: Any, windows: list[Tensor], method: str, sparsity: float, pattern: str | None = None,
        damping: float = 0.01, block_size: int = 128, masks: dict[str, Tensor] | None = None,
    ) -> PruningRun:  # fmt: skip
        """Before the first layer; of ``model`` only the embedding is read. For the arguments see `prune_model`.

        masks: scope="global" only, by the layers' names.
        """
        _check_options(method, sparsity, pattern, "layer")
        needed = first_windows(windows, ERROR_TOKENS) if method == "magnitude" else windows
        prune = _method(method, sparsity, pattern, damping, block_size, masks)
        return cls(model.config, prune, HiddenStates.of(model, needed))

    @property
    def states(self) -> list[HiddenStates]:
        return [self.hidden]

    @torch.no_grad()
    def layer(self, index: int, layer: Any, after_stage: Callable[[], object] = lambda: None) -> list[LayerReport]:
        """Prune the next layer in place."""
        found, errors, zeros = [], [], []  # numbers are read after the layer, so that a GPU is waited for twice in it
        for stage in stages_of(layer, index, self.hidden, last=index + 1 == self.config.num_layers):
            before = time.perf_counter()
            sample, weights = self.prune(stage)
            seconds = (time.perf_counter() - before) / len(stage.linears)
            for name, linear, weight in zip(stage.full_names, stage.linears, weights, strict=True):
                weight = weight.to(linear.weight.dtype)
                errors.append(squared_sums(F.linear(sample, weight), F.linear(sample, linear.weight)))
                zeros.append((weight == 0).sum())
                linear.weight.copy_(weight)  # so that later stages see it
                found.append((name, tuple(weight.shape), seconds))
            after_stage()
        rows = zip(found, to_host(zeros), to_host(errors), strict=True)
        return [LayerReport(name, shape, num, seconds, error_share(sums)) for (name, shape, seconds), num, sums in rows]


def _method(
    method: str, sparsity: float, pattern: str | None, damping: float, block_size: int, masks: dict[str, Tensor] | None
) -> Prune:
    def magnitude(stage: Stage) -> tuple[Tensor, Sequence[Tensor]]:
        def mask(name: str, weight: Tensor) -> Tensor:
            if masks is not None:
                return masks[name]
            return nm_mask(weight.abs(), *parse_pattern(pattern)) if pattern else magnitude_mask(weight, sparsity)

        named = zip(stage.full_names, stage.linears, strict=True)
        return stage.sample(ERROR_TOKENS), [linear.weight * mask(name, linear.weight) for name, linear in named]

    def wanda(stage: Stage) -> tuple[Tensor, Sequence[Tensor]]:
        weights = [linear.weight for linear in stage.linears]
        inputs = InputNorm(stage.in_features, weights[0].device)
        sample = stage.read(inputs.add, ERROR_TOKENS)
        return sample, [weight * wanda_mask(weight, inputs.norm, sparsity, pattern) for weight in weights]

    def sparsegpt(stage: Stage) -> tuple[Tensor, Sequence[Tensor]]:
        weights = [linear.weight for linear in stage.linears]
        inputs = HessianAccumulator(stage.in_features, weights[0].device)
        sample = stage.read(inputs.add, ERROR_TOKENS)
        return sample, sparsegpt_prune_together(weights, inputs.hessian, sparsity, pattern, damping, block_size)

    return {"magnitude": magnitude, "wanda": wanda, "sparsegpt": sparsegpt}[method]


def _check_options(method: str, sparsity: float, pattern: str | None, scope: str) -> None:
    if method not in ("magnitude", "wanda", "sparsegpt"):
        raise ValueError(f"method must be magnitude, wanda or sparsegpt; got {method!r}")
    check_sparsity(sparsity)
    if scope not in ("layer", "global"):
        raise ValueError(f"scope must be layer or global; got {scope!r}")
    if scope == "global" and (method != "magnitude" or pattern is not None):
        raise ValueError(
            f'scope="global" needs method="magnitude" and no pattern; got method={method!r}, pattern={pattern!r}'
        )
    if pattern is not None:
        n, m = parse_pattern(pattern)
        if sparsity != 1 - n / m:
            raise ValueError(f"sparsity must be {1 - n / m:g} with pattern {pattern!r}, got {sparsity!r}")


def _check_layers(model: Any, pattern: str | None) -> None:
    for i, layer in enumerate(model.layers):
        modules = dict(layer.named_modules())
        for name in LINEARS:
            linear = modules.get(name)
            if not isinstance(linear, nn.Linear):
                raise ValueError(f"model must have an nn.Linear as layers.{i}.{name}, got {type(linear).__name__}")
            if pattern is not None:
                check_nm(*parse_pattern(pattern), linear.weight.shape)
