"""Answers to exercise 5 (see load.py)."""

_CELL = "answer-scheduler"

RIGHT = {
    "lists, a new one of those who stay": {
        _CELL: """
class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs):
        self.slots = max_num_seqs
        self.queue = []
        self.active = []

    def add(self, request_id, num_tokens):
        self.queue.append([request_id, num_tokens])

    def step(self):
        free = self.slots - len(self.active)
        self.active += self.queue[:free]
        self.queue = self.queue[free:]
        ids = []
        for request in self.active:
            request[1] -= 1
            ids.append(request[0])
        self.active = [request for request in self.active if request[1] > 0]
        return ids

    @property
    def has_unfinished(self):
        return len(self.active) + len(self.queue) > 0
""",
    },
    "dataclasses and typed, admits at the end of a step and in add, prints": {
        _CELL: """
from dataclasses import dataclass, field

@dataclass
class Request:
    request_id: int
    num_tokens: int
    tokens: list = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return len(self.tokens) >= self.num_tokens

class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs: int):
        self.max_num_seqs = max_num_seqs
        self.waiting: list[Request] = []
        self.running: list[Request] = []

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_num_seqs:
            self.running.append(self.waiting.pop(0))

    def add(self, request_id: int, num_tokens: int) -> None:
        self.waiting.append(Request(request_id, num_tokens))
        self._admit()

    def step(self) -> list[int]:
        batch = list(self.running)
        for request in batch:
            request.tokens.append("token")
            if request.finished:
                self.running.remove(request)
                print(f"{request.request_id} is done")
        self._admit()
        return [request.request_id for request in batch]

    @property
    def has_unfinished(self) -> bool:
        return bool(self.running)
""",
    },
    "one dictionary of all requests, the first that lack tokens run": {
        _CELL: """
from itertools import islice

class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs):
        self.max_num_seqs = max_num_seqs
        self.lacks = {}

    def add(self, request_id, num_tokens):
        self.lacks[request_id] = num_tokens

    def step(self):
        ids = tuple(islice(self.lacks, self.max_num_seqs))
        for i in ids:
            self.lacks[i] -= 1
            if not self.lacks[i]:
                del self.lacks[i]
        return list(ids)

    @property
    def has_unfinished(self):
        return self.lacks != {}
""",
    },
    "fixed slots, sorted by a ticket": {
        _CELL: """
import itertools
import queue

class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs):
        self.slots = [None] * max_num_seqs
        self.waiting = queue.Queue()
        self.tickets = itertools.count()

    def add(self, request_id, num_tokens):
        self.waiting.put((next(self.tickets), request_id, num_tokens))

    def step(self):
        for s in range(len(self.slots)):
            if self.slots[s] is None and not self.waiting.empty():
                self.slots[s] = self.waiting.get_nowait()
        ids = [slot[1] for slot in sorted(slot for slot in self.slots if slot is not None)]
        for s, slot in enumerate(self.slots):
            if slot is not None:
                ticket, i, left = slot
                self.slots[s] = (ticket, i, left - 1) if left > 1 else None
        return ids

    @property
    def has_unfinished(self):
        return not self.waiting.empty() or any(slot is not None for slot in self.slots)
""",
    },
    "a plan made in add: the slot that is free first": {
        _CELL: """
import heapq

class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs):
        self.free = [0] * max_num_seqs
        self.now = 0
        self.plan = []

    def add(self, request_id, num_tokens):
        start = max(self.now, self.free[0])
        heapq.heapreplace(self.free, start + num_tokens)
        self.plan.append((start, start + num_tokens, request_id))

    def step(self):
        ids = [i for start, end, i in self.plan if start <= self.now < end]
        self.now += 1
        return ids

    @property
    def has_unfinished(self):
        return any(end > self.now for _, end, _ in self.plan)
""",
    },
    "a generator that yields tokens for each request, checks its arguments, returns who is left as has_unfinished": {
        _CELL: """
from collections import OrderedDict, deque

class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs):
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1, got {max_num_seqs}")
        self.max_num_seqs = max_num_seqs
        self.waiting = deque()
        self.running = OrderedDict()
        self.left = 0

    def add(self, request_id, num_tokens):
        if num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, got {num_tokens}")
        self.waiting.append((request_id, iter([True] * (num_tokens - 1))))
        self.left += num_tokens

    def step(self):
        while len(self.running) < self.max_num_seqs:
            try:
                request_id, more = self.waiting.popleft()
            except IndexError:
                break
            self.running[request_id] = more
        ids = [*self.running]
        for request_id in ids:
            if next(self.running[request_id], False) is False:
                self.running.pop(request_id)
        self.left -= len(ids)
        return ids

    @property
    def has_unfinished(self):
        return self.left
""",
    },
    "has_unfinished kept as an attribute, removal in reverse": {
        _CELL: """
class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs):
        self.max_num_seqs, self.has_unfinished = max_num_seqs, False
        self.ids, self.left = [], []

    def add(self, request_id, num_tokens):
        self.ids.append(request_id)
        self.left.append(num_tokens)
        self.has_unfinished = True

    def step(self):
        n = min(self.max_num_seqs, len(self.ids))
        scheduled = self.ids[:n]
        for k in reversed(range(n)):
            self.left[k] -= 1
            if self.left[k] == 0:
                del self.ids[k], self.left[k]
        self.has_unfinished = len(self.ids) > 0
        return scheduled
""",
    },
}

