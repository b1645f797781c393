"""K-quants: what is in the file is what llama.cpp computes with, and important columns err less."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from exported import WINDOWS, ascii_tokenizer, logits, quantized, random_lm
from gguf import GGMLQuantizationType as Kind
from llama_cpp import LlamaCpp, library

from labsupport.checkpoints import gguf_kquants, save
from labsupport.checkpoints.gguf import as_stored
from labsupport.checkpoints.gguf_kquants import column_importance, kind_of, quantize_rows
from labsupport.lm import LanguageModel
from labsupport.lm.activations import layer_inputs

KINDS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def wide_lm() -> LanguageModel:
    return random_lm(hidden_size=256, intermediate_size=512, num_heads=4, num_kv_heads=2, num_layers=2)


@pytest.mark.parametrize("kind", KINDS)
def test_important_columns_err_less(kind: str) -> None:
    torch.manual_seed(0)
    weight, importance = torch.randn(32, 512), torch.rand(512) ** 4

    def error(given: torch.Tensor | None) -> float:
        read = torch.from_numpy(gguf.dequantize(quantize_rows(weight, Kind[kind], given), Kind[kind]).copy())
        return float(((read - weight).square() * importance).sum() / (weight.square() * importance).sum())

    assert error(importance) < 0.85 * error(None)
    assert error(torch.zeros(512)) == error(None), "nothing is known of any column"
    half = torch.cat([torch.zeros(256), torch.ones(256)])
    read = gguf.dequantize(quantize_rows(weight, Kind[kind], half), Kind[kind])
    assert np.abs(read[:, :256]).mean() > 0.5, "blocks that the calibration did not reach are kept"


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_what_llama_cpp_reads(kind: str) -> None:
    torch.manual_seed(0)
    data = quantize_rows(torch.randn(8, 512), Kind[kind], torch.rand(512))
    theirs = np.empty((8, 512), np.float32)
    reader = getattr(library(), f"dequantize_row_{kind.replace('Q', 'q')}")
    reader.argtypes, reader.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    reader(data.ctypes.data, theirs.ctypes.data, theirs.size)
    np.testing.assert_array_equal(gguf.dequantize(data, Kind[kind]), theirs)


def test_threads_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, importance = torch.randn(7, 256), torch.rand(256)
    found = []
    for threads in (1, 3, 7, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(quantize_rows(weight, Kind.Q4_K, importance))
    assert all((each == found[0]).all() for each in found)


def test_importance_is_the_mean_square_of_a_column() -> None:
    lm = random_lm(qkv_bias=True)
    names = ["layers.0.self_attn.v_proj", "layers.1.self_attn.o_proj", "layers.1.mlp.up_proj", "layers.1.mlp.down_proj"]
    found = column_importance(lm.model, [*WINDOWS, WINDOWS[0][:10]])
    inputs = [layer_inputs(lm.model, window[None], names) for window in (*WINDOWS, WINDOWS[0][:10])]
    for name in names:
        wanted = torch.cat([each[name] for each in inputs]).square().mean(0)
        torch.testing.assert_close(found[name], wanted)
    assert len(found) == 2 * 7


@pytest.mark.parametrize("kind", [*KINDS, "Q4_K_M"])
def test_llama_cpp_computes_the_file(tmp_path: Path, kind: str) -> None:
    """Its products round activations to 8 bits, which shows in hundredths of the logits' spread."""
    lm = replace(wide_lm(), tokenizer=ascii_tokenizer())
    save(lm, tmp_path / "out", "gguf", kind=kind, calibration=WINDOWS)
    stored = as_stored(lm.model, kind, column_importance(lm.model, WINDOWS))
    tokens = list(range(1, 60))
    program = LlamaCpp(tmp_path / "out" / "model.gguf")
    theirs = program.logits(tokens).log_softmax(-1)
    program.close()
    ours, before = (logits(model, torch.tensor([tokens]))[0].log_softmax(-1) for model in (stored, lm.model))
    assert (theirs - ours).abs().mean() < 0.02 * ours.std()
    if kind in ("Q2_K", "Q3_K", "Q4_K"):
        assert (theirs - ours).abs().mean() < 0.3 * (before - ours).abs().mean()
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.ffn_up.weight"] == kind[:4] and types["token_embd.weight"] == "Q6_K"
    assert f"kind: {kind}" in (tmp_path / "out" / "README.md").read_text()


def test_other_kinds_where_llama_quantize_takes_them() -> None:
    """Its table, for a Llama of 16 layers: the first two and the last two, and every third between, matter more."""
    more = [layer for layer in range(16) if kind_of(f"blk.{layer}.attn_v.weight", 512, "Q4_K_M", 16) is Kind.Q6_K]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]
    assert kind_of("blk.3.ffn_down.weight", 512, "Q4_K_M", 16) is Kind.Q4_K
    assert kind_of("blk.4.attn_k.weight", 512, "Q4_K_M", 16) is Kind.Q4_K
    narrow = {kind: kind_of("blk.3.attn_k.weight", 96, kind, 16).name for kind in KINDS}
    assert narrow == {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
    assert kind_of("blk.3.attn_k.weight", 40, "Q4_K", 16) is Kind.F16
    assert kind_of("token_embd.weight", 512, "Q4_K", 16, tied=True) is Kind.Q6_K
    assert kind_of("token_embd.weight", 512, "Q4_K", 16) is Kind.Q4_K
    assert kind_of("output.weight", 96, "Q2_K", 16) is Kind.Q8_0


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = random_lm()
    for arguments, message in (
        ({"kind": "Q8_0", "calibration": WINDOWS}, "calibration is for kinds Q2_K"),
        ({"kind": "Q4_K", "calibration": []}, "at least one window"),
        ({"dtype": torch.float16}, "give kind F32 or F16"),
    ):
        with pytest.raises(ValueError, match=message):
            save(lm, tmp_path / "out", "gguf", **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quantized already: leave kind out"):
        save(quantized(lm), tmp_path / "out", "gguf", kind="Q4_K")
    with pytest.raises(ValueError, match="multiple of 256 columns for Q4_K; got 96"):
        quantize_rows(torch.zeros(4, 96), Kind.Q4_K)
    with pytest.raises(ValueError, match="importance must be 256 numbers"):
        quantize_rows(torch.zeros(4, 256), Kind.Q4_K, torch.ones(4))
    monkeypatch.setattr(gguf_kquants.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install xllamacpp"):
        save(lm, tmp_path / "out", "gguf", kind="Q4_K")
    assert list(tmp_path.iterdir()) == []
