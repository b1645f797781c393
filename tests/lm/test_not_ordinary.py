"""Numbers and models that are not ordinary: a layer that nothing reaches, NaN, half precision, another library's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exported import WINDOWS, random_lm
from families import hugging_face

from labsupport.distillation import Distiller
from labsupport.inference import LLMEngine
from labsupport.lm import Llama, perplexity
from labsupport.lm.calibrate import nmse
from labsupport.pruning import prune_llama, prune_model
from labsupport.quantization import quantize_model
from labsupport.quantization.smoothquant import smooth_model

QUANTIZERS = ("rtn", "gptq", "awq", "int8_dynamic", "int8_static")
PRUNERS = ("magnitude", "wanda", "sparsegpt")
DOWN = "layers.1.mlp.down_proj"


def run(name: str, model: Any) -> Any:
    if name in QUANTIZERS:
        return quantize_model(model, WINDOWS, name, progress=False)
    if name == "smooth":
        return smooth_model(model, WINDOWS, 0.5)
    return prune_model(model, WINDOWS, name, progress=False)


@pytest.mark.parametrize("method", [*QUANTIZERS, *PRUNERS])
def test_a_layer_that_nothing_reaches(method: str) -> None:
    """Its inputs are all zero: there is nothing to compensate, and its error is 0."""
    model = random_lm().model
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight.zero_()  # type: ignore[union-attr]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = run(method, model)
    report = getattr(result, "quantization_report", None) or result.pruning_report
    assert {layer.name: layer.error for layer in report.layers}[DOWN] == 0
    if method == "gptq":
        assert [str(each.message) for each in told] == [
            f"all inputs of {DOWN} are zero in the calibration: rounded to nearest"
        ]
        rounded = run("rtn", model).get_submodule(DOWN).dequantize()
        assert torch.equal(result.get_submodule(DOWN).dequantize(), rounded)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", [*QUANTIZERS, *PRUNERS, "smooth"])
def test_weights_that_are_no_numbers_are_named(method: str, value: float) -> None:
    model = random_lm().model
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[3, 5] = value  # type: ignore[index, union-attr]
    with pytest.raises(ValueError, match=f"weight.* {DOWN} must be finite"):
        run(method, model)


@pytest.mark.parametrize("method", [*QUANTIZERS, *PRUNERS, "smooth"])
def test_activations_that_are_no_numbers_are_named(method: str) -> None:
    model = random_lm().model
    with torch.no_grad():
        model.layers[1].post_attention_layernorm.weight[7] = float("nan")  # type: ignore[index, union-attr]
    with pytest.raises(ValueError, match=r"inputs of layers\.1\.mlp\.gate_proj must be finite"):
        run(method, model)


def test_an_error_that_is_no_number_is_not_zero() -> None:
    ones, zeros = torch.ones(4), torch.zeros(4)
    assert nmse(ones * float("nan"), ones) != nmse(ones * float("nan"), ones)
    assert nmse(ones, ones * float("nan")) != nmse(ones, ones * float("nan"))
    assert (nmse(zeros, zeros), nmse(ones, zeros), nmse(zeros, ones)) == (0.0, float("inf"), 1.0)


def test_a_student_that_overflows_is_told_at_once_and_unharmed() -> None:
    student = random_lm().model.half()
    with torch.no_grad():
        student.embed_tokens.weight *= 60_000
    before = {name: value.clone() for name, value in student.state_dict().items()}
    tokens = torch.stack(WINDOWS)
    distiller = Distiller(student, None, alpha=0.0, batch_size=2)
    with pytest.raises(ValueError, match=r"step 1: the loss is .*float16.*float32"):
        distiller.train((tokens[:, :-1], tokens[:, 1:]), 3, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


ENTRIES: dict[str, Callable[[Any], Any]] = {
    "quantize_model": lambda model: quantize_model(model, WINDOWS, progress=False),
    "prune_model": lambda model: prune_model(model, WINDOWS, progress=False),
    "prune_llama": lambda model: prune_llama(model, WINDOWS, progress=False),
    "perplexity": lambda model: perplexity(model, WINDOWS[0]),
}


@pytest.mark.parametrize("entry", [*ENTRIES, "LLMEngine"])
def test_a_model_of_transformers_is_named(entry: str) -> None:
    theirs = hugging_face("Llama 2")
    with pytest.raises(ValueError, match=r"got transformers' LlamaForCausalLM: model\.save_pretrained\(folder\)"):
        (ENTRIES | {"LLMEngine": LLMEngine})[entry](theirs)


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_language_model_is_not_its_network(entry: str) -> None:
    with pytest.raises(ValueError, match=r"got a LanguageModel: give its \.model"):
        ENTRIES[entry](random_lm())


def test_the_engine_needs_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="lm must be a LanguageModel, which load_lm gives; got a Llama"):
        LLMEngine(random_lm().model)  # type: ignore[arg-type]
    assert isinstance(random_lm().model, Llama)
