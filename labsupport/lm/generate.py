"""Generation without a cache: every step reads the whole text again. Slow and obviously correct, so it is the reference
that every cache and engine of this course is compared with, token for token."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor, nn


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: Int64[Tensor, "batch time"],
    max_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
    eos_token_id: int | None = None,
) -> Int64[Tensor, "batch new"]:
    """The tokens that follow each prompt, without the prompt: greedy at temperature 0, else sampled.

    A row that has produced ``eos_token_id`` is padded with it; generation ends when all rows have. ``prompt`` may lie
    on any device, the result is on the model's.

    Raises:
        ValueError: the prompt is empty or not 2-D, or ``max_tokens`` or ``temperature`` is negative.
    """
    if prompt.dim() != 2 or prompt.shape[1] == 0:
        raise ValueError(f"prompt must have shape [batch, time] with at least one token; got {tuple(prompt.shape)}")
    if max_tokens < 0:
        raise ValueError(f"max_tokens must be 0 or more; got {max_tokens}")
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 or more; got {temperature}")
    generator = None
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
    tokens = prompt = prompt.to(next(model.parameters()).device)
    finished = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    for _ in range(max_tokens):
        next_token = sample(model(tokens)[:, -1], temperature, generator)
        if eos_token_id is not None:
            next_token = torch.where(finished, eos_token_id, next_token)
            finished |= next_token == eos_token_id
        tokens = torch.cat((tokens, next_token[:, None]), dim=1)
        if eos_token_id is not None and finished.all():
            break
    return tokens[:, prompt.shape[1] :]


def sample(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Int64[Tensor, " batch"]:
    """One token a row of ``logits`` [batch, vocab]. Random numbers are the CPU's: a seed gives the same everywhere.

    Of times to wait with rates p, the shortest belongs to token i with probability p_i. `torch.multinomial` does the
    same, but looks at the probabilities first, for which a GPU has to be waited for.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits / temperature).softmax(dim=-1)
    times = torch.empty(logits.shape, dtype=logits.dtype).exponential_(generator=generator)
    return (probabilities / times.to(logits.device, non_blocking=True)).argmax(dim=-1)