RIGHT |= {
    "__slots__, admission by recursion, counts down in the queue's own entries, numpy integers inside": {
        _CELL: """
import numpy as np

class ContinuousBatchingScheduler:
    __slots__ = ("size", "queue", "batch")

    def __init__(self, max_num_seqs):
        self.size, self.queue, self.batch = np.int64(max_num_seqs), (), ()

    def add(self, request_id, num_tokens):
        self.queue += ([request_id, np.int32(num_tokens)],)

    def _admit(self):
        if self.queue and len(self.batch) < self.size:
            self.batch, self.queue = (*self.batch, self.queue[0]), self.queue[1:]
            self._admit()

    def step(self):
        self._admit()
        for entry in self.batch:
            entry[1] -= 1
        ids = [request_id for request_id, _ in self.batch]
        self.batch = tuple(entry for entry in self.batch if entry[1])
        return ids

    has_unfinished = property(lambda self: any(entry[1] > 0 for entry in self.batch + self.queue))
""",
    },
    "a generator that never ends makes the steps": {
        _CELL: """
class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs):
        self.requests = []
        self.steps = self._serve(max_num_seqs)

    def add(self, request_id, num_tokens):
        self.requests.append([request_id, num_tokens])

    def _serve(self, slots):
        while True:
            served = self.requests[:slots]
            for request in served:
                request[1] -= 1
            self.requests[:slots] = [request for request in served if request[1]]
            yield [request[0] for request in served]

    def step(self):
        return next(self.steps)

    @property
    def has_unfinished(self):
        return bool(self.requests)
""",
    },
}

_WAITING = "self.waiting = deque()  # (id, tokens), first come first"
_RUNNING = "self.running = {}  # id -> tokens it still lacks, in order of admission"
_ADD = "self.waiting.append((request_id, num_tokens))"
_ADMIT = "while self.waiting and len(self.running) < self.max_num_seqs:"
_POP = "request_id, num_tokens = self.waiting.popleft()"
_PUT = "self.running[request_id] = num_tokens\n"
_SCHEDULED = "scheduled = list(self.running)\n"
_LEAVE = """self.running = {request_id: lacks - 1
                        for request_id, lacks in self.running.items() if lacks > 1}"""
_RETURN = "return scheduled"
_UNFINISHED = "return bool(self.running or self.waiting)"
_PROPERTY = "    @property\n"
_CLASS = "class ContinuousBatchingScheduler:\n"


