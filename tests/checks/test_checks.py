"""The frame of the checks: the wall between run and judge, plain values, what a student sees."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import labsupport.checks
from labsupport.checks import CheckFailed, NotAttempted, exercise, exercises
from labsupport.checks.plain import Opaque, call, decode, describe, encode, plain

CATALOGUE = runpy.run_path(str(Path(__file__).parent / "catalogue" / "load.py"))
ex01 = labsupport.checks.ex01


def model_namespace(name: str) -> dict:
    namespace = {"__name__": "__main__", "torch": torch}
    exec("\n".join(CATALOGUE["model_answer"](name).values()), namespace)
    return namespace


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


# The wall ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", exercises())
def test_a_verdict_across_processes_is_the_verdict_in_one(name):
    namespace = model_namespace(name)
    for check in exercise(name).checks:
        inputs = check.inputs(5)
        sent = decode(encode({key: value for key, value in inputs.items() if not key.startswith("_")}))
        values = decode(encode(check.observe(namespace, sent)))
        assert check.verdict(inputs, values) == check.verdict(inputs, check.observe(namespace, inputs))
        assert check.verdict(inputs, values).passed


@pytest.mark.parametrize("name", exercises())
def test_inputs_depend_on_the_seed_alone(name):
    for check in exercise(name).checks:
        torch.manual_seed(1)
        first = check.inputs(3)
        torch.set_default_dtype(torch.float64)  # as a student may have done
        try:
            assert same(first, check.inputs(3))
        finally:
            torch.set_default_dtype(torch.float32)
        if check.name != "check_dequantize":
            assert not same(first, check.inputs(4))


@pytest.mark.parametrize("name", exercises())
@pytest.mark.parametrize(
    "forged", [None, [], {}, "passed", {"passed": True}, 7, {"a random vector": {"returned": True}}]
)
def test_forged_values_never_pass_nor_raise(name, forged):
    for check in exercise(name).checks:
        verdict = check.verdict(check.inputs(0), forged)
        assert not verdict.passed and verdict.points == 0


def test_running_the_students_code_needs_no_oracle():
    """`labsupport.quantization` may be missing from a sandbox, and held-out inputs are not shown to `run`."""
    code = "import sys; from labsupport.checks import ex01, ex04; sys.exit('labsupport.quantization' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
    check = labsupport.checks.ex04.check_output_error
    shown = []
    check.observe({"gptq_quantize": lambda weight, inputs, bits, group_size: shown.append(inputs)}, check.inputs(0))
    assert len(shown) == 2 and any(key.startswith("_") for key in check.inputs(0))


# Plain values --------------------------------------------------------------------------------------------------------


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


# Calls ---------------------------------------------------------------------------------------------------------------


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


# What a student sees -------------------------------------------------------------------------------------------------


def test_a_check_prints_one_line_or_raises_one_line(capsys):
    answer = model_namespace("ex01_int8_symmetric")
    ex01.check_scale(answer["quantize_int8"])
    assert (
        capsys.readouterr().out
        == "✓ check_scale (2 of 2 points): the scale is max|x| / 127, one number for the whole tensor\n"
    )
    with pytest.raises(CheckFailed) as failed:
        ex01.check_scale(lambda x, axis=None: (answer["quantize_int8"](x)[0], 127 / x.abs().max()))
    assert failed.value._render_traceback_() == [f"CheckFailed: {failed.value}"]
    assert "the reciprocal of max|x| / 127" in str(failed.value) and "\n" not in str(failed.value)
    assert capsys.readouterr().out == ""


def test_a_check_can_be_run_with_another_seed(capsys):
    ex01.check_codes(model_namespace("ex01_int8_symmetric")["quantize_int8"], seed=123)
    assert capsys.readouterr().out.startswith("✓")


def test_a_stub_says_not_attempted():
    def quantize_int8(x, axis=None):
        raise NotImplementedError

    with pytest.raises(NotAttempted, match="not attempted yet: fill in the answer cell above"):
        ex01.check_scale(quantize_int8)


def test_a_check_called_in_the_wrong_way_says_how_to_call_it():
    with pytest.raises(TypeError, match=r"call it as check_round_trip\(quantize_int8, dequantize_int8\)"):
        ex01.check_round_trip(lambda x: x)


def test_a_missing_function_is_not_attempted():
    verdict = ex01.check_scale.verdict({}, ex01.check_scale.observe({"quantize_int8": 3}, {}))
    assert not verdict.passed and not verdict.attempted and "there is no function quantize_int8" in verdict.message


def test_exercises_are_found_by_name():
    assert exercises() == sorted(exercises())
    assert labsupport.checks.ex04.EXERCISE is exercise("ex04_gptq")
    with pytest.raises(ValueError, match=r"ex01_int8_symmetric.*got 'ex99'"):
        exercise("ex99")
    with pytest.raises(AttributeError):
        _ = labsupport.checks.ex99


@pytest.mark.parametrize("name", exercises())
def test_names_of_checks_are_their_attributes_in_the_module(name):
    module = sys.modules[f"labsupport.checks.{name}"]
    assert all(getattr(module, check.name) is check for check in exercise(name).checks)
    assert exercise(name).name == name
