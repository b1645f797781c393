"""A model with a cache: generation gives the tokens of `labsupport.lm.generate`, without its repeated work.

Works with every cache of this chapter, and with prompts of any lengths, read whole or in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from labsupport.kvcache.batch import PagedBatch
from labsupport.kvcache.contiguous import KVCache
from labsupport.kvcache.paged import PagedKVCache
from labsupport.kvcache.quantized import QuantizedKVCache
from labsupport.lm import Cache, Llama
from labsupport.lm.generate import sample
from labsupport.numerics.devices import from_host

KINDS = ("contiguous", "paged", "int8", "int4")


@torch.no_grad()
def generate(
    model: Llama,
    prompts: Tensor | Sequence[Sequence[int]],
    max_tokens: int,
    cache: str | KVCache | PagedKVCache = "contiguous",
    chunk_size: int | None = None,
    temperature: float = 0.0,
    seed: int | None = None,
    eos_token_id: int | None = None,
) -> list[list[int]]:
    """The tokens that follow each prompt: one list for each, ending with ``eos_token_id`` if the model gave it.

    Args:
        prompts: token lists of any lengths, or a tensor [batch, time].
        cache: a kind ("contiguous", "paged", "int8", "int4": one is made that is large enough), an empty `KVCache`, or
            a `PagedKVCache`, which may hold other sequences; beginnings of prompts that it knows are not recomputed.
        chunk_size: tokens of a prompt to read in one pass, at most; None: all.

    Raises:
        ValueError: a prompt is empty, a number is out of range, or the cache does not fit the prompts.
        CacheFull: the given cache has too little room.
    """
    token_lists = [[int(token) for token in prompt] for prompt in prompts]
    if not token_lists or not all(token_lists):
        raise ValueError(
            f"prompts must be one or more, and none empty; got lengths {[len(each) for each in token_lists]}"
        )
    if max_tokens < 0:
        raise ValueError(f"max_tokens must be 0 or more; got {max_tokens}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 or None; got {chunk_size}")
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 or more; got {temperature}")
    if max_tokens == 0:
        return [[] for _ in token_lists]
    if isinstance(cache, str):
        cache = make_cache(model, token_lists, max_tokens, cache)
    if isinstance(cache, KVCache):
        if cache.batch_size != len(token_lists) or any(cache.lengths):
            raise ValueError(
                f"cache must be empty, with batch_size = {len(token_lists)} (one a prompt); got batch_size = "
                f"{cache.batch_size} and lengths {cache.lengths}: reset() empties it"
            )
        return _generate(model, cache, token_lists, max_tokens, chunk_size, temperature, seed, eos_token_id)

    seq_ids = [object() for _ in token_lists]  # unlike any id that the caller may use
    try:
        rest = [tokens[cache.add_sequence(each, tokens) :] for each, tokens in zip(seq_ids, token_lists, strict=True)]
        batch = PagedBatch(cache, seq_ids)
        return _generate(model, batch, rest, max_tokens, chunk_size, temperature, seed, eos_token_id)
    finally:
        for seq_id in seq_ids:
            if seq_id in cache.sequences:
                cache.free(seq_id)


def make_cache(
    model: Llama, token_lists: Sequence[Sequence[int]], max_tokens: int, kind: str
) -> KVCache | PagedKVCache:
    """A cache with just enough room for these prompts and ``max_tokens`` more.

    Raises:
        ValueError: there is no such kind.
    """
    # the last generated token is never read, so it takes no room
    lengths = [len(tokens) + max_tokens - 1 for tokens in token_lists]
    if kind == "contiguous":
        return KVCache.for_model(model, len(lengths), max(lengths))
    if kind in ("int8", "int4"):
        return QuantizedKVCache.for_model(model, len(lengths), max(lengths), bits=int(kind.removeprefix("int")))
    if kind == "paged":
        return PagedKVCache.for_model(model, sum(-(-length // 16) for length in lengths), block_size=16)
    raise ValueError(f"cache must be one of {', '.join(KINDS)}, or a cache; got {kind!r}")


def prefill(
    model: Llama, cache: KVCache | PagedBatch, token_lists: Sequence[Sequence[int]], chunk_size: int | None = None
) -> Float[Tensor, "batch vocab"]:
    """Read tokens into the cache, at most ``chunk_size`` of each sequence in a pass; logits after each one's last."""
    longest = max(map(len, token_lists))
    chunk_size = chunk_size or longest
    logits: Tensor | None = None
    for start in range(0, longest, chunk_size):
        chunks = [tokens[start : start + chunk_size] for tokens in token_lists]
        new = next_token_logits(model, cache, chunks)
        if logits is None:
            logits = torch.zeros_like(new)
        ending = [start < len(tokens) <= start + chunk_size for tokens in token_lists]
        logits = torch.where(from_host(ending, new.device)[:, None], new, logits)
    assert logits is not None
    return logits


def next_token_logits(
    model: Llama, cache: KVCache | PagedBatch, token_lists: Sequence[Sequence[int]]
) -> Float[Tensor, "batch vocab"]:
    """One pass over any number of new tokens of each sequence; the head runs only on the last of each.

    The row of a sequence without a new token is meaningless.
    """
    hidden = model.hidden_states(cache.feed(token_lists), cache)
    last = from_host([max(0, len(tokens) - 1) for tokens in token_lists], hidden.device)
    return model.lm_head(hidden[torch.arange(len(last), device=hidden.device), last]).float()


class WithFreshCache(nn.Module):
    """``model``, but each batch is read through a new cache: for judging a cache by `labsupport.lm.perplexity`.

    ``make_cache(batch_size, time)`` makes the cache; ``chunk_size`` tokens are read in one pass (None: all).

        perplexity(WithFreshCache(model, partial(QuantizedKVCache.for_model, model, bits=4)), tokens)
    """

    def __init__(self, model: Llama, make_cache: Callable[[int, int], Cache], chunk_size: int | None = None) -> None:
        super().__init__()
        self.model, self.make_cache, self.chunk_size = model, make_cache, chunk_size

    @torch.no_grad()
    def forward(self, tokens: Int64[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        cache = self.make_cache(*tokens.shape)
        chunks = tokens.split(self.chunk_size or tokens.shape[1], dim=1)
        return torch.cat([self.model(chunk, cache) for chunk in chunks], dim=1)


def _generate(
    model: Llama, cache: KVCache | PagedBatch, token_lists: Sequence[Sequence[int]], max_tokens: int,
    chunk_size: int | None, temperature: float, seed: int | None, eos_token_id: int | None,
) -> list[list[int]]:  # fmt: skip
    logits = prefill(model, cache, token_lists, chunk_size)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    generated: list[list[int]] = [[] for _ in token_lists]
    running = [True] * len(generated)
    for step in range(max_tokens):
        if step:
            # a sequence that has ended feeds nothing, and so takes no more room
            logits = next_token_logits(
                model, cache, [tokens[-1:] if run else [] for tokens, run in zip(generated, running, strict=True)]
            )
        for row, token in enumerate(sample(logits, temperature, generator).tolist()):
            if running[row]:
                generated[row].append(token)
                running[row] = token != eos_token_id
        if not any(running):
            break
    return generated
