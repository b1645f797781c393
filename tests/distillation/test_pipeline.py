"""The pipeline: bytes are what the bits say, factors state their baseline, and the table holds every baseline."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from labsupport.distillation.classifier import (
    compress_digits,
    confidence_interval,
    digits_gain,
    digits_pruning,
    quantize_linears,
)
from labsupport.distillation.digits import load_digits, mlp
from labsupport.distillation.measuring import CompressionTable, count_weights, memory_bytes, stored_bytes
from labsupport.distillation.pipeline import compress_lm, small_student, training_pairs
from labsupport.lm import Llama, LlamaConfig, generate
from labsupport.lm.tokenizer import ByteTokenizer
from labsupport.lm.train import initialize
from labsupport.quantization.layers.integer import IntegerLinear


def toy(num_layers: int = 3, seed: int = 0) -> Llama:
    torch.manual_seed(seed)
    return initialize(Llama(LlamaConfig(256, 32, 48, num_layers=num_layers, num_heads=2, num_kv_heads=1))).eval()


# ------------------------------------------------------------------------------------------------- bytes


def test_size_is_that_of_a_file_which_is_written_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The document's version stops with a NameError and writes to one fixed name, which two runs would share."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    import safetensors.torch

    written: list[Path] = []
    save_file = safetensors.torch.save_file

    def watched(tensors: dict, path: Path) -> None:
        save_file(tensors, path)
        written.append(Path(path))
        with safe_open(path, "pt") as file:
            assert set(file.keys()) == {"0.weight", "0.bias", "2.weight", "2.bias"}

    monkeypatch.setattr(safetensors.torch, "save_file", watched)
    model = mlp((64, 8, 10))
    sizes = {stored_bytes(model), stored_bytes(model)}
    assert len(set(written)) == 2 and all(tmp_path in path.parents for path in written)
    assert list(tmp_path.iterdir()) == []
    (size,) = sizes
    weights = 4 * (64 * 8 + 8 + 8 * 10 + 10)
    assert memory_bytes(model) == weights
    assert weights < size < weights + 500  # the header


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_bits_are_honoured(bits: int) -> None:
    """The document's pipeline makes the same int8 model of 8 bits and of 4."""
    quantized = quantize_linears(mlp((64, 20, 10)), bits)
    shapes = ((20, 64), (10, 20))
    codes = sum(out * math.ceil(features * bits / 8) for out, features in shapes)
    # and for each row a float32 bias, a float16 scale and a zero point of as many bits as a code
    extra = sum(4 * out + 2 * out + math.ceil(out * bits / 8) for out, _ in shapes)
    assert memory_bytes(quantized) == codes + extra
    assert stored_bytes(quantized) < memory_bytes(quantized) + 1000
    for module in quantized.modules():
        if isinstance(module, IntegerLinear):
            assert all(len(row.unique()) <= 2**bits for row in module.dequantize())
    assert count_weights(quantized) == count_weights(mlp((64, 20, 10)))


def test_factors_state_the_precision_of_their_baseline() -> None:
    table = CompressionTable()
    for dtype in (torch.float32, torch.float16):
        table.add(str(dtype), mlp((64, 512, 10)).to(dtype), str(dtype), {"accuracy": 0.5})
    frame = table.to_frame()
    assert frame["times_smaller_than_float32"].tolist() == pytest.approx([1, 2], rel=0.01)
    assert frame["times_smaller_than_float16"].tolist() == pytest.approx([0.5, 1], rel=0.01)


def test_tied_weights_are_stored_and_counted_once() -> None:
    model = toy()
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert count_weights(model) == weights
    assert memory_bytes(model) == 4 * weights
    assert 4 * weights < stored_bytes(model) < 4 * weights + 5000
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    assert memory_bytes(model) == 4 * (weights + 256 * 32)


# ------------------------------------------------------------------------------------------------- language model


def test_a_student_is_some_of_its_teachers_layers() -> None:
    teacher = toy(num_layers=4)
    tokens = torch.randint(256, (2, 9))
    whole = small_student(teacher, 4)
    assert torch.equal(whole(tokens), teacher(tokens))
    student = small_student(teacher, 2)
    for ours, theirs in ((0, 0), (1, 3)):
        for name, value in teacher.layers[theirs].state_dict().items():
            assert torch.equal(student.layers[ours].state_dict()[name], value)
    assert student.lm_head.weight is student.embed_tokens.weight
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not {p.data_ptr() for p in student.parameters()} & {p.data_ptr() for p in teacher.parameters()}
    assert generate(student, tokens, max_tokens=3).shape == (2, 3)
    with pytest.raises(ValueError, match=r"num_layers must be between 1 and 4; got 5"):
        small_student(teacher, 5)


def test_training_pairs_are_the_text_moved_by_one() -> None:
    tokens = torch.arange(23)
    inputs, labels = training_pairs(tokens, 5)
    assert torch.equal(inputs.flatten(), tokens[:20]) and torch.equal(labels.flatten(), tokens[1:21])
    assert inputs.shape == (4, 5)
    with pytest.raises(ValueError, match="tokens must be more than seq_len = 23; got 23"):
        training_pairs(tokens, 23)


