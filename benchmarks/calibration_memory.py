"""What calibration needs beside the model, measured: peak memory against the number of calibration tokens.

    python benchmarks/calibration_memory.py [--tokens 4096 16384 65536] [--methods gptq wanda] [--layers 2]

Two layers of SmolLM2's shape with random weights, since every layer needs the same again. Each figure is a process of
its own: the largest resident memory during the run, less what the process holds once the model is made and one window
has been through. The unit of the last column is what one token takes as an input of down_proj in float32, the widest
input of a layer; it counts what each token adds beyond the fewest tokens of the table, so that the constant part
(copies of the weights, Hessians) is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import torch

from labsupport.checkpoints.command_steps import peak_megabytes
from labsupport.lm import Llama, LlamaConfig
from labsupport.pruning import prune_model
from labsupport.quantization import quantize_model

HIDDEN, INTERMEDIATE, SEQ_LEN = 576, 1536, 512
ROW = 4 * INTERMEDIATE  # bytes
PRUNERS = ("magnitude", "wanda", "sparsegpt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--methods", nargs="+", default=["gptq", "awq", "int8_static", "wanda", "sparsegpt"])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(bytes_above_the_model(options.one[0], int(options.one[1]), options.layers)))
        return
    print(f"{'method':12} {'tokens':>7} {'MB above the model':>19} {'bytes a token':>14} {'rows of down_proj':>18}")
    for method in options.methods:
        first: tuple[int, int] | None = None
        for tokens in sorted(options.tokens):
            peak = in_a_process(method, tokens, options.layers)
            slope = "" if first is None else f"{(peak - first[1]) / (tokens - first[0]):14.0f}"
            rows = "" if first is None else f"{(peak - first[1]) / (tokens - first[0]) / ROW:18.2f}"
            print(f"{method:12} {tokens:7,} {peak / 1e6:19.0f} {slope:>14} {rows:>18}", flush=True)
            first = first or (tokens, peak)


def in_a_process(method: str, tokens: int, layers: int) -> int:
    command = [sys.executable, __file__, "--layers", str(layers), "--one", method, str(tokens)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def bytes_above_the_model(method: str, tokens: int, layers: int) -> int:
    torch.manual_seed(0)
    model = Llama(LlamaConfig(1000, HIDDEN, INTERMEDIATE, layers, num_heads=9, num_kv_heads=3)).eval()
    windows = list(torch.randint(0, 1000, (tokens // SEQ_LEN, SEQ_LEN)))
    with torch.no_grad():
        model(windows[0][None])
    before = int(1e6 * (peak_megabytes() or 0))
    run: Any = prune_model if method in PRUNERS else quantize_model
    run(model, windows, method, progress=False)
    return int(1e6 * (peak_megabytes() or 0)) - before


if __name__ == "__main__":
    main()
