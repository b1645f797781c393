"""llama.cpp's K-quants, by llama.cpp's own code: super-blocks of 256 weights, with scales of blocks that are quantized.

Where the error counts is said by an importance matrix: of each column the mean of its squared inputs, which is what
`llama-imatrix` collects. llama.cpp's library is the one inside the package xllamacpp.

Where columns are no multiple of 256, and for the head (or an embedding that is the head, too), llama.cpp takes another
kind (`kind_of`, after ``llama_tensor_get_type_impl`` and ``tensor_type_fallback`` of llama-quant.cpp). Q4_K_M and
Q5_K_M are its mixtures: the values' matrices and the MLP's second ones of every third layer, and of the first and the
last eighth, have 6 bits. Without importance these files are `llama-quantize`'s own, its rule for 70B models aside.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from labsupport.lm.calibrate import check_calibration, stages
from labsupport.lm.model import Llama

# Name -> (kind of most matrices, kind of those that matter more, llama.cpp's number of the whole)
K_KINDS = {
    "Q2_K": (Kind.Q2_K, Kind.Q2_K, 21), "Q3_K": (Kind.Q3_K, Kind.Q3_K, 11), "Q4_K": (Kind.Q4_K, Kind.Q4_K, 14),
    "Q5_K": (Kind.Q5_K, Kind.Q5_K, 16), "Q6_K": (Kind.Q6_K, Kind.Q6_K, 18),
    "Q4_K_M": (Kind.Q4_K, Kind.Q6_K, 15), "Q5_K_M": (Kind.Q5_K, Kind.Q6_K, 17),
}  # fmt: skip
_FALLBACK = {Kind.Q2_K: Kind.Q4_0, Kind.Q3_K: Kind.Q4_0, Kind.Q4_K: Kind.Q5_0, Kind.Q5_K: Kind.Q5_1,
             Kind.Q6_K: Kind.Q8_0}  # fmt: skip


@torch.no_grad()
def column_importance(model: Llama, calibration: Sequence[Tensor]) -> dict[str, Tensor]:
    """Of each linear layer of the blocks, the mean of each column's squared inputs, float32 [in].

    Args:
        calibration: 1-D int64 tensors of tokens.

    Raises:
        ValueError: the calibration is not such a list; an input is NaN or infinite.
    """
    found: dict[str, Tensor] = {}
    for stage in stages(model, check_calibration(calibration, model.config.vocab_size)):
        total = torch.zeros(stage.in_features, dtype=torch.float64, device=model.embed_tokens.weight.device)
        for batch in stage.inputs:
            total += batch.double().square().sum((0, 1))
        found |= dict.fromkeys(stage.full_names, (total / stage.hidden.num_tokens).float().cpu())
    return found


def kind_of(part: str, columns: int, name: str, num_layers: int, tied: bool = False) -> Kind:
    """Of the tensor that llama.cpp calls ``part``, as `llama-quantize` chooses it for a Llama."""
    kind, more, _ = K_KINDS[name]
    if part == "output.weight" or (tied and part == "token_embd.weight"):
        kind = Kind.Q6_K
    elif part.endswith(("attn_v.weight", "ffn_down.weight")):
        layer, eighth = int(part.split(".")[1]), num_layers // 8
        matters = layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
        kind = more if matters else kind
    if columns % GGML_QUANT_SIZES[kind][0]:
        kind = _FALLBACK[kind]
    return Kind.F16 if columns % GGML_QUANT_SIZES[kind][0] else kind


def quantize_rows(weight: Tensor, kind: Kind, importance: Tensor | None = None) -> np.ndarray:
    """The bytes of each row, uint8 [out, bytes].

    Args:
        weight: [out, in]; in must fill whole blocks.
        importance: float32 [in], not negative; None: llama.cpp's own guess, from the weights. A column that the
            calibration did not reach counts a ten-thousandth of the mean: with 0, llama.cpp would make blocks of such
            columns zero.

    Raises:
        ValueError: xllamacpp is not installed, or has no library to call.
    """
    library = _library()
    rows = np.ascontiguousarray(weight.detach().float().cpu().numpy())
    out_features, in_features = rows.shape
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if in_features % block:
        raise ValueError(f"weight must have a multiple of {block} columns for {kind.name}; got {in_features}")
    found = np.empty((out_features, in_features // block * block_bytes), np.uint8)
    columns = None if importance is None else importance.float().cpu().numpy()
    if columns is not None:
        if columns.shape != (in_features,) or not (columns >= 0).all():
            raise ValueError(f"importance must be {in_features} numbers of at least 0; got shape {columns.shape}")
        columns = np.maximum(columns, 1e-4 * columns.mean()) if columns.any() else None

    def quantize(start: int) -> None:
        count = min(step, out_features - start)
        library.ggml_quantize_chunk(
            int(kind), rows[start:].ctypes.data, found[start:].ctypes.data, 0, count, in_features,
            None if columns is None else columns.ctypes.data,
        )  # fmt: skip

    threads = torch.get_num_threads()  # ctypes lets go of the interpreter's lock
    step = -(-out_features // threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(quantize, range(0, out_features, step)))
    return found


def _library() -> Any:
    if importlib.util.find_spec("xllamacpp") is None:
        raise ValueError("K-quants need llama.cpp's library, which the package xllamacpp brings: pip install xllamacpp")
    spec = importlib.util.find_spec("xllamacpp.xllamacpp")
    library = None if spec is None or spec.origin is None else ctypes.CDLL(spec.origin)
    if not hasattr(library, "ggml_quantize_chunk"):
        raise ValueError("K-quants need an xllamacpp whose library shows ggml_quantize_chunk; this system's does not")
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]  # type: ignore
    library.ggml_quantize_chunk.restype = ctypes.c_size_t  # type: ignore[union-attr]
    return library
