"""The whole chain: teacher, distilled student, pruned, quantized, and what each stage must be compared with.

A chain of compressions is worth what its last row beats: the same chain whose student never had a teacher, the teacher
quantized directly, and the teacher quantized until it is as small. `compress_lm` measures all of them for a language
model, `compress_digits` (classifier.py) for a classifier of handwritten digits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from labsupport.distillation.distiller import Data, Distiller
from labsupport.distillation.measuring import CompressionTable, stored_bytes
from labsupport.distillation.targets import next_token_pairs
from labsupport.lm import Llama, corpus, load_lm, perplexity
from labsupport.lm.cache import ConcatCache
from labsupport.lm.protocol import EVALUATION_WINDOWS, SEQ_LEN
from labsupport.lm.tokenizer import Tokenizer
from labsupport.lm.train import make_optimizers
from labsupport.pruning import prune_llama, prune_model
from labsupport.pruning.llama import with_layers
from labsupport.quantization import quantize_model

Pruning = Literal["neurons", "magnitude", "wanda", "sparsegpt"]

# For `compress_lm(**QUICK)`: seconds instead of minutes; it fills all rows, but no student gets as good as it could.
QUICK: dict[str, Any] = {"steps": 30, "recovery_steps": 10, "batch_size": 4, "repeats": 5}


def small_student(teacher: Llama, num_layers: int) -> Llama:
    """A copy of the teacher with ``num_layers`` of its layers, evenly spread from the first to the last: a far better
    start than random weights (DistilBERT, Sanh et al. 2019, arXiv 1910.01108, section 3).

    Raises:
        ValueError: ``num_layers`` is not between 1 and the teacher's.
    """
    total = teacher.config.num_layers
    if not 1 <= num_layers <= total:
        raise ValueError(f"num_layers must be between 1 and {total}; got {num_layers}")
    kept = torch.linspace(0, total - 1, num_layers).round().int().tolist()
    return with_layers(teacher, kept).float().eval()


def compress_lm(
    teacher: Llama | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    num_layers: int = 2,
    steps: int = 120,
    recovery_steps: int = 40,
    batch_size: int = 8,
    seq_len: int = 128,
    temperature: float = 2.0,
    alpha: float = 0.5,
    pruning: Pruning = "neurons",
    sparsity: float = 0.25,
    method: str = "gptq",
    bits: int = 4,
    group_size: int = 64,
    evaluation_windows: int = EVALUATION_WINDOWS,
    checkpoints: str | Path | None = None,
    repeats: int = 15,
    seed: int = 0,
    progress: bool = True,
) -> CompressionTable:
    """Distil, prune, quantize a language model, with every baseline; ``teacher`` (default `tiny`) is not changed.

    Training and calibration read the calibration text, "perplexity" is that of the evaluation text. The defaults train
    a student of two layers for some minutes on one CPU core, too short to see how good it can get. Rows are comparable,
    because all students have the same initial weights, the same batches and the same number of steps; two rows have
    the last of these steps without pruning, of the student and of the teacher.

    steps, recovery_steps: of training the student, and of training it further after pruning.
    pruning: "neurons" removes ``sparsity`` of the MLPs' neurons, and matrices get smaller; the methods of `prune_model`
        set ``sparsity`` of the weights to zero, and files stay as large. Recovery keeps the zeros. A quarter leaves
        `tiny` 384 neurons, whole groups of 64: 4-bit kernels are slow if the last group is smaller.
    method, bits, group_size: of `quantize_model`. GPTQ changes all weights, zeros too; "rtn" keeps zeros.
    checkpoints: a folder for the state of each training; an interrupted one resumes from there.
    """
    if teacher is None:
        lm = load_lm("tiny", verbose=False)
        teacher, tokenizer = lm.model, lm.tokenizer
    if tokenizer is None:
        raise ValueError("tokenizer must be given with teacher")
    text = {part: torch.tensor(tokenizer.encode(corpus(part))) for part in ("calibration", "evaluation")}
    data = training_pairs(text["calibration"], seq_len)
    calibration = list(data[0][:: max(1, len(data[0]) // 16)][:16])
    held_out = text["evaluation"][: evaluation_windows * SEQ_LEN]

    def train(student: nn.Module, instructor: nn.Module | None, steps: int, name: str) -> nn.Module:
        zeros = {key: weight == 0 for key, weight in student.named_parameters() if bool((weight == 0).any())}

        @torch.no_grad()
        def hold_zeros(trained: nn.Module) -> None:
            for key, weight in trained.named_parameters():
                if key in zeros:
                    weight.masked_fill_(zeros[key], 0.0)

        soft = alpha if instructor is not None else 0.0
        distiller = Distiller(
            student, instructor, temperature=temperature, alpha=soft, batch_size=batch_size, seed=seed,
            make_optimizers=lambda trained: make_optimizers(trained),
        )  # fmt: skip
        path = None if checkpoints is None else Path(checkpoints) / f"{name}.checkpoint.pt"
        distiller.train(data, steps, checkpoint=path, after_step=hold_zeros if zeros else None, progress=progress)
        return student

    def quantized(model: nn.Module, bits: int) -> nn.Module:
        return quantize_model(model, calibration, method, bits, group_size, progress=False)

    def shrink(student: nn.Module, instructor: nn.Module | None, name: str) -> nn.Module:
        pruned = prune(student, calibration, pruning, sparsity)
        return train(pruned, instructor, recovery_steps, f"{name}-recovery") if recovery_steps else pruned

    start = small_student(teacher, num_layers)
    alone = train(copy.deepcopy(start), None, steps, "alone")
    distilled = train(copy.deepcopy(start), teacher, steps, "distilled")
    alone_pruned, distilled_pruned = shrink(alone, None, "alone"), shrink(distilled, teacher, "distilled")
    whole = copy.deepcopy(distilled)  # trained as long as the pruned one
    if recovery_steps:
        train(whole, teacher, recovery_steps, "distilled-longer")
    longer = train(copy.deepcopy(teacher).requires_grad_(), None, steps + recovery_steps, "teacher-longer")
    product = quantized(distilled_pruned, bits)
    teachers: dict[int, Any] = {each: quantized(teacher, each) for each in range(2, bits + 1)}
    as_small = min(teachers.values(), key=_distance_in_bytes(product))

    packed = f"{bits}-bit {method}"
    models: dict[str, tuple[nn.Module, str]] = {
        "teacher": (teacher, "float32"),
        "student, alone": (alone, "float32"),
        "student, distilled": (distilled, "float32"),
        "distilled, pruned": (distilled_pruned, "float32"),
        "distilled, pruned, quantized": (product, packed),
        "baseline: alone, pruned, quantized": (quantized(alone_pruned, bits), packed),
        "baseline: distilled, not pruned": (whole, "float32"),
        "baseline: distilled, not pruned, quantized": (quantized(whole, bits), packed),
        "baseline: teacher, trained on": (longer, "float32"),
        "baseline: teacher, quantized": (teachers[bits], packed),
        "baseline: teacher, nearest in bytes": (as_small, f"{as_small.quantization_report.bits}-bit {method}"),
    }
    table = CompressionTable()
    for name, (model, precision) in models.items():
        table.add(name, model, precision, {"perplexity": perplexity(model, held_out, SEQ_LEN)})
    table.time({"ms_128_tokens": _prefill, "ms_1_token": _decode}, repeats)
    return table


def training_pairs(tokens: Int64[Tensor, " n"], seq_len: int) -> Data:
    """A text in consecutive windows: inputs and labels [windows, seq_len]."""
    count = (len(tokens) - 1) // seq_len
    if count < 1:
        raise ValueError(f"tokens must be more than seq_len = {seq_len}; got {len(tokens)}")
    inputs, labels = next_token_pairs(tokens[None, : count * seq_len + 1])
    return inputs.view(count, seq_len), labels.reshape(count, seq_len)


def prune(model: nn.Module, calibration: Sequence[Tensor], pruning: Pruning, sparsity: float) -> nn.Module:
    """A new model with fewer neurons, or with zeros."""
    if pruning == "neurons":
        return prune_llama(model, calibration, mlp_sparsity=sparsity, progress=False)
    return prune_model(model, calibration, pruning, sparsity, progress=False)


def _distance_in_bytes(model: nn.Module) -> Callable[[nn.Module], int]:
    wanted = stored_bytes(model)
    return lambda other: abs(stored_bytes(other) - wanted)


def _prefill(model: Any) -> Callable[[], object]:
    tokens = torch.arange(128, device=next(model.parameters()).device)[None] % model.config.vocab_size
    return torch.no_grad()(lambda: model(tokens))


def _decode(model: Any) -> Callable[[], object]:
    """One more token after 32, one sequence."""
    cache = ConcatCache(len(model.layers))
    tokens = torch.arange(33, device=next(model.parameters()).device)[None] % model.config.vocab_size
    with torch.no_grad():
        model(tokens[:, :32], cache)

    @torch.no_grad()
    def step() -> Tensor:
        cache.length = 32
        return model(tokens[:, 32:], cache)

    return step
