"""The losses against their formulas written out in Python, and against what they must not depend on."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from labsupport.distillation.losses import Divergence, FeatureLoss, distillation_loss, distribution_divergence
from labsupport.distillation.targets import next_token_pairs, sequence_targets
from labsupport.lm import Llama, LlamaConfig, generate

DIVERGENCES: tuple[Any, ...] = get_args(Divergence)
SEEDS = st.integers(0, 10_000)
IGNORE = -100


def logits_and_labels(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's logits [*shape], and labels [*shape[:-1]]."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    return student, teacher, torch.randint(shape[-1], shape[:-1], generator=generator)


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def by_hand(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, divergence: Any, beta: float
) -> float:
    """One position after another, in plain Python."""
    losses = []
    rows = zip(student.flatten(0, -2).tolist(), teacher.flatten(0, -2).tolist(), labels.flatten().tolist(), strict=True)
    for ours, theirs, label in rows:
        if label == IGNORE:
            continue
        hard = -math.log(softmax(ours, 1.0)[label])
        p, q = softmax(theirs, temperature), softmax(ours, temperature)
        m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        soft = {
            "forward_kl": kl(p, q),
            "reverse_kl": kl(q, p),
            "jensen_shannon": beta * kl(p, m) + (1 - beta) * kl(q, m),
        }[divergence]
        losses.append((1 - alpha) * hard + alpha * temperature**2 * soft)
    return sum(losses) / len(losses)


# ------------------------------------------------------------------------------------------------- the formula


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 6)])
@settings(max_examples=20)
@given(
    seed=SEEDS,
    temperature=st.floats(0.5, 20),
    alpha=st.floats(0, 1),
    beta=st.floats(0.05, 0.95),
    padding=st.floats(0, 0.6),
)
def test_equals_the_formula(
    shape: tuple[int, ...], divergence: Any, seed: int, temperature: float, alpha: float, beta: float, padding: float
) -> None:
    student, teacher, labels = logits_and_labels(*shape, seed=seed)
    labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < padding] = IGNORE
    labels.view(-1)[0] = 1  # at least one counts
    loss = distillation_loss(student, teacher, labels, temperature, alpha, divergence=divergence, beta=beta)
    expected = by_hand(student, teacher, labels, temperature, alpha, divergence, beta)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_alpha_weighs_the_soft_term() -> None:
    """The document's formula gives alpha to the hard labels and forgets T²; its code does neither."""
    student, teacher, labels = logits_and_labels(6, 5)
    temperature, alpha = 4.0, 0.7
    hard = F.cross_entropy(student, labels).item()
    soft = distribution_divergence(student / temperature, teacher / temperature).mean().item()
    loss = distillation_loss(student, teacher, labels, temperature, alpha).item()
    assert loss == pytest.approx((1 - alpha) * hard + alpha * temperature**2 * soft, rel=1e-12)
    assert distillation_loss(student, teacher, labels, temperature, alpha=0.0).item() == pytest.approx(hard, rel=1e-12)
    only_soft = distillation_loss(student, teacher, labels, temperature, alpha=1.0).item()
    assert only_soft == pytest.approx(temperature**2 * soft, rel=1e-12)


