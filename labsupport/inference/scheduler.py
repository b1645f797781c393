"""Who computes what in the next step: continuous batching under a budget of tokens and blocks.

Iteration-level scheduling (Orca: Yu et al., OSDI 2022) with prompts read in chunks beside the decoding of others
(Sarathi-Serve: Agrawal et al. 2024, arXiv 2403.02310) and preemption by recomputation (vLLM: Kwon et al. 2023, arXiv
2309.06180, section 4.5). The order of arrival decides everything, so nobody starves: requests are admitted in it, a
decoding request gets its token in each step, chunks go to the earliest first, and when blocks run out the latest
arrival gives its own back. The earliest is therefore never stopped, and all become the earliest some day.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import accumulate

from labsupport.inference.request import FinishReason, Request, RequestStatus
from labsupport.kvcache import PagedKVCache


@dataclass(frozen=True)
class Scheduled:
    """``num_tokens`` tokens of a request, from where the cache ends. ``samples``: they reach its last token."""

    request: Request
    token_ids: list[int]
    samples: bool


@dataclass
class Plan:
    """One step. Tokens of all entries fit the budget, their blocks the cache."""

    decodes: list[Scheduled] = field(default_factory=list)  # one token each
    chunks: list[Scheduled] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)

    @property
    def scheduled(self) -> list[Scheduled]:
        return self.decodes + self.chunks

    @property
    def num_tokens(self) -> int:
        return sum(len(each.token_ids) for each in self.scheduled)

    @property
    def sample_positions(self) -> list[int]:
        """In the row of all tokens of the step: the last one of each request that gets a new one."""
        ends = accumulate(len(each.token_ids) for each in self.scheduled)
        return [end - 1 for end, each in zip(ends, self.scheduled, strict=True) if each.samples]


class Scheduler:
    """`add` requests; `schedule` plans a step; whoever computes it calls `finish` for those that are through.

    How far a request is, the cache alone knows: there is no second count that could disagree with it.

    Args:
        max_num_seqs: requests that hold blocks at a time.
        max_num_batched_tokens: tokens in a step, at least ``max_num_seqs`` so that all can decode.

    Raises:
        ValueError: a limit is out of range.
    """

    def __init__(self, cache: PagedKVCache, max_num_seqs: int = 16, max_num_batched_tokens: int = 256) -> None:
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1; got {max_num_seqs}")
        if max_num_batched_tokens < max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens must be at least max_num_seqs = {max_num_seqs}; got {max_num_batched_tokens}"
            )
        self.cache = cache
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.waiting: deque[Request] = deque()  # both in the order of arrival
        self.running: list[Request] = []
        self.requests: dict[Hashable, Request] = {}
        self.num_preemptions = self.num_prefix_queries = self.num_prefix_hits = 0
        self._num_arrivals = 0

    @property
    def has_unfinished(self) -> bool:
        return bool(self.requests)

    def add(self, request: Request) -> None:
        """The last in the queue.

        Raises:
            ValueError: its id is in use, it was added before, or the cache would be too small even for it alone.
        """
        if request.request_id in self.requests:
            raise ValueError(f"request_id must be new; {request.request_id!r} is not finished")
        if request.status is not RequestStatus.WAITING or request.arrival >= 0:
            raise ValueError(f"request must be new; {request.request_id!r} was added before")
        room = self.cache.num_blocks * self.cache.block_size
        held = len(request.prompt_token_ids) + max(0, request.params.max_tokens - 1)  # the last token is never read
        if held > room:
            raise ValueError(
                f"prompt and max_tokens must fit the cache of {self.cache.num_blocks} blocks of "
                f"{self.cache.block_size} tokens; got {request.num_tokens} and {request.params.max_tokens} tokens"
            )
        request.arrival, self._num_arrivals = self._num_arrivals, self._num_arrivals + 1
        self.requests[request.request_id] = request
        self.waiting.append(request)

    def fork(self, parent_id: Hashable, child: Request) -> None:
        """Add ``child``, which has the tokens of the running request ``parent_id``, and let them share their blocks.

        If others wait or all slots are taken it queues like anybody, and finds what is cached when its turn comes.
        """
        self.add(child)
        parent = self.requests.get(parent_id)
        if parent in self.running and len(self.waiting) == 1 and len(self.running) < self.max_num_seqs:
            self.cache.fork(parent_id, child.request_id)
            self.running.append(self.waiting.popleft())
            child.move_to(RequestStatus.RUNNING)

    def schedule(self) -> Plan:
        """The next step. Not empty while there are requests."""
        plan = Plan()
        budget, promised = self.max_num_batched_tokens, 0
        ready = {request.request_id: self._remaining(request) for request in self.running}
        decodes = [request for request in self.running if ready[request.request_id] == 1]
        for request in decodes + [request for request in self.running if ready[request.request_id] > 1]:
            count = min(ready[request.request_id], budget)
            if count == 0 or request.status is not RequestStatus.RUNNING:
                continue
            blocks = self.cache.blocks_needed([request.request_id], [count])
            while blocks + promised > self.cache.num_free_blocks:
                victim = self.running[-1]
                self._preempt(victim, plan)
                undone = [each for each in plan.scheduled if each.request is victim]
                for each in undone:  # nothing of it has been allocated yet
                    (plan.decodes if each in plan.decodes else plan.chunks).remove(each)
                    budget += len(each.token_ids)
                promised = self._blocks_of(plan)
                if victim is request:
                    break
            else:
                self._put(plan, request, count)
                budget, promised = budget - count, promised + blocks
        if not plan.preempted:
            self._admit(plan, budget)
        return plan

    def finish(self, request_id: Hashable, reason: FinishReason) -> Request:
        """Release all that a request holds, wherever it stands.

        Raises:
            ValueError: there is no such request.
        """
        if request_id not in self.requests:
            raise ValueError(f"request_id must be of an unfinished request; {request_id!r} is not")
        request = self.requests.pop(request_id)
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
            self.cache.free(request_id)
        else:
            self.waiting.remove(request)
        request.finish(reason)
        return request

    def check_integrity(self) -> None:
        """
        Raises:
            AssertionError: a request is in no queue or in two, out of order, or holds blocks that it should not.
        """
        queued = [*self.running, *self.waiting]
        assert len(queued) == len(self.requests), "a request is lost or queued twice"
        assert all(self.requests.get(each.request_id) is each for each in queued), "a queued request is not known"
        arrivals = [each.arrival for each in queued]
        assert arrivals == sorted(arrivals), f"requests are out of order: {arrivals}"
        assert all(each.status is RequestStatus.RUNNING for each in self.running)
        assert all(each.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED) for each in self.waiting)
        assert len(self.running) <= self.max_num_seqs, "too many requests run"
        assert set(self.cache.sequences) == {each.request_id for each in self.running}, "who runs and who holds differ"
        for each in self.running:
            held = self.cache.length(each.request_id)
            assert held < each.num_tokens, f"request {each.request_id!r} has nothing left to compute"
            assert self.cache.sequences[each.request_id].tokens == each.token_ids[:held], "the cache holds other tokens"
        self.cache.check_integrity()

    # Helpers

    def _remaining(self, request: Request) -> int:
        return request.num_tokens - self.cache.length(request.request_id)

    def _put(self, plan: Plan, request: Request, count: int) -> None:
        start = self.cache.length(request.request_id)
        entry = Scheduled(request, request.token_ids[start : start + count], start + count == request.num_tokens)
        # a chunk of one token costs what decoding costs, and goes with it
        (plan.decodes if count == 1 else plan.chunks).append(entry)

    def _blocks_of(self, plan: Plan) -> int:
        entries = plan.scheduled
        return self.cache.blocks_needed(
            [each.request.request_id for each in entries], [len(each.token_ids) for each in entries]
        )

    def _preempt(self, request: Request, plan: Plan) -> None:
        self.cache.preempt(request.request_id)
        self.running.remove(request)
        request.move_to(RequestStatus.PREEMPTED)
        self.waiting.appendleft(request)  # it arrived before all who wait, and after all who run
        plan.preempted.append(request)
        self.num_preemptions += 1

    def _admit(self, plan: Plan, budget: int) -> None:
        """Requests from the head of the queue, as long as blocks for all that is known of them remain.

        Each running request is left one more block: it will want it soon, and to preempt who was just admitted is
        work thrown away.
        """
        while self.waiting and len(self.running) < self.max_num_seqs and budget > 0:
            request = self.waiting[0]
            cached = self.cache.add_sequence(request.request_id, request.token_ids)
            everyone = [*self.running, request]
            wanted = self.cache.blocks_needed(
                [each.request_id for each in everyone], [self._remaining(each) for each in everyone]
            )
            if wanted + len(self.running) > self.cache.num_free_blocks and self.running:
                self.cache.free(request.request_id)
                return
            self.waiting.popleft()
            self.running.append(request)
            if request.status is RequestStatus.WAITING:
                self.num_prefix_queries += request.num_tokens
                self.num_prefix_hits += cached
                request.num_cached_tokens = min(cached, len(request.prompt_token_ids))
            request.move_to(RequestStatus.RUNNING)
            count = min(self._remaining(request), budget)
            self._put(plan, request, count)
            budget -= count
