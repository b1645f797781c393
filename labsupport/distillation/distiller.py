"""`Distiller`: trains a student on a teacher's outputs, in one process or several, and survives interruptions.

Classifiers and language models are treated alike: ``inputs`` [n, ...] go in, ``labels`` [n] or [n, time] belong to the
logits that come out (`next_token_pairs` makes such pairs from text).

    distiller = Distiller(student, teacher, temperature=2.0, alpha=0.5)
    distiller.train((inputs, labels), steps=500, checkpoint="student.checkpoint.pt")
    distiller.evaluate(held_out)

A script with these lines also runs under ``torchrun --nproc-per-node 2 script.py``: each process takes its part of each
batch, gradients are averaged (DistributedDataParallel; NCCL on GPUs, else gloo), and only rank 0 writes files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from labsupport.distillation.batches import batch_rows, seeded
from labsupport.distillation.checkpoint import History, fingerprint, resume, save_checkpoint
from labsupport.distillation.evaluation import evaluate
from labsupport.distillation.losses import IGNORE_INDEX, Divergence, FeatureLoss
from labsupport.distillation.objective import (
    Objective,
    StudentObjective,
    check_settings,
    last_features,
    model_logits,
    overflow,
)
from labsupport.distillation.processes import join_processes, share_buffers, sum_over_processes
from labsupport.lm.activations import captured_outputs
from labsupport.lm.schedule import rate_share, set_rates
from labsupport.progress import progress_bar

Data = tuple[Tensor, Tensor]  # inputs [n, ...] and labels [n, ...] (-100: does not count)
MakeOptimizers = Callable[[Any], list[torch.optim.Optimizer]]


class Distiller:
    """Trains ``student`` in place. ``teacher`` is frozen: in eval mode, without gradients, never changed.

    objective: the soft term, which ``alpha`` weighs against the cross-entropy with the labels. "logits":
        T² · divergence (`distillation_loss`); "features": the sum of a `FeatureLoss` for each pair of
        ``feature_layers``; "mixed": the former plus ``feature_weight`` times the latter.
    feature_layers: pairs of module names, (student's, teacher's), such as ("layers.1", "layers.3").
    teacher: None with ``alpha=0`` is the honest baseline: the same training without a teacher.
    make_optimizers: from the student, optimizers for all of its parameters (default: AdamW). Their rates are taken as
        peak rates: a warm-up of ``warmup`` steps, then a linear decay to zero.
    device: None: the student's; under torchrun with GPUs, this process's GPU.

    Raises:
        ValueError: an unknown objective or divergence, a number outside its range, a feature layer that does not exist,
            or a student that shares parameters with its teacher.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        objective: Objective = "logits",
        temperature: float = 2.0,
        alpha: float = 0.5,
        *,
        divergence: Divergence = "forward_kl",
        beta: float = 0.5,
        feature_layers: Sequence[tuple[str, str]] = (),
        feature_weight: float = 1.0,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup: int = 10,
        max_grad_norm: float = 1.0,
        make_optimizers: MakeOptimizers | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        self.settings: dict[str, Any] = {
            "objective": objective, "temperature": temperature, "alpha": alpha, "divergence": divergence, "beta": beta,
            "feature_layers": [list(pair) for pair in feature_layers], "feature_weight": feature_weight,
            "batch_size": batch_size, "learning_rate": learning_rate, "weight_decay": weight_decay, "warmup": warmup,
            "max_grad_norm": max_grad_norm, "seed": seed,
        }  # fmt: skip
        check_settings(student, teacher, self.settings)
        self.rank, self.world_size = join_processes()
        if batch_size < self.world_size:
            raise ValueError(f"batch_size must be at least the {self.world_size} processes; got {batch_size}")
        if device is None and self.world_size > 1 and torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        self.device = torch.device(device) if device is not None else next(student.parameters()).device
        self.student = student.to(self.device)
        self.teacher = None if teacher is None else teacher.to(self.device).eval().requires_grad_(False)
        self.make_optimizers = make_optimizers
        self.history: History = []
        self._objective: StudentObjective | None = None

    @property
    def projections(self) -> list[FeatureLoss]:
        """The projections of the feature loss, one for each pair of layers; made when training begins."""
        return [] if self._objective is None else list(self._objective.projections)  # type: ignore[arg-type]

    def train(
        self,
        data: Data,
        steps: int,
        *,
        held_out: Data | None = None,
        evaluate_every: int | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 100,
        after_step: Callable[[nn.Module], None] | None = None,
        progress: bool = True,
    ) -> History:
        """Train on ``steps`` batches; the student is left in eval mode. Returns the loss of each step, and evaluations.

        Batches follow from the seed and the step alone. If ``checkpoint`` exists, a run with the same settings resumes
        from it, and ends with the same weights, bit for bit, as one that was never interrupted. It is removed at the
        end.

        evaluate_every: steps between evaluations on ``held_out`` (None: only after the last step).
        after_step: called with the student after each update, for instance to set pruned weights to zero again.

        Raises:
            ValueError: inputs and labels do not fit, a number is below 1, or the checkpoint is of another run.
        """
        _check_data("data", data)
        numbers = {"steps": steps, "checkpoint_every": checkpoint_every, "evaluate_every": evaluate_every}
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        objective = self._objective = self._objective or self._make_objective(data[0][:1])
        optimizers = self._make_optimizers(objective)
        identity = self.settings | {
            "steps": steps, "data": fingerprint(data), "optimizers": [type(each).__name__ for each in optimizers],
            "teacher": None if self.teacher is None else fingerprint(self.teacher.state_dict().values()),
        }  # fmt: skip
        path = None if checkpoint is None else Path(checkpoint)
        self.history = [] if path is None else resume(path, identity, objective, optimizers, self.rank)
        start = len(self.history)
        model: nn.Module = objective
        if self.world_size > 1:
            # where only inner features are learned, the head gets no gradient
            unused = self.settings["objective"] == "features" and self.settings["alpha"] == 1
            devices = [self.device.index] if self.device.type == "cuda" else None
            model = DistributedDataParallel(objective, device_ids=devices, find_unused_parameters=unused)

        what = "distilling" if self.settings["alpha"] > 0 else "training"
        bar = progress_bar(range(start, steps), what, "step", progress and self.rank == 0, total=steps, done=start)
        for step in bar:
            self.student.train()
            record = {"step": step + 1.0, "loss": self._update(model, optimizers, data, step, steps)}
            if after_step is not None:
                after_step(self.student)
            last = step + 1 == steps
            if held_out is not None and (last or (evaluate_every is not None and (step + 1) % evaluate_every == 0)):
                record |= {f"held_out_{name}": value for name, value in self.evaluate(held_out).items()}
            self.history.append(record)
            bar.set_postfix(loss=f"{record['loss']:.3f}")
            if path is not None and (step + 1) % checkpoint_every == 0 and not last and self.rank == 0:
                save_checkpoint(path, identity, self.history, objective, optimizers)
        if path is not None and self.rank == 0:
            path.unlink(missing_ok=True)
        share_buffers(self.student)
        self.student.eval()
        return self.history

    def evaluate(self, data: Data, batch_size: int | None = None) -> dict[str, float]:
        """On data that was not trained on: "loss" (cross-entropy with the labels, in nats) and "accuracy"; with a
        teacher also "divergence", KL(teacher || student) at temperature 1, and "agreement", the share of equal
        choices."""
        _check_data("data", data)
        share_buffers(self.student)
        rows = torch.arange(len(data[0])).tensor_split(self.world_size)[self.rank]
        size = batch_size or self.settings["batch_size"]
        return evaluate(self.student, self.teacher, data, rows, size, self.device)

    def _update(
        self, model: nn.Module, optimizers: list[torch.optim.Optimizer], data: Data, step: int, steps: int
    ) -> float:
        """One step of all optimizers. Returns the loss of the whole batch."""
        rows = batch_rows(len(data[0]), self.settings["batch_size"], self.settings["seed"], step)
        count = max(1, int((data[1][rows] != IGNORE_INDEX).sum()))  # of all processes: rows may differ in length
        mine = rows.tensor_split(self.world_size)[self.rank]
        inputs, labels = data[0][mine].to(self.device), data[1][mine].to(self.device)
        teacher_logits, features = self._ask_teacher(inputs)
        with seeded(self.settings["seed"], step, self.rank, self.device):  # a resumed run has the same dropout
            loss = model(inputs, labels, teacher_logits, features) / count
        (loss * self.world_size).backward()  # DistributedDataParallel averages, but the gradients are to be summed
        norm = nn.utils.clip_grad_norm_(model.parameters(), self.settings["max_grad_norm"])
        if not torch.isfinite(norm):
            raise overflow(self.student, step, float(loss.detach()), float(norm))
        warmup = self.settings["warmup"]
        share = rate_share(step, steps, warmup + 1, decay_from=warmup)  # the peak comes after `warmup` steps
        set_rates(optimizers, share)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(sum_over_processes(loss.detach().double().cpu(), self.device))

    @torch.no_grad()
    def _ask_teacher(self, inputs: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        if self.teacher is None or self.settings["alpha"] == 0:
            return None, []
        self.teacher.eval()
        layers = [theirs for _, theirs in self.settings["feature_layers"]]
        with captured_outputs(self.teacher, layers) as outputs:
            logits = model_logits(self.teacher(inputs))
        return logits, last_features(outputs, layers)

    def _make_objective(self, sample: Tensor) -> StudentObjective:
        """With the projections that inner features need; a pass over one sample gives their sizes."""
        pairs = self.settings["feature_layers"] if self.settings["alpha"] > 0 else []
        projections = []
        if pairs:
            self.student.eval()
            layers = [ours for ours, _ in pairs]
            with torch.no_grad(), captured_outputs(self.student, layers) as outputs:
                self.student(sample.to(self.device))
            ours, (_, theirs) = last_features(outputs, layers), self._ask_teacher(sample.to(self.device))
            with seeded(self.settings["seed"], -1, 0, self.device):
                dtype = next(self.student.parameters()).dtype
                projections = [
                    FeatureLoss(a.shape[-1], b.shape[-1]).to(dtype) for a, b in zip(ours, theirs, strict=True)
                ]
        return StudentObjective(self.student, projections, self.settings).to(self.device)

    def _make_optimizers(self, objective: StudentObjective) -> list[torch.optim.Optimizer]:
        def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            lr, weight_decay = self.settings["learning_rate"], self.settings["weight_decay"]
            return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)

        if self.make_optimizers is None:
            return [adamw(objective.parameters())]
        projections = list(objective.projections.parameters())
        return [*self.make_optimizers(self.student), *([adamw(projections)] if projections else [])]


def _check_data(name: str, data: Data) -> None:
    if not isinstance(data, tuple) or len(data) != 2 or not all(isinstance(part, Tensor) for part in data):
        raise ValueError(f"{name} must be a tuple (inputs, labels) of tensors; got {type(data).__name__}")
    if len(data[0]) != len(data[1]) or len(data[0]) == 0:
        raise ValueError(
            f"{name} must hold as many labels as inputs, at least 1; got {len(data[0])} and {len(data[1])}"
        )
