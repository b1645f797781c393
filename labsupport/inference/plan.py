"""One step of the engine, as the scheduler plans it: which tokens of which requests are computed together."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

from labsupport.inference.request import Request


@dataclass(frozen=True)
class Scheduled:
    """Tokens of a request, from position ``start``, where the cache ends, on.

    ``samples``: the last one is among them, so a new one follows.
    """

    request: Request
    token_ids: list[int]
    samples: bool
    start: int = 0

    @property
    def scored(self) -> bool:
        """Whether the logits after each of its tokens are wanted: tokens of a prompt whose log-probabilities are."""
        return self.request.params.prompt_logprobs is not None and self.start < len(self.request.prompt_token_ids)


@dataclass
class Plan:
    """One step. The tokens of all entries fit the budget, their blocks fit the cache."""

    budget: int = 0  # tokens that may still be added
    blocks: int = 0  # what the entries so far will take from the free blocks
    decodes: list[Scheduled] = field(default_factory=list)  # one token each
    chunks: list[Scheduled] = field(default_factory=list)  # several tokens of a prompt, or of a text that is read again
    preempted: list[Request] = field(default_factory=list)

    @property
    def scheduled(self) -> list[Scheduled]:
        return self.decodes + self.chunks

    @property
    def num_tokens(self) -> int:
        return sum(len(each.token_ids) for each in self.scheduled)

    @property
    def logit_positions(self) -> list[int]:
        """In the row of all tokens of the step, those after which logits are wanted.

        The last token of each request that gets a new one, and all tokens of a prompt that is scored.
        """
        positions: list[int] = []
        for end, each in zip(accumulate(len(each.token_ids) for each in self.scheduled), self.scheduled, strict=True):
            first = end - len(each.token_ids) if each.scored else end - each.samples
            positions += range(first, end)
        return positions

    def add(self, request: Request, start: int, count: int, blocks: int = 0) -> None:
        """``count`` tokens of the request from position ``start`` on."""
        entry = Scheduled(request, request.token_ids[start : start + count], start + count == request.num_tokens, start)
        # a chunk of one token costs what decoding costs, and goes with it
        (self.decodes if count == 1 else self.chunks).append(entry)
        self.budget, self.blocks = self.budget - count, self.blocks + blocks

    def withdraw(self, request: Request) -> None:
        """Take its entry back, if it has one. Nothing was allocated for it yet, so its budget is all it returns."""
        for entries in (self.decodes, self.chunks):
            for entry in [each for each in entries if each.request is request]:
                entries.remove(entry)
                self.budget += len(entry.token_ids)
