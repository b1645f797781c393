"""Plain values: conversion, their way between processes, and calls of the student's functions."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labsupport.checks.plain import Opaque, call, decode, describe, encode, plain


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


class Equal:
    def __eq__(self, other):
        return True

    __hash__ = None  # type: ignore[assignment]


class EqualFloat(float):
    def __eq__(self, other):
        return True

    __hash__ = None  # type: ignore[assignment]


class EqualTensor(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return torch.tensor(True)


def test_objects_equal_to_everything_are_only_named():
    for evil in (Equal(), EqualFloat(1.0), torch.ones(2).as_subclass(EqualTensor), {1: 2}):
        for made in (plain(evil), plain((evil,))[0], plain({"a": evil})["a"]):
            assert type(made) is Opaque and made.type_name == type(evil).__name__  # `==` alone would be fooled


def test_ordinary_values_become_plain():
    assert plain(np.float32(0.5)) == 0.5 and type(plain(np.float32(0.5))) is float
    assert same(plain(np.arange(3, dtype=np.int8)), torch.arange(3, dtype=torch.int8))
    assert plain(namedtuple("Pair", "q scale")(1, 2.0)) == [1, 2.0]
    weight = torch.nn.Parameter(torch.ones(2, 3).T)
    copy = plain(weight)
    assert type(copy) is torch.Tensor and copy.is_contiguous() and not copy.requires_grad
    copy[0] = 5
    assert weight[0, 0] == 1
    endless: list = []
    endless.append(endless)
    assert "Opaque" in str(plain(endless))
    assert plain(torch.eye(2).to_sparse()) == Opaque("sparse_coo tensor of float32 on cpu")
    assert plain(np.array([object()])) == Opaque("numpy array of object")


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.builds(Opaque, st.text(max_size=5))
    | st.builds(lambda shape, dtype: torch.ones(shape).to(dtype), st.lists(st.integers(0, 3), max_size=3),
                st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool]))
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    )
)
def test_plain_values_survive_the_way_between_processes(value):
    assert same(decode(encode(value)), value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 40,
        encode([1])[:-3],
        encode(torch.ones(2)).replace(b"tensor", b"object"),
        encode({}).replace(b"dict", b"duct"),
        b"\x02" + b"\0" * 7 + b"[]",
    ],
)
def test_decode_refuses_what_encode_did_not_write(data):
    with pytest.raises(ValueError, match="must be what encode"):
        decode(data)


def test_describe_is_short():
    for value in (None, 1.5, torch.zeros(2, 3), [1, 2], Opaque("Evil"), "x" * 1000, 10**400):
        assert len(describe(plain(value))) < 80


def test_call_notices_arguments_that_change():
    x = torch.ones(3)
    outcome, _ = call(lambda a, b: a.add_(1), x, torch.zeros(2))
    assert outcome["changed"] == [0]
    assert torch.equal(x, torch.ones(3))  # it got a copy
    assert call(lambda a: a.resize_(1), x)[0]["changed"] == [0]
    assert call(lambda a: a + 1, x)[0]["changed"] == []


def test_torchs_own_not_implemented_error_is_an_attempt():
    def attempt(x):
        raise NotImplementedError("\"cholesky_cpu\" not implemented for 'Half'")

    def stub(x):
        raise NotImplementedError

    assert not call(attempt, 1)[0]["raised"]["not_attempted"]
    assert call(stub, 1)[0]["raised"]["not_attempted"]


def test_a_keyboard_interrupt_is_not_swallowed():
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(interrupted, 1)


def test_an_answer_that_draws_random_numbers_is_repeatable_and_leaves_the_generator_alone():
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    draws = [call(lambda: torch.rand(3))[0]["returned"] for _ in range(2)]
    assert torch.equal(*draws)
    assert torch.equal(before, torch.random.get_rng_state())
