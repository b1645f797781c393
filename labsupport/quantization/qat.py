"""Quantization-aware training with a learned step size (LSQ, Esser et al. 2020, https://arxiv.org/abs/1902.08153).

The forward pass computes with exactly the numbers that the integer layer will have; the backward pass treats rounding
as the identity, but not clipping. Two mistakes are common: letting the gradient through where the value was clipped,
and hiding the step from autograd in `x + (x_hat - x).detach()`, so that it never learns.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from labsupport.numerics.checks import check_bits, check_finite
from labsupport.quantization.affine import QParams, fake_quantize
from labsupport.quantization.qweight import QuantizedWeight

_SMALLEST_STEP = 1e-8


def lsq_fake_quantize(
    x: Float[Tensor, "*shape"], step: Float[Tensor, "*scales"], qmin: int, qmax: int, gradient_scale: float = 1.0
) -> Float[Tensor, "*shape"]:
    """round(clamp(x / step, qmin, qmax)) * step, with LSQ's gradients (equations 1 to 5). With v = x / step:

        d x_hat / d x    = 1 inside qmin < v < qmax, 0 outside
        d x_hat / d step = round(v) - v inside, qmin or qmax outside, times gradient_scale

    step: positive, broadcastable to x; its gradient sums over the elements that share it.
    """
    return _LSQ.apply(x, step, qmin, qmax, gradient_scale)


class _LSQ(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, qmin: int, qmax: int, gradient_scale: float) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.qmin, ctx.qmax, ctx.gradient_scale = qmin, qmax, gradient_scale
        return torch.round(x / step).clamp(qmin, qmax) * step

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, step = ctx.saved_tensors
        v = x / step
        inside = (v > ctx.qmin) & (v < ctx.qmax)
        of_step = torch.where(inside, torch.round(v) - v, v.clamp(ctx.qmin, ctx.qmax))
        return grad * inside, (grad * of_step).sum_to_size(step.shape) * ctx.gradient_scale, None, None, None


class LSQQuantizer(nn.Module):
    """Fake quantization with a step size that is a parameter. Zero point 0: signed codes, or unsigned ones for x >= 0.

    step: a single one, or one per row of a weight, [out, 1].
    num_values: N of equation 4's gradient scale 1 / sqrt(N qmax): weights (or features) that share one step.
    """

    def __init__(self, step: Float[Tensor, "*scales"], bits: int, signed: bool, num_values: int) -> None:
        super().__init__()
        check_bits(bits)
        self.bits, self.signed = bits, signed
        self.qmin: int = -(2 ** (bits - 1)) if signed else 0
        self.qmax: int = self.qmin + 2**bits - 1
        self.gradient_scale = 1 / (max(num_values, 1) * self.qmax) ** 0.5
        self.step = nn.Parameter(step.detach().clone().float())

    @classmethod
    def from_data(
        cls, x: Float[Tensor, "*batch features"], bits: int, signed: bool = True, per_row: bool = False
    ) -> LSQQuantizer:
        """The paper's starting point: step = 2 mean|x| / sqrt(qmax), for all of x or (per_row) each row of a weight."""
        check_bits(bits)
        check_finite(x)
        if x.numel() == 0:
            raise ValueError(f"x must hold at least one value to start from, got shape {list(x.shape)}")
        if not signed and float(x.min()) < 0:
            raise ValueError(f"x must not be negative for unsigned codes, got a minimum of {float(x.min()):.4g}")
        qmax = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        mean = x.float().abs().mean(-1, keepdim=True) if per_row else x.float().abs().mean()
        step = (2 * mean / qmax**0.5).clamp(min=_SMALLEST_STEP)
        return cls(step, bits, signed, num_values=x.shape[-1] if x.dim() else 1)

    def positive_step(self) -> Float[Tensor, "*scales"]:
        """The step in use: an optimizer may push the parameter below 0, where a step must not be."""
        return self.step.abs().clamp(min=_SMALLEST_STEP)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return lsq_fake_quantize(x, self.positive_step(), self.qmin, self.qmax, self.gradient_scale)

    def qparams(self) -> QParams:
        """The same grid for affine.quantize: zero point 0, symmetric with all codes (signed) or unsigned from 0."""
        step = self.positive_step().detach()
        axis = 0 if step.dim() == 2 else None
        return QParams(step, torch.zeros_like(step, dtype=torch.int32), self.bits, self.signed, axis, None, self.signed)


