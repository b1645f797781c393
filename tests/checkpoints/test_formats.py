"""What is written is the model: for us bit for bit, for the programs that the formats are made for as they compute."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import WINDOWS, dequantized, in_transformers, logits, quantized, random_lm
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from labsupport.checkpoints import FORMATS, save
from labsupport.checkpoints.layers import pack_words, unpack_words
from labsupport.lm import load_lm
from labsupport.lm.folder import save_lm
from labsupport.pruning import prune_llama, prune_model

RESULTS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "4 bits": ("gptq", {}, ("labsupport", "compressed-tensors", "gptq", "awq")),
    "4 bits, symmetric": ("rtn", {"symmetric": True}, ("labsupport", "compressed-tensors", "gptq", "awq")),
    "AWQ": ("awq", {}, ("labsupport", "compressed-tensors", "gptq", "awq")),
    "a scale a row": ("rtn", {"group_size": None}, ("labsupport", "compressed-tensors", "gptq", "awq")),
    "8 bits": ("gptq", {"bits": 8}, ("labsupport", "compressed-tensors", "gptq")),
    "8 bits, a symmetric scale a row": (
        "rtn", {"bits": 8, "symmetric": True, "group_size": None}, ("labsupport", "compressed-tensors", "gptq"),
    ),
    "2 bits": ("rtn", {"bits": 2}, ("labsupport", "gptq")),
    "3 bits": ("rtn", {"bits": 3}, ("labsupport",)),
    "act-order": ("gptq", {"act_order": True, "static_groups": False}, ("labsupport", "gptq")),
    "act-order, static groups": (
        "gptq", {"act_order": True, "static_groups": True}, ("labsupport", "compressed-tensors", "gptq", "awq"),
    ),
    "W8A8": ("int8_dynamic", {}, ("labsupport", "compressed-tensors")),
    "W8A8, static": ("int8_static", {"smooth": 0.5}, ("labsupport",)),
    "an 8-bit head": ("gptq", {"head_bits": 8}, ("labsupport",)),
    "W8A8 with its head": ("int8_dynamic", {"head_bits": 8}, ("labsupport",)),
}  # fmt: skip


def held_by(format: str) -> list[str]:
    return [name for name, (_, _, formats) in RESULTS.items() if format in formats]


HELD = [(result, format) for result, (_, _, formats) in RESULTS.items() for format in formats]
REFUSED = [
    (result, format)
    for result, (_, _, formats) in RESULTS.items()
    for format in ("labsupport", "compressed-tensors", "gptq", "awq")
    if format not in formats
]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """With biases of queries, keys and values, as Qwen 2 has them."""
    lm = random_lm(qkv_bias=True)
    return {name: quantized(lm, method, **options) for name, (method, options, _) in RESULTS.items()}


@pytest.mark.parametrize(("result", "format"), HELD)
def test_it_is_loaded_bit_for_bit(results: dict[str, Any], tmp_path: Path, result: str, format: str) -> None:
    lm = results[result]
    save(lm, tmp_path / "out", format, torch.float32 if format != "labsupport" else None)
    loaded = load_lm(tmp_path / "out", verbose=False)
    assert torch.equal(logits(loaded.model), logits(lm.model))
    names = ["layers.1.mlp.up_proj", "lm_head"]
    assert [type(loaded.model.get_submodule(name)) for name in names] == [
        type(lm.model.get_submodule(name)) for name in names
    ]
    assert loaded.tokenizer.encode("with it") == lm.tokenizer.encode("with it")


@pytest.mark.parametrize(("result", "format"), REFUSED)
def test_what_a_format_cannot_hold_is_refused(
    results: dict[str, Any], tmp_path: Path, result: str, format: str
) -> None:
    with pytest.raises(ValueError, match=f"format {format}"):
        save(results[result], tmp_path / "out", format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "result", [name for name, (_, _, formats) in RESULTS.items() if "compressed-tensors" in formats]
)
def test_compressed_tensors_in_transformers(results: dict[str, Any], tmp_path: Path, result: str) -> None:
    import transformers

    save(results[result], tmp_path / "out", "compressed-tensors", torch.float32)
    options = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}
    theirs = logits(in_transformers(tmp_path / "out", **options))
    torch.testing.assert_close(theirs, logits(dequantized(results[result].model)), atol=1e-4, rtol=1e-5)


def test_compressed_tensors_as_it_is(results: dict[str, Any], tmp_path: Path) -> None:
    save(results["4 bits, symmetric"], tmp_path / "out", "compressed-tensors", torch.float32)
    theirs = logits(in_transformers(tmp_path / "out"))
    torch.testing.assert_close(theirs, logits(dequantized(results["4 bits, symmetric"].model)), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("result", held_by("awq"))
def test_awq_by_another_converter(results: dict[str, Any], tmp_path: Path, result: str) -> None:
    """compressed-tensors' own reader of AWQ checkpoints; what it makes of ours is what we write in its format."""
    from compressed_tensors.entrypoints.convert import AutoAWQConverter

    save(results[result], tmp_path / "awq", "awq")
    save(results[result], tmp_path / "own", "compressed-tensors")
    config = json.loads((tmp_path / "awq" / "config.json").read_text())["quantization_config"]
    theirs = AutoAWQConverter.from_autoawq_config(config).process(load_file(tmp_path / "awq" / "model.safetensors"))
    own = load_file(tmp_path / "own" / "model.safetensors")
    symmetric = not any(name.endswith("zero_point") for name in own)
    assert theirs.keys() - own.keys() <= (
        {name for name in theirs if name.endswith("zero_point")} if symmetric else set()
    )
    assert all(torch.equal(value, theirs[name]) for name, value in own.items())


