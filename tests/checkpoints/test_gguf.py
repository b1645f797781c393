"""GGUF files as the `gguf` package and llama.cpp read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from exported import ascii_tokenizer, in_llama_cpp, quantized, random_lm
from families import FAMILIES, hugging_face, ours

from labsupport.checkpoints import save, write_gguf
from labsupport.checkpoints.gguf import stored
from labsupport.lm import LanguageModel, Llama, load_lm
from labsupport.quantization import rtn_quantize

PROMPT = [3, 200, 17, 99, 5, 44, 250, 63, 12, 150, 8, 77]
KNOWN = [name for name in FAMILIES if name not in ("dynamic", "Qwen 2, windows", "Mistral", "Ministral")]


@pytest.mark.parametrize("group_size", [32, 64, 96])
@pytest.mark.parametrize(
    ("bits", "symmetric"), [(4, True), (4, False), (3, True), (3, False), (2, False), (8, True), (6, True)]
)
def test_a_grid_is_written_as_it_is(bits: int, symmetric: bool, group_size: int) -> None:
    """No second rounding, but for the minimum of an asymmetric grid, which is a float16 number in GGUF."""
    torch.manual_seed(bits)
    weight = rtn_quantize(torch.randn(6, 192), bits, group_size, symmetric)
    blocks, kind = stored("a layer", weight)
    read = torch.from_numpy(gguf.dequantize(blocks.numpy(), kind).copy())
    exact = symmetric and bits != 3
    lowest = float((weight.scale.float() * weight.zero_point).max())
    torch.testing.assert_close(read, weight.dequantize(), rtol=0, atol=0 if exact else lowest * 2.0**-11)


def test_what_blocks_cannot_hold() -> None:
    weight = torch.randn(4, 96)
    for grid, message in (
        (rtn_quantize(weight, 4, 48), "multiple of 32; some.layer has 48"),
        (rtn_quantize(weight, 8, 32), "symmetric=True"),
        (replace(rtn_quantize(weight, 4, 32), group_index=torch.zeros(96, dtype=torch.int32)), "static_groups=True"),
    ):
        with pytest.raises(ValueError, match=message):
            stored("some.layer", grid)


@pytest.mark.parametrize("family", KNOWN)
def test_llama_cpp_computes_the_model(tmp_path: Path, family: str) -> None:
    """Its own cache is float16, hence the tolerance; a wrong rotation, bias or factor moves these by tenths."""
    lm = replace(ours(hugging_face(family)), tokenizer=ascii_tokenizer())
    save(lm, tmp_path / "out", "gguf", kind="F32")
    assert_same(lm, tmp_path / "out" / "model.gguf", 0.03)


@pytest.mark.slow
@pytest.mark.parametrize("family", KNOWN)
def test_llama_cpp_computes_the_quantized_model(tmp_path: Path, family: str) -> None:
    """It rounds activations to 8 bits, too."""
    lm = quantized(replace(ours(hugging_face(family)), tokenizer=ascii_tokenizer()))
    save(lm, tmp_path / "out", "gguf", kind="F32")
    assert_same(lm, tmp_path / "out" / "model.gguf", 0.15)


def assert_same(lm: LanguageModel, path: Path, tolerance: float) -> None:
    """Log-probabilities of each step, given what llama.cpp chose before; it never chooses the end."""
    text = list(PROMPT)
    for step in in_llama_cpp(path, PROMPT, 8):
        with torch.no_grad():
            scores = lm.model(torch.tensor([text]))[0, -1]
        scores[lm.tokenizer.eos_token_id] = -torch.inf
        found = scores.log_softmax(-1)
        chosen = next(iter(step))
        assert float(found.max() - found[chosen]) < tolerance, "what it chose is the most likely here, too"
        assert {token: float(found[token]) for token in step} == pytest.approx(step, abs=tolerance)
        text.append(chosen)


@pytest.mark.parametrize(
    ("family", "why"),
    [("dynamic", "rope_scaling of kind dynamic after fewer"), ("Mistral", "a sliding window")],
)
def test_what_llama_cpp_does_not_compute_is_refused(tmp_path: Path, family: str, why: str) -> None:
    lm = replace(ours(hugging_face(family)), tokenizer=ascii_tokenizer())
    with pytest.raises(ValueError, match=why):
        write_gguf(lm, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


def test_what_lies_within_a_window_is_computed(tmp_path: Path) -> None:
    """The file's context is the window; the card says why."""
    family = replace(ours(hugging_face("Mistral")), tokenizer=ascii_tokenizer())
    config = replace(family.model.config, sliding_window=256, max_positions=2048)
    model = Llama(config).eval()
    model.load_state_dict(family.model.state_dict())
    lm = replace(family, model=model)
    with pytest.warns(UserWarning, match="right up to 256 tokens"):
        save(lm, tmp_path / "out", "gguf", kind="F32")
    assert_same(lm, tmp_path / "out" / "model.gguf", 0.03)
    assert field(gguf.GGUFReader(tmp_path / "out" / "model.gguf"), "llama.context_length") == 256
    assert "limit: llama.cpp computes no sliding window" in (tmp_path / "out" / "README.md").read_text()