def _edit(*pairs: tuple[str, str]) -> dict:
    return {_CELL: list(pairs)}


WRONG = {
    # Tokens
    "off by one: a token too many": (
        "check_tokens",
        "all others got one too many: the token of the current step counts too",
        _edit(("if lacks > 1}", "if lacks > 0}")),
    ),
    "off by one: a token too few": (
        "check_tokens",
        "too few: a request gets its first token in the step that admits it",
        _edit(("if lacks > 1}", "if lacks > 2}")),
    ),
    "the step that admits is counted, but yields nothing": (
        "check_tokens",
        "all others got one too few",
        _edit((_SCHEDULED, "scheduled = [i for i in self.running if i in before]\n"),
              (_ADMIT, "before = list(self.running)\n        " + _ADMIT)),
    ),
    "never leaves": ("check_tokens", "it must leave with its last token", _edit((_LEAVE, ""))),
    "leaves after one token": (
        "check_tokens",
        "it left too early",
        _edit((_LEAVE, "self.running = {}")),
    ),
    "the last request in the queue is never admitted": (
        "check_tokens",
        "0 of",
        _edit((_ADMIT, "while len(self.waiting) > 1 and len(self.running) < self.max_num_seqs:")),
    ),
    "id 0 is taken for no request": (
        "check_tokens",
        "request 0 got 0 of",
        _edit((_SCHEDULED, "scheduled = [i for i in self.running if i]\n")),
    ),
    "a new request appears twice": (
        "check_tokens",
        "a request gets one token a step",
        _edit((_SCHEDULED, _SCHEDULED + "        scheduled += [i for i in scheduled if self.running[i] == 3]\n")),
    ),
    "returns positions instead of ids": (
        "check_tokens",
        "no request has the id",
        _edit((_SCHEDULED, "scheduled = list(range(len(self.running)))\n")),
    ),
    "returns the requests": (
        "check_tokens",
        "the list holds a list of 2",
        _edit((_SCHEDULED, "scheduled = list(self.running.items())\n")),
    ),
    "returns a set": (
        "check_tokens",
        "step() must return a list of ids; it returned an object of type set",
        _edit((_SCHEDULED, "scheduled = set(self.running)\n")),
    ),
    "returns a generator": (
        "check_tokens",
        "it returned an object of type generator",
        _edit((_RETURN, "return (i for i in scheduled)")),
    ),
    "a request of one token is never served": (
        "check_tokens",
        "got 0 of 1 tokens",
        _edit((_PUT, "if num_tokens > 1:\n                " + _PUT)),
    ),
    "ids as text": (
        "check_tokens",
        "the list holds the str",
        _edit((_RETURN, "return [str(i) for i in scheduled]")),
    ),
    "an array of numpy": (
        "check_tokens",
        "must return a list of ids; it returned a tensor of int64",
        _edit((_RETURN, "import numpy; return numpy.array(scheduled)")),
    ),
    "a token for each slot, repeated": (
        "check_tokens",
        "a request gets one token a step",
        _edit((_RETURN, "return (scheduled * self.max_num_seqs)[: self.max_num_seqs]")),
    ),
    "returns how many": (
        "check_tokens",
        "it returned the int 1",
        _edit((_RETURN, "return len(scheduled)")),
    ),
    "no return": ("check_tokens", "is there a `return`?", _edit((_RETURN, "scheduled"))),
    "an object equal to every list": (
        "check_tokens",
        "it returned an object of type Equal",
        _edit((_RETURN, "return type('Equal', (), {'__eq__': lambda a, b: True, '__hash__': None})()")),
    ),
    "a dictionary changes while it is iterated": (
        "check_tokens",
        "dictionary changed size during iteration",
        _edit((_LEAVE, "for i in self.running:\n            self.running[i] -= 1\n"
                       "            if self.running[i] == 0:\n                del self.running[i]\n")),
    ),
    "self forgotten": (
        "check_tokens",
        "your code raised NameError",
        _edit((_ADMIT, _ADMIT.replace("self.max_num_seqs", "max_num_seqs"))),
    ),
    "step is missing": (
        "check_tokens",
        "has no attribute 'step'",
        _edit(("def step(self)", "def steps(self)")),
    ),
    # Slots
    "everybody runs": ("check_slots", "the others wait", _edit((_ADMIT, "while self.waiting:"))),
    "one slot too many": (
        "check_slots",
        "one too many, is that <= where < is meant?",
        _edit((_ADMIT, _ADMIT.replace("<", "<="))),
    ),
    "slots are counted by who came in this step": (
        "check_slots",
        "2 requests in 1",
        _edit((_ADMIT, "for _ in range(min(len(self.waiting), self.max_num_seqs)):")),
    ),
    # Refill
    "static batching": (
        "check_refill",
        "which is static batching",
        _edit((_ADMIT, "idle = not self.running\n        while idle and self.waiting and "
                       "len(self.running) < self.max_num_seqs:")),
    ),
    "removes from the list that it iterates over": (
        "check_refill",
        "removing from a list while iterating over it skips the next one",
        _edit((_SCHEDULED + "        " + _LEAVE, """running, scheduled = list(self.running), []
        for i in running:
            scheduled.append(i)
            self.running[i] -= 1
            if self.running[i] == 0:
                running.remove(i)
                del self.running[i]""")),
    ),
    "fills a slot one step late": (
        "check_refill",
        "after those that are done have left",
        _edit((_ADMIT, "free = self.max_num_seqs - len(self.running)\n        "
                       "self.running = {i: n for i, n in self.running.items() if n}\n        "
                       "while self.waiting and free > 0:\n            free -= 1"),
              (_SCHEDULED, "scheduled = [i for i, n in self.running.items() if n]\n"),
              (" if lacks > 1}", "}")),
    ),
    "admits one a step": (
        "check_refill",
        "2 requests should have a slot and get a token in the first step",
        _edit((_ADMIT, _ADMIT.replace("while", "if"))),
    ),
    "fills only slots that came free, one a step": (
        "check_refill",
        "a slot has been free since the step before",
        _edit((_ADMIT, "full = self.max_num_seqs - (1 if self.running else 0) * max(0, self.max_num_seqs - "
                       "len(self.running) - 1)\n        while self.waiting and len(self.running) < full:")),
    ),
    "admits at the end of a step": (
        "check_refill",
        "get a token in the first step",
        {_CELL: """
class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs):
        self.max_num_seqs, self.waiting, self.running = max_num_seqs, [], {}

    def add(self, request_id, num_tokens):
        self.waiting.append((request_id, num_tokens))

    def step(self):
        scheduled = list(self.running)
        self.running = {i: n - 1 for i, n in self.running.items() if n > 1}
        while self.waiting and len(self.running) < self.max_num_seqs:
            i, n = self.waiting.pop(0)
            self.running[i] = n
        return scheduled

    @property
    def has_unfinished(self):
        return bool(self.running or self.waiting)
"""},
    ),
    "one running request after the other": (
        "check_refill",
        "get a token in the first step",
        _edit((_SCHEDULED, "scheduled = list(self.running)[:1]\n"),
              (" for request_id, lacks in self.running.items() if lacks > 1}",
               " if request_id in scheduled else lacks for request_id, lacks in self.running.items()\n"
               "                        if lacks > 1 or request_id not in scheduled}")),
    ),
    "a request that comes to a slot loses its turn to decode": (
        "check_refill",
        "every running request gets one in every step",
        _edit((_ADMIT, "old = list(self.running)\n        " + _ADMIT),
              (_SCHEDULED, "scheduled = [i for i in self.running if i not in old] or list(self.running)\n"),
              (" for request_id, lacks in self.running.items() if lacks > 1}",
               " if request_id in scheduled else lacks for request_id, lacks in self.running.items()\n"
               "                        if lacks > 1 or request_id not in scheduled}")),
    ),
    # Order
    "last in, first out": ("check_order", "that is last come, first served", _edit((".popleft()", ".pop()"))),
    "in order of completion": (
        "check_order",
        "the first to come is the first in the list",
        _edit((_SCHEDULED, "scheduled = sorted(self.running, key=self.running.get)\n")),
    ),
    "shortest first": (
        "check_order",
        "that is shortest first",
        _edit((_POP, "request_id, num_tokens = min(self.waiting, key=lambda r: r[1])\n"
                     "            self.waiting.remove((request_id, num_tokens))")),
    ),
    "longest first": (
        "check_order",
        "that is longest first",
        _edit((_POP, "request_id, num_tokens = max(self.waiting, key=lambda r: r[1])\n"
                     "            self.waiting.remove((request_id, num_tokens))")),
    ),
    "a heap of ids": (
        "check_order",
        "that is smallest id first",
        _edit((_POP, "request_id, num_tokens = min(self.waiting)\n"
                     "            self.waiting.remove((request_id, num_tokens))")),
    ),
    "ids in order of slots": (
        "check_order",
        "whichever slot it has",
        {_CELL: """
class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs):
        self.slots, self.waiting = [None] * max_num_seqs, []

    def add(self, request_id, num_tokens):
        self.waiting.append([request_id, num_tokens])

    def step(self):
        ids = []
        for k, slot in enumerate(self.slots):
            if slot is None and self.waiting:
                slot = self.slots[k] = self.waiting.pop(0)
            if slot is not None:
                ids.append(slot[0])
                slot[1] -= 1
                if slot[1] == 0:
                    self.slots[k] = None
        return ids

    @property
    def has_unfinished(self):
        return any(self.slots) or bool(self.waiting)
"""},
    ),
    "ids sorted": (
        "check_order",
        "sorting by them does not tell who came first",
        _edit((_SCHEDULED, "scheduled = sorted(self.running)\n")),
    ),
    "newest first": (
        "check_order",
        "yours is the reverse order",
        _edit((_RETURN, "return scheduled[::-1]")),
    ),
    "round robin": (
        "check_order",
        "once admitted, a request keeps its slot",
        {_CELL: """
from collections import deque

class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs):
        self.max_num_seqs, self.queue = max_num_seqs, deque()

    def add(self, request_id, num_tokens):
        self.queue.append((request_id, num_tokens))

    def step(self):
        batch = [self.queue.popleft() for _ in range(min(self.max_num_seqs, len(self.queue)))]
        self.queue.extend((i, n - 1) for i, n in batch if n > 1)
        return [i for i, n in batch]

    @property
    def has_unfinished(self):
        return bool(self.queue)
"""},
    ),
    "shortest remaining first, pushing others out": (
        "check_order",
        "that is shortest first",
        {_CELL: """
class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs):
        self.max_num_seqs, self.left = max_num_seqs, {}

    def add(self, request_id, num_tokens):
        self.left[request_id] = num_tokens

    def step(self):
        ids = sorted(self.left, key=self.left.get)[: self.max_num_seqs]
        self.left = {i: n - (i in ids) for i, n in self.left.items() if n - (i in ids) > 0}
        return ids

    @property
    def has_unfinished(self):
        return len(self.left) > 0
"""},
    ),
    # Arrivals
    "a newcomer takes a free slot before those who wait": (
        "check_arrivals",
        "overtakes",
        _edit((_ADD, "if len(self.running) < self.max_num_seqs:\n            self.running[request_id] = num_tokens\n"
                     "        else:\n            " + _ADD)),
    ),
    "newcomers are admitted only when all is done": (
        "check_arrivals",
        "has been added and a slot is free",
        _edit((_WAITING, _WAITING + "\n        self.later = []"),
              (_ADD, "(self.later if self.running else self.waiting).append((request_id, num_tokens))"),
              (_ADMIT, "if not self.running and not self.waiting:\n            self.waiting.extend(self.later)\n"
                       "            self.later = []\n        " + _ADMIT),
              (_UNFINISHED, "return bool(self.running or self.waiting or self.later)")),
    ),
    "the schedule is made in the first step": (
        "check_arrivals",
        "requests may be added at any time",
        {_CELL: """
class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs):
        self.max_num_seqs, self.requests, self.plan = max_num_seqs, [], None

    def add(self, request_id, num_tokens):
        self.requests.append([request_id, num_tokens])

    def step(self):
        if self.plan is None:
            self.plan, left = [], [list(request) for request in self.requests]
            while left:
                batch = left[: self.max_num_seqs]
                self.plan.append([i for i, _ in batch])
                for request in batch:
                    request[1] -= 1
                left = [request for request in left if request[1]]
        return self.plan.pop(0) if self.plan else []

    @property
    def has_unfinished(self):
        return bool(self.requests) if self.plan is None else bool(self.plan)
"""},
    ),
    "crashes with nobody to serve": (
        "check_arrivals",
        "your code raised IndexError: pop from an empty deque",
        _edit((_ADMIT, "if not self.running:\n            " + _POP + "\n            " + _PUT + "        " + _ADMIT)),
    ),
    "raises with nobody to serve": (
        "check_arrivals",
        "when no request is left, step() returns []",
        _edit((_RETURN, "if not scheduled:\n            raise StopIteration\n        " + _RETURN)),
    ),
    "None with nobody to serve": (
        "check_arrivals",
        "when no request is left, step() returns []",
        _edit((_RETURN, "if scheduled:\n            " + _RETURN)),
    ),
    "stays closed once it ran dry": (
        "check_arrivals",
        "when the scheduler has nothing left to do",
        _edit((_WAITING, _WAITING + "\n        self.closed = False"),
              (_RETURN, "self.closed = self.closed or not scheduled\n        return [] if self.closed else scheduled")),
    ),
    # has_unfinished
    "has_unfinished forgets who waits": (
        "check_has_unfinished",
        "a waiting request is unfinished too",
        _edit((_UNFINISHED, "return bool(self.running)")),
    ),
    "has_unfinished forgets who runs": (
        "check_has_unfinished",
        "a loop over it would stop too early",
        _edit((_UNFINISHED, "return bool(self.waiting)")),
    ),
    "has_unfinished asks for both": (
        "check_has_unfinished",
        "a waiting request is unfinished too",
        _edit((_UNFINISHED, "return bool(self.running and self.waiting)")),
    ),
    "has_unfinished is a method": (
        "check_has_unfinished",
        "write @property above it",
        _edit((_PROPERTY, "")),
    ),
    "has_unfinished notices the end one step late": (
        "check_has_unfinished",
        "a loop over it would call step() once too often",
        _edit((_RETURN, "self.last = scheduled\n        " + _RETURN),
              (_WAITING, _WAITING + "\n        self.last = []"),
              (_UNFINISHED, "return bool(self.running or self.waiting or self.last)")),
    ),
    "has_unfinished is turned around": (
        "check_has_unfinished",
        "nothing has been added yet",
        _edit((_UNFINISHED, "return not (self.running or self.waiting)")),
    ),
    "has_unfinished is always true": (
        "check_has_unfinished",
        "has_unfinished is True before the first add()",
        _edit((_UNFINISHED, "return True")),
    ),
    "has_unfinished looks at the slots": (
        "check_has_unfinished",
        "a loop over it would stop too early",
        _edit((_UNFINISHED, "return len(self.running) >= self.max_num_seqs or bool(self.waiting)")),
    ),
    "has_unfinished is missing": (
        "check_has_unfinished",
        "has no attribute 'has_unfinished'",
        _edit(("def has_unfinished(self)", "def unfinished(self)")),
    ),
    # State
    "requests live on the class": (
        "check_state",
        "must be created in __init__ and set on self",
        _edit((_CLASS, _CLASS + "    waiting = deque()\n\n"), (_WAITING, "")),
    ),
    "requests live in a global": (
        "check_state",
        "a fresh scheduler is not empty",
        _edit((_CLASS, "WAITING = deque()\n\n\n" + _CLASS), (_WAITING, "self.waiting = WAITING")),
    ),
    "requests live in a default argument": (
        "check_state",
        "or in a default argument",
        _edit(("(self, max_num_seqs)", "(self, max_num_seqs, waiting=deque())"), (_WAITING, "self.waiting = waiting")),
    ),
    "those who run live on the class": (
        "check_state",
        "a fresh scheduler is not empty",
        _edit((_CLASS, _CLASS + "    running = {}\n\n"), (_RUNNING, ""),
              (_LEAVE, "for i in scheduled:\n            self.running[i] -= 1\n            if self.running[i] == 0:\n"
                       "                del self.running[i]")),
    ),
    "those who run are made on the class": (
        "check_state",
        "other schedulers exist",
        _edit(("self.running = {}  #", "type(self).running = {}  #")),
    ),
    "requests live in a global dictionary": (
        "check_state",
        "a fresh scheduler is not empty",
        {_CELL: """
from itertools import islice

LACKS = {}

class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs):
        self.max_num_seqs = max_num_seqs

    def add(self, request_id, num_tokens):
        LACKS[request_id] = num_tokens

    def step(self):
        ids = list(islice(LACKS, self.max_num_seqs))
        for i in ids:
            LACKS[i] -= 1
            if not LACKS[i]:
                del LACKS[i]
        return ids

    @property
    def has_unfinished(self):
        return bool(LACKS)
"""},
    ),
    "one scheduler for all": (
        "check_state",
        "other schedulers exist",
        _edit((_CLASS, _CLASS + "    def __new__(cls, max_num_seqs):\n"
                       "        cls.one = vars(cls).get('one') or super().__new__(cls)\n        return cls.one\n\n")),
    ),
    "the number of slots is global": (
        "check_state",
        "other schedulers exist",
        _edit(("self.max_num_seqs = max_num_seqs", "type(self).max_num_seqs = max_num_seqs")),
    ),
    "returns the list that it goes on to work with": (
        "check_state",
        "with later steps: return a new list each time",
        {_CELL: """
from collections import deque

class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs):
        self.max_num_seqs, self.waiting, self.left, self.batch = max_num_seqs, deque(), {}, []

    def add(self, request_id, num_tokens):
        self.waiting.append(request_id)
        self.left[request_id] = num_tokens

    def step(self):
        for i in [i for i in self.batch if self.left[i] == 0]:
            self.batch.remove(i)
        while self.waiting and len(self.batch) < self.max_num_seqs:
            self.batch.append(self.waiting.popleft())
        for i in self.batch:
            self.left[i] -= 1
        return self.batch

    @property
    def has_unfinished(self):
        return any(self.left.values())
"""},
    ),
    "returns its own list of those who run": (
        "check_state",
        "the caller emptied the lists it got",
        {_CELL: """
class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs):
        self.max_num_seqs, self.waiting, self.left, self.batch = max_num_seqs, [], {}, []

    def add(self, request_id, num_tokens):
        self.waiting.append(request_id)
        self.left[request_id] = num_tokens

    def step(self):
        self.batch = [i for i in self.batch if self.left[i] > 0]
        free = self.max_num_seqs - len(self.batch)
        self.batch, self.waiting = self.batch + self.waiting[:free], self.waiting[free:]
        for i in self.batch:
            self.left[i] -= 1
        return self.batch

    @property
    def has_unfinished(self):
        return any(self.left.values())
"""},
    ),
}  # fmt: skip
