"""A paged cache: memory in blocks of a few tokens, handed out as sequences grow, shared where their text is the same.

After vLLM's PagedAttention (Kwon et al. 2023, arXiv 2309.06180). Which sequence owns which block is decided in
tables.py. This file holds the contents of the blocks, and says how one layer of a pass writes and reads them. The pass
itself, over a batch of sequences, is batch.py's.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from labsupport.kvcache.attention import PagedStep, by_kernel
from labsupport.kvcache.grouped import grouped_attention
from labsupport.kvcache.tables import BlockTables
from labsupport.lm import Llama
from labsupport.numerics.devices import from_host


class PagedKVCache(BlockTables):
    """Blocks [layers, 2, num_blocks, num_kv_heads, block_size, head_dim], for sequences that come and go by id.

        cache = PagedKVCache.for_model(model, num_blocks=256)
        cached = cache.add_sequence("a", prompt)            # tokens found by their hash: they need no computing
        batch = PagedBatch(cache, ["a"])
        logits = model(batch.feed([prompt[cached:]]), batch)
        cache.free("a")

    Raises:
        ValueError: a size is below 1.
    """

    _scratch: Tensor  # what `attend` gathers keys into

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        enable_prefix_caching: bool = True,
    ) -> None:
        sizes = dict(num_layers=num_layers, num_kv_heads=num_kv_heads, head_dim=head_dim)
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}")
        super().__init__(num_blocks, block_size, enable_prefix_caching)
        self.num_layers, self.num_kv_heads, self.head_dim = num_layers, num_kv_heads, head_dim
        self._allocate(dtype, device)

    @classmethod
    def for_model(
        cls, model: Llama, num_blocks: int, block_size: int = 16, enable_prefix_caching: bool = True, **options: object
    ) -> Self:
        """A cache with the layers, heads, precision and device of ``model``. ``options`` go to the constructor."""
        config, weight = model.config, model.embed_tokens.weight
        assert config.head_dim is not None
        sizes = (config.num_layers, num_blocks, block_size, config.num_kv_heads, config.head_dim)
        return cls(*sizes, weight.dtype, weight.device, enable_prefix_caching, **options)  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks, in use or not."""
        return sum(each.nbytes for each in self._storage())

    # Without a model

    def append(
        self,
        seq_id: Hashable,
        key: Float[Tensor, "layers num_kv_heads new head_dim"],
        value: Float[Tensor, "layers num_kv_heads new head_dim"],
        token_ids: Sequence[int] | None = None,
    ) -> None:
        """Write keys and values to one sequence. ``token_ids``: the new tokens, if their blocks are to be found later.

        Raises:
            CacheFull: too few blocks are free. Nothing has changed then.
        """
        new, start = key.shape[2], self.length(seq_id)
        self.reserve([seq_id], [new])
        step = PagedStep.plan(
            [self.block_table(seq_id)], [start], [new], new, self.block_size, self.num_kv_heads, self.num_kv_heads,
            self.device,
        )  # fmt: skip
        for layer in range(self.num_layers):
            self.store(layer, step, key[layer : layer + 1], value[layer : layer + 1])
        self.commit(seq_id, new, token_ids)

    def read(
        self, seq_id: Hashable, layer_index: int
    ) -> tuple[Float[Tensor, "num_kv_heads length head_dim"], Float[Tensor, "num_kv_heads length head_dim"]]:
        """Copies of a sequence's keys and values in one layer."""
        table = from_host(self.block_table(seq_id), self.device, torch.int64)
        key, value = self.read_blocks(layer_index, table)
        return key[:, : self.length(seq_id)], value[:, : self.length(seq_id)]

    # One layer of a pass. A cache of another precision replaces these

    @torch.no_grad()
    def store(
        self,
        layer_index: int,
        step: PagedStep,
        key: Float[Tensor, "batch num_kv_heads time head_dim"],
        value: Float[Tensor, "batch num_kv_heads time head_dim"],
    ) -> None:
        """Write the new keys and values of a pass into the blocks that `reserve` has taken for them."""
        keys, values = self.blocks[layer_index]
        step.store(keys, key)
        step.store(values, value)

    @torch.no_grad()
    def attend(
        self,
        layer_index: int,
        step: PagedStep,
        query: Float[Tensor, "batch num_heads time head_dim"],
        key: Float[Tensor, "batch num_kv_heads time head_dim"],
        value: Float[Tensor, "batch num_kv_heads time head_dim"],
        window: int | None = None,
    ) -> Float[Tensor, "batch num_heads time head_dim"]:
        """`store`, then causal attention over all that the sequences of the pass hold, or over the last ``window``
        tokens of each."""
        self.store(layer_index, step, key, value)
        if step.from_empty:
            return grouped_attention(query, key, value, *step.mask_within(window, key.shape[2]))
        keys, values = self.blocks[layer_index]
        if by_kernel(step, query, window, self.block_size):
            from labsupport.kvcache.triton_attention import paged_decode_attention

            return paged_decode_attention(query[:, :, 0], keys, values, step.table, step.lengths)[:, :, None]
        size = len(step.block_rows) * self.block_size * self.head_dim
        if self._scratch.numel() < size:  # all layers gather into it: fresh memory for each costs more than gathering
            with torch.inference_mode(False):
                self._scratch = self.blocks.new_empty(size)
        return step.attend(query, keys, values, self._scratch, window)

    def read_blocks(
        self, layer_index: int, table: Int64[Tensor, " blocks"]
    ) -> tuple[Float[Tensor, "num_kv_heads slots head_dim"], Float[Tensor, "num_kv_heads slots head_dim"]]:
        """Keys and values of these blocks side by side, as attention reads them."""
        key, value = self.blocks[layer_index][:, table].transpose(1, 2).flatten(2, 3)
        return key, value

    def _allocate(self, dtype: torch.dtype, device: torch.device | str) -> None:
        shape = (self.num_layers, 2, self.num_blocks, self.num_kv_heads, self.block_size, self.head_dim)
        self.blocks = torch.zeros(shape, dtype=dtype, device=device)  # zeros: see KVCache
        self.dtype, self.device = dtype, self.blocks.device
        self._scratch = self.blocks.new_empty(0)

    def _storage(self) -> list[Tensor]:
        """All that the blocks hold: tensors whose third dimension is the block."""
        return [self.blocks]

    def _copy_block(self, source: int, target: int) -> None:
        for blocks in self._storage():
            blocks[:, :, target] = blocks[:, :, source]
