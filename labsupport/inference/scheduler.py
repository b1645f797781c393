"""What is computed in the next step: continuous batching under a budget of tokens and blocks.

Iteration-level scheduling (Orca: Yu et al., OSDI 2022), with prompts read in chunks beside the decoding of others
(Sarathi-Serve: Agrawal et al. 2024, arXiv 2403.02310) and preemption by recomputation (vLLM: Kwon et al. 2023, arXiv
2309.06180, section 4.5).

Nobody starves, because the order of arrival decides everything: requests are admitted in that order, every request that
decodes gets its token in each step, chunks of prompts go to the earliest arrival first, and when blocks run out, the
latest arrival gives its own back. So the earliest unfinished request is never preempted and advances in every step (the
whole cache is enough for it: `add` checks that); it finishes, and the next one becomes the earliest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from labsupport.inference.plan import Plan
from labsupport.inference.request import FinishReason, Request, RequestStatus
from labsupport.kvcache import BlockTables


class Scheduler:
    """`add` requests; `schedule` plans a step; whoever computes the step calls `finish` for those that end with it.

    Only the cache knows how far a request has come: there is no second count that could disagree with it.

    Args:
        cache: a `PagedKVCache`, of which only the block tables matter here.
        max_num_seqs: requests that run, and hold blocks, at the same time.
        max_num_batched_tokens: tokens in a step, at least ``max_num_seqs`` so that all can decode.

    Raises:
        ValueError: a limit is out of range.
    """

    def __init__(self, cache: BlockTables, max_num_seqs: int = 16, max_num_batched_tokens: int = 256) -> None:
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
        """Put a request at the end of the queue.

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
        """Add ``child``, which has the tokens of the running request ``parent_id``, and let the two share their blocks.

        If others wait or all slots are taken, it queues like any other, and finds what is cached when its turn comes.
        """
        self.add(child)
        parent = self.requests.get(parent_id)
        if parent in self.running and len(self.waiting) == 1 and len(self.running) < self.max_num_seqs:
            self.cache.fork(parent_id, child.request_id)
            self.running.append(self.waiting.popleft())
            child.move_to(RequestStatus.RUNNING)

    def schedule(self) -> Plan:
        """The next step. Not empty while there are requests."""
        plan = Plan(budget=self.max_num_batched_tokens)
        decoding = [request for request in self.running if self._remaining(request) == 1]
        reading = [request for request in self.running if self._remaining(request) > 1]

        for request in decoding:  # the next token of each: the budget has room for all of them
            self._continue(request, plan)

        for request in reading:  # chunks of prompts, out of what is left of the budget
            self._continue(request, plan)

        while plan.budget and not plan.preempted and self._admit():  # new requests, unless one was preempted
            self._continue(self.running[-1], plan)
        return plan

    def finish(self, request_id: Hashable, reason: FinishReason) -> Request:
        """End a request, running or waiting, and release all that it holds.

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
            AssertionError: a request is in no queue or in two, is out of order, or holds blocks that it should not.
        """
        queued = [*self.running, *self.waiting]
        assert len(queued) == len(self.requests), "a request is lost or queued twice"
        assert all(self.requests.get(each.request_id) is each for each in queued), "a queued request is not known"
        arrivals = [each.arrival for each in queued]
        assert arrivals == sorted(arrivals), f"requests are out of order: {arrivals}"
        assert all(each.status is RequestStatus.RUNNING for each in self.running)
        assert all(each.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED) for each in self.waiting)
        assert len(self.running) <= self.max_num_seqs, "too many requests are running"
        assert set(self.cache.sequences) == {each.request_id for each in self.running}, "others hold blocks than run"
        for each in self.running:
            held = self.cache.length(each.request_id)
            assert held < each.num_tokens, f"request {each.request_id!r} has nothing left to compute"
            assert self.cache.sequences[each.request_id].tokens == each.token_ids[:held], "the cache holds other tokens"
        self.cache.check_integrity()

    # Helpers

    def _remaining(self, request: Request) -> int:
        """Tokens that the cache does not hold yet: 1 while it decodes."""
        return request.num_tokens - self.cache.length(request.request_id)

    def _continue(self, request: Request, plan: Plan) -> None:
        """Its next tokens, within the budget. If blocks run out, the latest arrivals lose theirs, perhaps itself."""
        if not plan.budget or request.status is not RequestStatus.RUNNING:
            return
        start = self.cache.length(request.request_id)
        count = min(request.num_tokens - start, plan.budget)
        while request.status is RequestStatus.RUNNING:
            blocks = self.cache.blocks_needed([request.request_id], [count])
            if plan.blocks + blocks <= self.cache.num_free_blocks:
                return plan.add(request, start, count, blocks)
            self._preempt(self.running[-1], plan)

    def _preempt(self, request: Request, plan: Plan) -> None:
        """Take its blocks. Its tokens are kept, to be read again when its turn comes."""
        self.cache.free(request.request_id)
        self.running.remove(request)
        request.move_to(RequestStatus.PREEMPTED)
        self.waiting.appendleft(request)  # it arrived before all that wait, and after all that run
        self.num_preemptions += 1
        plan.preempted.append(request)
        plan.withdraw(request)
        entries = plan.scheduled  # counted anew: a block that was shared with it may need no copy any more
        plan.blocks = self.cache.blocks_needed(
            [each.request.request_id for each in entries], [len(each.token_ids) for each in entries]
        )

    def _admit(self) -> bool:
        """Let the first in the queue run, if blocks for all of its known tokens remain.

        Each running request is left one more block. It will need one soon, and preempting a request that was just
        admitted wastes work.
        """
        if not self.waiting or len(self.running) == self.max_num_seqs:
            return False
        request = self.waiting[0]
        # what is in the cache is not computed, and so would have no log-probabilities
        known = request.token_ids if request.params.prompt_logprobs is None else ()
        cached = self.cache.add_sequence(request.request_id, known)
        everyone = [*self.running, request]
        wanted = self.cache.blocks_needed(
            [each.request_id for each in everyone], [self._remaining(each) for each in everyone]
        )
        if self.running and wanted + len(self.running) > self.cache.num_free_blocks:
            self.cache.free(request.request_id)
            return False
        self.running.append(self.waiting.popleft())
        if request.status is RequestStatus.WAITING:
            self.num_prefix_queries += request.num_tokens
            self.num_prefix_hits += cached
            request.num_cached_tokens = min(cached, len(request.prompt_token_ids))
        request.move_to(RequestStatus.RUNNING)
        return True
