"""Exercise 5: a scheduler for continuous batching.

A case is a number of slots and requests [step, id, num_tokens]: which are added before which step (steps count from 1).
Then the scheduler steps a fixed number of times, whatever it says of itself. Each check looks at one property of what
came back, so that a mistake costs the points of the property that it breaks:

- who: every request gets its tokens, and no more (nothing is said of when);
- how many: at most max_num_seqs a step, and as many as there is work for (nothing is said of who);
- in which order: first come, first served, and no pauses. This and how many leave one right schedule, which the later
  checks compare with: a request starts when the slot comes free that the ones before it leave (`_schedule`).

Arguments are valid everywhere, and ids differ: the exercise asks for no error handling.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from labsupport.checks import Check, Exercise, Wrong
from labsupport.checks.judging import returned
from labsupport.checks.plain import Plain, call, describe

SCHEDULER = "ContinuousBatchingScheduler"

Answer = Mapping[str, Callable[..., Any]]
Inputs = Mapping[str, Any]
Request = Sequence[int]  # [step before which it is added, id, num_tokens]
Steps = list[list[int]]  # the ids that each step returned


# Drawing, and calling -------------------------------------------------------------------------------------------------


def _case(slots: int, requests: list[list[int]], extra: int = 2) -> dict[str, Any]:
    """With steps enough for one request at a time."""
    last = max((step for step, _, _ in requests), default=1)
    return {"slots": slots, "requests": requests, "steps": last - 1 + sum(n for _, _, n in requests) + extra}


def _named(*cases: dict[str, Any]) -> dict[str, Any]:
    """Each case under a name that says how to repeat it by hand."""
    named = {}
    for case in cases:
        groups: dict[int, list[str]] = {}
        for step, request_id, num_tokens in case["requests"]:
            groups.setdefault(step, []).append(f"{request_id}: {num_tokens}")
        added = [
            "{" + ", ".join(group) + "}" + (f" added before step {step}" if step > 1 else "")
            for step, group in groups.items()
        ]
        named[f"{case['slots']} slot{'s' * (case['slots'] > 1)} and requests {', '.join(added) or '{}'}"] = case
    return named


def _at_once(ids: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    return [[1, request_id, length] for request_id, length in zip(ids, lengths, strict=True)]


def _ids(draw: random.Random, count: int) -> list[int]:
    """Different, neither ascending nor descending, 0 among them."""
    ids = [*draw.sample(range(10, 100), count - 1), 0]
    draw.shuffle(ids)
    return ids if count < 3 or ids not in (sorted(ids), sorted(ids, reverse=True)) else [ids[1], ids[0], *ids[2:]]


def _play(
    make: Callable[..., Any], case: Mapping[str, Any], clear: bool = False, ask: bool = False
) -> dict[str, Plain]:
    """Serve a case. ``clear`` empties the lists that come back, ``ask`` reads has_unfinished at every point."""
    made, scheduler = call(make, case["slots"])
    adds: list[Plain] = []
    steps: list[Plain] = []
    asked: list[Plain] = []
    lists: list[Any] = []
    outcome = {"made": made, "adds": adds, "steps": steps, "asked": asked, "later": []}

    def look(when: str) -> None:
        if ask:
            asked.append([when, call(lambda: _truth(scheduler.has_unfinished))[0]])

    if "raised" in made:
        return outcome
    look("before the first add()")
    requests = list(case["requests"])
    for number in range(1, case["steps"] + 1):
        while requests and requests[0][0] == number:
            _, request_id, num_tokens = requests.pop(0)
            adds.append(call(lambda i=request_id, n=num_tokens: scheduler.add(i, n))[0])
            if "raised" in adds[-1]:
                return outcome
            look(f"after add({request_id}, {num_tokens})")
        stepped, ids = call(lambda: scheduler.step())
        steps.append(stepped)
        if "raised" in stepped:
            return outcome
        look(f"after step {number}")
        lists.append(ids)
        if clear and type(ids) is list:
            ids.clear()
    outcome["later"] = call(lambda: lists)[0]["returned"]
    return outcome


def _truth(value: Any) -> Plain:
    return "a method" if callable(value) else bool(value)


# Judging --------------------------------------------------------------------------------------------------------------


def _steps(case: str, inputs: Mapping[str, Any], outcome: Mapping[str, Any], idle: bool = False) -> Steps:
    """The lists that came back, or `Wrong`. Unless ``idle``, what happens once everybody is served is forgiven."""
    returned(outcome["made"], f"{SCHEDULER}({inputs['slots']})")
    for (_, request_id, num_tokens), added in zip(inputs["requests"], outcome["adds"], strict=False):
        returned(added, f"{case}, add({request_id}, {num_tokens})")
    left = {request_id: num_tokens for _, request_id, num_tokens in inputs["requests"]}
    found: Steps = []
    for number, outcome_of_step in enumerate(outcome["steps"], start=1):
        over = all(count <= 0 for count in left.values())
        served = all(left[i] <= 0 for step, i, _ in inputs["requests"] if step <= number)
        nothing = not isinstance(outcome_of_step.get("returned"), list)
        if over and nothing and not idle:
            return found
        hint = "with nobody to serve, step() returns []" if served else ""
        ids = returned(outcome_of_step, f"{case}, step {number}", hint)
        if nothing:
            raise Wrong(
                f"for {case}, step {number}: step() must return a list of ids; it returned {describe(ids)}"
                f"{hint and '; '}{hint}"
            )
        for request_id in ids:
            if type(request_id) is not int:
                raise Wrong(
                    f"for {case}, step {number}: step() must return a list of ids, as given to add(); the list holds "
                    f"{describe(request_id)}"
                )
            if request_id not in left:
                raise Wrong(f"for {case}, step {number} returned {ids}: {request_id} is no id of a request")
            left[request_id] -= 1
        found.append(ids)
    if len(found) != inputs["steps"]:
        raise ValueError(f"{len(found)} steps for {case}")  # no run of `_play` leads here
    return found


def _unfinished(inputs: Mapping[str, Any], steps: Steps, number: int) -> list[int]:
    """Ids that have been added before step ``number`` and lack a token then, in that order."""
    return [
        request_id
        for step, request_id, num_tokens in inputs["requests"]
        if step <= number and sum(ids.count(request_id) for ids in steps[: number - 1]) < num_tokens
    ]


def _schedule(inputs: Mapping[str, Any]) -> Steps:
    """The right schedule, found without a scheduler: each request takes the slot that is free first, in order."""
    free = [1] * inputs["slots"]  # the step from which each slot is free
    steps: Steps = [[] for _ in range(inputs["steps"])]
    for added, request_id, num_tokens in inputs["requests"]:
        start = max(added, heapq.heappop(free))
        heapq.heappush(free, start + num_tokens)
        for number in range(start, start + num_tokens):
            steps[number - 1].append(request_id)
    return steps


class SchedulerCheck(Check):
    needs = (SCHEDULER,)

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: _play(answer[SCHEDULER], each) for case, each in inputs.items()}


class CheckTokens(SchedulerCheck):
    name = "check_tokens"
    points = 3
    holds = "every request gets exactly its num_tokens tokens, at most one a step, and nobody else gets any"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed)
        ids = _ids(draw, 6)
        return _named(
            _case(1, _at_once(ids[:1], [draw.randint(3, 6)])),
            _case(3, _at_once(ids[:3], draw.sample(range(2, 8), 3))),
            _case(4, _at_once(ids[:4], [draw.randint(2, 4)] * 4)),
            _case(2, _at_once(ids, draw.sample(range(1, 7), 6))),
            _case(2, _at_once(ids[:5], [1] * 5)),
        )

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, each in inputs.items():
            steps = _steps(case, each, values[case])
            for number, ids in enumerate(steps, start=1):
                for request_id in ids:
                    if ids.count(request_id) > 1:
                        raise Wrong(
                            f"for {case}, step {number} returned {ids}: a request gets one token a step, {request_id} "
                            f"got {ids.count(request_id)}"
                        )
            counts = {i: [sum(ids.count(i) for ids in steps), n] for _, i, n in each["requests"]}
            off = {count - n for count, n in counts.values()}
            for request_id, (count, num_tokens) in counts.items():
                if count == num_tokens:
                    continue
                text = f"for {case}, request {request_id} got {count} of {num_tokens} tokens"
                if off == {1}:
                    raise Wrong(f"{text}, and every other one too many as well: the token of this step counts too")
                if off == {-1}:
                    raise Wrong(
                        f"{text}, and every other one too few as well: a request gets its first token in the step that "
                        "admits it, and leaves after its last"
                    )
                if count > num_tokens:
                    raise Wrong(f"{text}: it must leave with its last token")
                if count == 0:
                    raise Wrong(f"{text} in {len(steps)} steps: it was lost, or is never admitted")
                raise Wrong(f"{text} in {len(steps)} steps: it left too early, or waits forever")


class CheckSlots(SchedulerCheck):
    name = "check_slots"
    points = 2
    holds = "never more than max_num_seqs requests get a token in a step"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 1)
        ids = _ids(draw, 8)
        cases = [_case(slots, _at_once(ids, [draw.randint(1, 6) for _ in ids])) for slots in (1, 2, 3, 7)]
        return _named(*cases)

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, each in inputs.items():
            for number, ids in enumerate(_steps(case, each, values[case]), start=1):
                if len(ids) <= each["slots"]:
                    continue
                text = f"for {case}, step {number} returned {ids}, {len(ids)} requests in {each['slots']}"
                if len(ids) == each["slots"] + 1:
                    raise Wrong(f"{text}: one too many, is that <= where < is meant?")
                raise Wrong(f"{text}: only max_num_seqs run at a time, the others wait")


class CheckRefill(SchedulerCheck):
    name = "check_refill"
    points = 4
    holds = "a slot that comes free is taken in the very next step, and no slot idles while a request waits"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 2)
        ids = _ids(draw, 9)
        long, equal = draw.randint(9, 12), draw.randint(2, 4)
        return _named(
            _case(2, _at_once(ids[:4], [long, 2, 3, 2])),
            _case(3, _at_once(ids[:6], [equal] * 6)),
            _case(3, _at_once(ids, [long, *draw.sample(range(1, 9), 8)])),
            _case(4, _at_once(ids[:8], [long, 2, 2, 2, 3, 1, 3, 2])),  # three slots come free at once
            _case(1, _at_once(ids[:3], [2, 1, 3])),
        )

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, each in inputs.items():
            steps = _steps(case, each, values[case])
            for number, ids in enumerate(steps, start=1):
                unfinished = _unfinished(each, steps, number)
                if len(ids) >= min(each["slots"], len(unfinished)):
                    continue
                raise Wrong(f"for {case}, step {number} returned {ids}: {_why_idle(each, steps, number, unfinished)}")


def _why_idle(inputs: Mapping[str, Any], steps: Steps, number: int, unfinished: list[int]) -> str:
    """What kept a slot empty in step ``number``."""
    ids, before = steps[number - 1], steps[: number - 1]
    seen = {request_id for earlier in before for request_id in earlier}
    passed_over = [request_id for request_id in unfinished if request_id in seen and request_id not in ids]
    if not before:
        return f"{min(inputs['slots'], len(unfinished))} requests have a slot and get a token in the first step already"
    if passed_over:
        still = _unfinished(inputs, steps, number + 1)
        done = [request_id for request_id in ids if request_id not in still]
        if done:
            return (
                f"{passed_over[0]} runs and was passed over as {done[0]} got its last token; removing from a list "
                "while iterating over it skips the next one"
            )
        return f"{passed_over[0]} runs and got no token: every running request gets one in every step"
    waiting = next(request_id for request_id in unfinished if request_id not in seen)
    if _never_mixes(inputs, steps):
        return (
            f"{waiting} waits until the whole batch is done, which is static batching; a request takes a slot as soon "
            "as one is free"
        )
    return (
        f"{waiting} waits though a slot is free since the step before: fill the slots at the start of each step, from "
        "requests that still wait, after those that are done have left"
    )


def _never_mixes(inputs: Mapping[str, Any], steps: Steps) -> bool:
    """No request starts while another that started earlier lacks a token."""
    seen: set[int] = set()
    for number, ids in enumerate(steps, start=1):
        if set(ids) - seen and seen & set(_unfinished(inputs, steps, number)):
            return False
        seen |= set(ids)
    return True


class CheckOrder(SchedulerCheck):
    name = "check_order"
    points = 4
    holds = "first come, first served, without a pause once admitted, and ids come back in order of admission"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 3)
        ids, more = _ids(draw, 9), draw.randint(0, 3)
        a, b, c, d, e = sorted(ids)[:5]
        return _named(
            # the first two to come, the last two, the shortest, the longest, the smallest ids: no two the same pair
            _case(2, _at_once([d, e, a, c, b], [length + more for length in (5, 2, 4, 1, 3)])),
            _case(3, _at_once(ids[:7], [6, 1, 4, 5, 2, 3, 4])),
            _case(3, _at_once(ids, [draw.randint(1, 6) for _ in ids])),
            _case(1, _at_once(ids[:4], draw.sample(range(1, 6), 4))),
            _case(9, _at_once(ids, draw.sample(range(1, 10), 9))),
        )

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, each in inputs.items():
            steps = _steps(case, each, values[case])
            _judge_order(case, each, steps)
            _judge_schedule(case, each, steps)


def _judge_order(case: str, inputs: Mapping[str, Any], steps: Steps) -> None:
    """Who starts when, who pauses, and in which order the ids stand in each list."""
    order = [request_id for _, request_id, _ in inputs["requests"]]
    start: dict[int, int] = {}
    for number, ids in enumerate(steps, start=1):
        running = [i for i in order if i in start and i in _unfinished(inputs, steps, number)]
        for request_id in running:
            if request_id not in ids:
                raise Wrong(
                    f"for {case}, step {number} returned {ids}: {request_id} started in step {start[request_id]} and "
                    "lacks tokens; once admitted, a request keeps its slot and gets a token in every step"
                )
        waiting = [i for i in _unfinished(inputs, steps, number) if i not in start]
        new = [request_id for request_id in ids if request_id not in start]
        first = waiting[: len(new)]
        if set(new) != set(first):
            ahead = next(request_id for request_id in new if request_id not in first)
            behind = next(request_id for request_id in first if request_id not in new)
            text = f"for {case}, step {number} admits {ahead} while {behind}, added before it, still waits"
            if set(new) == set(waiting[-len(new) :]):
                raise Wrong(f"{text}: that is last come, first served")
            lengths = {i: num_tokens for _, i, num_tokens in inputs["requests"]}
            rules = {
                "shortest first": lengths,
                "longest first": {i: -num_tokens for i, num_tokens in lengths.items()},
                "smallest id first": {i: i for i in lengths},
            }
            for rule, rank in rules.items():
                if sorted(rank[i] for i in new) == sorted(rank[i] for i in waiting)[: len(new)]:
                    raise Wrong(f"{text}: that is {rule}, under which a request may wait forever")
            raise Wrong(f"{text}: first come, first served")
        start |= dict.fromkeys(new, number)
    for number, ids in enumerate(steps, start=1):
        wanted = sorted(ids, key=order.index)
        if ids == wanted:
            continue
        text = f"for {case}, step {number} returned {ids}; in order of admission that is {wanted}"
        if ids == sorted(ids) and all(each == sorted(each) for each in steps):
            raise Wrong(f"{text}: ids are names, sorting by them says nothing of who came first")
        if all(each == sorted(each, key=order.index, reverse=True) for each in steps):
            raise Wrong(f"{text}: yours are in reverse")
        raise Wrong(f"{text}: who came first stands first, whichever slot it has")


def _judge_schedule(case: str, inputs: Mapping[str, Any], steps: Steps) -> None:
    """Every list is the right one. What `_judge_order` cannot name, and what comes from other steps, ends here."""
    for number, (ids, wanted) in enumerate(zip(steps, _schedule(inputs), strict=False), start=1):
        if ids != wanted:
            raise Wrong(f"for {case}, step {number} returned {ids}, not {wanted}")


class CheckArrivals(SchedulerCheck):
    name = "check_arrivals"
    points = 3
    holds = "requests may come while others run, or after a pause; with nobody to serve a step returns []"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 4)
        ids = _ids(draw, 10)
        overtaking = [[1, ids[0], 4], [1, ids[1], 2], [1, ids[2], 3], [1, ids[3], 2], [3, ids[4], 1], [4, ids[5], 2]]
        arrivals = [sorted(draw.choices(range(1, 13), k=10)) for _ in range(2)]
        lengths = [[draw.randint(1, 5) for _ in ids] for _ in range(2)]
        return _named(
            _case(2, [[1, ids[0], 4], [2, ids[1], 3], [4, ids[2], 2]]),
            _case(2, overtaking),
            *(_case(3, [list(r) for r in zip(a, ids, n, strict=True)]) for a, n in zip(arrivals, lengths, strict=True)),
            _case(2, [[3, ids[0], 2], [8, ids[1], 1], [8, ids[2], 2]], extra=3),
            _case(3, [], extra=2),
        )

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, each in inputs.items():
            steps = _steps(case, each, values[case], idle=True)
            for number, (ids, wanted) in enumerate(zip(steps, _schedule(each), strict=True), start=1):
                if ids == wanted:
                    continue
                text = f"for {case}, step {number} returned {ids}, not {wanted}"
                missing = [request_id for request_id in wanted if request_id not in ids]
                ahead = [request_id for request_id in ids if request_id not in wanted]
                if missing and ahead:
                    raise Wrong(f"{text}: {ahead[0]} overtakes {missing[0]}, which waits longer")
                if missing:
                    raise Wrong(
                        f"{text}: {missing[0]} is there and a slot is free; requests may be added at any time, also "
                        "when the scheduler has run dry"
                    )
                raise Wrong(text)


class CheckHasUnfinished(SchedulerCheck):
    name = "check_has_unfinished"
    points = 2
    holds = "has_unfinished is true from the first add() until the last request has its last token, and no longer"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 5)
        ids = _ids(draw, 5)
        return _named(
            _case(2, _at_once(ids, [draw.randint(1, 4) for _ in ids])),
            _case(3, _at_once(ids[:1], [draw.randint(2, 4)])),
            _case(1, [[1, ids[0], 2], [2, ids[1], 1], [4, ids[2], 2]]),  # the third comes as the second is done
        )

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: _play(answer[SCHEDULER], each, ask=True) for case, each in inputs.items()}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, each in inputs.items():
            steps = _steps(case, each, values[case])
            points = iter(values[case]["asked"])
            requests, added = list(each["requests"]), 0
            self._expect(case, next(points), [], [], "nothing was added yet")
            for number in range(1, len(steps) + 1):
                while added < len(requests) and requests[added][0] == number:
                    added += 1
                    unfinished = _unfinished({"requests": requests[:added]}, steps, number)
                    self._expect(case, next(points), unfinished, steps[: number - 1], "")
                unfinished = _unfinished({"requests": requests[:added]}, steps[:number], number + 1)
                last = "the last token has been given" if steps[number - 1] else "nobody is left to serve"
                self._expect(case, next(points), unfinished, steps[:number], last)

    def _expect(self, case: str, point: Plain, unfinished: list[int], steps: Steps, otherwise: str) -> None:
        when, outcome = point
        value = returned(outcome, f"{case}, has_unfinished {when}")
        if value == "a method":
            raise Wrong("has_unfinished is a method: write @property above it, it is read without parentheses")
        if value is bool(unfinished):
            return
        text = f"for {case}, has_unfinished is {value} {when}"
        if not unfinished:
            raise Wrong(f"{text}: {otherwise}, a loop over it would call step() once too often")
        seen = {request_id for ids in steps for request_id in ids}
        if not seen & set(unfinished):
            raise Wrong(f"{text}: {unfinished[0]} waits, and waiting requests are unfinished too")
        raise Wrong(f"{text}: {unfinished[0]} lacks tokens, a loop over it would stop too early")


class CheckState(SchedulerCheck):
    name = "check_state"
    points = 2
    holds = "schedulers share nothing with each other, nor with the lists they returned"

    def inputs(self, seed: int) -> dict[str, Any]:
        draw = random.Random(seed + 6)
        ids = _ids(draw, 5)
        cases = [_case(2, _at_once(ids, [3, *draw.sample(range(1, 6), 4)])), _case(3, _at_once(ids, [4, 1, 2, 3, 2]))]
        return _named(*cases)

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        alone = {case: _play(answer[SCHEDULER], each) for case, each in inputs.items()}
        cleared = {case: _play(answer[SCHEDULER], each, clear=True) for case, each in inputs.items()}
        ids = [request_id for _, request_id, _ in next(iter(inputs.values()))["requests"]]
        others: list[Any] = []

        def disturbed(slots: int) -> Any:
            """A scheduler made between two others, which have other slots, and unfinished requests of the same ids."""
            before = answer[SCHEDULER](slots + 5)
            before.add(ids[0], 9)
            before.step()  # its request runs, those of the other one wait
            scheduler = answer[SCHEDULER](slots)
            after = answer[SCHEDULER](slots + 9)
            for request_id in ids:
                after.add(request_id, 9)
            others.extend((before, after))
            return scheduler

        together = {case: _play(disturbed, each) for case, each in inputs.items()}
        for other in others * 20:  # what is shared is left empty, so that the next check does not stumble over it
            call(lambda other=other: other.step())
        return {"alone": alone, "cleared": cleared, "together": together}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, each in inputs.items():
            self._same(case, each, _steps(case, each, values["alone"][case]), "a fresh scheduler is not empty")
            alone = values["alone"][case]
            for number, later in enumerate(alone["later"], start=1):
                now = alone["steps"][number - 1].get("returned")
                if later != now:
                    raise Wrong(
                        f"for {case}, step {number} returned {now}, but that list became {later} with later steps: "
                        "return a new list each time"
                    )
            self._same(
                case,
                each,
                _steps(case, each, values["cleared"][case]),
                "the caller emptied the lists it got, and the scheduler with them; return a new list each time",
            )
            self._same(
                case,
                each,
                _steps(case, each, values["together"][case]),
                "there are other schedulers, with requests of their own; what a scheduler holds must be made in "
                "__init__ and set on self, not on the class, in a global or in a default argument",
            )

    def _same(self, case: str, inputs: Mapping[str, Any], steps: Steps, cause: str) -> None:
        for number, (ids, wanted) in enumerate(zip(steps, _schedule(inputs), strict=False), start=1):
            if ids != wanted:
                raise Wrong(f"for {case}, step {number} returned {ids}, not {wanted}: {cause}")


check_tokens, check_slots, check_refill = CheckTokens(), CheckSlots(), CheckRefill()
check_order, check_arrivals = CheckOrder(), CheckArrivals()
check_has_unfinished, check_state = CheckHasUnfinished(), CheckState()

EXERCISE = Exercise(
    name="ex05_continuous_batching",
    checks=(
        check_tokens, check_slots, check_refill, check_order, check_arrivals, check_has_unfinished, check_state,
    ),
)  # fmt: skip
