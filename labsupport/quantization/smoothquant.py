"""SmoothQuant: make activations easy to quantize by moving their outlier channels into the weights.

Xiao et al. 2022, https://arxiv.org/abs/2211.10438. A linear layer does not change if its inputs are divided, channel by
channel, by s and its weight's columns multiplied by s (equation 3). With

    s_j = max|X_j|**alpha / max|W_j|**(1 - alpha)            (equation 4)

alpha says how much of the difficulty moves: 0 leaves the activations as they are, at 1 all their channels have one
range. The division costs nothing at run time, because it is folded into whatever makes X:

    q, k, v        the RMSNorm before attention
    gate, up       the RMSNorm before the MLP
    o              the rows of v. Under grouped-query attention, one factor a KV head and channel: the query heads that
                   share a value share its factor
    down           the rows of up: the other factor of the product, silu(gate), is not touched

The paper folds into normalisation layers only; the last two are ordinary practice, and down_proj is where this
model's massive activations are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.quantization.calibrate import stages
from labsupport.quantization.linear import quantize_rows, quantize_weight_int8

ALPHAS = tuple(i / 20 for i in range(20))  # the grid of the search
_SEARCH_TOKENS = 512


@torch.no_grad()
def smooth_model(
    model: nn.Module, calibration: Sequence[Int64[Tensor, " time"]], alpha: float | None = 0.5
) -> nn.Module:
    """A new model that computes the same function, and loses less when its linear layers go to W8A8.

    calibration: windows of tokens, from which max|X_j| is taken.
    alpha: 0..1 for all layers, or None to search the best for each (by the error of its output in W8A8).
    Raises ValueError for an alpha outside of 0..1, or calibration without tokens.
    """
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in 0..1, or be None to search for it, got {alpha}")
    if not any(len(window) for window in calibration):
        raise ValueError("calibration must hold at least one token, got none")
    smoothed = copy.deepcopy(model)
    for stage in stages(smoothed, calibration):
        pass
    return smoothed
