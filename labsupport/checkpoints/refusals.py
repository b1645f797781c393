"""What the commands refuse before any work: options that do not go together, and models that a format cannot hold."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labsupport.checkpoints.options import Dtype, Format, Kind, Method

if TYPE_CHECKING:
    from torch import Tensor

    from labsupport.lm import LanguageModel


def check_written(format: Format, dtype: Dtype | None, kind: Kind | None) -> None:
    """
    Raises:
        ValueError: ``kind`` or ``dtype`` has no meaning for the format.
    """
    if kind is not None and format is not Format.gguf:
        raise ValueError(f"--kind is for --format gguf; got --kind {kind.value} and --format {format.value}")
    if dtype is not None and format is Format.gguf:
        raise ValueError(f"--dtype is for other formats than gguf: give --kind F32 or F16; got --dtype {dtype.value}")


def check_method(
    method: Method | None, kind: Kind | None, bits: int | None, group_size: int | None, symmetric: bool,
    act_order: bool, static_groups: bool, smooth: bool,
) -> None:  # fmt: skip
    """
    Raises:
        ValueError: an option that the method would not heed.
    """
    own = {
        "--method": method is not None, "--bits": bits is not None, "--group-size": group_size is not None,
        "--symmetric": symmetric, "--act-order": act_order, "--static-groups": static_groups, "--smooth": smooth,
    }  # fmt: skip
    given = [name for name, present in own.items() if present]
    if kind is not None and kind.is_k_quant and given:
        raise ValueError(f"--kind {kind.value} is a method of its own: leave {', '.join(given)} out")
    method = method or Method.gptq
    whole = method in (Method.int8_dynamic, Method.int8_static)
    if whole and bits not in (None, 8):
        raise ValueError(f"--method {method.value} has 8 bits; got --bits {bits}: take rtn, gptq or awq")
    if whole and group_size is not None:
        raise ValueError(f"--method {method.value} has one scale a row: leave --group-size out, or take gptq")
    if symmetric and method not in (Method.rtn, Method.gptq):
        raise ValueError(f"--symmetric is for --method rtn and gptq; got {method.value}")
    if act_order and method is not Method.gptq:
        raise ValueError(f"--act-order is for --method gptq; got {method.value}")
    if static_groups and not act_order:
        raise ValueError("--static-groups says what --act-order does to groups: give --act-order, too")
    if smooth and not whole:
        raise ValueError(f"--smooth is for --method int8_dynamic and int8_static; got {method.value}")


def rehearse(
    lm: LanguageModel, windows: list[Tensor], method: str, options: dict[str, Any], format: Format,
    dtype: Dtype | None, kind: Kind | None,
) -> None:  # fmt: skip
    """All of it on the first layer and a few tokens.

    Raises:
        ValueError: what the format cannot hold.
    """
    from labsupport.pruning.llama import with_layers
    from labsupport.quantization import quantize_model

    first = with_layers(lm.model, [0])
    small: Any = quantize_model(first, [windows[0][:64]], method, progress=False, **options)
    _write(lm, small, format, dtype, kind)


def rehearse_float(lm: LanguageModel, format: Format, dtype: Dtype | None, kind: Kind | None) -> None:
    """The first layer, as it is, in the format.

    Raises:
        ValueError: what the format cannot hold.
    """
    from labsupport.pruning.llama import with_layers

    if format in (Format.compressed_tensors, Format.gptq, Format.awq):
        raise ValueError(f"--format {format.value} is for quantized models; take labsupport, huggingface or gguf")
    _write(lm, with_layers(lm.model, [0]), format, dtype, kind)


def _write(lm: LanguageModel, first: Any, format: Format, dtype: Dtype | None, kind: Kind | None) -> None:
    from labsupport.checkpoints import save
    from labsupport.checkpoints.command_steps import torch_dtype

    if format is Format.gguf:
        from labsupport.checkpoints.gguf_metadata import architecture

        architecture(lm.model.config)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(replace(lm, model=first), Path(folder) / "first", format.value, torch_dtype(dtype), kind and kind.value)
