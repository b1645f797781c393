"""The paged cache against a plain-Python model of what it should hold, and against attention that needs no cache."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from labsupport.kvcache import (
    CacheFull,
    PagedBatch,
    PagedKVCache,
    QuantizedKVCache,
    QuantizedPagedKVCache,
    generate,
    next_token_logits,
)
from labsupport.lm import Llama, LlamaConfig
from labsupport.lm import generate as generate_uncached

CONFIG = LlamaConfig(50, 48, 64, num_layers=3, num_heads=6, num_kv_heads=2)
CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}
NUM_BLOCKS, BLOCK_SIZE, LAYERS = 12, 4, 2


# ------------------------------------------------------------------------------------------- any order of events


class PagedCacheMachine(RuleBasedStateMachine):
    """Each sequence is also kept as a plain list of (what the slot must hold). Nothing else is trusted."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PagedKVCache(LAYERS, NUM_BLOCKS, BLOCK_SIZE, num_kv_heads=1, head_dim=2)
        self.contents: dict[int, list[int]] = {}
        self.texts: dict[int, list[int] | None] = {}  # None: not all tokens are known
        self.next_id = 0

    def slot_values(self, seq_id: int, tokens: Sequence[int]) -> list[int]:
        """As in a model, what a slot holds depends on all of the text before it, and on nothing else."""
        text, values = list(self.texts[seq_id] or []), []
        for token in tokens:
            text.append(token)
            values.append(zlib.crc32(bytes(text)) % 2**20)
        return values

    def append(self, new: dict[int, list[int]], known: bool) -> None:
        """One pass over several sequences, ragged. Changes nothing if there is no room."""
        ids, lists = list(new), list(new.values())
        fits = self.cache.blocks_needed(ids, [len(tokens) for tokens in lists]) <= self.cache.num_free_blocks
        values = [
            self.slot_values(i, tokens) if known and self.texts[i] is not None else [1 + self.count() for _ in tokens]
            for i, tokens in new.items()
        ]
        if known:
            batch = PagedBatch(self.cache, ids)
            longest = batch.feed(lists).shape[1]
            tensor = torch.full((len(ids), 1, longest, 2), -1.0)  # padding must not be written
            for row, held in enumerate(values):
                tensor[row, 0, : len(held)] = torch.tensor(held).float()[:, None]
            try:
                batch.positions(len(ids), longest)
            except CacheFull:
                assert not fits
                return
            for layer in range(LAYERS):
                self.cache.store(layer, batch.step(1), tensor + layer, -tensor - layer)
            batch.advance(longest)
        else:
            tensor = torch.tensor(values[0]).float()[None, None, :, None].expand(LAYERS, 1, -1, 2)
            tensor = tensor + torch.arange(LAYERS)[:, None, None, None]
            try:
                self.cache.append(ids[0], tensor, -tensor)
            except CacheFull:
                assert not fits
                return
        assert fits
        for seq_id, tokens, held in zip(ids, lists, values, strict=True):
            self.contents[seq_id] += held
            text = self.texts[seq_id]
            self.texts[seq_id] = [*text, *tokens] if known and text is not None else None if tokens else text

    def count(self) -> int:
        self.next_id += 1
        return self.next_id

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.contents)))

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14))
    def add(self, tokens: list[int]) -> None:
        seq_id = self.count()
        hit = self.cache.add_sequence(seq_id, tokens)
        assert hit < len(tokens) and hit % BLOCK_SIZE == 0
        self.texts[seq_id] = []
        self.contents[seq_id] = self.slot_values(seq_id, tokens[:hit])
        self.texts[seq_id] = tokens[:hit]
        self.append({seq_id: tokens[hit:]}, known=True)

    @precondition(lambda self: self.contents)
    @rule(data=st.data(), known=st.booleans(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def append_to_one(self, data: st.DataObject, known: bool, tokens: list[int]) -> None:
        self.append({self.pick(data): tokens}, known)

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def append_to_some(self, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from(sorted(self.contents)), min_size=1, max_size=4, unique=True))
        new = {seq_id: data.draw(st.lists(st.integers(0, 1), max_size=5)) for seq_id in ids}
        if any(new.values()):
            self.append(new, known=True)

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent, child = self.pick(data), self.count()
        free = self.cache.num_free_blocks
        self.cache.fork(parent, child)
        assert self.cache.num_free_blocks == free, "a fork costs no block"
        text = self.texts[parent]
        self.contents[child], self.texts[child] = list(self.contents[parent]), None if text is None else list(text)

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        seq_id = self.pick(data)
        text = self.texts.pop(seq_id)
        del self.contents[seq_id]
        assert text is None or self.cache.sequences[seq_id].tokens == text
        self.cache.free(seq_id)

    @rule(count=st.integers(1, 3))
    def evict(self, count: int) -> None:
        before = self.cache.num_free_blocks, self.cache.allocator.num_cached_blocks
        assert self.cache.allocator.evict(count) == min(count, before[1])
        assert self.cache.num_free_blocks == before[0]

    @invariant()
    def holds_what_was_written(self) -> None:
        self.cache.check_integrity()
        assert set(self.cache.sequences) == set(self.contents)
        for seq_id, held in self.contents.items():
            assert self.cache.length(seq_id) == len(held)
            for layer in range(LAYERS):
                key, value = self.cache.read(seq_id, layer)
                assert key[0, :, 0].tolist() == [each + layer for each in held]
                assert torch.equal(key, -value)

    @invariant()
    def counts_its_room(self) -> None:
        usage = self.cache.usage()
        assert usage["used_blocks"] + usage["cached_blocks"] + usage["free_blocks"] == NUM_BLOCKS
        assert usage["used_slots"] <= usage["reserved_slots"] == usage["used_blocks"] * BLOCK_SIZE
        assert usage["used_blocks"] == len({b for each in self.contents for b in self.cache.block_table(each)})

    def teardown(self) -> None:
        for seq_id in list(self.contents):
            self.cache.free(seq_id)
        self.cache.check_integrity()
        assert self.cache.num_free_blocks == NUM_BLOCKS, "a block leaked"
        self.cache.allocator.evict(NUM_BLOCKS)
        assert self.cache.usage()["free_blocks"] == NUM_BLOCKS


QUIET = list(HealthCheck)


def test_any_order_of_events() -> None:
    run_state_machine_as_test(
        PagedCacheMachine,
        settings=settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=QUIET),
    )