@pytest.mark.parametrize("result", ["4 bits", "4 bits, symmetric", "8 bits", "2 bits", "act-order", "a scale a row"])
def test_gptq_by_its_definition(results: dict[str, Any], tmp_path: Path, result: str) -> None:
    """One weight after the other, as the format's documentation says."""
    lm = results[result]
    save(lm, tmp_path / "out", "gptq")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    about = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    bits, more = about["bits"], {"gptq": 1, "gptq_v2": 0}[about["checkpoint_format"]]
    assert about["sym"] == (more == 1) and about["desc_act"] == (result == "act-order")
    for name in ("layers.0.self_attn.k_proj", "layers.1.mlp.down_proj"):
        words, zeros, scales, index = (
            tensors[f"model.{name}.{part}"].tolist() for part in ("qweight", "qzeros", "scales", "g_idx")
        )

        def code(word: int, place: int) -> int:
            return (word % 2**32 >> bits * place) % 2**bits

        wanted, a_word = lm.model.get_submodule(name).dequantize(), 32 // bits
        for row in range(0, wanted.shape[0], 5):
            for column in range(wanted.shape[1]):
                group = index[column]
                zero = code(zeros[group][row // a_word], row % a_word) + more
                value = scales[group][row] * (code(words[column // a_word][row], column % a_word) - zero)
                assert value == pytest.approx(float(wanted[row, column]), rel=1e-6)


@given(st.sampled_from([1, 2, 4, 8]), st.data())
def test_words(bits: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(st.integers(0, 2**bits - 1), min_size=9, max_size=9), min_size=1, max_size=3))
    words = pack_words(torch.tensor(rows), bits)
    naive = [[sum(code << bits * place for place, code in enumerate(row[start : start + 32 // bits]))
              for start in range(0, 9, 32 // bits)] for row in rows]  # fmt: skip
    assert [[word % 2**32 for word in row] for row in words.tolist()] == naive
    assert unpack_words(words, bits, 9).tolist() == rows


@pytest.mark.parametrize("format", ["labsupport", "huggingface"])
@pytest.mark.parametrize("made", ["untouched", "neurons and heads", "2:4", "dequantized", "dequantized with its head"])
def test_float_results_in_transformers(tmp_path: Path, format: str, made: str) -> None:
    lm = random_lm()
    small = {
        "untouched": lambda: lm.model,
        "neurons and heads": lambda: prune_llama(lm.model, WINDOWS, 0.3, kv_groups=1, progress=False),
        "2:4": lambda: prune_model(lm.model, WINDOWS, "wanda", pattern="2:4", progress=False),
        "dequantized": lambda: quantized(lm).model,
        "dequantized with its head": lambda: quantized(lm, head_bits=8).model,
    }[made]()
    if made.startswith("dequantized") and format == "labsupport":
        pytest.skip("that format keeps integers")
    save(replace(lm, model=small), tmp_path / "out", format)
    torch.testing.assert_close(
        logits(in_transformers(tmp_path / "out")), logits(dequantized(small)), atol=1e-4, rtol=1e-5
    )
    loaded = load_lm(tmp_path / "out", verbose=False)
    torch.testing.assert_close(logits(loaded.model), logits(dequantized(small)), atol=1e-5, rtol=1e-5)


def test_tiny_is_a_model_for_others_too(tmp_path: Path) -> None:
    import transformers

    lm = load_lm("tiny", verbose=False)
    save(lm, tmp_path / "out", "huggingface")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("naïve — “x”\n\tdef f():  pass", " two  spaces "):
        assert tokenizer(text).input_ids == lm.tokenizer.encode(text)
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.eos_token_id == lm.tokenizer.eos_token_id
    torch.testing.assert_close(logits(in_transformers(tmp_path / "out")), logits(lm.model), atol=1e-4, rtol=1e-5)
    assert type(load_lm(tmp_path / "out", verbose=False).tokenizer) is type(lm.tokenizer)


def test_a_folder_is_complete_and_for_everybody(tmp_path: Path) -> None:
    """What the source has is carried over as it is; a card says what this is; all may read it."""
    lm = random_lm()
    save(lm, tmp_path / "source", "huggingface")
    files = {"generation_config.json": '{"eos_token_id": [0, 5]}', "chat_template.jinja": "{{ messages }}",
             "special_tokens_map.json": "{}", "LICENSE": "free"}  # fmt: skip
    for name, text in files.items():
        (tmp_path / "source" / name).write_text(text)
    config = json.loads((tmp_path / "source" / "config.json").read_text()) | {"eos_token_id": [0, 5], "bos_token_id": 3}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    small = quantized(load_lm(tmp_path / "source", verbose=False))
    save(
        small,
        tmp_path / "out",
        "compressed-tensors",
        about={"method": "rtn", "perplexity": {"before": 2.0, "after": 2.5}},
    )
    out = tmp_path / "out"
    assert {name: (out / name).read_text() for name in files} == files
    assert (out / "tokenizer.json").read_bytes() == (tmp_path / "source" / "tokenizer.json").read_bytes()
    written = json.loads((out / "config.json").read_text())
    assert (written["eos_token_id"], written["bos_token_id"], written["dtype"]) == ([0, 5], 3, "float16")
    card = (out / "README.md").read_text()
    for part in ("method: rtn", "before 2, after 2.5", "a test", "vllm serve", "from_pretrained", "LICENSE"):
        assert part in card
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o644}


def test_bad_input(tmp_path: Path) -> None:
    lm = random_lm()
    with pytest.raises(ValueError, match=r"format must be one of labsupport, .*; got 'onnx'"):
        save(lm, tmp_path / "out", "onnx")
    with pytest.raises(ValueError, match="kind is for format gguf"):
        save(lm, tmp_path / "out", "awq", kind="F16")
    for format in ("compressed-tensors", "gptq", "awq"):
        with pytest.raises(ValueError, match="take huggingface"):
            save(lm, tmp_path / "out", format)
    with pytest.raises(ValueError, match=r"labsupport\.checkpoints\.save"):
        save_lm(quantized(lm), tmp_path / "out")
    with torch.no_grad():
        lm.model.norm.weight[0] = 1e6
    with pytest.raises(ValueError, match="dtype must hold every weight"):
        save(lm, tmp_path / "out", "huggingface", torch.float16)
    assert list(tmp_path.iterdir()) == [] and set(FORMATS) > {"gguf"}
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("important")
    with pytest.raises(FileExistsError):
        save(lm, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "thesis.txt").read_text() == "important"
