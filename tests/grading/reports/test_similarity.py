"""Copies are found despite new names and layout; what everybody writes, and what the stub holds, does not count."""

from __future__ import annotations

import random
import re
import textwrap

import pytest

from labsupport.grading.reports.similarity import ENOUGH, normalized, runs, similar_pairs

ANSWER = '''
def quantize_int8(x, axis=None):
    """Return codes and scale."""
    values = x.detach().float()
    if axis is None:
        largest = values.abs().max()
    else:
        others = [d for d in range(values.dim()) if d != axis % values.dim()]
        largest = values.abs().amax(dim=others, keepdim=True)
    scale = (largest / 127).clamp(min=1e-12)
    codes = torch.round(values / scale).clamp(-127, 127)
    return codes.to(torch.int8), scale
'''
COPY = '''
def helper_unused():
    pass

def quantize_int8( tensor , axis = None ) :   # all mine!
        """Something else entirely."""
        v = tensor.detach( ).float( )
        if axis is None:
            m = (v.abs().max())
        else:
            dims = [i for i in range(v.dim()) if i != axis % v.dim()]
            m = v.abs().amax(dim=dims,
                             keepdim=True)
        s = (m / 127).clamp(min=1e-12)
        q = torch.round(v / s).clamp(-127, 127)
        return (q.to(torch.int8), s)
'''
OTHER = """
def quantize_int8(x, axis=None):
    import numpy as np
    array = np.asarray(x, dtype=np.float64)
    moved = array if axis is None else np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    top = np.abs(moved).max(axis=None if axis is None else 1)
    top = np.where(top == 0, 1.0, top)
    step = top / 127.0
    shape = [1] * array.ndim
    if axis is not None:
        shape[axis] = -1
        step = step.reshape(shape)
    return torch.tensor(np.rint(array / step), dtype=torch.int8), torch.tensor(step, dtype=torch.float32)
"""


def test_renaming_comments_and_layout_do_not_hide_a_copy():
    (pair,) = similar_pairs("ex01", {"alice": ANSWER, "bob": COPY, "carol": OTHER})
    assert (pair.first, pair.second, pair.exercise) == ("alice", "bob", "ex01")
    assert 0.9 < pair.similarity <= 1 and pair.runs >= ENOUGH


def test_what_is_called_still_counts():
    other = ANSWER.replace("amax", "amin").replace("round", "floor").replace("clamp", "clip")
    plain = similar_pairs("ex01", {"a": ANSWER, "b": ANSWER.replace("values", "v")}, threshold=0)
    changed = similar_pairs("ex01", {"a": ANSWER, "b": other}, threshold=0)
    assert plain[0].similarity == 1.0 and changed[0].similarity < 0.75


def test_the_stub_and_what_all_write_say_nothing():
    assert similar_pairs("ex01", {"a": ANSWER, "b": COPY}, stub=ANSWER) == []

    # a class in which everybody writes the same twenty lines, and each adds a few of their own
    def extra(i):
        return f"\n\ndef extra{i}(x):\n    return {' + '.join(f'x.part_{i}_{k}({k})' for k in range(9))}\n"

    own = {f"s{i}": ANSWER + extra(i) for i in range(20)}
    assert similar_pairs("ex01", own) == []
    own["s3"] = own["s7"].replace("extra7", "mine")
    assert [(pair.first, pair.second) for pair in similar_pairs("ex01", own)] == [("s3", "s7")]


def test_short_answers_are_not_compared():
    short = "def f(a, b):\n    return 2 * a * b\n"
    assert similar_pairs("ex02", {"a": short, "b": short}) == []


def test_a_ring_of_copies_in_a_class_is_found():
    rng = random.Random(0)

    def own(i):
        calls = [f"{rng.choice('abcdefgh')}{rng.randrange(99)}({rng.randrange(999)})" for _ in range(14)]
        lines = [f"    v{k} = x.{call} {rng.choice('+-*/')} v{k - 1}" for k, call in enumerate(calls, start=1)]
        return f"def f(x):\n    v0 = x\n{chr(10).join(lines)}\n    return v14\n"

    answers = {f"s{i:02}": own(i) for i in range(40)}
    for copy in ("s05", "s17", "s31"):
        answers[copy] = re.sub(r"\bv(\d+)\b", rf"w{copy}_\1", answers["s00"])
    found = similar_pairs("ex", answers)
    assert {name for pair in found for name in (pair.first, pair.second)} == {"s00", "s05", "s17", "s31"}
    assert len(found) == 6


def test_own_names_go_and_others_stay():
    tokens = normalized("def f(x):\n    y = torch.relu(x)\n    self.total = y\n    return self.total, len(y)")
    assert " ".join(tokens) == (
        "def name ( name ) : name = torch . relu ( name ) self . name = name return ( self . name , len ( name ) )"
    )


@pytest.mark.parametrize("source", [
    "%%bash\necho hi", "def f(:\n", "x = '''", "(" * 5000, "a" + ".b" * 20_000, "x = " + "-" * 20_000 + "1", "\0",
    "x=" + "[" * 90 + "]" * 90, "lambda: " * 900 + "1", "if 1:\n" + "".join(" " * i + "if 1:\n" for i in range(1, 99)),
    "x = 1" + "+1" * 20_000, "\udcff = 1", "1" * 9999,
])  # fmt: skip
def test_anything_can_be_compared(source):
    runs(source)
    similar_pairs("ex", {"a": source, "b": textwrap.dedent(ANSWER)})
