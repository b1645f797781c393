"""Peak memory of compressing a model: layer by layer from disk to disk, and read as a whole.

    python benchmarks/compress_memory.py [--method rtn] [--layers 22] [--hidden 2048] [--tokens 2048] [--whole]

The model is random, in float16, of TinyLlama's shape (1.1 billion parameters); nothing but its sizes matters here.
Each figure is a process of its own: the largest resident memory, less what it was once everything was imported.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from labsupport.lm import LlamaConfig
from labsupport.lm.config_writing import config_to_hugging_face
from labsupport.lm.folder import write_json
from labsupport.lm.model import DecoderLayer

RUN = """
import sys
from pathlib import Path
from labsupport.checkpoints import save
from labsupport.checkpoints.command_steps import peak_megabytes
from labsupport.checkpoints.streaming import quantize_by_layer
from labsupport.lm import load_lm
from labsupport.lm.by_layer import open_folder
from labsupport.quantization import quantize_model
from dataclasses import replace
import torch
folder, method, tokens, whole = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "whole"
windows = list((torch.arange(tokens) % 255 + 1).split(512))
torch.ones(512, 512) @ torch.ones(512, 512)
peak = lambda: peak_megabytes() * 1e6
before = peak()
if whole:
    lm = load_lm(folder, verbose=False)
    small = quantize_model(lm.model, windows, method)
else:
    lm = open_folder(folder)
    small = quantize_by_layer(lm, windows, method, {"bits": 4, "group_size": 64}, folder / "work")
save(replace(lm, model=small), folder / sys.argv[4])
print(peak() - before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="rtn")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--tokens", type=int, default=2048, help="of calibration")
    parser.add_argument("--whole", action="store_true", help="read as a whole, too: needs twice the model in float32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = random_checkpoint(folder, options.layers, options.hidden, options.vocabulary)
        rest, layer = 2 * config.vocab_size * config.hidden_size, numbers_of(config)
        whole = options.layers * layer + rest
        million = [each / 1e6 for each in (whole, 4 * whole, 4 * layer, 4 * rest)]
        print(
            "{:,.0f} million parameters: {:,.0f} MB in float32, a layer {:,.0f}, embedding and head {:,.0f}".format(
                *million
            )
        )
        print(f"{options.method}, {options.tokens:,} calibration tokens")
        for way in ("layers", "whole") if options.whole else ("layers",):
            print(f"{way:8} peak {peak_bytes(folder, options.method, options.tokens, way) / 1e6:,.0f} MB", flush=True)


def random_checkpoint(folder: Path, layers: int, hidden: int, vocabulary: int) -> LlamaConfig:
    """Written layer by layer, in shards."""
    config = LlamaConfig(
        vocabulary, hidden, hidden * 11 // 4, layers, num_heads=hidden // 64, num_kv_heads=max(1, hidden // 512),
        tie_embeddings=False,
    )  # fmt: skip
    where: dict[str, str] = {}
    outside = {name: torch.randn(vocabulary, hidden) * 0.02 for name in ("model.embed_tokens.weight", "lm_head.weight")}
    for index in range(-1, layers):
        if index < 0:
            tensors = outside | {"model.norm.weight": torch.ones(hidden)}
        else:
            layer = DecoderLayer(config, index).state_dict()
            tensors = {f"model.layers.{index}.{name}": value for name, value in layer.items()}
        path = folder / f"model-{index + 2:05}-of-{layers + 1:05}.safetensors"
        save_file({name: value.half() for name, value in tensors.items()}, path)
        where |= dict.fromkeys(tensors, path.name)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    write_json(folder / "config.json", config_to_hugging_face(config, 0))
    write_json(folder / "labsupport.json", {"tokenizer": "bytes"})
    return config


def numbers_of(config: LlamaConfig) -> int:
    with torch.device("meta"):
        return sum(each.numel() for each in DecoderLayer(config, 0).parameters())


def peak_bytes(folder: Path, method: str, tokens: int, way: str) -> int:
    command = [sys.executable, "-c", RUN, str(folder), method, str(tokens), way]
    return round(float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


if __name__ == "__main__":
    main()
