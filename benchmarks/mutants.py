"""Who grades the graders: ``python benchmarks/mutants.py [EXERCISE ...] [--show all]``, some minutes for all.

Every small change that the operators of tests/checks/mutation know is made to each exercise's model answer, and graded
with three seeds. A mutant must be killed, or stand in tests/checks/mutation/equivalents.py with the reason why it is a
right answer. Ends with an error if one survives, if a listed one is killed or no longer made, or if over a tenth are
listed.

``--show survivors`` (the default) prints those, ``--show all`` each mutant, with what killed it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import pandas as pd

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

from checks.mutation.equivalents import EQUIVALENTS  # noqa: E402
from checks.mutation.grading import grade_mutants  # noqa: E402

from labsupport.checks import exercises  # noqa: E402

MAX_EQUIVALENT = 0.1  # of all mutants
# Exercise 6 starts a server for each check, which takes a quarter of an hour for all mutants: by name only.
BY_DEFAULT = tuple(name for name in exercises() if not name.startswith("ex06"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("exercise", nargs="*", default=BY_DEFAULT)
    parser.add_argument("--show", choices=("survivors", "all"), default="survivors")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    options = parser.parse_args()
    rows, failed = [], False
    for name in options.exercise:
        started = time.perf_counter()
        outcomes = grade_mutants(name, options.workers)
        listed = {key for keys in EQUIVALENTS.get(name, {}).values() for key in keys}
        survivors = [outcome for outcome in outcomes if outcome.survives]
        surviving = [outcome for outcome in survivors if outcome.key not in listed]
        stale = listed - {outcome.key for outcome in survivors}
        for outcome in outcomes if options.show == "all" else surviving:
            fate = f"SURVIVES with seeds {outcome.lucky}" if outcome.survives else outcome.killed_by
            print(f"{name[:4]} {fate} | {outcome.key} | {outcome.message}")
        for key in sorted(stale):
            print(f"{name[:4]} listed as equivalent, but killed or not made | {key}")
        equivalent = len(survivors) - len(surviving)
        rows.append({"exercise": name, "mutants": len(outcomes), "killed": len(outcomes) - len(survivors),
                     "equivalent": equivalent, "surviving": len(surviving),
                     "by time": sum(outcome.killed_by == "time" for outcome in outcomes),
                     "seconds": round(time.perf_counter() - started)})  # fmt: skip
        failed |= bool(surviving or stale) or equivalent > MAX_EQUIVALENT * len(outcomes)
    print(pd.DataFrame(rows).to_string(index=False))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
