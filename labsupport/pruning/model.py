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
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.lm.calibrate import (
    NUM_STAGES,
    Stage,
    check_calibration,
    check_model,
    error_share,
    first_windows,
    squared_sums,
    stages,
)
from labsupport.numerics.devices import to_host
from labsupport.numerics.hessian import HessianAccumulator
from labsupport.progress import progress_bar
from labsupport.pruning.magnitude import check_sparsity, global_magnitude_masks, magnitude_mask
from labsupport.pruning.report import LayerReport, PruningReport
from labsupport.pruning.semi_structured import check_nm, nm_mask, parse_pattern
from labsupport.pruning.sparsegpt import sparsegpt_prune_together
from labsupport.pruning.wanda import InputNorm, wanda_mask

if TYPE_CHECKING:
    pass

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
    prune = _method(pruned, method, sparsity, pattern, scope, damping, block_size)
    report = PruningReport(method, sparsity, pattern, scope)
    needed = first_windows(windows, ERROR_TOKENS) if method == "magnitude" else windows
    errors, zeros, seconds_of = (
        [],
        [],
        [],
    )  # read at the end, all at once: the host waits for a GPU twice, not each time
    num_stages = NUM_STAGES * len(llama.layers)
    for stage in progress_bar(stages(pruned, needed), method, "stage", progress, total=num_stages):
        sample, linears = stage.sample(ERROR_TOKENS), stage.linears
        before = time.perf_counter()
        results = list(prune(stage))
        seconds = (time.perf_counter() - before) / len(linears)
        for name, linear, weight in zip(stage.full_names, linears, results, strict=True):
            weight = weight.to(linear.weight.dtype)
            errors.append(squared_sums(F.linear(sample, weight), F.linear(sample, linear.weight)))
            zeros.append((weight == 0).sum())
            seconds_of.append((name, tuple(weight.shape), seconds))
            linear.weight.copy_(weight)  # so that later stages see it
    for (name, shape, seconds), count, sums in zip(seconds_of, to_host(zeros), to_host(errors), strict=True):
        report.layers.append(LayerReport(name, shape, count, seconds, error_share(sums)))
    report.seconds = time.perf_counter() - start
    pruned.pruning_report = report
    return pruned


Prune = Callable[[Stage], Iterator[Float[Tensor, "out in"]]]  # the new weights of a stage's layers


def _method(
    model: Any, method: str, sparsity: float, pattern: str | None, scope: str, damping: float, block_size: int
) -> Prune:
    def magnitude(stage: Stage) -> Iterator[Tensor]:
        for linear in stage.linears:
            weight = linear.weight
            mask = nm_mask(weight.abs(), *parse_pattern(pattern)) if pattern else magnitude_mask(weight, sparsity)
            yield weight * mask

    def magnitude_globally(stage: Stage) -> Iterator[Tensor]:
        for name, linear in zip(stage.full_names, stage.linears, strict=True):
            yield linear.weight * masks[name]

    def wanda(stage: Stage) -> Iterator[Tensor]:
        inputs = InputNorm(stage.inputs[0].shape[-1], stage.inputs[0].device)
        for batch in stage.inputs:
            inputs.add(batch)
        for linear in stage.linears:
            yield linear.weight * wanda_mask(linear.weight, inputs.norm, sparsity, pattern)

    def sparsegpt(stage: Stage) -> Iterator[Tensor]:
        inputs = HessianAccumulator(stage.inputs[0].shape[-1], stage.inputs[0].device)
        for batch in stage.inputs:
            inputs.add(batch)
        weights = [linear.weight for linear in stage.linears]
        yield from sparsegpt_prune_together(weights, inputs.hessian, sparsity, pattern, damping, block_size)

    if scope == "global":
        weights = {f"layers.{i}.{name}": layer.get_submodule(name).weight
                   for i, layer in enumerate(model.layers) for name in LINEARS}  # fmt: skip
        masks = global_magnitude_masks(weights, sparsity)
        return magnitude_globally
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
