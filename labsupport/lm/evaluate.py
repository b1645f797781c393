"""How good a language model is: perplexity on held-out text."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.lm.calibrate import check_model
from labsupport.numerics.devices import to_host


@torch.no_grad()
def perplexity(model: nn.Module, token_ids: Int64[Tensor, " n"], seq_len: int = 512) -> float:
    """exp of the mean token loss over non-overlapping windows of ``seq_len`` tokens.

    Each window is read on its own, so its first token is only context: a window has ``seq_len - 1`` losses. The loss is
    averaged within each window, then over windows. Tokens after the last full window are left out; a text shorter
    than one window is one window.

    Raises:
        ValueError: ``token_ids`` is not 1-D int64 or holds fewer than two tokens, or ``seq_len`` is below 2.
    """
    return math.exp(token_loss(model, token_ids, seq_len))


@torch.no_grad()
def token_loss(model: nn.Module, token_ids: Int64[Tensor, " n"], seq_len: int = 512) -> float:
    """Mean negative log-likelihood per token, in nats; see `perplexity`."""
    check_model(model)
    if not isinstance(token_ids, Tensor) or token_ids.dim() != 1 or token_ids.dtype != torch.int64:
        given = f"{token_ids.dtype} {tuple(token_ids.shape)}" if isinstance(token_ids, Tensor) else type(token_ids)
        raise ValueError(f"token_ids must be a 1-D int64 tensor; got {given}")
    if len(token_ids) < 2:
        raise ValueError(f"token_ids must hold at least 2 tokens; got {len(token_ids)}")
    if seq_len < 2:
        raise ValueError(f"seq_len must be at least 2; got {seq_len}")
    device = next(model.parameters()).device
    seq_len = min(seq_len, len(token_ids))
    windows = token_ids[: len(token_ids) // seq_len * seq_len].view(-1, seq_len)
    was_training = model.training
    model.eval()
    try:
        losses = to_host([_window_loss(model, window[None].to(device, non_blocking=True)) for window in windows])
    finally:
        model.train(was_training)
    return sum(losses) / len(losses)


def _window_loss(model: nn.Module, window: Int64[Tensor, "1 time"]) -> Float[Tensor, ""]:
    logits = model(window)[0, :-1]
    return F.cross_entropy(logits.float(), window[0, 1:])


def bigram_loss(training: Int64[Tensor, " n"], evaluation: Int64[Tensor, " m"], vocab_size: int) -> float:
    """Loss in nats of a bigram model (pair counts, add-one smoothing): what a language model must clearly beat.

    Counted on the CPU, wherever the tokens are.
    """
    training, evaluation = training.cpu(), evaluation.cpu()
    counts = torch.ones(vocab_size, vocab_size, dtype=torch.float64)
    counts.index_put_((training[:-1], training[1:]), torch.ones(len(training) - 1, dtype=torch.float64), True)
    log_probability = (counts / counts.sum(1, keepdim=True)).log()
    return -log_probability[evaluation[:-1], evaluation[1:]].mean().item()