@pytest.mark.slow
def test_many_events_in_any_order() -> None:
    run_state_machine_as_test(
        PagedCacheMachine,
        settings=settings(max_examples=100, stateful_step_count=150, deadline=None, suppress_health_check=QUIET),
    )


# ------------------------------------------------------------------------------------------- with a model


@pytest.fixture(scope="module")
def model() -> Llama:
    torch.manual_seed(0)
    return Llama(CONFIG).eval().requires_grad_(False)


def text(length: int, seed: int = 0) -> list[int]:
    return torch.randint(50, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def last_logits(model: Llama, tokens: list[int]) -> torch.Tensor:
    return model(torch.tensor([tokens]))[0, -1]


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_generation_equals_generation_without_a_cache(model: Llama, block_size: int, chunk_size: int | None) -> None:
    prompts = [text(n, seed=n) for n in (3, 9, 1)]
    expected = [generate_uncached(model, torch.tensor([prompt]), 12)[0].tolist() for prompt in prompts]
    cache = PagedKVCache.for_model(model, num_blocks=64, block_size=block_size)
    for _ in range(2):  # the second time with what the first has left in the cache
        assert generate(model, prompts, 12, cache, chunk_size) == expected
        cache.check_integrity()
        assert cache.num_free_blocks == 64


def test_sequences_come_and_go_between_passes(model: Llama) -> None:
    texts = {name: text(14, seed=seed) for seed, name in enumerate("abc")}
    cache = PagedKVCache.for_model(model, num_blocks=12, block_size=4)
    held = dict.fromkeys(texts, 0)

    def step(**new: int) -> None:
        for name in new:
            if name not in cache.sequences:
                held[name] = cache.add_sequence(name, texts[name])
        parts = [texts[name][held[name] : held[name] + n] for name, n in new.items()]
        logits = next_token_logits(model, PagedBatch(cache, list(new)), parts)
        for row, (name, n) in enumerate(new.items()):
            held[name] += n
            torch.testing.assert_close(logits[row], last_logits(model, texts[name][: held[name]]), **CLOSE)
        cache.check_integrity()

    step(a=5)
    step(a=1, b=7)  # a decodes while b is prefilled
    step(c=1, b=1, a=3)
    assert cache.sequences["b"].tokens == texts["b"][:8]
    cache.free("b")  # preempted: its tokens are read again later
    step(a=2, c=6)
    step(b=5, a=1)
    assert held["b"] == 4 + 4 + 5, "both full blocks of the preempted sequence were found again"


def test_forks_go_their_own_ways(model: Llama) -> None:
    prompt, one, two = text(6), text(5, seed=1), text(5, seed=2)
    cache = PagedKVCache.for_model(model, num_blocks=8, block_size=4)
    cache.add_sequence("one")
    next_token_logits(model, PagedBatch(cache, ["one"]), [prompt])
    cache.fork("one", "two")
    assert cache.block_table("one") == cache.block_table("two")
    batch = PagedBatch(cache, ["one", "two"])
    for i in range(5):
        logits = next_token_logits(model, batch, [one[i : i + 1], two[i : i + 1]])
        for row, branch in enumerate((one, two)):
            torch.testing.assert_close(logits[row], last_logits(model, prompt + branch[: i + 1]), **CLOSE)
    assert cache.block_table("one")[0] == cache.block_table("two")[0], "the full block is still shared"
    assert not set(cache.block_table("one")[1:]) & set(cache.block_table("two")[1:])
    cache.check_integrity()


@pytest.mark.parametrize("bits", [4, 8])
def test_one_batch_class_serves_integers_too(model: Llama, bits: int) -> None:
    """Ragged chunks and a fork in the paged integer cache: what `QuantizedKVCache` computes for each text alone."""
    texts = {"a": text(13), "b": text(9, seed=1)}
    cache = QuantizedPagedKVCache.for_model(model, 12, 4, bits=bits)
    for name in texts:
        cache.add_sequence(name)
    batch = PagedBatch(cache, list(texts))
    next_token_logits(model, batch, [texts["a"][:7], texts["b"][:2]])
    logits = next_token_logits(model, batch, [texts["a"][7:], texts["b"][2:]])
    cache.fork("a", "c")
    for row, each in enumerate(texts.values()):
        whole = model(torch.tensor([each]), QuantizedKVCache.for_model(model, 1, len(each), bits=bits))[0, -1]
        # a value next to a rounding boundary may fall on the other side: a code, not float32 rounding, is the tolerance
        assert (logits[row] - whole).norm() < (0.02 if bits == 8 else 0.1) * whole.norm()
    for layer in range(CONFIG.num_layers):
        for one, other in zip(cache.read("a", layer), cache.read("c", layer), strict=True):
            assert one.shape == (CONFIG.num_kv_heads, 13, 8) and torch.equal(one, other)
    cache.check_integrity()


def test_a_prefix_that_is_held_is_not_computed_again(model: Llama) -> None:
    prompt = text(11)
    cache = PagedKVCache.for_model(model, num_blocks=8, block_size=4)
    assert cache.add_sequence("a", prompt) == 0
    next_token_logits(model, PagedBatch(cache, ["a"]), [prompt])
    assert cache.add_sequence("b", [*prompt[:9], 49, 49]) == 8
    logits = next_token_logits(model, PagedBatch(cache, ["b"]), [[prompt[8], 49, 49]])
    torch.testing.assert_close(logits[0], last_logits(model, [*prompt[:9], 49, 49]), **CLOSE)
    assert cache.block_table("a")[:2] == cache.block_table("b")[:2]
    assert PagedKVCache.for_model(model, 8, 4, enable_prefix_caching=False).add_sequence("a", prompt) == 0


def test_a_full_hit_still_leaves_a_token_to_compute(model: Llama) -> None:
    prompt = text(8)
    cache = PagedKVCache.for_model(model, num_blocks=8, block_size=4)
    first = generate(model, [prompt], 3, cache)
    assert cache.add_sequence("again", prompt) == 4, "8 tokens are held, but the last one's logits are wanted"
    cache.free("again")
    assert generate(model, [prompt], 3, cache) == first


def test_equal_blocks_after_different_beginnings_are_different() -> None:
    cache = PagedKVCache(1, 8, 2, 1, 2)
    cache.add_sequence("a", [1, 2, 3, 4])
    cache.append("a", torch.ones(1, 1, 4, 2), torch.ones(1, 1, 4, 2), [1, 2, 3, 4])
    assert cached_tokens(cache, [9, 2, 3, 4, 5]) == 0
    assert cached_tokens(cache, [1, 2, 3, 4, 5]) == 4


def cached_tokens(cache: PagedKVCache, tokens: list[int]) -> int:
    found = cache.add_sequence("probe", tokens)
    cache.free("probe")
    return found


def test_the_least_recently_used_block_goes_first() -> None:
    cache = PagedKVCache(1, 4, 2, 1, 2)
    for name, tokens in (("a", [1, 1, 9]), ("b", [2, 2, 9])):
        cache.add_sequence(name, tokens)
        cache.append(name, torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), tokens[:2])
    cache.free("a")
    cache.free("b")
    assert cache.add_sequence("a", [1, 1, 9]) == 2  # used again: now b is older
    cache.free("a")
    cache.add_sequence("c")
    cache.append("c", torch.ones(1, 1, 6, 2), torch.ones(1, 1, 6, 2))  # 3 blocks: two are free, one must go
    assert cached_tokens(cache, [1, 1, 9]) == 2
    assert cached_tokens(cache, [2, 2, 9]) == 0
    cache.check_integrity()


