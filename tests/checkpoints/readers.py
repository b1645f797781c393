"""What the programs of `make test-readers` make of folders with a ``prompt.json``; runs in their environment.

python readers.py openvino|gptqmodel FOLDER...      prints a list, one entry a folder
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def openvino(folder: Path, prompt: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import openvino as ov  # type: ignore[import-not-found]
    import openvino_genai  # type: ignore[import-not-found]

    pipeline = openvino_genai.LLMPipeline(str(folder / "model.gguf"), "CPU")
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.ignore_eos, config.apply_chat_template = 16, False, True, False
    answer = pipeline.generate(ov.Tensor(np.array([prompt["tokens"]], dtype=np.int64)), config)
    tokens = np.array(pipeline.get_tokenizer().encode(prompt["text"]).input_ids.data)[0]
    return {"continued": [int(token) for token in answer.tokens[0]], "tokens": tokens.tolist()}


def gptqmodel(folder: Path, prompt: dict[str, Any]) -> dict[str, Any]:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, device_map="cpu").eval()
    tokens = list(prompt["tokens"])
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].float()
        for _ in range(16):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    layer = type(model.model.layers[0].mlp.up_proj).__name__
    return {"logits": logits.tolist(), "continued": tokens[len(prompt["tokens"]) :], "layer": layer}


if __name__ == "__main__":
    program = {"openvino": openvino, "gptqmodel": gptqmodel}[sys.argv[1]]
    folders = map(Path, sys.argv[2:])
    print(json.dumps([program(folder, json.loads((folder / "prompt.json").read_text())) for folder in folders]))
