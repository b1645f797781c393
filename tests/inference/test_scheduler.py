"""The scheduler under any order of events, with a stand-in for the model that notices every wrong slot of the cache."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from labsupport.inference.request import Request, RequestStatus
from labsupport.inference.sampling import SamplingParams
from labsupport.inference.scheduler import Plan, Scheduler
from labsupport.kvcache import PagedBatch, PagedKVCache
from labsupport.lm.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()


def make(
    num_blocks: int = 12, block_size: int = 4, seqs: int = 4, budget: int = 8, prefix_caching: bool = True
) -> Scheduler:
    return Scheduler(PagedKVCache(1, num_blocks, block_size, 1, 2, enable_prefix_caching=prefix_caching), seqs, budget)


def request(name: object, prompt: Sequence[int], max_tokens: int = 4, **params: object) -> Request:
    return Request(name, prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=True, **params), BYTES)  # type: ignore


def slots(text: Sequence[int]) -> list[int]:
    """What each slot must hold depends, as in a model, on all of the text up to it."""
    values, crc = [], 0
    for token in text:
        crc = zlib.crc32(bytes([token]), crc)
        values.append(crc % 2**20)
    return values


def next_token(text: Sequence[int]) -> int:
    return 1 + slots(text)[-1] % 2


def compute(scheduler: Scheduler, plan: Plan) -> list[Request]:
    """The step of an engine. Returns the finished requests. The next token follows from the contents of the cache."""
    cache, entries = scheduler.cache, plan.scheduled
    assert isinstance(cache, PagedKVCache)
    texts = [each.request.token_ids for each in entries]
    batch = PagedBatch(cache, [each.request.request_id for each in entries])
    starts = batch.lengths
    longest = batch.feed([each.token_ids for each in entries]).shape[1]
    batch.positions(len(entries), longest)  # CacheFull would be the scheduler's fault
    new = torch.full((len(entries), 1, longest, 2), -1.0)
    for row, (entry, start) in enumerate(zip(entries, starts, strict=True)):
        assert entry.token_ids == texts[row][start : start + len(entry.token_ids)]
        held = torch.tensor(slots(texts[row])[start : start + len(entry.token_ids)])
        new[row, 0, : len(held)] = held.float()[:, None]
    cache.store(0, batch.step(1), new, new)
    batch.advance(longest)
    finished = []
    for entry, text in zip(entries, texts, strict=True):
        each = entry.request
        assert entry.samples == (cache.length(each.request_id) == len(text))
        values = cache.read(each.request_id, 0)[0][0, :, 0].int().tolist()
        assert values == slots(text)[: len(values)], "a slot holds another text"
        if entry.samples and each.append_token(1 + values[-1] % 2) is not None:
            finished.append(scheduler.finish(each.request_id, "length"))
    return finished


def check_plan(scheduler: Scheduler, plan: Plan) -> None:
    assert plan.scheduled, "a step that does nothing: the others would wait forever"
    assert plan.num_tokens <= scheduler.max_num_batched_tokens
    ids = [each.request.request_id for each in plan.scheduled]
    assert len(set(ids)) == len(ids), "a request twice in a step"
    assert all(each.request.status is RequestStatus.RUNNING for each in plan.scheduled)
    assert all(each.token_ids for each in plan.scheduled)
    # in each step all that decode get their token
    decoding = [r for r in scheduler.running if r.num_tokens - scheduler.cache.length(r.request_id) == 1]
    assert {r.request_id for r in decoding} <= set(ids)
    # the earliest arrival is served in every step, and preemption takes the latest ones
    assert scheduler.running[0].request_id in ids
    assert all(each.arrival > scheduler.running[-1].arrival for each in plan.preempted)


def drain(scheduler: Scheduler) -> list[Request]:
    """Run to the end, within the steps that serving one token of the earliest request a step would take."""
    limit = sum(each.num_tokens + each.params.max_tokens for each in scheduler.requests.values())
    finished, steps = [], 0
    while scheduler.has_unfinished:
        plan = scheduler.schedule()
        check_plan(scheduler, plan)
        finished += compute(scheduler, plan)
        scheduler.check_integrity()
        steps += 1
        assert steps <= limit, "somebody starves"
    return finished


def check_text(each: Request) -> None:
    text = list(each.prompt_token_ids)
    for token in each.output_token_ids:
        assert token == next_token(text), "another token than alone"
        text.append(token)


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.scheduler: Scheduler | None = None
        self.count = 0

    @precondition(lambda self: self.scheduler is None)
    @rule(num_blocks=st.integers(4, 14), block_size=st.integers(1, 5), seqs=st.integers(1, 5), extra=st.integers(0, 9),
          prefix_caching=st.booleans())  # fmt: skip
    def begin(self, num_blocks: int, block_size: int, seqs: int, extra: int, prefix_caching: bool) -> None:
        self.scheduler = make(num_blocks, block_size, seqs, seqs + extra, prefix_caching)

    @precondition(lambda self: self.scheduler is not None)
    @rule(prompt=st.lists(st.integers(1, 2), min_size=1, max_size=20), max_tokens=st.integers(1, 12))
    def add(self, prompt: list[int], max_tokens: int) -> None:
        assert self.scheduler is not None
        room = self.scheduler.cache.num_blocks * self.scheduler.cache.block_size
        new = request(self.count, prompt, max_tokens)
        self.count += 1
        if len(prompt) + max_tokens - 1 > room:
            with pytest.raises(ValueError, match="must fit the cache"):
                self.scheduler.add(new)
        else:
            self.scheduler.add(new)

    @precondition(lambda self: self.scheduler is not None and self.scheduler.has_unfinished)
    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        assert self.scheduler is not None
        for _ in range(steps):
            if self.scheduler.has_unfinished:
                plan = self.scheduler.schedule()
                check_plan(self.scheduler, plan)
                for each in compute(self.scheduler, plan):
                    check_text(each)

    @precondition(lambda self: self.scheduler is not None and self.scheduler.has_unfinished)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        assert self.scheduler is not None
        parent = self.scheduler.requests[data.draw(st.sampled_from(sorted(self.scheduler.requests)))]  # type: ignore
        before = self.scheduler.cache.usage()["used_blocks"]
        self.scheduler.fork(parent.request_id, parent.fork(self.count, parent.params, BYTES))
        self.count += 1
        assert self.scheduler.cache.usage()["used_blocks"] == before

    @precondition(lambda self: self.scheduler is not None and self.scheduler.has_unfinished)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        assert self.scheduler is not None
        ids = sorted(self.scheduler.requests, key=repr)
        aborted = self.scheduler.finish(data.draw(st.sampled_from(ids)), "abort")
        assert aborted.finish_reason == "abort"
        check_text(aborted)

    @invariant()
    def holds_together(self) -> None:
        if self.scheduler is not None:
            self.scheduler.check_integrity()

    def teardown(self) -> None:
        if self.scheduler is not None:
            for each in drain(self.scheduler):
                check_text(each)
                assert len(each.output_token_ids) == each.params.max_tokens
            self.scheduler.cache.allocator.evict(self.scheduler.cache.num_blocks)
            usage = self.scheduler.cache.usage()
            assert usage["free_blocks"] == self.scheduler.cache.num_blocks, "a block leaked"


QUIET = list(HealthCheck)


def test_any_order_of_events() -> None:
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=QUIET),
    )


@pytest.mark.slow
def test_ten_thousand_events_in_any_order() -> None:
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(max_examples=100, stateful_step_count=100, deadline=None, suppress_health_check=QUIET),
    )


def test_decodes_go_on_beside_a_long_prompt_in_chunks() -> None:
    scheduler = make(num_blocks=40, budget=8)
    scheduler.add(request("short", [1, 2], max_tokens=20))
    compute(scheduler, scheduler.schedule())
    scheduler.add(request("long", [1] * 30, max_tokens=2))
    sizes = []
    for _ in range(6):
        plan = scheduler.schedule()
        sizes.append([len(each.token_ids) for each in plan.scheduled])
        assert plan.scheduled[0].request.request_id == "short" and plan.scheduled[0].samples
        compute(scheduler, plan)
    assert sizes == [[1, 7], [1, 7], [1, 7], [1, 7], [1, 2], [1, 1]]


def test_a_budget_full_of_decodes_still_reads_a_prompt() -> None:
    scheduler = make(num_blocks=40, seqs=3, budget=3)
    for name in "ab":
        scheduler.add(request(name, [1], max_tokens=30))
    for _ in range(2):
        compute(scheduler, scheduler.schedule())
    scheduler.add(request("c", [2] * 12, max_tokens=1))
    for _ in range(11):
        assert compute(scheduler, scheduler.schedule()) == []
    assert [each.request_id for each in compute(scheduler, scheduler.schedule())] == ["c"]


def test_the_latest_arrival_is_preempted_and_goes_on_where_it_was() -> None:
    scheduler = make(num_blocks=6, block_size=4, seqs=3, budget=24, prefix_caching=False)
    for name in "abc":
        scheduler.add(request(name, [1] * 4, max_tokens=12))
    order, preempted = [], []
    while scheduler.has_unfinished:
        plan = scheduler.schedule()
        preempted += [each.request_id for each in plan.preempted]
        order += [each.request_id for each in compute(scheduler, plan)]
        scheduler.check_integrity()
    assert preempted and "a" not in preempted and order == ["a", "b", "c"]
    assert scheduler.num_preemptions == len(preempted)


def test_a_waiting_request_is_not_overtaken_by_a_smaller_one() -> None:
    scheduler = make(num_blocks=6, block_size=4, seqs=3, budget=32)
    scheduler.add(request("first", [1] * 12, max_tokens=8))
    compute(scheduler, scheduler.schedule())
    scheduler.add(request("large", [2] * 16, max_tokens=2))
    scheduler.add(request("small", [1], max_tokens=1))
    plan = scheduler.schedule()
    assert [each.request.request_id for each in plan.scheduled] == ["first"], "small would fit, large came before"
    compute(scheduler, plan)
    assert [each.request_id for each in drain(scheduler)] == ["first", "small", "large"]


def test_an_endless_stream_of_new_requests_starves_nobody() -> None:
    """The earliest advances in every step, so each ends no later than if all before it were served one by one."""
    scheduler = make(num_blocks=6, block_size=4, seqs=3, budget=4, prefix_caching=False)
    deadlines: dict[object, int] = {}
    latest = 0
    for step in range(400):
        prompt, max_tokens = [1] * (1 + step % 11), 1 + step % 9
        scheduler.add(request(step, prompt, max_tokens))  # faster than they can be served
        latest = deadlines[step] = max(latest, step) + len(prompt) + max_tokens
        plan = scheduler.schedule()
        check_plan(scheduler, plan)
        for each in compute(scheduler, plan):
            del deadlines[each.request_id]
        assert all(deadline > step for deadline in deadlines.values()), "somebody starves"
    assert scheduler.num_preemptions > 0 and len(scheduler.waiting) > 50, "the test is too easy"


def test_a_prompt_that_is_cached_in_full_still_computes_its_last_token() -> None:
    scheduler = make(num_blocks=10, block_size=4, budget=16)
    scheduler.add(request("a", [1] * 8, max_tokens=1))
    drain(scheduler)
    scheduler.add(request("b", [1] * 8, max_tokens=2))
    plan = scheduler.schedule()
    assert [each.token_ids for each in plan.scheduled] == [[1] * 4]
    compute(scheduler, plan)
    assert scheduler.num_prefix_hits == 4 and scheduler.num_prefix_queries == 16


def test_finish_releases_wherever_the_request_stands() -> None:
    scheduler = make(num_blocks=4, block_size=4, seqs=2, budget=16)
    for name in ("running", "waiting", "last"):
        scheduler.add(request(name, [1] * 8, max_tokens=4))
    compute(scheduler, scheduler.schedule())
    for name in ("waiting", "running", "last"):
        scheduler.finish(name, "abort")
        scheduler.check_integrity()
    assert not scheduler.has_unfinished and scheduler.cache.usage()["used_blocks"] == 0
    with pytest.raises(ValueError, match="'last' is not"):
        scheduler.finish("last", "abort")


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="max_num_seqs must be at least 1; got 0"):
        make(seqs=0)  # an engine that admits nobody would loop forever
    with pytest.raises(ValueError, match="max_num_batched_tokens"):
        make(seqs=4, budget=3)
    scheduler = make(num_blocks=2, block_size=4)
    with pytest.raises(ValueError, match="must fit the cache"):
        scheduler.add(request("a", [1] * 6, max_tokens=4))
    scheduler.add(request("a", [1] * 6, max_tokens=3))
    with pytest.raises(ValueError, match="request_id must be new"):
        scheduler.add(request("a", [1]))
    assert [each.request_id for each in drain(scheduler)] == ["a"]