# ------------------------------------------------------------------------------------------------ golden bugs


def filled(num_blocks: int, **contents: int) -> PagedKVCache:
    """Blocks of 4; each sequence holds its number of tokens, of the value 1."""
    cache = PagedKVCache(1, num_blocks, 4, 1, 2)
    for name, length in contents.items():
        cache.add_sequence(name)
        write(cache, name, length, 1.0)
    return cache


def write(cache: PagedKVCache, name: str, length: int, value: float) -> None:
    new = torch.full((1, 1, length, 2), value)
    cache.append(name, new, new)


def held(cache: PagedKVCache, name: str) -> list[float]:
    return cache.read(name, 0)[0][0, :, 0].tolist()


def test_a_write_to_a_fork_does_not_reach_its_parent() -> None:
    cache = filled(8, a=5)
    cache.fork("a", "b")
    write(cache, "b", 1, 99.0)
    assert held(cache, "a") == [1] * 5 and held(cache, "b") == [1] * 5 + [99]
    write(cache, "a", 1, 7.0)
    assert held(cache, "a") == [1] * 5 + [7] and held(cache, "b") == [1] * 5 + [99]
    assert len({*cache.block_table("a"), *cache.block_table("b")}) == 3, "one full block shared, one copied"
    cache.check_integrity()


