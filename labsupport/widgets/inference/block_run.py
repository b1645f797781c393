"""The engine's scheduler and paged cache at work without a model, recorded step by step."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from labsupport.inference.request import Request
from labsupport.inference.sampling import SamplingParams
from labsupport.inference.scheduler import Plan, Scheduler
from labsupport.kvcache import PagedBatch, PagedKVCache
from labsupport.lm.tokenizer import ByteTokenizer


@dataclass
class BlockRun:
    """What a scheduler did with its blocks, step by step."""

    in_use: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)  # free, with their content kept
    running: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    preempted_at: list[int] = field(default_factory=list)
    needed: int = 0  # tokens that had to be computed in any case
    computed: int = 0

    @property
    def num_steps(self) -> int:
        return len(self.in_use)


def play_blocks(
    num_blocks: int, rate: float, prefix_caching: bool, num_requests: int, max_num_seqs: int, block_size: int
) -> BlockRun:
    """Serve random requests without a model: only the scheduler and the cache do their work."""
    pool = PagedKVCache(1, num_blocks, block_size, 1, 1, enable_prefix_caching=prefix_caching)
    scheduler = Scheduler(pool, max_num_seqs, max_num_batched_tokens=64)
    draw, tokenizer, run = random.Random(0), ByteTokenizer(), BlockRun()
    arrivals, clock = [], 0.0
    for number in range(num_requests):
        clock += draw.expovariate(1) / rate
        prompt = [draw.randrange(256) for _ in range(draw.randint(8, 40))]
        params = SamplingParams(max_tokens=draw.randint(16, 48), temperature=0.0, ignore_eos=True)
        arrivals.append((clock, Request(number, prompt, params, tokenizer)))
        run.needed += len(prompt) + params.max_tokens - 1  # the last token is never read
    arrivals.reverse()
    while arrivals or scheduler.has_unfinished:
        while arrivals and arrivals[-1][0] <= run.num_steps:
            scheduler.add(arrivals.pop()[1])
        plan = scheduler.schedule() if scheduler.has_unfinished else Plan()
        _pretend_to_compute(pool, plan)
        usage = pool.usage()
        run.preempted_at += [run.num_steps] * len(plan.preempted)
        run.computed += plan.num_tokens
        run.in_use.append(usage["used_blocks"])
        run.cached.append(usage["cached_blocks"])
        run.running.append(len(scheduler.running))
        run.waiting.append(len(scheduler.waiting))
        for each in plan.scheduled:
            if each.samples and (reason := each.request.append_token(draw.randrange(256))) is not None:
                scheduler.finish(each.request.request_id, reason)
    return run


def _pretend_to_compute(pool: PagedKVCache, plan: Plan) -> None:
    """Reserve, count and hash what a forward pass would write, without writing it."""
    parts = [plan.decodes] if plan.decodes else []
    parts += [[chunk] for chunk in plan.chunks]
    for part in parts:
        batch = PagedBatch(pool, [each.request.request_id for each in part])
        rows, time = batch.feed([each.token_ids for each in part]).shape
        batch.positions(rows, time)
        batch.advance(time)