TOY: dict[str, Any] = {
    "num_layers": 2,
    "steps": 6,
    "recovery_steps": 3,
    "batch_size": 4,
    "seq_len": 32,
    "evaluation_windows": 2,
}
TOY |= {"repeats": 1, "progress": False}


def test_the_whole_chain_of_a_language_model() -> None:
    teacher = toy()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    table = compress_lm(teacher, ByteTokenizer(), bits=4, **TOY)
    frame = table.to_frame()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    chain = ["teacher", "student, distilled", "distilled, pruned", "distilled, pruned, quantized"]
    sizes = frame.loc[chain, "bytes_on_disk"].tolist()
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    neurons = table.models["distilled, pruned"].layers[0].mlp.down_proj.in_features
    assert neurons == pytest.approx(0.75 * 48)
    product, baselines = frame.loc[chain[-1]], frame[frame.index.str.startswith("baseline")]
    assert len(baselines) == 6
    assert baselines.loc["baseline: alone, pruned, quantized", "bytes_on_disk"] == product["bytes_on_disk"]
    longer, whole = (table.models[f"baseline: {name}"] for name in ("teacher, trained on", "distilled, not pruned"))
    for trained, from_ in ((longer, teacher), (whole, table.models[chain[1]])):
        ours, theirs = dict(trained.named_parameters()), dict(from_.named_parameters())
        assert ours.keys() == theirs.keys()
        assert not torch.equal(ours["layers.0.mlp.up_proj.weight"], theirs["layers.0.mlp.up_proj.weight"])
    # the same start, batches and steps, and still not the same student
    alone, distilled = (table.models[name].layers[0].mlp.up_proj.weight for name in ("student, alone", chain[1]))
    assert not torch.equal(alone, distilled)
    assert (frame["perplexity"] > 1).all() and (frame[["ms_128_tokens", "ms_1_token"]] > 0).all().all()
    assert frame.loc["baseline: teacher, quantized", "weights"] == "4-bit gptq"


def test_unstructured_zeros_are_held_and_save_no_bytes() -> None:
    table = compress_lm(toy(), ByteTokenizer(), pruning="magnitude", sparsity=0.5, method="rtn", **TOY)
    frame = table.to_frame()
    assert frame.loc["distilled, pruned", "bytes_on_disk"] == frame.loc["student, distilled", "bytes_on_disk"]
    pruned = table.models["distilled, pruned"].layers[1].mlp.up_proj.weight
    assert (pruned == 0).float().mean() == 0.5
    quantized = table.models["distilled, pruned, quantized"].layers[1].mlp.up_proj.dequantize()
    assert (quantized[pruned == 0] == 0).all()


# ------------------------------------------------------------------------------------------------- digits


def test_digits_are_all_there_and_in_one_part_only() -> None:
    digits = load_digits(seed=3)
    assert len(digits.train_x) + len(digits.test_x) == 1797
    rows = torch.cat((digits.train_x, digits.test_x))
    assert len(rows.unique(dim=0)) == 1797
    assert rows.min() == 0 and rows.max() == 1
    assert not torch.equal(digits.test_y, load_digits(seed=4).test_y)


def test_the_whole_chain_of_a_classifier() -> None:
    table = compress_digits(steps=150, recovery_steps=50, teacher_sizes=(64, 128, 10), repeats=1)
    frame = table.to_frame()
    chain = ["teacher", "student, distilled", "distilled, pruned", "distilled, pruned, quantized"]
    sizes = frame.loc[chain, "bytes_on_disk"].tolist()
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    assert table.models["distilled, pruned"][0].out_features == 16
    assert frame.loc[chain[:3], "accuracy"].min() > 0.85
    assert frame.loc[chain[3], "accuracy"] > 0.7


def test_a_distilled_student_beats_the_same_student_alone() -> None:
    """The quick version of benchmarks/distillation.py: three seeds, and only the mean."""
    frame = digits_gain(range(3))
    assert frame["gain"].tolist() == pytest.approx((frame["distilled"] - frame["alone"]).tolist())
    assert frame["teacher"].min() > 0.95
    assert frame["gain"].mean() > 0


def test_pruning_with_equal_budgets_is_one_table() -> None:
    frame = digits_pruning(range(2), sizes=(64, 32, 10))
    seeds = frame[["seed 0", "seed 1"]]
    assert frame["mean"].tolist() == pytest.approx(seeds.mean(axis=1).tolist())
    assert frame["lowest"].tolist() == seeds.min(axis=1).tolist()
    assert frame["highest"].tolist() == seeds.max(axis=1).tolist()
    assert frame["zeros"].tolist() == pytest.approx([0] + [0.9] * 7, abs=1e-3)
    assert frame["epochs since reset"].tolist() == [40, 0, 40, 40, 40, 8, 40, 40]
    assert frame.loc["one cut", "mean"] > frame.loc["one cut, not trained", "mean"]


def test_confidence_interval_is_students() -> None:
    """t(0.975, 4) = 2.776: any table of the distribution."""
    low, high = confidence_interval([1, 2, 3, 4, 5])
    half = 2.7764 * math.sqrt(2.5 / 5)
    assert (low, high) == pytest.approx((3 - half, 3 + half), rel=1e-4)
    with pytest.raises(ValueError, match="values must be at least 2; got 1"):
        confidence_interval([1.0])
