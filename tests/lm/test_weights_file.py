"""Folders that are not what they seem: each is refused in a sentence, or read as its authors do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import logits, random_lm
from safetensors.torch import load_file, save_file
from torch import Tensor

from labsupport.checkpoints import save
from labsupport.lm import load_lm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(random_lm(), tmp_path / "model", "huggingface")
    (tmp_path / "model" / "labsupport.json").unlink()  # as others write it
    return tmp_path / "model"


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def configure(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("adapter_config.json", "adapter_model.safetensors"), "adapter .*merge_and_unload"),
        (("pytorch_model.bin",), "convert it to safetensors"),
        (("model-q4.gguf",), "GGUF file"),
        ((), "neither that nor an index"),
    ],
)
def test_folders_without_weights(folder: Path, files: tuple[str, ...], message: str) -> None:
    (folder / "model.safetensors").unlink()
    for name in files:
        (folder / name).write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        load_lm(folder, verbose=False)


def test_frequencies_that_old_files_store_are_computed(folder: Path) -> None:
    wanted = logits(load_lm(folder, verbose=False).model)
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    assert torch.equal(logits(load_lm(folder, verbose=False).model), wanted)


def test_a_head_of_its_own_wins_over_the_config(folder: Path) -> None:
    """As in transformers 5, which keeps it and warns."""
    import transformers

    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].flip(0)}))
    found = load_lm(folder, verbose=False).model
    assert not found.config.tie_embeddings
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(found), logits(theirs), atol=1e-4, rtol=1e-5)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert load_lm(folder, verbose=False).model.config.tie_embeddings


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_numbers_without_their_scale(folder: Path, dtype: torch.dtype) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"mlp.up_proj.weight is stored as {kind}.*which scale"):
        load_lm(folder, verbose=False)


def test_a_quantization_that_nobody_reads_here_is_named(folder: Path) -> None:
    configure(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(ValueError, match=r"quant_method 'bitsandbytes'.*labsupport, compressed-tensors, gptq, awq"):
        load_lm(folder, verbose=False)


def test_values_beyond_float16(folder: Path) -> None:
    def grow(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].bfloat16()
        tensors["model.norm.weight"][3] = 1e5

    rewrite(folder, grow)
    with pytest.raises(ValueError, match=r"norm.weight has values beyond 65,504.*bfloat16"):
        load_lm(folder, dtype=torch.float16, verbose=False)
    assert load_lm(folder, dtype=torch.bfloat16, verbose=False).model.norm.weight[3] > 9e4


def test_other_names_and_shapes_are_a_sentence(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 64)
        for index in range(40):
            tensors[f"vision.{index}"] = torch.zeros(1)

    rewrite(folder, change)
    with pytest.raises(ValueError, match=r"norm.weight is missing; .*and 39 more like this") as error:
        load_lm(folder, verbose=False)
    assert len(str(error.value)) < 400
