"""A paged cache: memory in blocks of a few tokens, handed out as sequences grow, shared where their text is the same.

After vLLM's PagedAttention (Kwon et al. 2023, arXiv 2309.06180). A sequence is a block table; `fork` copies the table
and not the blocks; who writes to a block with other owners gets a copy of it first; a full block whose tokens are known
can be found by the hash of the text up to its end, also when the sequence that wrote it is gone.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from labsupport.kvcache.allocator import BlockAllocator, chain_hash
from labsupport.kvcache.grouped import CacheFull
from labsupport.kvcache.paged_batch import PagedBatch
from labsupport.lm import Llama


@dataclass
class PagedSequence:
    """Blocks in the order of the text. ``tokens`` are known as far as they were fed; hashing ends where they do."""

    block_table: list[int] = field(default_factory=list)
    length: int = 0
    tokens: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)  # of the full blocks whose tokens are known


class PagedKVCache:
    """Blocks [layers, 2, num_blocks, num_kv_heads, block_size, head_dim], for sequences that come and go by id.

        cache = PagedKVCache.for_model(model, num_blocks=256)
        cached = cache.add_sequence("a", prompt)            # tokens found by their hash: they need no computing
        batch = cache.batch(["a"])
        logits = model(batch.feed([prompt[cached:]]), batch)
        cache.free("a")

    Raises:
        ValueError: a size is below 1.
    """

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
        sizes = dict(num_layers=num_layers, num_blocks=num_blocks, block_size=block_size, num_kv_heads=num_kv_heads,
                     head_dim=head_dim)  # fmt: skip
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}")
        self.num_layers, self.num_blocks, self.block_size = num_layers, num_blocks, block_size
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        self.enable_prefix_caching = enable_prefix_caching
        self.allocator = BlockAllocator(num_blocks)
        self.sequences: dict[Hashable, PagedSequence] = {}
        self._allocate(dtype, device)

    @classmethod
    def for_model(cls, model: Llama, num_blocks: int, block_size: int = 16, enable_prefix_caching: bool = True) -> Self:
        """A cache with the layers, heads, precision and device of ``model``."""
        config, weight = model.config, model.embed_tokens.weight
        assert config.head_dim is not None
        sizes = (config.num_layers, num_blocks, block_size, config.num_kv_heads, config.head_dim)
        return cls(*sizes, weight.dtype, weight.device, enable_prefix_caching)

    # Sequences

    def add_sequence(self, seq_id: Hashable, token_ids: Sequence[int] = ()) -> int:
        """A new sequence that will begin with ``token_ids``: how many of them the cache holds already.

        Whole blocks are found, and never the last token: its logits are wanted, so it must be computed.

        Raises:
            ValueError: there is a sequence of this id.
        """
        if seq_id in self.sequences:
            raise ValueError(f"seq_id must be new; {seq_id!r} is held (free it first)")
        sequence = self.sequences[seq_id] = PagedSequence()
        token_ids = [int(token) for token in token_ids]
        for content_hash in self._hashes(token_ids[:-1]):
            block = self.allocator.lookup(content_hash)
            if block is None:
                break
            self.allocator.retain(block)
            sequence.block_table.append(block)
            sequence.hashes.append(content_hash)
        sequence.length = len(sequence.block_table) * self.block_size
        sequence.tokens = token_ids[: sequence.length]
        return sequence.length

    def count_cached_tokens(self, token_ids: Sequence[int]) -> int:
        """What `add_sequence` would return, with nothing changed."""
        found = 0
        for content_hash in self._hashes([int(token) for token in token_ids[:-1]]):
            if self.allocator.lookup(content_hash) is None:
                break
            found += self.block_size
        return found

    def fork(self, parent_id: Hashable, child_id: Hashable) -> None:
        """A second sequence with the same content. Costs no block until one of them writes.

        Raises:
            ValueError: no sequence ``parent_id``, or there is one ``child_id``.
        """
        parent = self._get(parent_id)
        if child_id in self.sequences:
            raise ValueError(f"child_id must be new; {child_id!r} is held (free it first)")
        for block in parent.block_table:
            self.allocator.retain(block)
        self.sequences[child_id] = PagedSequence(
            parent.block_table.copy(), parent.length, parent.tokens.copy(), parent.hashes.copy()
        )

    def free(self, seq_id: Hashable) -> None:
        """Give the sequence's blocks back, its last first: the beginning of a text is the likelier to be asked for."""
        sequence = self._get(seq_id)
        del self.sequences[seq_id]
        for block in reversed(sequence.block_table):
            self.allocator.release(block)

    def preempt(self, seq_id: Hashable) -> list[int]:
        """Free a sequence to make room. Returns its known tokens, to be computed again later (nothing is swapped out).

        Full blocks stay cached as long as nobody needs the room, so `add_sequence` may find most of them again.
        """
        tokens = self._get(seq_id).tokens
        self.free(seq_id)
        return tokens

    def batch(self, seq_ids: Sequence[Hashable]) -> PagedBatch:
        """These sequences as the batch of a model's pass: ``model(tokens, cache.batch(ids))``."""
        return PagedBatch(self, seq_ids)

    def append(
        self,
        seq_id: Hashable,
        key: Float[Tensor, "layers num_kv_heads new head_dim"],
        value: Float[Tensor, "layers num_kv_heads new head_dim"],
        token_ids: Sequence[int] | None = None,
    ) -> None:
        """Write keys and values without a model. ``token_ids`` are the new tokens, if their blocks shall be found."""
        batch = self.batch([seq_id])
        if token_ids is not None:
            batch.feed([token_ids])
        batch.positions(1, key.shape[2])
        for layer in range(self.num_layers):
            batch.store(layer, key[layer : layer + 1, :], value[layer : layer + 1, :])
        batch.advance(key.shape[2])

    def read(
        self, seq_id: Hashable, layer_index: int
    ) -> tuple[Float[Tensor, "num_kv_heads length head_dim"], Float[Tensor, "num_kv_heads length head_dim"]]:
        """Copies of a sequence's keys and values in one layer."""
        sequence = self._get(seq_id)
        held = self.blocks[layer_index][:, sequence.block_table]  # [2, blocks, num_kv_heads, block_size, head_dim]
        key, value = held.transpose(1, 2).flatten(2, 3)[:, :, : sequence.length]
        return key, value

    # Room

    @property
    def num_free_blocks(self) -> int:
        """Blocks that a sequence can still get, those cached for their content included."""
        return self.allocator.num_free_blocks

    @property
    def num_cached_blocks(self) -> int:
        return self.allocator.num_cached_blocks

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self._storage())

    def block_table(self, seq_id: Hashable) -> tuple[int, ...]:
        return tuple(self._get(seq_id).block_table)

    def length(self, seq_id: Hashable) -> int:
        return self._get(seq_id).length

    def blocks_needed(self, seq_ids: Sequence[Hashable], new_tokens: Sequence[int]) -> int:
        """Blocks that must be free for these sequences to grow by so many tokens, copies on write included."""
        needed = 0
        owners_left: dict[int, int] = {}
        for seq_id, new in zip(seq_ids, new_tokens, strict=True):
            sequence = self._get(seq_id)
            needed += max(0, -(-(sequence.length + new) // self.block_size) - len(sequence.block_table))
            for block in self._written(sequence, new):
                owners = owners_left.setdefault(block, self.allocator.ref_count[block])
                if owners > 1:
                    needed += 1
                    owners_left[block] -= 1
        return needed

    def can_append(self, seq_ids: Sequence[Hashable], new_tokens: Sequence[int]) -> bool:
        return self.blocks_needed(seq_ids, new_tokens) <= self.num_free_blocks

    def usage(self) -> dict[str, int]:
        """``used_slots`` (tokens held, those of shared blocks once), ``reserved_slots``, and blocks by state."""
        filled: dict[int, int] = {}
        for sequence in self.sequences.values():
            for index, block in enumerate(sequence.block_table):
                slots = min(self.block_size, max(0, sequence.length - index * self.block_size))
                filled[block] = max(filled.get(block, 0), slots)
        cached = self.num_cached_blocks
        return {
            "used_slots": sum(filled.values()),
            "reserved_slots": len(filled) * self.block_size,
            "used_blocks": len(filled),
            "cached_blocks": cached,
            "free_blocks": self.num_free_blocks - cached,
        }

    def drop_cached(self) -> int:
        """Forget the content of all blocks that are in nobody's use. How many there were."""
        return self.allocator.evict(self.num_cached_blocks)

    def check_integrity(self) -> None:
        """Every block is owned as often as it is counted, none is lost, tables fit lengths, hashes fit tokens.

        Raises:
            AssertionError: the cache is broken.
        """
        self.allocator.check_integrity(block for each in self.sequences.values() for block in each.block_table)
        for seq_id, sequence in self.sequences.items():
            table = sequence.block_table
            assert len(set(table)) == len(table), f"sequence {seq_id!r} has a block twice"
            assert len(table) * self.block_size >= sequence.length, f"sequence {seq_id!r} is longer than its blocks"
            assert len(sequence.tokens) <= sequence.length, f"sequence {seq_id!r} knows more tokens than it holds"
            assert sequence.hashes == self._hashes(sequence.tokens), f"sequence {seq_id!r} has wrong hashes"
            for content_hash, block in zip(sequence.hashes, table, strict=False):
                assert self.allocator.hash_of(block) in (None, content_hash), f"block {block} has another text's hash"

    # Helpers

    def _allocate(self, dtype: torch.dtype, device: torch.device | str) -> None:
        shape = (self.num_layers, 2, self.num_blocks, self.num_kv_heads, self.block_size, self.head_dim)
        self.blocks = torch.zeros(shape, dtype=dtype, device=device)  # zeros: see KVCache
        self.dtype, self.device = dtype, self.blocks.device
        self._scratch = self.blocks.new_empty(0)

    def _storage(self) -> list[Tensor]:
        """All that is held by blocks: tensors whose third dimension is the block."""
        return [self.blocks]

    def _get(self, seq_id: Hashable) -> PagedSequence:
        if seq_id not in self.sequences:
            raise ValueError(f"seq_id must be a sequence of the cache; {seq_id!r} is not (add_sequence makes one)")
        return self.sequences[seq_id]

    def _hashes(self, token_ids: Sequence[int], known: Sequence[bytes] = ()) -> list[bytes]:
        """Chained hashes of the full blocks of ``token_ids``, going on from those ``known``."""
        hashes = list(known)
        if self.enable_prefix_caching:
            for start in range(len(hashes) * self.block_size, len(token_ids) - self.block_size + 1, self.block_size):
                parent = hashes[-1] if hashes else b""
                hashes.append(chain_hash(parent, token_ids[start : start + self.block_size]))
        return hashes

    def _written(self, sequence: PagedSequence, new: int) -> list[int]:
        """The blocks it has that the next ``new`` tokens go to."""
        first, end = sequence.length // self.block_size, -(-(sequence.length + new) // self.block_size)
        return sequence.block_table[first:end] if new else []

    def _make_room(self, seq_ids: Sequence[Hashable], new_tokens: Sequence[int]) -> None:
        """After this the new tokens' blocks exist and have no other owner."""
        needed = self.blocks_needed(seq_ids, new_tokens)
        if needed > self.num_free_blocks:
            raise CacheFull(
                f"{needed} blocks of {self.block_size} tokens are needed and {self.num_free_blocks} of "
                f"{self.num_blocks} are free: free() or preempt() a sequence, or make the cache with more num_blocks"
            )
        for seq_id, new in zip(seq_ids, new_tokens, strict=True):
            sequence = self._get(seq_id)
            for shared in self._written(sequence, new):
                if self.allocator.ref_count[shared] > 1:  # copy on write
                    own = self.allocator.allocate()
                    for blocks in self._storage():
                        blocks[:, :, own] = blocks[:, :, shared]
                    sequence.block_table[sequence.block_table.index(shared)] = own
                    self.allocator.release(shared)
            while len(sequence.block_table) * self.block_size < sequence.length + new:
                sequence.block_table.append(self.allocator.allocate())

    def _grow(self, seq_id: Hashable, new: int, token_ids: Sequence[int] | None) -> None:
        """The new tokens are written: count them, and let their full blocks be found."""
        sequence = self._get(seq_id)
        if token_ids is not None and len(sequence.tokens) == sequence.length:
            sequence.tokens.extend(map(int, token_ids))
        sequence.length += new
        first = len(sequence.hashes)
        sequence.hashes = self._hashes(sequence.tokens, sequence.hashes)
        for content_hash, block in zip(sequence.hashes[first:], sequence.block_table[first:], strict=False):
            self.allocator.register(block, content_hash)
