"""The blocks of a paged cache: reference counts, blocks kept for their content, and the order of eviction.

A block is in one of three states. In use: it belongs to one or more sequences. Cached: it belongs to none, but its
content has a hash and may be needed again. Free: it holds nothing worth keeping. New blocks are taken from the free
ones and, when there are none, from the cached ones, least recently used first (Kwon et al. 2023, arXiv 2309.06180,
sections 4.2-4.5).
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from labsupport.kvcache.grouped import CacheFull


class BlockAllocator:
    """Hands out blocks 0..num_blocks-1. Each `allocate` and each `retain` needs one `release`."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1; got {num_blocks}")
        self.num_blocks = num_blocks
        self.ref_count = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: low numbers first
        self._cached: OrderedDict[int, None] = OrderedDict()  # the least recently used first
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self.num_evictions = 0

    @property
    def num_free_blocks(self) -> int:
        """Blocks that `allocate` can hand out: the free ones and the cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that no sequence uses, kept for their content."""
        return len(self._cached)

    def allocate(self) -> int:
        """A block with reference count 1. Raises `CacheFull` if all are in use."""
        if not self._free and not self._cached:
            raise CacheFull(
                f"all {self.num_blocks} blocks are in use: free a sequence, or make the cache with more blocks"
            )
        if not self._free:
            self.evict()
        block = self._free.pop()
        self.ref_count[block] = 1
        return block

    def retain(self, block: int) -> None:
        """One more owner for a block that is in use or cached."""
        if self.ref_count[block] == 0:
            if block not in self._cached:
                raise ValueError(f"block must be in use or cached; {block} is free")
            del self._cached[block]
        self.ref_count[block] += 1

    def release(self, block: int) -> None:
        """One owner less. After the last one, the block is cached if its content has a hash, else free."""
        if self.ref_count[block] == 0:
            raise ValueError(f"block must be in use to be released; {block} is not")
        self.ref_count[block] -= 1
        if self.ref_count[block]:
            return
        if block in self._hash_of:
            self._cached[block] = None
        else:
            self._free.append(block)

    def register(self, block: int, content_hash: bytes) -> None:
        """The block is full and will not change: let others find it. Of two with the same content, the first counts."""
        if content_hash not in self._block_of and block not in self._hash_of:
            self._block_of[content_hash], self._hash_of[block] = block, content_hash

    def lookup(self, content_hash: bytes) -> int | None:
        """The block with this content, in use or cached. `retain` it before allocating anything."""
        return self._block_of.get(content_hash)

    def hash_of(self, block: int) -> bytes | None:
        return self._hash_of.get(block)

    def evict(self, count: int = 1) -> int:
        """Forget the content of up to ``count`` cached blocks, least recently used first. Returns how many it was."""
        evicted = min(count, len(self._cached))
        for _ in range(evicted):
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
            self._free.append(block)
        self.num_evictions += evicted
        return evicted

    def check_integrity(self, owned: Iterable[int]) -> None:
        """Compare with ``owned``: the blocks of all sequences, one entry for each owner.

        Raises:
            AssertionError: a count is wrong, a block is lost, or a block is in two states.
        """
        owners = Counter(owned)
        for block, count in enumerate(self.ref_count):
            assert count == owners[block], f"block {block} has count {count} and {owners[block]} owners"
        states = Counter([*self._free, *self._cached, *owners])
        assert set(states) == set(range(self.num_blocks)), "a block is neither free nor cached nor in use"
        assert max(states.values()) == 1, f"block {states.most_common(1)[0][0]} is in two states or listed twice"
        assert self._block_of == {content: block for block, content in self._hash_of.items()}, "hashes do not match"
        assert not set(self._free) & set(self._hash_of), "a free block has a hash"
        assert set(self._cached) <= set(self._hash_of), "a cached block has no hash"


def chain_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Hash of a full block: of its tokens and, through ``parent`` (b"" for the first block), all before them.

    Keys and values depend on all of the text before, so equal tokens alone do not make equal blocks. SHA-256, not
    Python's `hash`: whoever can make two prompts collide can read another user's text.
    """
    return hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()
