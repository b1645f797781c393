"""Reference counts, and the hash that finds a block again. Any order of events: test_paged.py."""

from __future__ import annotations

import pytest

from labsupport.kvcache import BlockAllocator, chain_hash


def test_allocator_refuses_what_would_corrupt_it() -> None:
    allocator = BlockAllocator(2)
    block = allocator.allocate()
    allocator.release(block)
    with pytest.raises(ValueError, match="must be in use to be released"):
        allocator.release(block)
    with pytest.raises(ValueError, match="must be in use or cached"):
        allocator.retain(block)
    allocator.ref_count[0] = 1
    with pytest.raises(AssertionError):
        allocator.check_integrity([])


def test_a_hash_is_of_all_the_text_and_of_its_tokens_one_by_one() -> None:
    assert chain_hash(chain_hash(b"", [1, 2]), [3, 4]) != chain_hash(chain_hash(b"", [9, 2]), [3, 4])
    assert chain_hash(b"", [1, 23]) != chain_hash(b"", [12, 3])
