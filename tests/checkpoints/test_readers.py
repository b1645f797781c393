"""Our files in programs that want an environment of their own (`make test-readers`): OpenVINO GenAI reads GGUF, and
gptqmodel, inside transformers, GPTQ and AWQ.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import TOKENS, ascii_tokenizer, dequantized, logits, quantized
from families import hugging_face, ours

from labsupport.checkpoints import save
from labsupport.lm import LanguageModel, load_lm

PYTHON = os.environ.get("LABSUPPORT_READERS_PYTHON", "")
PROMPT = [3, 200, 17, 99, 5, 44, 250, 63, 12, 150, 8, 77]
TEXT = "The with statement is used"
pytestmark = [
    pytest.mark.readers,
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path(PYTHON or "nowhere").exists(),
        reason="no environment with OpenVINO GenAI and gptqmodel: `make test-readers` makes it, if it can be installed",
    ),
]


def asked(program: str, folder: Path, package: str) -> Any:
    """What ``program``, a function below, prints in the other environment."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    probe = subprocess.run([PYTHON, "-c", f"import {package}"], capture_output=True, text=True, env=environment)
    if probe.returncode:
        pytest.skip(f"{package} does not run here: {probe.stderr[-200:]}")
    command = [PYTHON, __file__, program, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def lm_of(name: str) -> LanguageModel:
    if name in ("tiny", "smollm2-135m"):
        return load_lm(name, verbose=False)
    return replace(ours(hugging_face(name)), tokenizer=ascii_tokenizer())


@torch.no_grad()
def greedy(lm: LanguageModel, tokens: list[int], count: int) -> list[int]:
    found = list(tokens)
    for _ in range(count):
        found.append(int(lm.model(torch.tensor([found]))[0, -1].argmax()))
    return found[len(tokens) :]


@pytest.mark.parametrize("how", ["F16", "4 bits"])
@pytest.mark.parametrize(
    "name", ["tiny", "Llama 2", "Qwen 2.5", "Qwen 3", pytest.param("smollm2-135m", marks=pytest.mark.smollm2)]
)
def test_openvino_writes_the_same_text(tmp_path: Path, name: str, how: str) -> None:
    """It rounds activations beside 4-bit weights, so of those the first tokens are compared."""
    lm = lm_of(name)
    lm = lm if how == "F16" else quantized(lm)
    save(lm, tmp_path / "out", "gguf", kind="F16" if how == "F16" else None)
    read = name in ("tiny", "smollm2-135m")  # the others' tokenizer has no spaces
    prompt = lm.tokenizer.encode(TEXT) if read else PROMPT
    (tmp_path / "out" / "prompt.json").write_text(json.dumps({"text": TEXT, "tokens": prompt}))
    answer = asked("openvino", tmp_path / "out", "openvino_genai")
    count = 16 if how == "F16" else 2
    assert answer["continued"][:count] == greedy(lm, prompt, count)
    assert answer["tokens"] == prompt or not read


@pytest.mark.parametrize("name", ["Llama 2", "Qwen 2.5", "Qwen 3"])
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("gptq", {"method": "rtn", "symmetric": True}),
        ("gptq", {"method": "gptq"}),
        ("gptq", {"method": "gptq", "act_order": True, "static_groups": False}),
        ("gptq", {"method": "rtn", "bits": 8, "symmetric": True}),
        ("awq", {"method": "awq"}),
    ],
    ids=["version 1", "version 2", "act-order", "8 bits", "AWQ"],
)
def test_gptqmodel_computes_the_model(tmp_path: Path, name: str, format: str, options: dict[str, Any]) -> None:
    """In float16, hence the tolerance: a zero point that is off by one moves these by whole numbers."""
    lm = quantized(lm_of(name), **options)
    save(lm, tmp_path / "out", format)
    (tmp_path / "out" / "prompt.json").write_text(json.dumps(TOKENS.tolist()))
    answer = asked("gptqmodel", tmp_path / "out", "gptqmodel")
    assert answer["layer"] != "Linear"
    theirs = torch.tensor(answer["logits"]).log_softmax(-1)
    wanted = logits(dequantized(lm.model)).log_softmax(-1)
    assert float((theirs - wanted).abs().max()) < 0.02 * float(wanted.std())


def openvino(folder: Path) -> dict[str, Any]:
    import numpy as np
    import openvino as ov  # type: ignore[import-not-found]
    import openvino_genai  # type: ignore[import-not-found]

    prompt = json.loads((folder / "prompt.json").read_text())
    pipeline = openvino_genai.LLMPipeline(str(folder / "model.gguf"), "CPU")
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.ignore_eos, config.apply_chat_template = 16, False, True, False
    answer = pipeline.generate(ov.Tensor(np.array([prompt["tokens"]], dtype=np.int64)), config)
    tokens = np.array(pipeline.get_tokenizer().encode(prompt["text"]).input_ids.data)[0]
    return {"continued": list(answer.tokens[0]), "tokens": tokens.tolist()}


def gptqmodel(folder: Path) -> dict[str, Any]:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, device_map="cpu").eval()
    with torch.no_grad():
        found = model(torch.tensor(json.loads((folder / "prompt.json").read_text()))).logits.float()
    return {"logits": found.tolist(), "layer": type(model.model.layers[0].mlp.up_proj).__name__}


if __name__ == "__main__":
    print(json.dumps({"openvino": openvino, "gptqmodel": gptqmodel}[sys.argv[1]](Path(sys.argv[2]))))
