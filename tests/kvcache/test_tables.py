"""Block tables alone, without contents: all that a scheduler plans with. Any order of events: test_paged.py."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from labsupport.kvcache import BlockTables, CacheFull


class Copies(BlockTables):
    """Writes down which block was copied to which."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self.copied: list[tuple[int, int]] = []

    def _copy_block(self, source: int, target: int) -> None:
        self.copied.append((source, target))


def grow(tables: BlockTables, name: str, tokens: Sequence[int]) -> None:
    tables.reserve([name], [len(tokens)])
    tables.commit(name, len(tokens), tokens)
    tables.check_integrity()


def test_a_shared_block_is_copied_once_before_it_is_written_and_a_full_one_never() -> None:
    tables = Copies(8, 4)
    tables.add_sequence("a")
    grow(tables, "a", [1, 2, 3, 4, 5])
    tables.fork("a", "b")
    full, partial = tables.block_table("a")
    grow(tables, "b", [6])
    assert tables.copied == [(partial, tables.block_table("b")[1])] and tables.block_table("a") == (full, partial)
    grow(tables, "a", [7])
    assert len(tables.copied) == 1, "the last owner needs no copy"
    assert tables.block_table("b")[0] == full


def test_reserved_is_not_held_until_it_is_committed() -> None:
    tables = BlockTables(4, 4)
    tables.add_sequence("a")
    tables.reserve(["a"], [9])
    assert tables.length("a") == 0 and len(tables.block_table("a")) == 3 and tables.num_free_blocks == 1
    tables.reserve(["a"], [9])
    assert len(tables.block_table("a")) == 3, "a pass that failed is planned again and takes no more"
    tables.commit("a", 9, range(9))
    assert tables.length("a") == 9
    tables.free("a")
    assert tables.add_sequence("again", range(9)) == 8


def test_what_does_not_fit_changes_nothing() -> None:
    tables = BlockTables(2, 4)
    for name in "ab":
        tables.add_sequence(name)
    with pytest.raises(CacheFull, match=r"3 blocks of 4 tokens are needed and 2 of 2 are free: free\(\) a sequence"):
        tables.reserve(["a", "b"], [5, 1])
    assert tables.block_table("a") == tables.block_table("b") == () and tables.num_free_blocks == 2


def test_tokens_of_unknown_text_are_not_found_by_others() -> None:
    tables = BlockTables(8, 2)
    tables.add_sequence("a")
    tables.reserve(["a"], [2])
    tables.commit("a", 2)  # the tokens are not given: what follows cannot be hashed either
    grow(tables, "a", [3, 4])
    assert tables.add_sequence("b", [3, 4, 5]) == 0
    assert tables.sequences["a"].tokens == []
