"""Layer by layer from disk to disk: the same result as in memory, after an interruption as well."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import WINDOWS, logits, random_lm
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from labsupport.checkpoints import save
from labsupport.checkpoints.streaming import prune_by_layer, quantize_by_layer
from labsupport.cli import app
from labsupport.lm import LanguageModel, load_lm, perplexity
from labsupport.lm.by_layer import in_memory, open_folder
from labsupport.lm.folder import save_lm
from labsupport.pruning import prune_model
from labsupport.quantization import quantize_model

QUANTIZED: dict[str, dict[str, Any]] = {
    "rtn": {}, "gptq": {"act_order": True}, "awq": {}, "int8_dynamic": {"smooth": True}, "int8_static": {"smooth": 0.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "model"
    save_lm(random_lm(num_layers=3, qkv_bias=True), path)
    return path


def options(method: str) -> dict[str, Any]:
    return {"bits": 4, "group_size": 32} | QUANTIZED[method]


def equal(one: Any, other: Any) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_model_on_disk_is_the_model(folder: Path) -> None:
    whole, opened = load_lm(folder, verbose=False), open_folder(folder)
    assert str(whole) == str(opened)
    assert torch.equal(logits(opened.model), logits(whole.model))
    assert not [name for name, each in opened.model.layers.named_parameters() if not each.is_meta]
    assert equal(in_memory(opened.model), whole.model)
    tokens = torch.arange(120) % 250
    assert perplexity(opened.model, tokens, 40) == perplexity(whole.model, tokens, 40)


@pytest.mark.parametrize("method", QUANTIZED)
def test_quantized_by_layer_is_quantized_in_memory(folder: Path, tmp_path: Path, method: str) -> None:
    whole = load_lm(folder, verbose=False).model
    expected: Any = quantize_model(whole, WINDOWS, method, progress=False, **options(method))
    found: Any = quantize_by_layer(open_folder(folder), WINDOWS, method, options(method), tmp_path / "work", False)
    assert equal(in_memory(found), expected)
    got, wanted = found.quantization_report, expected.quantization_report
    assert (got.layers, got.bytes_before, got.bytes_after) == (wanted.layers, wanted.bytes_before, wanted.bytes_after)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_pruned_by_layer_is_pruned_in_memory(folder: Path, tmp_path: Path, method: str) -> None:
    expected: Any = prune_model(load_lm(folder, verbose=False).model, WINDOWS, method, 0.5, "2:4", progress=False)
    found: Any = prune_by_layer(open_folder(folder), WINDOWS, method, 0.5, "2:4", tmp_path / "work", False)
    assert equal(in_memory(found), expected)
    assert found.pruning_report.layer_sparsity == expected.pruning_report.layer_sparsity
    assert found.pruning_report.error == expected.pruning_report.error


@pytest.mark.parametrize("lost", [None, "hidden-00002.safetensors"])
def test_an_interrupted_run_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str | None
) -> None:
    """At the first layer that is not finished; with the states before it lost, one layer earlier is made again."""

    def by_layer(lm: LanguageModel, work: Path) -> Any:
        return quantize_by_layer(lm, WINDOWS, "int8_static", options("int8_static"), work, False)

    expected = in_memory(by_layer(open_folder(folder), tmp_path / "whole"))
    lm, asked = open_folder(folder), list[int]()
    layers: Any = lm.model.layers
    read = layers.read

    def interrupted(index: int) -> Any:
        asked.append(index)
        if index == 2:
            raise KeyboardInterrupt
        return read(index)

    monkeypatch.setattr(layers, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        by_layer(lm, tmp_path / "work")
    assert {path.name for path in (tmp_path / "work").iterdir()} == {
        ".lock", "run.json", "layer-00000.safetensors", "layer-00001.safetensors", "hidden-00002.safetensors",
    }  # fmt: skip
    asked.clear()

    def noted(index: int) -> Any:
        asked.append(index)
        return read(index)

    monkeypatch.setattr(layers, "read", noted)
    found = by_layer(lm, tmp_path / "work")
    assert asked == [2] and equal(in_memory(found), expected)
    asked.clear()
    by_layer(lm, tmp_path / "work")  # nothing is left to do
    assert asked == []


def test_interrupted_between_a_layer_and_the_states_behind_it(folder: Path, tmp_path: Path) -> None:
    def by_layer(lm: LanguageModel, work: Path) -> Any:
        return quantize_by_layer(lm, WINDOWS, "gptq", options("gptq"), work, False)

    expected = in_memory(by_layer(open_folder(folder), tmp_path / "work"))
    for name in ("layer-00001.safetensors", "layer-00002.safetensors"):
        (tmp_path / "work" / name).unlink()
    assert equal(in_memory(by_layer(open_folder(folder), tmp_path / "work")), expected)


def test_another_run_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    lm, work = open_folder(folder), tmp_path / "work"
    quantize_by_layer(lm, WINDOWS, "rtn", options("rtn"), work, False)
    with pytest.raises(ValueError, match=r"unfinished run with bits 4; this one has bits 3: finish that one"):
        quantize_by_layer(lm, WINDOWS, "rtn", options("rtn") | {"bits": 3}, work, False)
    with pytest.raises(ValueError, match="other calibration tokens"):
        quantize_by_layer(lm, WINDOWS[:1], "rtn", options("rtn"), work, False)
    with pytest.raises(ValueError, match="unfinished run with method rtn"):
        prune_by_layer(lm, WINDOWS, "wanda", 0.5, None, work, False)
    other = tmp_path / "other"
    weights = load_file(folder / "model.safetensors")
    save_lm(load_lm(folder, verbose=False), other)
    weights["model.norm.weight"][0] += 1
    save_file(weights, other / "model.safetensors")
    with pytest.raises(ValueError, match="another model"):
        quantize_by_layer(replace(lm, folder=other), WINDOWS, "rtn", options("rtn"), work, False)


@pytest.mark.parametrize(
    ("method", "format"),
    [("gptq", "labsupport"), ("gptq", "huggingface"), ("gptq", "compressed-tensors"), ("awq", "awq"), ("rtn", "gptq"),
     ("int8_dynamic", "compressed-tensors"), ("int8_static", "labsupport")],
)  # fmt: skip
def test_shards_hold_what_one_file_holds(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, format: str
) -> None:
    given = {"bits": 4, "group_size": 32}
    lm = open_folder(folder)
    small = replace(lm, model=quantize_by_layer(lm, WINDOWS, method, given, tmp_path / "work", False))
    save(small, tmp_path / "one", format)
    monkeypatch.setattr(sys.modules["labsupport.checkpoints.save"], "_IN_MEMORY", 0)
    save(small, tmp_path / "shards", format)
    one = load_file(tmp_path / "one" / "model.safetensors")
    shards: dict[str, torch.Tensor] = {}
    for path in sorted((tmp_path / "shards").glob("*.safetensors")):
        shards |= load_file(path)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) == 4
    assert one.keys() == shards.keys() and all(torch.equal(one[name], shards[name]) for name in one)
    config: list[dict[str, Any]] = [
        json.loads((tmp_path / each / "config.json").read_text()) for each in ("one", "shards")
    ]
    for each in config:
        quantization = each.get("quantization_config", {})
        quantization["ignore"] = sorted(quantization.get("ignore", []))
    assert config[0] == config[1]
    loaded = [load_lm(tmp_path / each, verbose=False) for each in ("one", "shards")]
    assert torch.equal(logits(loaded[0].model), logits(loaded[1].model))


def test_layers_that_do_not_go_together_are_written_as_a_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zero points of one layer happen to be those of a symmetric grid, which says nothing of the others."""
    lm = open_folder(folder)
    small = replace(lm, model=quantize_by_layer(lm, WINDOWS, "rtn", options("rtn"), tmp_path / "work", False))
    whole = in_memory(small.model)
    for _, layer in whole.layers[0].named_modules():
        if hasattr(layer, "packed_zero_point"):
            layer.packed_zero_point.fill_(0x88)
    read = small.model.layers.read  # type: ignore[operator, union-attr]
    monkeypatch.setattr(small.model.layers, "read", lambda index: whole.layers[0] if index == 0 else read(index))  # type: ignore[operator]
    monkeypatch.setattr(sys.modules["labsupport.checkpoints.save"], "_IN_MEMORY", 0)
    save(small, tmp_path / "out", "compressed-tensors", torch.float32)
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]
    assert torch.equal(logits(load_lm(tmp_path / "out", verbose=False).model), logits(small.model))


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """kill -9 of the command itself, and the same command again."""
    command = ["compress", "tiny", "--method", "gptq", "--sequences", "4", "--seq-len", "128", "--out"]
    work, out = tmp_path / "killed.partial", tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "labsupport.cli", *command, str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not (work / "layer-00001.safetensors").is_file():
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not out.exists() and (work / "run.json").is_file()
    for again in (out, tmp_path / "whole"):
        outcome = CliRunner().invoke(app, [*command, str(again)])
        assert outcome.exit_code == 0, outcome.output
    assert not work.exists()
    killed, whole = (load_file(path / "model.safetensors") for path in (out, tmp_path / "whole"))
    assert killed.keys() == whole.keys() and all(torch.equal(killed[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_one_layer_is_in_memory(root: Path) -> None:
    """A model of 16 layers, of 45 MB each in float32, is never held by half, not even once."""
    script = [sys.executable, str(root / "benchmarks" / "compress_memory.py"), "--hidden", "1024", "--layers", "16"]
    told = subprocess.run([*script, "--vocabulary", "2000"], check=True, capture_output=True, text=True).stdout
    sizes, peak = re.search(r": ([\d,]+) MB in float32, a layer ([\d,]+)", told), re.search(r"peak ([\d,]+) MB", told)
    assert sizes and peak
    whole, layer, most = (int(each.replace(",", "")) for each in (*sizes.groups(), peak[1]))
    assert whole > 15 * layer and most < whole / 2
