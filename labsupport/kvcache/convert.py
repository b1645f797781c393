"""From multi-head to grouped-query attention: pool the heads, then train a little.

Ainslie et al. 2023 (arXiv 2305.13245, section 2.1): the key and value projections of the heads of a group are replaced
by their mean, which preserves more of a checkpoint than picking one head or random weights; then the model is trained
further, for a few percent of its original training.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.kvcache.gqa import GroupedQueryAttention
from labsupport.lm import Llama
from labsupport.lm.model import Attention, DecoderLayer
from labsupport.lm.schedule import rate_share, set_rates
from labsupport.numerics.devices import to_host

AttentionModule = TypeVar("AttentionModule", GroupedQueryAttention, Attention)


def convert_to_gqa(model: Llama, num_kv_heads: int) -> Llama:
    """A new model with ``num_kv_heads`` key-value heads in every layer, made by mean-pooling; ``model`` stays as it is.

    Raises:
        ValueError: the heads cannot be pooled to ``num_kv_heads``, or a projection is not a plain linear layer.
    """
    converted = copy.deepcopy(model)
    for layer in converted.layers:
        assert isinstance(layer, DecoderLayer)
        layer.self_attn = to_grouped(layer.self_attn, num_kv_heads)
    converted.config = replace(model.config, num_kv_heads=num_kv_heads)
    return converted


def to_grouped(attention: AttentionModule, num_kv_heads: int) -> AttentionModule:
    """A copy of one attention with its key-value heads mean-pooled.

    Works on `GroupedQueryAttention` and on a Llama's ``self_attn``.

    Raises:
        ValueError: as for `convert_to_gqa`.
    """
    old = attention.num_kv_heads
    if num_kv_heads < 1 or old % num_kv_heads:
        raise ValueError(f"num_kv_heads must divide the {old} there are; got {num_kv_heads}")
    return _with_kv_heads(attention, num_kv_heads, lambda weight, head_dim: pool_heads(weight, head_dim, num_kv_heads))


def expand_kv_heads(model: Llama, num_kv_heads: int) -> Llama:
    """The inverse: repeat key-value heads. The new model computes the same function; it is GQA stored as MHA.

    Raises:
        ValueError: ``num_kv_heads`` is not a multiple of the present number, or does not divide ``num_heads``.
    """
    old, num_heads = model.config.num_kv_heads, model.config.num_heads
    if num_kv_heads < 1 or num_kv_heads % old or num_heads % num_kv_heads:
        raise ValueError(f"num_kv_heads must be a multiple of {old} that divides {num_heads}; got {num_kv_heads}")

    def repeat(weight: Tensor, head_dim: int) -> Tensor:
        return weight.unflatten(0, (old, head_dim)).repeat_interleave(num_kv_heads // old, dim=0).flatten(0, 1)

    expanded = copy.deepcopy(model)
    for layer in expanded.layers:
        assert isinstance(layer, DecoderLayer)
        layer.self_attn = _with_kv_heads(layer.self_attn, num_kv_heads, repeat)
    expanded.config = replace(model.config, num_kv_heads=num_kv_heads)
    return expanded


def pool_heads(weight: Float[Tensor, "out in"], head_dim: int, num_heads: int) -> Float[Tensor, "pooled in"]:
    """The mean over each group of consecutive heads, whose query heads will share the new one."""
    return weight.unflatten(0, (num_heads, -1, head_dim)).mean(1).flatten(0, 1)


def uptrain(
    model: Llama,
    batches: Iterable[Int64[Tensor, "batch time"]],
    steps: int,
    lr: float = 1e-3,
    warmup: int = 5,
) -> list[float]:
    """Train ``model`` in place for ``steps`` steps of AdamW, the rate falling linearly. Returns the losses, in nats.

    Converting damages every layer at once, so all parameters are trained, as in the paper.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, betas=(0.9, 0.95))
    losses: list[Tensor] = []
    was_training = model.training
    model.train()
    for step, batch in enumerate(itertools.islice(batches, steps)):
        set_rates([optimizer], rate_share(step, steps, warmup, decay_from=0))
        batch = batch.to(model.embed_tokens.weight.device, non_blocking=True)
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    model.train(was_training)
    return to_host(losses)


def random_batches(
    token_ids: Int64[Tensor, " n"], batch_size: int, seq_len: int, seed: int = 0
) -> Iterable[Int64[Tensor, "batch time"]]:
    """Windows of ``seq_len`` + 1 tokens from random places of a text, endlessly."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(token_ids) - seq_len, (batch_size,), generator=generator)
        yield token_ids[starts[:, None] + torch.arange(seq_len + 1)]


def _with_kv_heads(
    attention: AttentionModule, num_kv_heads: int, change: Callable[[Tensor, int], Tensor]
) -> AttentionModule:
    changed = copy.deepcopy(attention)
    for name in ("k_proj", "v_proj"):
        old = getattr(attention, name)
        if type(old) is not nn.Linear or old.bias is not None:
            raise ValueError(f"{name} must be a plain nn.Linear without bias; got {old}")
        weight = change(old.weight.detach(), attention.head_dim)
        new = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        new.weight = nn.Parameter(weight.clone())
        setattr(changed, name, new)
    changed.num_kv_heads = num_kv_heads
    return changed