def test_tiny_writes_the_same_text_in_llama_cpp(tmp_path: Path) -> None:
    lm = quantized(load_lm("tiny", verbose=False), "gptq")
    save(lm, tmp_path / "out", "gguf")
    prompt = lm.tokenizer.encode("The with statement")
    with torch.no_grad():
        text = list(prompt)
        for _ in range(16):
            text.append(int(lm.model(torch.tensor([text]))[0, -1, 1:].argmax()) + 1)
    assert [next(iter(step)) for step in in_llama_cpp(tmp_path / "out" / "model.gguf", prompt, 16)] == text[
        len(prompt) :
    ]


def field(reader: gguf.GGUFReader, name: str) -> Any:
    return reader.fields[name].contents()


def test_a_file_is_complete_for_every_reader(tmp_path: Path) -> None:
    """What OpenVINO GenAI and chat programs ask for besides; rows of the embedding without a token are named."""
    lm = random_lm(vocab_size=260)
    save(lm, tmp_path / "source", "huggingface")
    (tmp_path / "source" / "chat_template.jinja").write_text("{{ messages }}")
    save(load_lm(tmp_path / "source", verbose=False), tmp_path / "out", "gguf", kind="Q4_0")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    assert field(reader, "general.file_type") == 2 and field(reader, "general.quantization_version") == 2
    for name, value in {"padding_token_id": 0, "unknown_token_id": 0, "eos_token_id": 0, "add_space_prefix": False,
                        "add_bos_token": False, "pre": "gpt-2"}.items():  # fmt: skip
        assert field(reader, f"tokenizer.ggml.{name}") == value
    assert field(reader, "tokenizer.chat_template") == "{{ messages }}"
    assert field(reader, "tokenizer.ggml.tokens")[255:] == [lm.tokenizer.tokenizer.id_to_token(255),  # type: ignore
                                                          "[PAD256]", "[PAD257]", "[PAD258]", "[PAD259]"]  # fmt: skip
    kinds = field(reader, "tokenizer.ggml.token_type")
    assert kinds[0] == gguf.TokenType.CONTROL and kinds[256:] == [gguf.TokenType.UNUSED] * 4
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["token_embd.weight"] == "Q8_0" and types["blk.0.ffn_up.weight"] == "Q4_0"
    assert types["output_norm.weight"] == "F32"


def test_too_few_rows_and_unknown_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size of at least 256"):
        write_gguf(replace(random_lm(vocab_size=100), tokenizer=ascii_tokenizer()), tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=r"kind must be one of F32, F16, Q8_0, Q4_0, Q4_1, Q2_K, .*; got 'Q2'"):
        write_gguf(random_lm(), tmp_path / "model.gguf", "Q2")
    assert list(tmp_path.iterdir()) == []


def test_llama_3_factors_are_quotients_of_frequencies(tmp_path: Path) -> None:
    lm = replace(ours(hugging_face("Llama 3.1")), tokenizer=ascii_tokenizer())
    write_gguf(lm, tmp_path / "model.gguf", "F32")
    factors = next(
        each.data for each in gguf.GGUFReader(tmp_path / "model.gguf").tensors if each.name == "rope_freqs.weight"
    )
    scaling = lm.model.config.rope_scaling
    assert scaling is not None and factors[0] == 1 and factors[-1] == pytest.approx(scaling.factor)
    assert (np.diff(factors) >= 0).all()
