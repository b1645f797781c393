"""Our files in programs that want an environment of their own (`make test-readers`): OpenVINO GenAI reads GGUF, and
gptqmodel, inside transformers, GPTQ and AWQ.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import ascii_tokenizer, dequantized, logits, quantized
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


def asked(program: str, folders: list[Path], package: str) -> list[Any]:
    """What ``program`` of readers.py says of each folder, in the other environment."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    probe = subprocess.run([PYTHON, "-c", f"import {package}"], capture_output=True, text=True, env=environment)
    if probe.returncode:
        pytest.skip(f"{package} does not run here: {probe.stderr[-200:]}")
    command = [PYTHON, str(Path(__file__).with_name("readers.py")), program, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(done.stdout.splitlines()[-1]))


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


@pytest.mark.smollm2
def test_openvino_writes_the_same_text(tmp_path: Path) -> None:
    """It rounds activations beside 4-bit weights, so of those the first tokens are compared."""
    cases = []
    for name in ("tiny", "Llama 2", "Qwen 2.5", "Qwen 3", "smollm2-135m"):
        lm = lm_of(name)
        read = name in ("tiny", "smollm2-135m")  # the others' tokenizer has no spaces
        prompt = lm.tokenizer.encode(TEXT) if read else PROMPT
        for kind, small in (("F16", lm), (None, quantized(lm))):
            folder = tmp_path / f"{name}-{kind}"
            save(small, folder, "gguf", kind=kind)
            (folder / "prompt.json").write_text(json.dumps({"text": TEXT, "tokens": prompt}))
            cases.append((folder, prompt, read, greedy(small, prompt, 16 if kind else 2)))
    answers = asked("openvino", [folder for folder, *_ in cases], "openvino_genai")
    for (folder, prompt, read, wanted), answer in zip(cases, answers, strict=True):
        assert answer["continued"][: len(wanted)] == wanted, folder.name
        assert answer["tokens"] == prompt or not read, folder.name


RESULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "version 1": ("gptq", {"method": "rtn", "symmetric": True}),
    "version 2": ("gptq", {"method": "gptq"}),
    "act-order": ("gptq", {"method": "gptq", "act_order": True, "static_groups": False}),
    "8 bits": ("gptq", {"method": "rtn", "bits": 8, "symmetric": True}),
    "AWQ": ("awq", {"method": "awq"}),
}


def test_gptqmodel_computes_the_model(tmp_path: Path) -> None:
    """In float16, hence the tolerance: a zero point that is off by one moves these by whole numbers."""
    cases = []
    for name in ("Llama 2", "Qwen 2.5", "Qwen 3"):
        lm = lm_of(name)
        for result, (format, options) in RESULTS.items():
            small, folder = quantized(lm, **options), tmp_path / f"{name}-{result}"
            save(small, folder, format)
            (folder / "prompt.json").write_text(json.dumps({"tokens": PROMPT}))
            cases.append((folder, logits(dequantized(small.model), torch.tensor([PROMPT]))[0].log_softmax(-1)))
    answers = asked("gptqmodel", [folder for folder, _ in cases], "gptqmodel")
    for (folder, wanted), answer in zip(cases, answers, strict=True):
        assert answer["layer"] != "Linear", folder.name
        theirs = torch.tensor(answer["logits"]).log_softmax(-1)
        assert float((theirs - wanted).abs().max()) < 0.02 * float(wanted.std()), folder.name
