"""Which channels matter. Removing a channel is the same as zeroing the columns by which the following layers read it:

    magnitude    ‖W_c‖₂ of the channel's own weights (Li et al. 2016, arXiv 1608.08710, with the L1 norm)
    activation   Σ x_c² · ‖V_c‖², V_c the columns that read x_c: what the following layers would lose
    taylor       (Σ x_c · ∂loss/∂x_c)², mean over samples: the change of the loss, to first order
                 (Molchanov et al. 2016, arXiv 1611.06440, equation 6; squared as in 1906.10771)

No channel is worth removing alone if others are added to it: coupled channels have one score, the sum over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from labsupport.lm.activations import captured_inputs, evaluating
from labsupport.pruning.couplings import Couplings

IMPORTANCES = ("magnitude", "activation", "taylor")
Importance = str | Mapping[str, Float[Tensor, " channels"]]


def channel_scores(
    model: nn.Module, couplings: Couplings, inputs: tuple[Tensor, ...], importance: Importance,
    loss: Callable[[Any], Tensor] | None, groups: Mapping[tuple[str, ...], Tensor],
) -> Float[Tensor, " units"]:  # fmt: skip
    """The importance of each class of units, stored at the index of the unit that represents it."""
    classes = couplings.classes
    result = torch.zeros(len(classes))
    if not isinstance(importance, str):
        for names, members in groups.items():
            if names[0] in importance:
                result[members] = importance[names[0]].detach().float().cpu()
        return result
    if importance == "magnitude":
        for name, units in couplings.producers.items():
            weight = model.get_submodule(name).weight.detach().float().cpu()  # type: ignore[union-attr, operator]
            result.index_add_(0, classes[units], weight.flatten(1).square().sum(1))  # type: ignore[operator]
        return result
    taylor = importance == "taylor"
    layers = {name: model.get_submodule(name) for name in couplings.consumers}
    with evaluating(model), captured_inputs(model, layers, taylor) as seen, torch.set_grad_enabled(taylor):
        output = model(*inputs)
        if taylor:
            assert loss is not None
            loss(output).backward(inputs=[x for found in seen.values() for x in found])
    samples = []
    for name, layer in layers.items():
        for x in seen[name]:
            sums = input_scores(layer, x, taylor)
            sums = sums if taylor else sums.sum(0, keepdim=True)  # taylor's samples are squared one by one
            total = torch.zeros(len(sums), len(classes))
            samples.append(total.index_add_(1, classes[couplings.consumers[name]], sums))
    if not samples:
        return result
    total = torch.stack(samples).sum(0)
    return total.square().mean(0) if taylor else total[0]


@torch.no_grad()
def input_scores(layer: Any, x: Float[Tensor, "n ..."], taylor: bool) -> Float[Tensor, "n in"]:
    """For each sample and input channel of a layer: Σ x · ∂loss/∂x, or Σ x² · ‖V‖², over everything else."""
    dim = 1 if layer.weight.dim() > 2 else x.dim() - 1
    sums = x.square() if not taylor else torch.zeros_like(x) if x.grad is None else x * x.grad
    sums = sums.transpose(1, dim).flatten(2).sum(2) if x.dim() > 2 else sums
    power = layer.weight.transpose(0, 1).flatten(1).square().sum(1)
    return (sums if taylor else sums * power).detach().float().cpu()
