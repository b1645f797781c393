"""LSQ's gradients against the paper's formula and torch's own kernel; training that is shown to work, and not to."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labsupport.quantization.affine import dequantize, quantize
from labsupport.quantization.qat import (
    LSQQuantizer,
    QATLinear,
    evaluate,
    lsq_fake_quantize,
    prepare_qat,
    quantize_post_training,
    teacher_task,
    train,
    train_qat,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(x, step, qmin, qmax, grad, gradient_scale=1.0):
    x, step = x.clone().requires_grad_(), step.clone().requires_grad_()
    lsq_fake_quantize(x, step, qmin, qmax, gradient_scale).backward(grad)
    return x.grad, step.grad


@pytest.mark.parametrize(("qmin", "qmax"), [(-8, 7), (-128, 127), (0, 15), (-2, 1)])
def test_gradients_equal_the_papers_formula(qmin, qmax):
    x, step, grad = normal(200) * 3, torch.tensor(0.3), normal(200, seed=1)
    of_x, of_step = gradients(x, step, qmin, qmax, grad, gradient_scale=0.25)
    expected_x, expected_step = torch.zeros(200), 0.0
    for i in range(200):
        v = (x[i] / step).item()
        if v <= qmin:
            of_this = qmin
        elif v >= qmax:
            of_this = qmax
        else:
            of_this = round(v) - v
            expected_x[i] = grad[i]
        expected_step += of_this * grad[i].item()
    assert torch.equal(of_x, expected_x)
    assert of_step.item() == pytest.approx(0.25 * expected_step, rel=1e-4)


@pytest.mark.parametrize(("qmin", "qmax"), [(-8, 7), (-128, 127), (0, 15)])
def test_gradients_equal_torchs_learnable_fake_quantize(qmin, qmax):
    """But between an end of the grid and half a step beyond it, where torch's mask looks at the rounded value."""
    x, step, grad = normal(4096) * 2, torch.tensor([0.17]), normal(4096, seed=1)
    v = x / step
    x = torch.where(((v > qmax) & (v < qmax + 0.6)) | ((v < qmin) & (v > qmin - 0.6)), step, x)
    theirs_x, theirs_step = x.clone().requires_grad_(), step.clone().requires_grad_()
    zero = torch.zeros(1, requires_grad=True)
    out = torch._fake_quantize_learnable_per_tensor_affine(theirs_x, theirs_step, zero, qmin, qmax, 0.5)
    out.backward(grad)
    of_x, of_step = gradients(x, step, qmin, qmax, grad, 0.5)
    assert torch.allclose(lsq_fake_quantize(x, step, qmin, qmax), out, atol=1e-6)
    assert torch.equal(of_x, theirs_x.grad)
    assert torch.allclose(of_step, theirs_step.grad, rtol=1e-3)


def test_gradient_of_the_step_is_the_derivative_where_codes_do_not_change():
    """Clipped values are linear in the step: finite differences see that part of the gradient exactly."""
    x = torch.tensor([9.0, -9.0, 30.0])
    _, of_step = gradients(x, torch.tensor(0.5), -8, 7, torch.tensor([1.0, 1.0, 1.0]))
    both = [lsq_fake_quantize(x, torch.tensor(s), -8, 7).sum().item() for s in (0.49, 0.51)]
    assert of_step.item() == pytest.approx((both[1] - both[0]) / 0.02, rel=1e-3)
    assert of_step.item() == 7 - 8 + 7


def test_every_row_gets_the_gradient_of_its_own_step():
    x, step, grad = normal(3, 50), torch.tensor([[0.1], [0.2], [0.5]]), normal(3, 50, seed=1)
    of_x, of_step = gradients(x, step, -4, 3, grad)
    assert of_step.shape == (3, 1)
    for row in range(3):
        x_alone, step_alone = gradients(x[row], step[row, 0], -4, 3, grad[row])
        assert torch.equal(of_x[row], x_alone)
        assert of_step[row].item() == pytest.approx(step_alone.item(), rel=1e-5)


