"""The layers of a model that hold integers, and what all formats ask of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from labsupport.lm.model import Llama
from labsupport.quantization.layers.choice import weight_of
from labsupport.quantization.layers.integer import IntegerLinear
from labsupport.quantization.qweight import QuantizedWeight


def linear_names(model: Llama) -> list[str]:
    """The linear layers of the blocks, and the head, as config.json's formats count them."""
    inner = [name for name, module in model.layers.named_modules() if isinstance(module, nn.Linear | IntegerLinear)]
    return [*(f"layers.{name}" for name in inner), "lm_head"]


def integer_layers(model: Llama) -> dict[str, IntegerLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, IntegerLinear)}


def weights_of(model: Llama, format_name: str) -> Iterator[tuple[str, IntegerLinear, QuantizedWeight]]:
    """Each quantized layer of the blocks and its grid, for formats that hold nothing but float16 scales of one size.

    Raises:
        ValueError: what such a format cannot hold; the message names the option that helps.
    """
    sizes = set()
    for name, layer in integer_layers(model).items():
        if name == "lm_head":
            raise ValueError(f"format {format_name} cannot hold a quantized head: leave head_bits out")
        try:
            weight = weight_of(layer)
        except ValueError:
            raise ValueError(
                f"format {format_name} holds quantized weights alone; {name} quantizes its inputs, too: take format "
                f"compressed-tensors with method int8_dynamic, or labsupport"
            ) from None
        columns = weight.shape[1]
        if weight.input_scale is not None:
            raise ValueError(f"format {format_name} has no place for the input scale of {name}, which was not folded")
        if columns % weight.group_size:
            raise ValueError(
                f"format {format_name} needs groups of one size: {columns} inputs of {name} are no multiple of "
                f"group_size {weight.group_size}"
            )
        if weight.scale.dtype != torch.float16 and not torch.equal(weight.scale.half().float(), weight.scale):
            raise ValueError(
                f"format {format_name} stores float16 scales, and some of {name} are outside of float16's precise "
                f"range (6.1e-5 to 65,504): take format labsupport"
            )
        sizes.add(None if weight.scale.shape[1] == 1 else weight.group_size)
        if len(sizes) > 1:
            raise ValueError(
                f"format {format_name} has one group_size for all layers; got {sorted(map(str, sizes))}: take a size "
                f"that no layer's inputs fall below"
            )
        yield name, layer, weight


def blocks_prefix(name: str) -> str:
    """A layer's name in a Hugging Face checkpoint."""
    return name if name == "lm_head" else f"model.{name}"


def other_weights(model: Llama, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """All that is no integer layer, by the names of a Hugging Face checkpoint; a tied head is left out."""
    inside = tuple(f"{name}." for name in integer_layers(model))
    tensors = {name: value for name, value in model.state_dict().items() if not inside or not name.startswith(inside)}
    if model.config.tie_embeddings:
        tensors.pop("lm_head.weight", None)
    for name, layer in integer_layers(model).items():
        if layer.bias is not None:
            tensors[f"{name}.bias"] = layer.bias
    return {blocks_prefix(name): as_float(value, dtype) for name, value in tensors.items()}


def as_float(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """
    Raises:
        ValueError: a value lies beyond the range of ``dtype``.
    """
    converted = value if dtype is None else value.to(dtype)
    if value.isfinite().all() and not converted.isfinite().all():
        raise ValueError(f"dtype must hold every weight; {dtype} has no numbers as large as some of these")
    return converted.contiguous()


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """Codes along the last dimension into int32 words, the first code in the lowest bits. 32 must be a multiple of
    ``bits``; the last word is filled up with zeros."""
    a_word = 32 // bits
    padded = torch.nn.functional.pad(codes.to(torch.int64), (0, -codes.shape[-1] % a_word))
    shifts = torch.arange(0, 32, bits, device=codes.device)
    words = (padded.unflatten(-1, (-1, a_word)) << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_words(words: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack_words`, uint8."""
    shifts = torch.arange(0, 32, bits, device=words.device)
    codes = (words.to(torch.int64)[..., None] >> shifts) & (2**bits - 1)
    return codes.flatten(-2)[..., :count].to(torch.uint8)


def is_symmetric(weight: QuantizedWeight) -> bool:
    return bool((weight.zero_point == 2 ** (weight.bits - 1)).all())
