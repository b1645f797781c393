"""Plain values: the only values that pass from a student's code to a verdict.

A plain value is None, a bool, int, float or str, a strided CPU tensor, a list or a dict (with str keys) of plain
values, or `Opaque`, the name of the type of anything else. `plain` converts by exact type: a subclass of Tensor or
float may redefine `==` or `__torch_function__` to be equal to everything, so only its type is named. `encode` and
`decode` carry plain values between processes as JSON and safetensors; unlike pickle, reading them runs no code.
"""

from __future__ import annotations

import json
import linecache
import struct
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

Plain: TypeAlias = Any  # recursive: see the module's docstring
_running: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None = None
_NUMPY_SCALARS = frozenset(np.sctypeDict.values()) - {np.object_, np.void}


@dataclass(frozen=True)
class Opaque:
    """Stands for an object that is not a plain value."""

    type_name: str


def plain(value: Any, depth: int = 8) -> Plain:
    """Convert ``value``; what is nested deeper than ``depth`` or of an unknown type becomes `Opaque`."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (Tensor, torch.nn.Parameter):
        return _plain_tensor(value)
    if kind in _NUMPY_SCALARS:
        return plain(value.item(), 0)
    if kind is np.ndarray:
        try:
            return _plain_tensor(torch.from_numpy(value.copy()))
        except TypeError:  # a dtype that torch lacks, such as object
            return Opaque(f"numpy array of {value.dtype}")
    if isinstance(value, tuple | list) and depth:
        length = tuple.__len__(value) if isinstance(value, tuple) else list.__len__(value)
        items = tuple.__iter__(value) if isinstance(value, tuple) else list.__iter__(value)
        return (
            [plain(item, depth - 1) for item in items]
            if length <= 10_000
            else Opaque(f"{kind.__name__} of {length} items")
        )
    if kind is dict and depth and all(type(key) is str for key in value):
        return {key: plain(item, depth - 1) for key, item in value.items()}
    return Opaque(kind.__name__)


def _plain_tensor(tensor: Tensor) -> Plain:
    """A copy on the CPU that shares nothing with ``tensor``."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.device.type == "meta":
        return Opaque(f"{tensor.layout} tensor of {tensor.dtype} on {tensor.device}".replace("torch.", ""))
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def describe(value: Plain) -> str:
    """``value`` in a few words, for messages: "a tensor of int64 [3, 4]"."""
    if value is None:
        return "None (is there a `return`?)"
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Opaque):
        return f"an object of type {value.type_name}"
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"the {type(value).__name__} {str(value)[:40]}"


def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[dict[str, Plain], Any]:
    """Call the student's ``function`` on copies of the ``arguments``.

    Returns a plain outcome and the very object that came back (None if the call raised). The outcome is
    ``{"returned": plain value, "changed": positions of tensor arguments that are no longer as given}`` or
    ``{"raised": {type, message, line, code, not_attempted}}``.
    """
    global _running
    _running = function, arguments, options
    given = [argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # an answer that draws random numbers gets the same numbers each time
            result = function(*given, **options)
            returned = plain(result)
    except (Exception, SystemExit) as error:  # exit() must not end the check quietly
        return {"raised": _explain(error)}, None
    finally:
        _running = None
    changed = [i for i, (now, before) in enumerate(zip(given, arguments, strict=True))
               if isinstance(before, Tensor) and not _same(now, before)]  # fmt: skip
    return {"returned": returned, "changed": changed}, result


def running_call() -> str:
    """The call of the student's code that runs now, such as "quantize_int8(a tensor of float32 [3, 4], axis=1)"."""
    if _running is None:
        return ""
    function, arguments, options = _running
    name = getattr(function, "__name__", "")
    if name == "<lambda>":  # a check's own, around what it calls last
        name = (function.__code__.co_names or ("",))[-1]
    values = [_spelled(value) for value in arguments]
    return f"{name}({', '.join([*values, *(f'{key}={_spelled(value)}' for key, value in options.items())])})"


def _spelled(value: Any) -> str:
    return repr(value)[:40] if type(value) in (bool, int, float, str, type(None)) else describe(plain(value))


def _same(now: Tensor, before: Tensor) -> bool:
    return now.dtype == before.dtype and torch.equal(now, before)


def _explain(error: BaseException) -> dict[str, Plain]:
    """The exception, and the last line of the student's own code that led to it."""
    message = (str(error).strip().splitlines() or [""])[0]
    line, code = _student_line(error.__traceback__)
    return {
        "type": type(error).__name__,
        "message": message if len(message) <= 160 else f"{message[:157]}...",
        "line": line,
        "code": code,
        # torch raises NotImplementedError too, but with a message
        "not_attempted": type(error) is NotImplementedError and not message,
    }


def _student_line(traceback: TracebackType | None) -> tuple[int | None, str]:
    found: tuple[int | None, str] = None, ""
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__") == "__main__":  # where the cells of a notebook run
            source = linecache.getline(frame.f_code.co_filename, traceback.tb_lineno, frame.f_globals)
            found = traceback.tb_lineno, source.strip()[:100]
        traceback = traceback.tb_next
    return found


def encode(value: Plain) -> bytes:
    """Plain value -> 8 bytes with the length of the JSON, the JSON, then the tensors as safetensors."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_to_json(value, tensors)).encode()
    return struct.pack("<Q", len(text)) + text + safetensors.torch.save(tensors)


def decode(data: bytes) -> Plain:
    """The inverse of `encode`, for untrusted data.

    Raises:
        ValueError: the data is not what `encode` writes.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        return _from_json(json.loads(data[8 : 8 + length]), safetensors.torch.load(data[8 + length :]))
    except Exception as error:  # safetensors, json and struct each have errors of their own, RecursionError is one too
        raise ValueError(f"data must be what encode() returned, got {len(data)} bytes: {error}") from None


def _to_json(value: Plain, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # a copy, since safetensors refuses tensors that share memory
        tensors[str(len(tensors))] = value.clone(memory_format=torch.contiguous_format)
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, Opaque):
        return {"opaque": value.type_name}
    if isinstance(value, dict):
        return {"dict": {key: _to_json(item, tensors) for key, item in value.items()}}
    if isinstance(value, list):
        return [_to_json(item, tensors) for item in value]
    return value


def _from_json(value: Any, tensors: dict[str, Tensor]) -> Plain:
    if isinstance(value, list):
        return [_from_json(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "opaque":
        return Opaque(str(content))
    if kind != "dict":
        raise ValueError(f"unknown kind {kind!r}")
    return {key: _from_json(item, tensors) for key, item in content.items()}