def test_the_step_learns_and_clipped_values_pass_no_gradient():
    quantizer = LSQQuantizer(torch.tensor(1.0), bits=8, signed=False, num_values=3)
    x = torch.tensor([-3.0, 2.4, 300.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 0.0]
    assert quantizer.step.grad.item() == pytest.approx((0 + (2 - 2.4) + 255) / (3 * 255) ** 0.5)

    target, quantizer = normal(2000), LSQQuantizer(torch.tensor(1.0), bits=3, signed=True, num_values=1)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.2)
    before = ((quantizer(target) - target) ** 2).mean().item()
    for _ in range(100):
        optimizer.zero_grad()
        ((quantizer(target) - target) ** 2).mean().backward()
        optimizer.step()
    # The best step of this 3-bit grid for N(0, 1) loses 4 % of the variance, 1.0 loses 8 %.
    assert before > 0.08 and ((quantizer(target) - target) ** 2).mean().item() < 0.05


def test_signed_weights_keep_their_negative_half():
    x = torch.tensor([-3.0, -0.6, -0.2, 0.2, 0.6, 2.4])
    out = LSQQuantizer.from_data(x, bits=8)(x)
    assert torch.equal(out.sign(), x.sign()) and (out - x).abs().max() < 0.2


def test_starting_point_and_gradient_scale_are_the_papers():
    weight = normal(8, 100)
    quantizer = LSQQuantizer.from_data(weight, bits=4, per_row=True)
    assert torch.allclose(quantizer.step, 2 * weight.abs().mean(1, keepdim=True) / 7**0.5)
    assert quantizer.gradient_scale == pytest.approx(1 / (100 * 7) ** 0.5)
    unsigned = LSQQuantizer.from_data(weight.relu(), bits=4, signed=False)
    assert unsigned.step.item() == pytest.approx(2 * weight.relu().mean().item() / 15**0.5)
    assert (unsigned.qmin, unsigned.qmax, quantizer.qmin, quantizer.qmax) == (0, 15, -8, 7)


def test_dead_rows_and_steps_pushed_across_zero():
    quantizer = LSQQuantizer.from_data(torch.zeros(2, 4), bits=4, per_row=True)
    out = quantizer(torch.zeros(2, 4))
    out.sum().backward()
    assert torch.equal(out, torch.zeros(2, 4)) and torch.isfinite(quantizer.step.grad).all()
    for step in (-0.5, 0.0):
        quantizer = LSQQuantizer(torch.tensor(step), 4, True, 1)
        assert torch.isfinite(quantizer(normal(10))).all() and quantizer.positive_step() > 0
    assert torch.equal(LSQQuantizer(torch.tensor(-0.5), 4, True, 1)(normal(9)),
                       LSQQuantizer(torch.tensor(0.5), 4, True, 1)(normal(9)))  # fmt: skip


@pytest.mark.parametrize("weight_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("activation_bits", [3, 8])  # at 3 bits both ends of the grid are in use
@pytest.mark.parametrize("signed", [False, True])
def test_the_integer_layer_computes_what_training_saw(weight_bits, activation_bits, signed):
    linear, x = nn.Linear(40, 12), normal(32, 40) if signed else normal(32, 40).relu()
    layer = QATLinear.from_float(linear, x, weight_bits, activation_bits)
    assert layer.input_quantizer.signed == signed
    with torch.no_grad():
        layer.weight_quantizer.step.mul_(0.9)
        layer.input_quantizer.step.mul_(0.5)
    weight, grid = layer.integers()
    codes = quantize(x, grid)
    # Equal to the last bit, not nearly: training saw the integers.
    assert torch.equal(weight.dequantize(), layer.weight_quantizer(layer.weight).detach())
    assert torch.equal(dequantize(codes, grid), layer.input_quantizer(x).detach())
    # And so an integer matmul, rescaled once, is the layer.
    products = codes.long() @ (weight.codes().long() - weight.zero_point.long()).T
    rescaled = products.double() * grid.scale.double() * weight.scale.double().T + layer.bias.double()
    assert torch.allclose(rescaled.float(), layer(x), atol=1e-5)


def test_prepare_leaves_the_model_alone_and_picks_signs():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2, bias=False))
    state = copy.deepcopy(model.state_dict())
    prepared = prepare_qat(model, normal(64, 8), weight_bits=8)
    assert [type(layer) for layer in prepared] == [QATLinear, nn.ReLU, QATLinear]
    assert prepared[0].input_quantizer.signed and not prepared[2].input_quantizer.signed
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    prepared[0].weight.data.zero_()
    assert torch.equal(model[0].weight, state["0.weight"])
    assert "0.weight_quantizer.step" in prepared.state_dict()


