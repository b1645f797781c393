"""Which sequence owns which blocks: tables that grow, fork and share, whatever the blocks hold.

After vLLM (Kwon et al. 2023, arXiv 2309.06180, sections 4.2-4.5). A sequence is a block table. `fork` copies the table
but not the blocks; a sequence that writes to a shared block gets its own copy first (copy on write); a full block whose
tokens are known can be found by the hash of the text up to its end, even after the sequence that wrote it is gone.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from labsupport.kvcache.allocator import BlockAllocator, chain_hash
from labsupport.kvcache.grouped import CacheFull


@dataclass
class PagedSequence:
    """Blocks in the order of the text. ``tokens`` are known as far as they were given; hashing ends where they do."""

    block_table: list[int] = field(default_factory=list)
    length: int = 0
    tokens: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)  # of the full blocks whose tokens are known


class BlockTables:
    """Sequences by id, each with a table of its blocks of ``block_size`` tokens. All that a scheduler needs to know.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1; got {block_size}")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.allocator = BlockAllocator(num_blocks)
        self.sequences: dict[Hashable, PagedSequence] = {}

    # Sequences

    def add_sequence(self, seq_id: Hashable, token_ids: Sequence[int] = ()) -> int:
        """Begin a sequence whose first tokens will be ``token_ids``. Returns how many of them are cached already.

        Only whole blocks are found, and never the last token: its logits are wanted, so it must be computed.

        Raises:
            ValueError: a sequence with this id exists.
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

    def fork(self, parent_id: Hashable, child_id: Hashable) -> None:
        """A second sequence with the same content. Takes no block until one of the two writes.

        Raises:
            ValueError: there is no sequence ``parent_id``, or there is already one ``child_id``.
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
        """End a sequence. Its full blocks stay cached until their room is needed: read again, it finds them.

        The last block goes first, because the beginning of a text is the likelier to be used again.
        """
        sequence = self._get(seq_id)
        del self.sequences[seq_id]
        for block in reversed(sequence.block_table):
            self.allocator.release(block)

    def length(self, seq_id: Hashable) -> int:
        """Tokens that the sequence holds."""
        return self._get(seq_id).length

    def block_table(self, seq_id: Hashable) -> tuple[int, ...]:
        """Its blocks, in the order of the text."""
        return tuple(self._get(seq_id).block_table)

    # Room for new tokens: `reserve` before a pass of the model, `commit` after it

    @property
    def num_free_blocks(self) -> int:
        """Blocks that a sequence can still get, those cached for their content included."""
        return self.allocator.num_free_blocks

    def blocks_needed(self, seq_ids: Sequence[Hashable], new_tokens: Sequence[int]) -> int:
        """Free blocks that these sequences need to grow by ``new_tokens`` each, copies on write included."""
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

    def reserve(self, seq_ids: Sequence[Hashable], new_tokens: Sequence[int]) -> None:
        """After this, the blocks that the new tokens go to exist and belong to their sequence alone.

        Raises:
            CacheFull: too few blocks are free. Nothing has changed then.
        """
        needed = self.blocks_needed(seq_ids, new_tokens)
        if needed > self.num_free_blocks:
            raise CacheFull(
                f"{needed} blocks of {self.block_size} tokens are needed and {self.num_free_blocks} of "
                f"{self.num_blocks} are free: free() a sequence, or make the cache with more num_blocks"
            )
        for seq_id, new in zip(seq_ids, new_tokens, strict=True):
            sequence = self._get(seq_id)
            for shared in self._written(sequence, new):
                if self.allocator.ref_count[shared] > 1:  # copy on write
                    own = self.allocator.allocate()
                    self._copy_block(shared, own)
                    sequence.block_table[sequence.block_table.index(shared)] = own
                    self.allocator.release(shared)
            while len(sequence.block_table) * self.block_size < sequence.length + new:
                sequence.block_table.append(self.allocator.allocate())

    def commit(self, seq_id: Hashable, new: int, token_ids: Sequence[int] | None = None) -> None:
        """``new`` reserved tokens are written: count them, and let the full blocks of known ``token_ids`` be found."""
        sequence = self._get(seq_id)
        if token_ids is not None and len(sequence.tokens) == sequence.length:
            sequence.tokens.extend(map(int, token_ids))
        sequence.length += new
        first = len(sequence.hashes)
        sequence.hashes = self._hashes(sequence.tokens, sequence.hashes)
        for content_hash, block in zip(sequence.hashes[first:], sequence.block_table[first:], strict=False):
            self.allocator.register(block, content_hash)

    # Statistics and checks

    def usage(self) -> dict[str, int]:
        """``used_slots`` (tokens held, those of shared blocks once), ``reserved_slots``, and blocks by state."""
        filled: dict[int, int] = {}
        for sequence in self.sequences.values():
            for index, block in enumerate(sequence.block_table):
                slots = min(self.block_size, max(0, sequence.length - index * self.block_size))
                filled[block] = max(filled.get(block, 0), slots)
        cached = self.allocator.num_cached_blocks
        return {
            "used_slots": sum(filled.values()),
            "reserved_slots": len(filled) * self.block_size,
            "used_blocks": len(filled),
            "cached_blocks": cached,
            "free_blocks": self.num_free_blocks - cached,
        }

    def check_integrity(self) -> None:
        """Reference counts equal owners, no block is lost, tables fit lengths, and hashes fit tokens.

        Raises:
            AssertionError: one of these does not hold.
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

    def _copy_block(self, source: int, target: int) -> None:
        """Copy on write needs the contents in ``target``; the tables alone have none."""

    def _get(self, seq_id: Hashable) -> PagedSequence:
        if seq_id not in self.sequences:
            raise ValueError(f"seq_id must be a sequence of the cache; {seq_id!r} is not (add_sequence makes one)")
        return self.sequences[seq_id]

    def _hashes(self, token_ids: Sequence[int], known: Sequence[bytes] = ()) -> list[bytes]:
        """Chained hashes of the full blocks of ``token_ids``; those in ``known`` are not computed again."""
        hashes = list(known)
        if self.enable_prefix_caching:
            for start in range(len(hashes) * self.block_size, len(token_ids) - self.block_size + 1, self.block_size):
                parent = hashes[-1] if hashes else b""
                hashes.append(chain_hash(parent, token_ids[start : start + self.block_size]))
        return hashes

    def _written(self, sequence: PagedSequence, new: int) -> list[int]:
        """The blocks of the sequence that its next ``new`` tokens will be written to."""
        first, end = sequence.length // self.block_size, -(-(sequence.length + new) // self.block_size)
        return sequence.block_table[first:end] if new else []