def test_freeing_one_owner_keeps_what_the_other_reads() -> None:
    cache = filled(8, a=8)
    cache.fork("a", "b")
    cache.free("a")
    assert cache.num_free_blocks == 6
    cache.add_sequence("c")
    write(cache, "c", 24, -7.0)  # all that is free
    assert held(cache, "b") == [1] * 8
    cache.free("b")
    cache.free("c")
    assert cache.num_free_blocks == 8
    tables = filled(8, a=8, b=8, c=8, d=8)
    assert len({block for name in "abcd" for block in tables.block_table(name)}) == 8


def test_a_sequence_grows_beyond_what_it_was_given() -> None:
    cache = filled(4, a=3)
    for step in range(13):
        write(cache, "a", 1, float(step))
    assert len(held(cache, "a")) == 16 and len(cache.block_table("a")) == 4
    with pytest.raises(CacheFull, match=r"1 blocks of 4 tokens are needed and 0 of 4 are free: free\(\) a sequence"):
        write(cache, "a", 1, 0.0)
    assert held(cache, "a") == [1, 1, 1, *range(13)]
    cache.check_integrity()


def test_an_id_that_is_held_is_not_given_away() -> None:
    cache = filled(8, a=4, b=4)
    with pytest.raises(ValueError, match="seq_id must be new; 'a' is held"):
        cache.add_sequence("a")
    with pytest.raises(ValueError, match="child_id must be new; 'b' is held"):
        cache.fork("a", "b")
    assert cache.num_free_blocks == 6
    cache.check_integrity()