@pytest.fixture(scope="module")
def results():
    return {bits: train_qat(weight_bits=bits) for bits in (3, 4)}


def test_the_task_can_be_learned_and_its_scale_is_known():
    task = teacher_task()
    for y in (task.train_y, task.val_y):
        assert y.var().item() == pytest.approx(1.0, abs=0.1)
        assert F.mse_loss(torch.zeros_like(y), y).item() == pytest.approx(1.0, abs=0.1)
    again = teacher_task()
    assert torch.equal(task.train_x, again.train_x) and torch.equal(task.val_y, again.val_y)


@pytest.mark.parametrize(("bits", "loses", "recovers"), [(3, 2.0, 0.5), (4, 1.4, 0.4)])
def test_qat_recovers_what_rounding_loses(results, bits, loses, recovers):
    result = results[bits]
    assert result.float_mse < 0.06
    assert result.ptq_mse > loses * result.float_mse
    assert result.ptq_mse - result.qat_mse > recovers * (result.ptq_mse - result.float_mse)
    # What was trained is what is stored: at most 2**bits values per row.
    for layer in result.qat_model:
        if isinstance(layer, QATLinear):
            weight, _ = layer.integers()
            assert weight.bits == bits and all(len(row.unique()) <= 2**bits for row in weight.dequantize())


def test_without_rounding_there_is_nothing_to_recover(results):
    """The float network and post-training rounding at 8 bits agree: what 3 bits lose, rounding loses."""
    task, model = teacher_task(), results[3].float_model
    assert evaluate(quantize_post_training(model, 8), task) == pytest.approx(evaluate(model, task), rel=0.02)


class UnsignedUnitStep(nn.Module):
    """The golden bug: codes from 0, scale 1, zero point 0, hidden from autograd, for weights and activations."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        quantized = torch.clamp(torch.round(x / self.scale), 0, 255) * self.scale
        return x + (quantized - x).detach()


def test_golden_bug_learns_nothing_so_the_loss_is_the_variance(results):
    task = teacher_task()
    model = prepare_qat(results[3].float_model, task.train_x[:512], 8)
    for layer in model:
        if isinstance(layer, QATLinear):
            layer.weight_quantizer, layer.input_quantizer = UnsignedUnitStep(), UnsignedUnitStep()
            nn.init.kaiming_normal_(layer.weight)
    scales = [p for name, p in model.named_parameters() if name.endswith("scale")]
    broken = train(model, task, 150, 1e-3)
    assert broken > 0.9  # the variance of the targets
    assert all(scale.grad is None or not scale.grad.any() for scale in scales)
    assert results[3].qat_mse < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: LSQQuantizer.from_data(torch.tensor([-1.0, 2.0]), 4, signed=False),
            "must not be negative for unsigned",
        ),
        (lambda: LSQQuantizer.from_data(torch.empty(0), 4), "x must hold at least one value"),
        (lambda: LSQQuantizer.from_data(torch.tensor([float("nan")]), 4), "x must be finite, got 1 NaN"),
        (lambda: LSQQuantizer(torch.tensor(1.0), 1, True, 1), "bits must be an integer from 2 to 8"),
        (lambda: QATLinear.from_float(nn.Linear(4, 2), torch.ones(3, 5)), r"sample must have shape \[..., 4\], got"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
