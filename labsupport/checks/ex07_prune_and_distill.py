"""Exercise 7: prune and distil.

- The mask: exactly round(sparsity * n) zeros, whatever the ties, and no pruned weight is larger than one that stays.
- The loss is linear in alpha, so its two ends are judged alone: at alpha=0 it is the cross-entropy with the labels, at
  alpha=1 T² KL(teacher || student at T). An end that is wrong is compared with what known mistakes come to.
- The student: its weights come back as plain tensors, and the judge runs the network itself, on images that never enter
  the process of the answer. So a student can neither call its teacher nor hide parameters.

60 % of the labels that come with the images are drawn at random. Over many variants of right answers (sizes, learning
rates, temperatures, masks from the start or late) distilled and pruned students reach 92 to 98 % on a draw; trained on
those labels alone, 60 to 87 %. `MIN_ACCURACY` is of the mean of two draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labsupport.checks import Check, Exercise, Wrong
from labsupport.checks.judging import float_tensor, returned, unchanged
from labsupport.checks.plain import Opaque, Plain, call, describe, plain

MAX_PARAMETERS = 1300  # 64 -> 16 -> 10 has 1,210 of them
MAX_NONZERO = 650  # half of those weights, and all biases, are 618
MIN_ACCURACY = 0.91
WRONG_LABELS = 0.6  # share of labels that are drawn at random
IGNORE = -100
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"ReLU": F.relu, "Tanh": torch.tanh, "GELU": F.gelu}
PASSED_OVER = ("Dropout", "Identity", "Flatten")  # they do nothing when a student of vectors is evaluated

Answer = Mapping[str, Callable[..., Any]]
Inputs = Mapping[str, Any]


# The mask -------------------------------------------------------------------------------------------------------------


class MaskCheck(Check):
    """Inputs: a case -> [weight, sparsity]."""

    needs = ("magnitude_mask",)

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {case: call(answer["magnitude_mask"], *arguments)[0] for case, arguments in inputs.items()}


class CheckMaskCount(MaskCheck):
    name = "check_mask_count"
    points = 3
    holds = "the mask is bool, of the weight's shape, with exactly round(sparsity * n) zeros: ties or not, from 0 to 1"

    def inputs(self, seed: int) -> dict[str, Any]:
        weight, generator = _normal(seed, 8, 12), torch.Generator().manual_seed(seed + 1)
        codes = torch.randint(-7, 8, (16, 16), generator=generator)
        some = torch.randn(200, generator=generator, dtype=torch.float32)
        drawn: dict[str, Any] = {
            f"a random weight [8, 12], sparsity={sparsity}": [weight, sparsity]
            for sparsity in (0.5, 0.3, 0.9, 0.0, 1.0, 0.001)
        }
        for sparsity in (0.1, 0.3, 0.5):
            drawn[f"a weight on 15 levels [16, 16], sparsity={sparsity}"] = [codes.float() * 0.05, sparsity]
        drawn["a weight of ones [10, 10], sparsity=0.1"] = [torch.ones(10, 10, dtype=torch.float32), 0.1]
        drawn["a weight [200] with 100 zeros in it, sparsity=0.25"] = [some * (some > some.median()), 0.25]
        drawn["a convolution's weight [4, 3, 3, 3], sparsity=0.7"] = [_normal(seed + 2, 4, 3, 3, 3), 0.7]
        return drawn

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (weight, sparsity) in inputs.items():
            mask = _mask(values[case], weight, case)
            size, wanted, zeros = weight.numel(), round(sparsity * weight.numel()), int((~mask).sum())
            if zeros == wanted:
                continue
            tied = "level" in case or "ones" in case or "zeros" in case
            start = f"for {case} the mask has {zeros} zeros, round(sparsity * {size}) is {wanted}"
            if zeros == size and wanted == 0:
                raise Wrong(f"{start}: a slice such as [:-k] is empty where k is 0; at sparsity 0 all weights stay")
            if zeros == size - wanted:
                raise Wrong(f"{start}: True must mark the weights that stay, False those that go")
            if not tied and zeros == int(sparsity * size):
                raise Wrong(f"{start}: int() cuts the decimals off, round() does not")
            if tied:
                raise Wrong(f"{start}: a threshold takes all weights of equal magnitude or none; choose k places")
            raise Wrong(f"{start}: choose k = round(sparsity * weight.numel()) places of the whole weight")


class CheckMaskSmallest(MaskCheck):
    name = "check_mask_smallest"
    points = 2
    holds = "the weights that go are those of smallest magnitude"

    def inputs(self, seed: int) -> dict[str, Any]:
        rows = torch.logspace(-1, 1, 6, dtype=torch.float32)[:, None]
        return {
            "a random weight [8, 12], sparsity=0.5": [_normal(seed + 5, 8, 12), 0.5],
            "a weight [6, 20] whose rows differ in size, sparsity=0.4": [_normal(seed + 6, 6, 20) * rows, 0.4],
        }

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (weight, sparsity) in inputs.items():
            mask, size = _mask(values[case], weight, case), weight.abs()
            if not mask.any() or mask.all() or size[~mask].max() <= size[mask].min():
                continue
            start = (
                f"for {case} a weight of magnitude {size[~mask].max():.3g} goes and one of {size[mask].min():.3g} stays"
            )
            if size[~mask].min() >= size[mask].max():
                raise Wrong(f"{start}: the largest go; True must mark the weights that stay")
            if weight[~mask].max() <= weight[mask].min():
                raise Wrong(f"{start}: magnitude is the absolute value, and a large negative weight matters")
            if len({int(row.sum()) for row in mask}) == 1 and round(sparsity * weight.shape[1]) > 0:
                raise Wrong(f"{start}: rank all weights of the tensor together, not each row by itself")
            raise Wrong(f"{start}: the k smallest of weight.abs() must go")


def _mask(outcome: Any, weight: Tensor, case: str) -> Tensor:
    mask = returned(outcome, case, "where k is 0 nothing goes, where it is n everything does" if "=0" in case else "")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise Wrong(
            f"for {case} magnitude_mask must return a bool tensor, True where a weight stays; got {describe(mask)}"
        )
    if mask.shape != weight.shape:
        raise Wrong(f"for {case} the mask must have the weight's shape {list(weight.shape)}; got {list(mask.shape)}")
    unchanged(outcome, case, "weight")
    return mask


# The loss -------------------------------------------------------------------------------------------------------------


class LossCheck(Check):
    """Inputs: a case -> [student_logits, teacher_logits, labels, options]."""

    needs = ("distillation_loss",)

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        return {
            case: call(answer["distillation_loss"], *arguments, **options)[0]
            for case, (*arguments, options) in inputs.items()
        }


class CheckLoss(LossCheck):
    name = "check_loss"
    points = 4
    holds = "(1 - alpha) · cross-entropy + alpha · T² · KL(teacher || student at T), and finite for large logits"

    def inputs(self, seed: int) -> dict[str, Any]:
        data = _logits(seed + 10, 6, 5)
        student, teacher, labels = _logits(seed + 11, 6, 5)
        return {
            "alpha=0, temperature=4": [*data, {"temperature": 4.0, "alpha": 0.0}],
            "alpha=1, temperature=4": [*data, {"temperature": 4.0, "alpha": 1.0}],
            "alpha=1, temperature=1": [*data, {"temperature": 1.0, "alpha": 1.0}],
            "alpha=0.7, temperature=4": [*data, {"temperature": 4.0, "alpha": 0.7}],
            "no temperature and no alpha given (2 and 0.5)": [*data, {}],
            "logits of many hundreds": [student * 200, teacher * 200, labels, {}],
        }

    def judge(self, inputs: Inputs, values: Plain) -> None:
        _judge_losses(inputs, values)


class CheckLossSequences(LossCheck):
    name = "check_loss_sequences"
    points = 3
    holds = "a language model's loss is a mean over the tokens that count: length and padding do not change it"

    def inputs(self, seed: int) -> dict[str, Any]:
        whole = _logits(seed + 20, 2, 6, 7)
        student, teacher, labels = _logits(seed + 21, 3, 8, 7)
        lengths = torch.tensor([8, 5, 2])
        padding = torch.arange(8) >= lengths[:, None]
        student[padding], teacher[padding] = 30 * student[padding], -30 * teacher[padding]
        padded = (student, teacher, labels.masked_fill(padding, IGNORE))
        drawn: dict[str, Any] = {}
        for name, data in (("[2, 6, 7]", whole), ("[3, 8, 7] with padding", padded)):
            for alpha in (0.0, 1.0, 0.5):
                drawn[f"logits {name}, alpha={alpha:g}"] = [*data, {"temperature": 2.0, "alpha": alpha}]
        longer = [torch.cat([part] * 4, dim=1) for part in whole]
        drawn["the same tokens four times over, alpha=0.5"] = [*longer, {"temperature": 2.0, "alpha": 0.5}]
        return drawn

    def judge(self, inputs: Inputs, values: Plain) -> None:
        hint = (
            "flatten to [batch * time, vocab] and labels to [batch * time]; the mask, labels != -100, is a bool tensor"
        )
        _judge_losses(inputs, values, hint)


class CheckLossGradient(LossCheck):
    name = "check_loss_gradient"
    points = 2
    holds = "the student gets the gradient of both terms, the teacher gets none"

    def inputs(self, seed: int) -> dict[str, Any]:
        return {"alpha=0.6, temperature=3": [*_logits(seed + 30, 6, 5), {"temperature": 3.0, "alpha": 0.6}]}

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        values = {}
        for case, (student, teacher, labels, options) in inputs.items():
            student, teacher = (logits.clone().requires_grad_() for logits in (student, teacher))
            values[case], loss = call(answer["distillation_loss"], student, teacher, labels, **options)
            if type(loss) is Tensor and loss.requires_grad and loss.dim() == 0:
                values[case]["gradients"] = [
                    plain(each) for each in torch.autograd.grad(loss, (student, teacher), allow_unused=True)
                ]
        return values

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case, (student, teacher, labels, options) in inputs.items():
            loss = _scalar(returned(values[case], case), case)
            if not _near(loss, float(_right(student.double(), teacher.double(), labels, **options))):
                raise Wrong(f"for {case} the loss itself is not right yet: first let check_loss pass")
            if "gradients" not in values[case]:
                raise Wrong(f"for {case} the loss has no graph behind it: no .item(), .detach() or no_grad on its way")
            student = student.double().requires_grad_()
            (wanted,) = torch.autograd.grad(_right(student, teacher.double(), labels, **options), student)
            mine, theirs = values[case]["gradients"]
            if isinstance(theirs, Tensor) and theirs.abs().max() > 0:
                raise Wrong(f"for {case} the teacher's logits get a gradient: detach them, the teacher does not learn")
            if not isinstance(mine, Tensor) or not torch.allclose(mine.double(), wanted, rtol=1e-3, atol=1e-6):
                raise Wrong(
                    f"for {case} the gradient of the student's logits is not that of the loss: let both terms keep "
                    "their graph (no .detach() or .data on student_logits)"
                )


def _judge_losses(inputs: Inputs, values: Plain, hint: str = "") -> None:
    for case, (student, teacher, labels, options) in inputs.items():
        loss = _scalar(returned(values[case], case, hint), case)
        unchanged(values[case], case, "student_logits", "teacher_logits", "labels")
        student, teacher = student.double(), teacher.double()
        right = float(_right(student, teacher, labels, **options))
        if _near(loss, right):
            continue
        start = f"for {case} the loss is {loss:.5g}, it should be {right:.5g}"
        if loss != loss or loss in (float("inf"), -float("inf")):
            raise Wrong(
                f"{start}: take log_softmax, not the log of softmax; F.kl_div wants log-probabilities of the student "
                "first, then probabilities of the teacher (log_target=True if they are logarithms too)"
            )
        alpha, temperature = options.get("alpha", 0.5), options.get("temperature", 2.0)
        for mistake, value in _mistakes(student, teacher, labels, temperature, alpha):
            if _near(loss, value):
                raise Wrong(f"{start}: {mistake}")
        if alpha == 0:
            raise Wrong(
                f"{start}: with alpha=0 it is the mean cross-entropy of student_logits (no temperature) and labels"
            )
        if alpha == 1:
            raise Wrong(
                f"{start}: with alpha=1 it is T**2 * KL(teacher || student), both softened by T, mean of positions"
            )
        raise Wrong(
            f"{start}: it is (1 - alpha) * hard + alpha * T**2 * soft, with temperature=2.0, alpha=0.5 by default"
        )


def _right(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 2.0, alpha: float = 0.5) -> Tensor:
    """The loss in float64."""
    counts = labels != IGNORE
    hard = F.cross_entropy(student[counts], labels[counts])
    soft = _kl(teacher[counts] / temperature, student[counts] / temperature).mean()
    return (1 - alpha) * hard + alpha * temperature**2 * soft


def _mistakes(student: Tensor, teacher: Tensor, labels: Tensor, t: float, alpha: float) -> list[tuple[str, float]]:
    """What known mistakes come to. The hard term's when alpha is 0, the soft term's when it is 1."""
    counts = labels != IGNORE
    s, p, y = student[counts], teacher[counts], labels[counts]
    hard, softs = F.cross_entropy(s, y), _kl(p / t, s / t)
    soft, size, classes = softs.mean(), counts.numel(), student.shape[-1]
    batch = len(student)
    found: list[tuple[str, Any]] = []
    swapped = "alpha weighs the soft term (the teacher), 1 - alpha the labels; yours has them the other way round"
    if alpha == 0:
        everywhere = [_kl(teacher / t, student / t).flatten(), _kl(student / t, teacher / t).flatten(), softs]
        for each in everywhere:
            for value in (each.mean(), each.sum(), each.sum() / batch):
                found += [(swapped, value * factor) for factor in (1, t, t**2)]
        found.append(
            ("the labels are compared with student_logits as they are: no temperature there", F.cross_entropy(s / t, y))
        )
        found.append(("take the mean over the positions that count, not the sum", hard * len(y)))
        found.append(("divide by the positions that count, not by all", hard * len(y) / size))
        found.append(("labels are compared with the student, not with the teacher", F.cross_entropy(p, y)))
        return [(text, float(value)) for text, value in found]
    if alpha < 1:
        weights = [("T**2 is missing in the soft term", 1 - alpha, alpha), (swapped, alpha, (1 - alpha) * t**2)]
        weights += [(f"{swapped}, and T**2 is missing", alpha, 1 - alpha)]
        weights += [("both terms must be weighed: 1 - alpha and alpha", 1.0, alpha * t**2)]
        return [(text, float(h * hard + w * soft)) for text, h, w in weights]

    def softened(teachers: float, students: float) -> Tensor:
        return _kl(p / teachers, s / students).mean()

    cubed = t**2
    found += [(swapped, value) for value in (hard, hard * len(y))]
    if t != 1:
        found.append(("multiply the soft term by T**2: its gradients shrink as 1/T**2", soft))
        found.append(("multiply the soft term by T**2, not by T", soft * t))
        for factor in (1, cubed):
            found.append(("the teacher's logits must be softened by the temperature too", factor * softened(1, t)))
            found.append(("the student's logits must be softened by the temperature too", factor * softened(t, 1)))
            found.append(("divide both logits by the temperature before the softmax", factor * softened(1, 1)))
            found.append(
                ("divide the logits by the temperature; yours are multiplied", factor * softened(1 / t, 1 / t))
            )
    reverse = _kl(s / t, p / t)
    entropy = -((p / t).softmax(-1) * (p / t).log_softmax(-1)).sum(-1).mean()
    unlogged = ((p / t).softmax(-1) * ((p / t).log_softmax(-1) - (s / t).softmax(-1))).sum(-1).mean()
    over_batch = _kl(p / t, s / t, dim=0)
    direction = (
        "that is KL(student || teacher): the expectation is the teacher's, F.kl_div(student's log-probabilities, "
        "teacher's probabilities)"
    )
    for factor in (cubed, 1):
        found += [(direction, factor * value) for value in (reverse.mean(), reverse.sum())]
        found.append(
            ("F.kl_div's first argument must be log-probabilities: log_softmax, not softmax", factor * unlogged)
        )
        found.append(
            (
                "that is the cross-entropy with the teacher, KL subtracts the teacher's entropy",
                factor * (soft + entropy),
            )
        )
        found.append(
            (
                "the sum over classes must not be divided by the classes too: reduction='mean' does",
                factor * soft / classes,
            )
        )
        found.append(("the sign is wrong: a KL is never negative", -factor * soft))
        if student.dim() == 2:
            found.append(("take the mean over the batch, not the sum", factor * softs.sum()))
            over = "softmax must be over the classes, the last dimension, not over the batch"
            found += [(over, factor * over_batch.sum() / n) for n in (batch, classes, 1)]
            continue
        every = _kl(teacher / t, student / t)
        time = _kl(teacher / t, student / t, dim=1)
        grows = (
            "divide the sum by batch * time: reduction='batchmean' divides by the batch alone, and grows with length"
        )
        found += [(grows, factor * each.sum() / batch) for each in (softs, every)]
        over = "softmax must be over the vocabulary, the last dimension, not over time"
        found += [(over, factor * time.sum() / n) for n in (batch, time.numel(), size, batch * classes)]
        if not counts.all():
            found.append(("padding (labels of -100) must not count in the soft term either", factor * every.mean()))
            found.append(
                ("divide by the positions that count, not by all of batch * time", factor * softs.sum() / size)
            )
            rows = torch.stack([each[kept].mean() for each, kept in zip(every, counts, strict=True)])
            found.append(("every token counts alike: no mean of each sequence first", factor * rows.mean()))
    return [(text, float(value)) for text, value in found]


def _kl(p: Tensor, q: Tensor, dim: int = -1) -> Tensor:
    """KL of logits, summed over ``dim``."""
    return (p.softmax(dim) * (p.log_softmax(dim) - q.log_softmax(dim))).sum(dim)


def _near(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= 1e-4 * abs(wanted) + 1e-5


def _scalar(value: Plain, case: str) -> float:
    loss = float_tensor(value, f"for {case}, the loss")
    if loss.dim() > 0:
        raise Wrong(f"for {case} the loss must be one number, the mean over the batch; got {describe(value)}")
    return loss.item()


# The student ----------------------------------------------------------------------------------------------------------


class StudentCheck(Check):
    """Inputs: a case -> {"teacher": layers, "images", "labels"}; held-out images and labels stay with the judge."""

    needs = ("train_student",)

    def run(self, answer: Answer, inputs: Inputs) -> Plain:
        values = {}
        for case, given in inputs.items():
            teacher = _network(given["teacher"])
            values[case], student = call(answer["train_student"], teacher, given["images"], given["labels"])
            if "returned" in values[case]:
                values[case]["returned"] = _layers(student)
        return values


class CheckStudentSize(StudentCheck):
    name = "check_student_size"
    points = 2
    holds = (
        f"the student has at most {MAX_PARAMETERS:,} weights and biases, of which at most {MAX_NONZERO} are not zero"
    )

    def inputs(self, seed: int) -> dict[str, Any]:
        case, _, _ = _draw(seed)
        return {"300 images": {**case, "images": case["images"][:300], "labels": case["labels"][:300]}}

    def judge(self, inputs: Inputs, values: Plain) -> None:
        for case in inputs:
            _require_small(_student(values[case], case))


class CheckStudentAccuracy(StudentCheck):
    name = "check_student_accuracy"
    points = 4
    holds = f"on images it never saw, the pruned student is right in at least {MIN_ACCURACY:.0%} (mean of two draws)"

    def inputs(self, seed: int) -> dict[str, Any]:
        drawn: dict[str, Any] = {}
        for i in (1, 2):
            case, images, labels = _draw(seed + i)
            drawn[f"draw {i}"] = case
            drawn[f"_draw {i}"] = [images, labels]
        return drawn

    def judge(self, inputs: Inputs, values: Plain) -> None:
        accuracies = []
        for case in [key for key in inputs if not key.startswith("_")]:
            layers, (images, labels) = _student(values[case], case), inputs[f"_{case}"]
            _require_small(layers)
            sizes = [tuple(tensor.shape) for layer in layers if isinstance(layer, list) for tensor in layer]
            try:
                logits = _forward(layers, images.double())
                accuracies.append(float((logits.argmax(-1) == labels).double().mean()))
            except RuntimeError:
                raise Wrong(f"the student's layers do not fit together, 64 -> ... -> 10; got {sizes}") from None
            if logits.shape[1:] != (10,):
                raise Wrong(f"the student must give 10 logits an image; got {list(logits.shape[1:])}")
        accuracy = sum(accuracies) / len(accuracies)
        if accuracy < MIN_ACCURACY:
            raise Wrong(
                f"the pruned student is right in {accuracy:.1%} of images it never saw, {MIN_ACCURACY:.0%} are wanted "
                "(a student of the labels alone reaches 60 to 87 %, for most labels are wrong: trust the teacher, with "
                "a large alpha; train on after pruning, at a learning rate of about 0.01, for some hundred steps)"
            )


def _student(outcome: Any, case: str) -> list[Any]:
    """The layers: [weight, bias] or the name of an activation."""
    layers = returned(outcome, case)
    unchanged(outcome, case, "teacher", "images", "labels")
    if not isinstance(layers, list):
        raise Wrong(f"train_student must return an nn.Sequential of nn.Linear and nn.ReLU; got {describe(layers)}")
    for layer in layers:
        if isinstance(layer, str) and layer not in ACTIVATIONS:
            allowed = ", ".join(["Linear", *ACTIVATIONS, *PASSED_OVER])
            raise Wrong(f"the student may hold only {allowed}; it holds a {layer[:40]}")
        if isinstance(layer, list) and not all(isinstance(t, Tensor) and t.is_floating_point() for t in layer):
            raise Wrong(f"a layer's weight must be a plain float tensor; got {describe(layer[0])}")
        if isinstance(layer, list) and not all(bool(tensor.isfinite().all()) for tensor in layer):
            raise Wrong("the student has NaN or inf in its weights: is the learning rate too large?")
    if not any(isinstance(layer, list) for layer in layers):
        raise Wrong("the student has no nn.Linear in it")
    return layers


def _require_small(layers: list[Any]) -> None:
    tensors = [tensor for layer in layers if isinstance(layer, list) for tensor in layer]
    size = sum(tensor.numel() for tensor in tensors)
    nonzero = sum(int((tensor != 0).sum()) for tensor in tensors)
    if size > MAX_PARAMETERS:
        raise Wrong(
            f"the student has {size:,} weights and biases, at most {MAX_PARAMETERS:,} are allowed: zeros "
            "do not make a network smaller, fewer neurons do (64 -> 16 -> 10 has 1,210)"
        )
    if nonzero > MAX_NONZERO:
        raise Wrong(
            f"{nonzero} of the student's {size:,} weights and biases are not zero, at most {MAX_NONZERO} may "
            "be: prune with magnitude_mask, and multiply by the mask again after every optimizer step"
        )


def _layers(student: Any) -> Plain:
    """The student as plain values, or what it is instead."""
    if not isinstance(student, nn.Sequential):
        return None if student is None else Opaque(type(student).__name__)
    found: list[Any] = []
    for module in student:
        if isinstance(module, nn.Linear):
            found.append([plain(each) for each in (module.weight, module.bias) if each is not None])
        elif isinstance(module, nn.Sequential):
            inner = _layers(module)
            found += inner if isinstance(inner, list) else [type(module).__name__]
        elif type(module).__name__ not in PASSED_OVER:
            found.append(type(module).__name__)
    return found


def _forward(layers: list[Any], x: Tensor) -> Tensor:
    for layer in layers:
        x = ACTIVATIONS[layer](x) if isinstance(layer, str) else F.linear(x, *(tensor.double() for tensor in layer))
    return x


def _network(layers: list[list[Tensor]]) -> nn.Sequential:
    """Linear layers with ReLU between them: what the student gets as its teacher, in eval mode and frozen."""
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.utils.skip_init(nn.Linear, *reversed(weight.shape), dtype=weight.dtype)
        linear.weight.data, linear.bias.data = weight.clone(), bias.clone()
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1]).eval().requires_grad_(False)


@lru_cache(maxsize=16)
def _draw(seed: int) -> tuple[dict[str, Any], Tensor, Tensor]:
    """A split of the digits: a teacher that saw the right labels, images with mostly random ones, held-out images."""
    from labsupport.distillation.digits import load_digits

    digits = load_digits(seed % 2**32)
    generator = torch.Generator().manual_seed(seed)
    random = torch.randint(10, digits.train_y.shape, generator=generator)
    wrong = torch.rand(digits.train_y.shape, generator=generator, dtype=torch.float32) < WRONG_LABELS
    layers = []
    for fan_in, fan_out in ((64, 128), (128, 10)):
        weight = torch.randn(fan_out, fan_in, generator=generator, dtype=torch.float32) * (2 / fan_in) ** 0.5
        layers.append([weight, torch.zeros(fan_out, dtype=torch.float32)])
    teacher = _network(layers).requires_grad_()
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    with torch.enable_grad():
        for _ in range(100):
            optimizer.zero_grad()
            F.cross_entropy(teacher(digits.train_x), digits.train_y).backward()
            optimizer.step()
    case = {
        "teacher": _layers(teacher)[::2],
        "images": digits.train_x,
        "labels": torch.where(wrong, random, digits.train_y),
    }
    return case, digits.test_x, digits.test_y


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def _logits(seed: int, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's logits, and labels."""
    labels = torch.randint(shape[-1], shape[:-1], generator=torch.Generator().manual_seed(seed + 500))
    return 2 * _normal(seed, *shape), 2 * _normal(seed + 1000, *shape), labels


check_mask_count, check_mask_smallest = CheckMaskCount(), CheckMaskSmallest()
check_loss, check_loss_sequences, check_loss_gradient = CheckLoss(), CheckLossSequences(), CheckLossGradient()
check_student_size, check_student_accuracy = CheckStudentSize(), CheckStudentAccuracy()

EXERCISE = Exercise(
    name="ex07_prune_and_distill",
    checks=(
        check_mask_count, check_mask_smallest, check_loss, check_loss_sequences, check_loss_gradient,
        check_student_size, check_student_accuracy,
    ),
)  # fmt: skip