@pytest.mark.parametrize(("divergence", "curvature"), [("forward_kl", 1), ("reverse_kl", 1), ("jensen_shannon", 0.21)])
def test_gradients_do_not_vanish_with_temperature(divergence: Any, curvature: float) -> None:
    """Hinton et al., equation 4: at high T the gradient is the difference of the centred logits over the classes. For
    Jensen-Shannon times beta (1 - beta), its second derivative where both are equal."""
    student, teacher, labels = logits_and_labels(4, 8)
    student.requires_grad_()
    distillation_loss(student, teacher, labels, 5000.0, alpha=1.0, divergence=divergence, beta=0.3).backward()
    difference = student.detach() - teacher
    limit = curvature * (difference - difference.mean(-1, keepdim=True)) / 8 / len(labels)
    assert student.grad is not None
    assert torch.allclose(student.grad, limit, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient_is_that_of_finite_differences(divergence: Any) -> None:
    student, teacher, labels = logits_and_labels(2, 3, 4)
    labels[0, 1] = IGNORE

    def loss(logits: Tensor) -> Tensor:
        return distillation_loss(logits, teacher, labels, 2.5, 0.6, divergence=divergence, beta=0.3)

    assert torch.autograd.gradcheck(loss, (student.requires_grad_(),))


@settings(max_examples=25)
@given(seed=SEEDS, beta=st.floats(0.02, 0.98))
def test_divergences_are_what_the_papers_call_them(seed: int, beta: float) -> None:
    student, teacher, _ = logits_and_labels(4, 6, seed=seed)
    forward, reverse = (distribution_divergence(student, teacher, each) for each in ("forward_kl", "reverse_kl"))
    assert (forward > 0).all()
    assert torch.allclose(reverse, distribution_divergence(teacher, student, "forward_kl"))
    jensen_shannon = distribution_divergence(student, teacher, "jensen_shannon", beta)
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert (jensen_shannon > 0).all() and (jensen_shannon <= entropy + 1e-12).all()
    swapped = distribution_divergence(teacher, student, "jensen_shannon", 1 - beta)
    assert torch.allclose(jensen_shannon, swapped)
    for divergence in DIVERGENCES:
        assert distribution_divergence(student, student + 5, divergence).abs().max() < 1e-12  # logits know no level


def test_jensen_shannon_ends_at_the_two_kls() -> None:
    """GKD, section 2: divided by beta it tends to KL(P || Q) for beta to 0, and to KL(Q || P) at the other end."""
    student, teacher, _ = logits_and_labels(4, 6)
    start = distribution_divergence(student, teacher, "jensen_shannon", 1e-6) / 1e-6
    end = distribution_divergence(student, teacher, "jensen_shannon", 1 - 1e-6) / 1e-6
    assert torch.allclose(start, distribution_divergence(student, teacher, "forward_kl"), rtol=1e-3)
    assert torch.allclose(end, distribution_divergence(student, teacher, "reverse_kl"), rtol=1e-3)


# ----------------------------------------------------------------------- what the loss does not depend on


def test_language_model_logits_are_softmaxed_over_the_vocabulary() -> None:
    student, teacher, labels = logits_and_labels(2, 16, 10)
    flat = distillation_loss(student.flatten(0, 1), teacher.flatten(0, 1), labels.flatten())
    assert distillation_loss(student, teacher, labels).item() == pytest.approx(flat.item(), rel=1e-12)
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \[2, 16\]; got torch.int64 \[2, 10\]"):
        distillation_loss(student, teacher, torch.zeros(2, 10, dtype=torch.int64))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@settings(max_examples=15)
@given(seed=SEEDS, times=st.integers(2, 6))
def test_loss_does_not_grow_with_the_sequence(divergence: Any, seed: int, times: int) -> None:
    student, teacher, labels = logits_and_labels(2, 5, 8, seed=seed)
    once = distillation_loss(student, teacher, labels, divergence=divergence)
    student, teacher, labels = (torch.cat([part] * times, dim=1) for part in (student, teacher, labels))
    assert distillation_loss(student, teacher, labels, divergence=divergence).item() == pytest.approx(
        once.item(), rel=1e-9
    )


@pytest.mark.parametrize("junk", [0.0, 1e30, math.inf, math.nan])
@settings(max_examples=10)
@given(seed=SEEDS, extra=st.integers(1, 5))
def test_padding_changes_neither_loss_nor_gradient(junk: float, seed: int, extra: int) -> None:
    student, teacher, labels = logits_and_labels(2, 5, 8, seed=seed)
    student.requires_grad_()
    loss = distillation_loss(student, teacher, labels)
    (gradient,) = torch.autograd.grad(loss, student)
    padded = F.pad(student.detach(), (0, 0, 0, extra), value=junk).requires_grad_()
    padded_teacher = F.pad(teacher, (0, 0, 0, extra), value=junk)
    padded_loss = distillation_loss(padded, padded_teacher, F.pad(labels, (0, extra), value=IGNORE))
    (padded_gradient,) = torch.autograd.grad(padded_loss, padded)
    assert padded_loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert torch.allclose(padded_gradient[:, :5], gradient, atol=1e-14)
    assert (padded_gradient[:, 5:] == 0).all()


def test_nothing_but_padding_is_no_loss() -> None:
    student, teacher, _ = logits_and_labels(2, 3, 4)
    student.requires_grad_()
    loss = distillation_loss(student, teacher, torch.full((2, 3), IGNORE))
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None and (student.grad == 0).all()


def test_sum_is_the_mean_times_the_positions_that_count() -> None:
    student, teacher, labels = logits_and_labels(3, 5, 4)
    labels[1, 2:] = IGNORE
    total = distillation_loss(student, teacher, labels, reduction="sum").item()
    assert total == pytest.approx(12 * distillation_loss(student, teacher, labels).item(), rel=1e-12)


def test_no_labels_are_needed_for_the_soft_term() -> None:
    student, teacher, labels = logits_and_labels(3, 5, 4)
    known = distillation_loss(student, teacher, labels, alpha=1.0).item()
    assert distillation_loss(student, teacher, None, alpha=1.0).item() == pytest.approx(known, rel=1e-12)
    with pytest.raises(ValueError, match="alpha must be 1 where labels is None"):
        distillation_loss(student, teacher, None)


def test_teacher_gets_no_gradient() -> None:
    student, teacher, labels = logits_and_labels(3, 4)
    teacher.requires_grad_()
    distillation_loss(student.requires_grad_(), teacher, labels).backward()
    assert student.grad is not None and teacher.grad is None


# ------------------------------------------------------------------------------------------------- hard numbers


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e4])
def test_stays_finite_for_large_and_small_logits(divergence: Any, scale: float) -> None:
    student, teacher, labels = logits_and_labels(6, 9, dtype=torch.float32)
    student = (scale * student).requires_grad_()
    loss = distillation_loss(student, scale * teacher, labels, divergence=divergence)
    loss.backward()
    assert loss.isfinite() and loss >= 0
    assert student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_classes_that_both_exclude_add_nothing(divergence: Any) -> None:
    student, teacher, labels = logits_and_labels(6, 9)
    labels %= 5
    fewer = student[:, :5].clone().requires_grad_()
    loss = distillation_loss(fewer, teacher[:, :5], labels, divergence=divergence)
    (gradient,) = torch.autograd.grad(loss, fewer)
    student[:, 5:] = teacher[:, 5:] = -math.inf
    masked_loss = distillation_loss(student.requires_grad_(), teacher, labels, divergence=divergence)
    (masked_gradient,) = torch.autograd.grad(masked_loss, student)
    assert masked_loss.item() == pytest.approx(loss.item(), rel=1e-12)
    assert torch.allclose(masked_gradient[:, :5], gradient) and (masked_gradient[:, 5:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher, labels = logits_and_labels(64, 50, dtype=torch.float32)
    student, teacher = student.to(dtype), teacher.to(dtype)
    loss = distillation_loss(student, teacher, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(distillation_loss(student.double(), teacher.double(), labels).item(), rel=1e-5)


GOOD = dict(zip(("student_logits", "teacher_logits", "labels"), logits_and_labels(3, 4), strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive and finite; got 0.0"),
        ({"temperature": math.nan}, "temperature must be positive and finite; got nan"),
        ({"alpha": 1.5}, "alpha must be between 0 and 1; got 1.5"),
        ({"divergence": "attention"}, "divergence must be one of 'forward_kl', 'reverse_kl', 'jensen_shannon'"),
        ({"divergence": "jensen_shannon", "beta": 1.0}, "beta must be between 0 and 1, both excluded"),
        ({"reduction": "batchmean"}, "reduction must be one of 'mean', 'sum'; got 'batchmean'"),
        ({"teacher_logits": torch.zeros(3, 5)}, r"must have the same shape.*got \[3, 4\] and \[3, 5\]"),
        ({"student_logits": torch.zeros(3, 4, dtype=torch.int64)}, "student_logits must be floating point"),
        ({"labels": torch.tensor([0, 1, 4])}, r"labels must be 0..3, or -100 for padding; got values from 0 to 4"),
        ({"labels": torch.tensor([0, -1, 2])}, r"labels must be 0..3.*got values from -1 to 2"),
        ({"labels": torch.zeros(3)}, "labels must be int64"),
    ],
)
def test_bad_input_is_named(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distillation_loss(**(GOOD | wrong))


# ------------------------------------------------------------------------------------------------- features


def test_one_projection_for_all_calls() -> None:
    """A projection made inside the loss differs from call to call, and nothing can train it."""
    loss = FeatureLoss(6, 10)
    student, teacher = torch.randn(4, 5, 6), torch.randn(4, 5, 10)
    assert loss(student, teacher).item() == loss(student, teacher).item()
    assert {name for name, _ in loss.named_parameters()} == {"projection.weight", "projection.bias"}
    loss(student, teacher).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in loss.parameters())


def test_training_finds_the_features_and_does_not_shrink_them() -> None:
    """With a new projection in every call the best that a student can do is to put out zeros, at a loss of 1."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    teacher_features = torch.tanh(x @ torch.randn(8, 12)) * 3 + 1
    student, loss = nn.Sequential(nn.Linear(8, 32), nn.Tanh()), FeatureLoss(32, 12)
    optimizer = torch.optim.Adam([*student.parameters(), *loss.parameters()], lr=1e-2)
    first = loss(student(x), teacher_features).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss(student(x), teacher_features).backward()
        optimizer.step()
    assert first > 0.9
    assert loss(student(x), teacher_features).item() < 0.2
    assert student(x).square().mean() > 0.2


def test_feature_loss_has_a_scale_of_its_own() -> None:
    """1 where the projection gives nothing, whatever the scale of the teacher's features, and masks are obeyed."""
    loss = FeatureLoss(3, 200)
    nn.init.zeros_(loss.projection.weight)
    nn.init.zeros_(loss.projection.bias)
    student, teacher = torch.randn(4, 5, 3), 30 * torch.randn(4, 5, 200) + 7
    assert loss(student, teacher).item() == pytest.approx(1.0, rel=1e-3)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[:, 3:] = False
    student[:, 3:] = teacher[:, 3:] = math.nan
    assert loss(student, teacher, mask).item() == pytest.approx(1.0, rel=1e-3)
    assert loss(student, teacher, mask, reduction="sum").item() == pytest.approx(12.0, rel=1e-3)
    assert loss(student, teacher, torch.zeros_like(mask)).item() == 0.0


@pytest.mark.parametrize(
    ("student", "teacher", "mask", "message"),
    [
        ((4, 6), (4, 9), None, r"must have sizes \(6, 10\); got \(6, 9\)"),
        ((4, 6), (5, 10), None, "must agree except in the last dimension"),
        ((4, 6), (4, 10), torch.ones(4), r"mask must be bool of shape \[4\]"),
    ],
)
def test_feature_loss_names_bad_input(student: tuple, teacher: tuple, mask: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureLoss(6, 10)(torch.zeros(student), torch.zeros(teacher), mask)


# ------------------------------------------------------------------------------------------------- sequences


def test_labels_are_the_tokens_moved_by_one() -> None:
    tokens = torch.tensor([[5, 6, 7, 8], [1, 2, 0, 0]])
    inputs, labels = next_token_pairs(tokens, lengths=torch.tensor([4, 2]))
    assert inputs.tolist() == [[5, 6, 7], [1, 2, 0]]
    assert labels.tolist() == [[6, 7, 8], [2, IGNORE, IGNORE]]
    assert next_token_pairs(tokens)[1].tolist() == [[6, 7, 8], [2, 0, 0]]
    with pytest.raises(ValueError, match=r"lengths must be 2 numbers in 1..4; got \[4, 5\]"):
        next_token_pairs(tokens, torch.tensor([4, 5]))
    with pytest.raises(ValueError, match="tokens must have shape"):
        next_token_pairs(tokens[0])


def test_teacher_writes_what_the_student_is_to_learn() -> None:
    torch.manual_seed(0)
    teacher = Llama(LlamaConfig(20, 16, 24, num_layers=2, num_heads=2, num_kv_heads=1))
    nn.init.normal_(teacher.embed_tokens.weight, std=2.0)
    prompts = torch.randint(20, (3, 4))
    inputs, labels = sequence_targets(teacher, prompts, max_tokens=6)
    answers = generate(teacher, prompts, max_tokens=6)
    assert torch.equal(inputs, torch.cat((prompts, answers[:, :-1]), dim=1))
    assert torch.equal(labels[:, 3:], answers)
    assert (labels[:, :3] == IGNORE).all()
    # it is the likeliest continuation: no other token of a first step has less loss
    assert torch.equal(teacher(inputs)[:, 3].argmax(-1), labels[:, 3])

    end = int(answers[0, 2])
    _, ended = sequence_targets(teacher, prompts, max_tokens=6, eos_token_id=end)
    first = answers[0].tolist().index(end)
    assert ended[0, 3:].tolist() == answers[0, : first + 1].tolist() + [IGNORE] * (5 - first)
    with pytest.raises(ValueError, match="max_tokens must be at least 1; got 0"):
        sequence_targets(teacher, prompts, max_tokens=0)