def test_reading_gives_what_is_held_and_nothing_of_nothing() -> None:
    cache = filled(8, a=6)
    cache.add_sequence("empty")
    assert held(cache, "a") == [1] * 6
    assert [each.shape for each in cache.read("empty", 0)] == [(1, 0, 2)] * 2


def test_usage_counts_tokens_and_not_blocks() -> None:
    cache = PagedKVCache(1, 1000, 16, 1, 2)
    cache.add_sequence("a")
    write(cache, "a", 100, 1.0)
    usage = cache.usage()
    assert (usage["used_slots"], usage["reserved_slots"], usage["used_blocks"]) == (100, 112, 7)
    cache.fork("a", "b")
    assert cache.usage() == usage, "what is shared is there once"


def test_a_sequence_is_in_a_batch_once() -> None:
    cache = filled(8, a=1)
    with pytest.raises(ValueError, match="seq_ids must be one or more different ids"):
        PagedBatch(cache, ["a", "a"])


def test_a_batch_that_does_not_fit_changes_nothing() -> None:
    cache = filled(4, a=4, b=4, c=3)
    before = {name: (held(cache, name), cache.block_table(name)) for name in "abc"}
    batch = PagedBatch(cache, ["a", "b", "c"])
    batch.feed([[1], [2], [3]])
    with pytest.raises(CacheFull):
        batch.positions(3, 1)
    assert {name: (held(cache, name), cache.block_table(name)) for name in "abc"} == before
    assert cache.blocks_needed(["a", "c"], [1, 1]) == 1 == cache.num_free_blocks
    assert cache.blocks_needed(["a", "b"], [1, 1]) == 2
    cache.check_integrity()


def test_the_last_owner_of_a_block_needs_no_copy() -> None:
    cache = filled(2, a=3)
    cache.fork("a", "b")
    assert cache.blocks_needed(["a", "b"], [1, 1]) == 1
    batch = PagedBatch(cache, ["a", "b"])
    batch.positions(2, 1)
    new = torch.tensor([[5.0, 5], [6, 6]]).view(2, 1, 1, 2)
    cache.store(0, batch.step(1), new, torch.zeros(2, 1, 1, 2))
    batch.advance(1)
    assert (held(cache, "a"), held(cache, "b")) == ([1, 1, 1, 5], [1, 1, 1, 6])
    cache.check_integrity()


def test_wrong_arguments_are_named(model: Llama) -> None:
    with pytest.raises(ValueError, match="block_size must be at least 1; got 0"):
        PagedKVCache(1, 1, 0, 1, 2)
    cache = filled(8, a=1)
    with pytest.raises(ValueError, match="'x' is not"):
        cache.free("x")
    with pytest.raises(ValueError, match=r"token_lists must be 1 lists"):
        PagedBatch(cache, ["a"]).feed([[1], [2]])
    with pytest.raises(ValueError, match="tokens must hold 1 sequences"):
        PagedBatch(cache, ["a"]).positions(2, 1)
