"""Distillation and the whole chain of compressions on handwritten digits, in seconds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from labsupport.distillation.digits import Digits, load_digits, mlp
from labsupport.distillation.distiller import Data, Distiller
from labsupport.distillation.measuring import CompressionTable
from labsupport.pruning import achieved_sparsity, equal_budgets, prune_channels
from labsupport.quantization import rtn_quantize
from labsupport.quantization.layers.int4_weight import Int4WeightLinear
from labsupport.quantization.layers.packed import QuantizedLinear

if TYPE_CHECKING:
    import pandas as pd


def compress_digits(
    digits: Digits | None = None,
    *,
    num_images: int | None = 100,
    teacher_sizes: Sequence[int] = (64, 256, 256, 10),
    student_sizes: Sequence[int] = (64, 32, 10),
    steps: int = 400,
    recovery_steps: int = 100,
    temperature: float = 4.0,
    alpha: float = 0.9,
    sparsity: float = 0.5,
    bits: int = 4,
    repeats: int = 15,
    seed: int = 0,
    progress: bool = False,
) -> CompressionTable:
    """The chain of `compress_lm` for handwritten digits: hidden neurons are pruned, weights rounded to nearest with one
    scale a row; "accuracy" is measured on images that no training saw.

    num_images: how many images, with their labels, the students see (None: all); the teacher sees all of them, as in
        `digits_gain`.
    """
    digits = load_digits(seed) if digits is None else digits
    few = digits.train_x[:num_images], digits.train_y[:num_images]

    def train(student: nn.Module, instructor: nn.Module | None, steps: int) -> nn.Module:
        return train_digits(student, instructor, few, steps, temperature, alpha, seed, progress)

    def shrink(student: nn.Module, instructor: nn.Module | None) -> nn.Module:
        pruned = prune_channels(student, few[0], sparsity, "activation")
        return train(pruned, instructor, recovery_steps)

    teacher = train_digits(mlp(teacher_sizes, seed), None, digits.train, steps, temperature, alpha, seed, progress)
    start = mlp(student_sizes, seed)
    alone, distilled = train(copy.deepcopy(start), None, steps), train(copy.deepcopy(start), teacher, steps)
    alone_pruned, distilled_pruned = shrink(alone, None), shrink(distilled, teacher)
    whole = train(copy.deepcopy(distilled), teacher, recovery_steps)  # trained as long as the pruned one
    product = quantize_linears(distilled_pruned, bits)
    packed = f"{bits}-bit rtn"
    models: dict[str, tuple[nn.Module, str]] = {
        "teacher": (teacher, "float32"),
        "student, alone": (alone, "float32"),
        "student, distilled": (distilled, "float32"),
        "distilled, pruned": (distilled_pruned, "float32"),
        "distilled, pruned, quantized": (product, packed),
        "baseline: alone, pruned, quantized": (quantize_linears(alone_pruned, bits), packed),
        "baseline: distilled, not pruned, quantized": (quantize_linears(whole, bits), packed),
        "baseline: teacher, quantized": (quantize_linears(teacher, bits), packed),
        "baseline: teacher, 2 bits": (quantize_linears(teacher, 2), "2-bit rtn"),
    }
    table = CompressionTable()
    for name, (model, precision) in models.items():
        table.add(name, model, precision, {"accuracy": accuracy(model, digits.test)})
    table.time({"ms_64_images": lambda model: torch.no_grad()(lambda: model(digits.test_x[:64]))}, repeats)
    return table


def digits_gain(
    seeds: Sequence[int] = range(5),
    *,
    num_images: int | None = 100,
    teacher_images: int | None = None,
    teacher_sizes: Sequence[int] = (64, 256, 10),
    student_sizes: Sequence[int] = (64, 16, 10),
    steps: int = 400,
    temperature: float = 4.0,
    alpha: float = 0.5,
    progress: bool = False,
) -> pd.DataFrame:
    """Test accuracy of the teacher, of the student alone and distilled, and the "gain" of the latter: one row a seed.

    A seed determines the split of the images, the teacher and the student. Both students have the same initial weights,
    the same images and labels in the same order, and the same number of steps: only the loss differs.

    num_images, teacher_images: how many of the 1,078 training images students and teacher see, labels included (None:
        all). The default is the setting of Hinton et al., section 6: the teacher has seen all images, and its outputs
        on a few of them tell the student what these few alone do not show. If both see all, little is left to tell.
    """
    import pandas as pd

    rows = []
    for seed in seeds:
        digits = load_digits(seed)
        few = digits.train_x[:num_images], digits.train_y[:num_images]
        teacher = _teacher(tuple(teacher_sizes), teacher_images, steps, temperature, alpha, seed, progress)
        models = {"teacher": teacher}
        for name, instructor in (("alone", None), ("distilled", teacher)):
            student = mlp(student_sizes, seed)
            models[name] = train_digits(student, instructor, few, steps, temperature, alpha, seed, progress)
        rows.append({name: accuracy(model, digits.test) for name, model in models.items()})
    frame = pd.DataFrame(rows, index=pd.Index(list(seeds), name="seed"))
    return frame.assign(gain=frame["distilled"] - frame["alone"])


@lru_cache(maxsize=8)
def _teacher(
    sizes: tuple[int, ...], num_images: int | None, steps: int, temperature: float, alpha: float, seed: int,
    progress: bool,
) -> nn.Module:  # fmt: skip
    """Kept: the same teacher instructs students that see more or fewer images."""
    digits = load_digits(seed)
    images = digits.train_x[:num_images], digits.train_y[:num_images]
    return train_digits(mlp(sizes, seed), None, images, steps, temperature, alpha, seed, progress)


def digits_pruning(seeds: Sequence[int] = range(3), sizes: Sequence[int] = (64, 256, 128, 10)) -> pd.DataFrame:
    """`equal_budgets` on the digits: one row for each way of pruning to 90 %, each with 40 epochs.

    Columns: "zeros", counted; "epochs since reset", of training since the weights last had their initial values; test
    accuracy "mean", "lowest" and "highest", and that of each seed. A seed determines the images, and both starts.
    """
    import pandas as pd

    rows: dict[str, dict[object, float]] = {}
    for seed in seeds:
        digits = load_digits(seed)
        networks = equal_budgets(mlp(sizes, seed), mlp(sizes, seed + 1000), *digits.train, seed=seed)
        for name, (network, epochs) in networks.items():
            zeros = achieved_sparsity(*(weight for weight in network.parameters() if weight.dim() == 2))
            row = rows.setdefault(name, {"zeros": zeros, "epochs since reset": epochs})
            row[f"seed {seed}"] = accuracy(network, digits.test)
    frame = pd.DataFrame(rows).T
    found = frame.filter(like="seed ")
    for place, (name, value) in enumerate(
        {"mean": found.mean(axis=1), "lowest": found.min(axis=1), "highest": found.max(axis=1)}.items(), start=2
    ):
        frame.insert(place, name, value)
    return frame


def confidence_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"values must be at least 2; got {len(values)}")
    from scipy.stats import t

    sample = torch.tensor(list(values), dtype=torch.float64)
    half = float(t.ppf((1 + level) / 2, len(sample) - 1) * sample.std() / len(sample) ** 0.5)
    return float(sample.mean()) - half, float(sample.mean()) + half


def train_digits(
    student: nn.Module, teacher: nn.Module | None, data: Data, steps: int, temperature: float, alpha: float, seed: int,
    progress: bool = False,
) -> nn.Module:  # fmt: skip
    distiller = Distiller(
        student, teacher, temperature=temperature, alpha=alpha if teacher is not None else 0.0, batch_size=64,
        learning_rate=1e-2, seed=seed,
    )  # fmt: skip
    distiller.train(data, steps, progress=progress)
    return student


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    return float((model.eval()(data[0]).argmax(-1) == data[1]).float().mean())


@torch.no_grad()
def quantize_linears(model: nn.Module, bits: int) -> nn.Module:
    """A copy whose linear layers store packed integers of ``bits`` bits, one scale a row, and their float bias."""
    quantized = copy.deepcopy(model)
    for name, module in list(quantized.named_modules()):
        if isinstance(module, nn.Linear):
            weight = rtn_quantize(module.weight, bits, None)
            parent, _, child = name.rpartition(".")
            stored = Int4WeightLinear(weight, module.bias) if bits == 4 else QuantizedLinear(weight, module.bias)
            setattr(quantized.get_submodule(parent), child, stored)
    return quantized
