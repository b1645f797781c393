"""Which layers, MLP neurons and attention heads of a Llama matter.

Of neurons and heads it is the importance of importance.py. Of a layer it is, by activation, 1 - cos(its input, its
output) over all tokens (ShortGPT's block influence, Men et al. 2024, arXiv 2403.03853, equation 1); by taylor, the
change of the loss, to first order, if the layer passed its input on: (Σ (output - input) · ∂loss/∂output)².
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from labsupport.lm.activations import captured_inputs, evaluating
from labsupport.lm.model import Llama
from labsupport.progress import progress_bar
from labsupport.pruning.importance import input_scores


def layer_scores(
    model: Llama, windows: Iterable[Int64[Tensor, " time"]], taylor: bool = False, progress: bool = False
) -> Float[Tensor, " layers"]:
    """How much each layer changes the hidden state, or (taylor) the loss."""
    rows = []
    device = model.embed_tokens.weight.device
    with evaluating(model), torch.set_grad_enabled(taylor):
        for window in progress_bar(windows, "layers", "window", progress):
            x, rotary = model.embed(window[None].to(device))
            states = [x.detach().requires_grad_(taylor)]
            for layer in model.layers:
                states.append(layer(states[-1], rotary))
            if taylor:
                _loss(model.lm_head(model.norm(states[-1])), window).backward(inputs=states)
            with torch.no_grad():
                pairs = list(pairwise(states))
                if taylor:
                    row = [((b - a) * b.grad).sum().square() for a, b in pairs if b.grad is not None]
                else:
                    row = [(1 - F.cosine_similarity(a, b, dim=-1)).mean() for a, b in pairs]
                rows.append(torch.stack(row).float().cpu())
    return torch.stack(rows).mean(0)


def read_scores(
    model: Llama, windows: list[Tensor], taylor: bool, progress: bool
) -> Mapping[str, Float[Tensor, "windows in"]]:
    """One score per window and input of each down_proj (a neuron) and o_proj (a feature of a head)."""
    layers = {name: m for name, m in model.named_modules() if name.endswith(("mlp.down_proj", "self_attn.o_proj"))}
    rows: dict[str, list[Tensor]] = {name: [] for name in layers}
    for window in progress_bar(windows, "neurons and heads", "window", progress):
        tokens = window[None].to(model.embed_tokens.weight.device)
        with evaluating(model), captured_inputs(model, layers, taylor) as seen, torch.set_grad_enabled(taylor):
            logits = model.hidden_states(tokens) if not taylor else model(tokens)
            if taylor:
                _loss(logits, window).backward(inputs=[x for found in seen.values() for x in found])
        for name, layer in layers.items():
            rows[name].append(input_scores(layer, seen[name][0], taylor)[0])
    return {name: torch.stack(found) for name, found in rows.items()}


def total(scores: Float[Tensor, "windows ..."], taylor: bool) -> Float[Tensor, ...]:
    """The score over all windows."""
    return scores.square().mean(0) if taylor else scores.sum(0)


def _loss(logits: Tensor, window: Tensor) -> Tensor:
    return F.cross_entropy(logits[0, :-1].float(), window[1:].to(logits.device))
