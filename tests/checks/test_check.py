"""The frame of the checks: the wall between run and judge, and what a student sees."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import labsupport.checks
from labsupport.checks import CheckFailed, NotAttempted, exercise, exercises
from labsupport.checks.plain import decode, encode

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
    assert len(shown) == 3 and any(key.startswith("_") for key in check.inputs(0))


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