class QATLinear(nn.Module):
    """A linear layer that trains as it will be served: one learned step per weight row, one for the activations.

    Build it with `from_float`. `integers()` returns what the integer layer stores.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, weight_quantizer: LSQQuantizer, input_quantizer: LSQQuantizer
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.weight_quantizer, self.input_quantizer = weight_quantizer, input_quantizer

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        sample: Float[Tensor, "*batch in"],
        weight_bits: int = 4,
        activation_bits: int = 8,
        signed: bool | None = None,
    ) -> QATLinear:
        """sample: inputs of the layer, for the initial step. signed None: unsigned codes if none is negative."""
        if sample.shape[-1:] != (linear.in_features,):
            raise ValueError(f"sample must have shape [..., {linear.in_features}], got {list(sample.shape)}")
        signed = bool((sample < 0).any()) if signed is None else signed
        return cls(
            linear.weight,
            linear.bias,
            LSQQuantizer.from_data(linear.weight.detach(), weight_bits, per_row=True),
            LSQQuantizer.from_data(sample.detach(), activation_bits, signed),
        )

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return F.linear(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)

    @torch.no_grad()
    def integers(self) -> tuple[QuantizedWeight, QParams]:
        """The packed weight and the grid of the inputs. Both dequantize to exactly the numbers of `forward`."""
        quantizer = self.weight_quantizer
        step, offset = quantizer.positive_step(), 2 ** (quantizer.bits - 1)
        codes = torch.round(self.weight / step).clamp(quantizer.qmin, quantizer.qmax) + offset
        zero_point = torch.full_like(step, offset, dtype=torch.int32)
        weight = QuantizedWeight.from_codes(codes.to(torch.uint8), step, zero_point, quantizer.bits, group_size=None)
        return weight, self.input_quantizer.qparams()


def prepare_qat(
    model: nn.Sequential, sample: Float[Tensor, "*batch in"], weight_bits: int = 4, activation_bits: int = 8
) -> nn.Sequential:
    """A copy of the model with a QATLinear for each nn.Linear; initial steps come from its inputs on the sample."""
    layers: list[nn.Module] = []
    with torch.no_grad():
        for layer in copy.deepcopy(model):
            if isinstance(layer, nn.Linear):
                prepared: nn.Module = QATLinear.from_float(layer, sample, weight_bits, activation_bits)
            else:
                prepared = layer
            sample = layer(sample)
            layers.append(prepared)
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class TeacherTask:
    """Inputs and targets of a random network, with a little noise; targets have variance 1, so that predicting their
    mean scores 1.0 and anything learned scores less."""

    train_x: Float[Tensor, "n in"]
    train_y: Float[Tensor, "n 1"]
    val_x: Float[Tensor, "m in"]
    val_y: Float[Tensor, "m 1"]


@dataclass(frozen=True)
class QATResult:
    """Validation mean squared errors, all on targets of variance 1, and the networks they belong to.

    float_mse is that of a network trained further in float for as many steps as QAT: the fair comparison.
    """

    float_mse: float
    ptq_mse: float
    qat_mse: float
    float_model: nn.Sequential
    qat_model: nn.Sequential


def teacher_task(seed: int = 0, in_features: int = 16, num_train: int = 4096, num_val: int = 2048) -> TeacherTask:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_train + num_val, in_features, generator=generator)
    first = torch.randn(in_features, 16, generator=generator) / in_features**0.5
    y = torch.tanh(2 * x @ first) @ torch.randn(16, 1, generator=generator)
    y = y + 0.1 * y.std() * torch.randn(y.shape, generator=generator)
    y = (y - y[:num_train].mean()) / y[:num_train].std()
    return TeacherTask(x[:num_train], y[:num_train], x[num_train:], y[num_train:])


def train(model: nn.Module, task: TeacherTask, steps: int, learning_rate: float, seed: int = 0) -> float:
    """Adam on batches of 256, the rate falling linearly to 0. Returns the validation mean squared error."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=max(steps, 1))
    for _ in range(steps):
        batch = torch.randint(len(task.train_x), (256,), generator=generator)
        optimizer.zero_grad()
        F.mse_loss(model(task.train_x[batch]), task.train_y[batch]).backward()
        optimizer.step()
        schedule.step()
    return evaluate(model, task)


@torch.no_grad()
def evaluate(model: nn.Module, task: TeacherTask) -> float:
    return float(F.mse_loss(model(task.val_x), task.val_y))


@torch.no_grad()
def quantize_post_training(model: nn.Sequential, weight_bits: int) -> nn.Sequential:
    """The baseline: the trained weights rounded to the nearest level of each row, and nothing learned afterwards."""
    model = copy.deepcopy(model)
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(fake_quantize(layer.weight, bits=weight_bits, symmetric=True, axis=0))
    return model


def train_qat(
    weight_bits: int = 3, activation_bits: int = 8, steps: int = 400, seed: int = 0, task: TeacherTask | None = None
) -> QATResult:
    """Train a network in float; from there, round it (PTQ), fine-tune it with LSQ (QAT), and train on in float.

    steps: of the first training, and again of each fine-tuning.
    """
    task = teacher_task(seed) if task is None else task
    in_features = task.train_x.shape[1]
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are left alone
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(in_features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    train(model, task, steps, learning_rate=1e-2, seed=seed)

    ptq_mse = evaluate(quantize_post_training(model, weight_bits), task)
    qat_model = prepare_qat(model, task.train_x[:512], weight_bits, activation_bits)
    qat_mse = train(qat_model, task, steps, learning_rate=1e-2, seed=seed)
    float_mse = train(model, task, steps, learning_rate=1e-2, seed=seed)
    return QATResult(float_mse, ptq_mse, qat_mse, model, qat_model)
