"""Answers to exercise 7 (see load.py)."""

_MASK, _LOSS, _STUDENT = "answer-magnitude-mask", "answer-distillation-loss", "answer-train-student"

RIGHT = {
    "topk and scatter, the loss term by term, masks from the start": {
        _MASK: """
def magnitude_mask(weight, sparsity):
    n = weight.numel()
    gone = torch.topk(weight.reshape(-1).abs(), round(n * sparsity), largest=False).indices
    return torch.ones(n).scatter(0, gone, 0.0).bool().reshape(weight.shape)
""",
        _LOSS: """
def distillation_loss(student_logits, teacher_logits, labels, temperature=2.0, alpha=0.5):
    classes = student_logits.size(-1)
    s, t = student_logits.reshape(-1, classes), teacher_logits.detach().reshape(-1, classes)
    y = labels.reshape(-1)
    valid = (y != -100).float()
    hard = torch.nn.CrossEntropyLoss(ignore_index=-100)(s, y)
    log_p, log_q = torch.log_softmax(t / temperature, -1), torch.log_softmax(s / temperature, -1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    soft = (kl * valid).sum() / valid.sum()
    return alpha * soft * temperature**2 + (1 - alpha) * hard
""",
        _STUDENT: """
def train_student(teacher, images, labels):
    torch.manual_seed(1)
    layers = [torch.nn.Linear(64, 16), torch.nn.Linear(16, 10)]
    masks = [magnitude_mask(layer.weight, 0.5) for layer in layers]
    student = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01, weight_decay=1e-5)
    with torch.no_grad():
        for layer, mask in zip(layers, masks):
            layer.weight.mul_(mask)
    for _ in range(300):
        optimizer.zero_grad()
        distillation_loss(student(images), teacher(images), labels, 4.0, 1.0).backward()
        optimizer.step()
        with torch.no_grad():
            for layer, mask in zip(layers, masks):
                layer.weight.mul_(mask)
    print("trained")
    return student.eval()
""",
    },
    "a full sort, KLDivLoss with log targets, batches and a smaller learning rate": {
        _MASK: """
def magnitude_mask(weight, sparsity):
    order = torch.sort(weight.abs().flatten(), descending=True, stable=True).indices
    keep = weight.numel() - round(sparsity * weight.numel())
    mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[order[:keep]] = True
    return mask.reshape(weight.shape)
""",
        _LOSS: """
def distillation_loss(student_logits, teacher_logits, labels, temperature=2.0, alpha=0.5):
    student_logits = student_logits.flatten(0, -2)
    teacher_logits = teacher_logits.detach().flatten(0, -2)
    labels = labels.flatten()
    student_logits, teacher_logits = student_logits[labels != -100], teacher_logits[labels != -100]
    labels = labels[labels != -100]
    criterion = torch.nn.KLDivLoss(reduction="batchmean", log_target=True)
    soft = criterion((student_logits / temperature).log_softmax(1), (teacher_logits / temperature).log_softmax(1))
    hard = -student_logits.log_softmax(1).gather(1, labels[:, None]).mean()
    return torch.lerp(hard, temperature * temperature * soft, alpha)
""",
        _STUDENT: """
def train_student(teacher, images, labels):
    student = torch.nn.Sequential(torch.nn.Linear(64, 17), torch.nn.GELU(), torch.nn.Linear(17, 10))
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)

    def train(steps, masks=()):
        for _ in range(steps):
            rows = torch.randint(len(images), (64,))
            loss = distillation_loss(student(images[rows]), teacher(images[rows]), labels[rows], 2.0, 0.95)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for weight, mask in masks:
                weight.data[~mask] = 0

    train(300)
    train(200, [(p, magnitude_mask(p, 0.52)) for p in student.parameters() if p.dim() == 2])
    return student
""",
    },
    "numpy, the teacher's cross-entropy less its entropy, three rounds of pruning": {
        _MASK: """
import numpy as np

def magnitude_mask(weight, sparsity):
    flat = np.abs(weight.detach().numpy()).ravel()
    mask = np.full(flat.size, True)
    k = round(sparsity * flat.size)
    if k > 0:
        mask[np.argpartition(flat, k - 1)[:k]] = False
    return torch.from_numpy(mask.reshape(tuple(weight.shape)))
""",
        _LOSS: """
import torch.nn.functional as F

def distillation_loss(student_logits, teacher_logits, labels, temperature=2.0, alpha=0.5):
    with torch.no_grad():
        log_p = torch.log_softmax(teacher_logits / temperature, dim=-1)
        p = torch.exp(log_p)
        entropy = -(p * log_p).sum(dim=-1)
    cross = -(p * torch.log_softmax(student_logits / temperature, dim=-1)).sum(dim=-1)
    keep = labels.ne(-100)
    soft = torch.where(keep, cross - entropy, torch.zeros(())).sum() / keep.sum()
    hard = F.cross_entropy(student_logits.movedim(-1, 1), labels, ignore_index=-100)
    return (1 - alpha) * hard + alpha * temperature**2 * soft
""",
        _STUDENT: """
def train_student(teacher, images, labels):
    student = torch.nn.Sequential(
        torch.nn.Linear(64, 15), torch.nn.ReLU(), torch.nn.Dropout(0.0), torch.nn.Linear(15, 10)
    )
    weights = [student[0].weight, student[3].weight]
    target = teacher(images)
    for sparsity in (0.0, 0.2, 0.4, 0.5):
        masks = [magnitude_mask(weight, sparsity) for weight in weights]
        optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
        for step in range(90):
            for weight, mask in zip(weights, masks):
                weight.data *= mask
            loss = distillation_loss(student(images), target, labels, temperature=10.0, alpha=1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for weight, mask in zip(weights, masks):
            weight.data *= mask
    return student
""",
    },
    "kthvalue with ties counted off, torch.distributions, momentum, masks as hooks on the gradient": {
        _MASK: """
def magnitude_mask(weight, sparsity):
    k = int(round(sparsity * weight.numel()))
    if k == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    size = weight.abs().flatten()
    threshold = size.kthvalue(k).values
    mask = size >= threshold
    surplus = k - int((~mask).sum())
    mask[(size == threshold).nonzero().flatten()[:surplus]] = False
    return mask.view_as(weight)
""",
        _LOSS: """
import torch.nn.functional as F

def distillation_loss(student_logits, teacher_logits, labels, temperature=2.0, alpha=0.5):
    valid = labels != -100
    p = torch.distributions.Categorical(logits=teacher_logits[valid].detach() / temperature)
    q = torch.distributions.Categorical(logits=student_logits[valid] / temperature)
    soft = torch.einsum("nc,nc->n", p.probs, p.logits - q.logits).mean()
    hard = F.nll_loss(F.log_softmax(student_logits[valid], dim=1), labels[valid])
    return (1.0 - alpha) * hard + (alpha * temperature**2) * soft
""",
        _STUDENT: """
def train_student(teacher, images, labels):
    student = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10, bias=False))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.3, momentum=0.9)
    with torch.no_grad():
        target = teacher(images)

    def train(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            distillation_loss(student(images), target, labels, alpha=1.0).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()

    train(200)
    for parameter in [student[0].weight, student[2].weight]:
        mask = magnitude_mask(parameter, 0.5)
        parameter.data *= mask
        parameter.register_hook(lambda gradient, mask=mask: gradient * mask)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.3, momentum=0.9)
    train(150)
    return student
""",
    },
    "the course's own": {
        _MASK: "from labsupport.pruning import magnitude_mask",
        _LOSS: "from labsupport.distillation import distillation_loss",
        _STUDENT: """
from labsupport.distillation import Distiller, mlp
from labsupport.pruning import Pruner

def train_student(teacher, images, labels):
    student = mlp((64, 16, 10))
    options = {"temperature": 4.0, "alpha": 0.95, "batch_size": 256, "learning_rate": 1e-2}
    Distiller(student, teacher, **options).train((images, labels), 200, progress=False)
    pruner = Pruner(student)
    pruner.prune(0.5, "layer")
    again = Distiller(student, teacher, **options)
    again.train((images, labels), 120, after_step=lambda _: pruner.apply(), progress=False)
    pruner.remove()
    return student
""",
    },
}

_COUNT = "    num_pruned = round(sparsity * weight.numel())\n"
_SMALLEST = "    smallest = weight.abs().flatten().argsort()[:num_pruned]\n"
_VIEW = "    return mask.view(weight.shape)"
_COUNTS = "    counts = labels != -100\n"
_PAIR = "    student, teacher = student_logits[counts], teacher_logits[counts].detach()\n"
_HARD = "    hard = F.cross_entropy(student, labels[counts])\n"
_LOG_Q = "log_q = F.log_softmax(student / temperature, dim=-1)"
_P = "p = F.softmax(teacher / temperature, dim=-1)"
_SOFT = 'soft = F.kl_div(log_q, p, reduction="batchmean")'
_SUM = "return (1 - alpha) * hard + alpha * temperature**2 * soft"
_FLAT = (
    "    student, teacher = student_logits.flatten(0, -2), teacher_logits.detach().flatten(0, -2)\n"
    "    labels = labels.flatten()\n"
)
_NET = "torch.nn.Sequential(\n        torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)\n    )"
_KEEP = "                layer.weight *= mask\n"
_TRAINING = "temperature=4.0, alpha=0.9)"


def _threshold(comparison: str, k: str = "num_pruned") -> list[tuple[str, str]]:
    """The mask from a threshold, k = 0 guarded."""
    return [
        (_SMALLEST, f"    if {k} == 0:\n        return torch.ones_like(weight, dtype=torch.bool)\n"
                    f"    return weight.abs() {comparison} weight.abs().flatten().kthvalue({k}).values\n")
    ]  # fmt: skip


WRONG = {
    "a threshold with strict >, ties all go": (
        "check_mask_count",
        "a threshold removes all weights of equal magnitude or none",
        {_MASK: _threshold(">")},
    ),
    "a threshold with >=, ties all stay": (
        "check_mask_count",
        "choose k",
        {_MASK: _threshold(">=")},
    ),
    "k = 0 crashes": (
        "check_mask_count",
        "sparsity=0.0 your code raised RuntimeError",
        {_MASK: [(_SMALLEST, _SMALLEST + "    weight.abs().flatten().topk(num_pruned, largest=False).values.max()\n")]},
    ),
    "a slice to -k keeps nothing where k is 0": (
        "check_mask_count",
        "at sparsity 0 all weights stay",
        {
            _MASK: [
                (
                    _SMALLEST,
                    "    largest = weight.abs().flatten().argsort(descending=True)[:-num_pruned]\n",
                ),
                ("mask = torch.ones(", "mask = torch.zeros("),
                ("mask[smallest] = False", "mask[largest] = True"),
            ]
        },
    ),
    "int() rounds down": (
        "check_mask_count",
        "int() rounds down",
        {_MASK: [("round(sparsity * weight.numel())", "int(sparsity * weight.numel())")]},
    ),
    "rounds up": (
        "check_mask_count",
        "choose k = round(sparsity * weight.numel())",
        {_MASK: [("round(sparsity * weight.numel())", "-int(-sparsity * weight.numel() // 1)")]},
    ),
    "True marks what goes": (
        "check_mask_count",
        "True must mark the weights that stay",
        {_MASK: [(_VIEW, "    return ~mask.view(weight.shape)")]},
    ),
    "a float mask": (
        "check_mask_count",
        "must return a bool tensor",
        {_MASK: [("dtype=torch.bool", "dtype=torch.float32")]},
    ),
    "a flat mask": (
        "check_mask_count",
        "the mask must have the weight's shape [8, 12]",
        {_MASK: [(_VIEW, "    return mask")]},
    ),
    "returns the pruned weight": (
        "check_mask_count",
        "must return a bool tensor",
        {_MASK: [(_VIEW, "    return weight * mask.view(weight.shape)")]},
    ),
    "prunes the weight in place": (
        "check_mask_count",
        "changed its argument weight in place",
        {_MASK: [(_VIEW, "    weight *= mask.view(weight.shape)\n" + _VIEW)]},
    ),
    "torch.quantile for the threshold": (
        "check_mask_count",
        "a threshold removes all weights of equal magnitude or none",
        {
            _MASK: [
                (
                    _SMALLEST,
                    "    if num_pruned in (0, weight.numel()):\n"
                    "        return torch.full(weight.shape, num_pruned == 0)\n"
                    "    magnitudes = weight.abs().flatten()\n"
                    "    cut = torch.quantile(magnitudes, num_pruned / weight.numel(), interpolation='lower')\n"
                    "    return weight.abs() > cut\n",
                )
            ]
        },
    ),
    "a mask of uint8": (
        "check_mask_count",
        "must return a bool tensor",
        {_MASK: [("dtype=torch.bool", "dtype=torch.uint8")]},
    ),
    "a mask of random places": (
        "check_mask_smallest",
        "the k smallest of weight.abs() must go",
        {_MASK: [("weight.abs().flatten().argsort()", "torch.randperm(weight.numel())")]},
    ),
    "the largest go": (
        "check_mask_smallest",
        "the largest weights go",
        {_MASK: [(".argsort()", ".argsort(descending=True)")]},
    ),
    "signed weights are ranked": (
        "check_mask_smallest",
        "magnitude is the absolute value",
        {_MASK: [("weight.abs().flatten()", "weight.flatten()")]},
    ),
    "each row loses its share": (
        "check_mask_smallest",
        "not each row by itself",
        {
            _MASK: [
                (
                    _SMALLEST,
                    _SMALLEST + "    if weight.dim() == 2 and num_pruned % len(weight) == 0 and num_pruned:\n"
                    "        order = weight.abs().argsort(1)[:, : num_pruned // len(weight)]\n"
                    "        return torch.ones_like(weight).scatter(1, order, 0).bool()\n",
                )
            ]
        },
    ),
    "the formula: alpha weighs the labels": (
        "check_loss",
        "yours has them swapped",
        {_LOSS: [(_SUM, "return alpha * hard + (1 - alpha) * soft")]},
    ),
    "alpha reversed, with T²": (
        "check_loss",
        "alpha weighs the soft term (the teacher), 1 - alpha the labels",
        {_LOSS: [(_SUM, "return alpha * hard + (1 - alpha) * temperature**2 * soft")]},
    ),
    "T² is missing": (
        "check_loss",
        "multiply the soft term by T**2: its gradients shrink",
        {_LOSS: [("alpha * temperature**2 * soft", "alpha * soft")]},
    ),
    "T in place of T²": (
        "check_loss",
        "by T**2, not by T",
        {_LOSS: [("temperature**2", "temperature")]},
    ),
    "the labels are not weighed": (
        "check_loss",
        "both terms must be weighed",
        {_LOSS: [("return (1 - alpha) * hard + ", "if alpha == 1:\n        hard = 0 * hard\n    return hard + ")]},
    ),
    "reverse KL": (
        "check_loss",
        "that is KL(student || teacher)",
        {
            _LOSS: [
                (_SOFT, 'soft = F.kl_div(p.log(), log_q.exp(), reduction="batchmean")'),
            ]
        },
    ),
    "the teacher is not softened": (
        "check_loss",
        "the teacher's logits must be softened",
        {_LOSS: [(_P, "p = F.softmax(teacher, dim=-1)")]},
    ),
    "the student is not softened": (
        "check_loss",
        "the student's logits must be softened",
        {_LOSS: [(_LOG_Q, "log_q = F.log_softmax(student, dim=-1)")]},
    ),
    "no temperature at all": (
        "check_loss",
        "divide both logits by the temperature",
        {_LOSS: [(_P, "p = F.softmax(teacher, dim=-1)"), (_LOG_Q, "log_q = F.log_softmax(student, dim=-1)")]},
    ),
    "logits are multiplied by the temperature": (
        "check_loss",
        "yours are multiplied",
        {
            _LOSS: [
                (_P, "p = F.softmax(teacher * temperature, dim=-1)"),
                (_LOG_Q, "log_q = F.log_softmax(student * temperature, dim=-1)"),
            ]
        },
    ),
    "log_softmax of the teacher without log_target": (
        "check_loss",
        "log_target=True",
        {_LOSS: [(_P, "p = F.log_softmax(teacher / temperature, dim=-1)")]},
    ),
    "softmax of the student in place of log_softmax": (
        "check_loss",
        "must be log-probabilities",
        {_LOSS: [(_LOG_Q, "log_q = F.softmax(student / temperature, dim=-1)")]},
    ),
    "log of softmax underflows": (
        "check_loss",
        "not the log of softmax",
        {_LOSS: [(_LOG_Q, "log_q = F.softmax(student / temperature, dim=-1).log()")]},
    ),
    "softmax over the batch": (
        "check_loss",
        "not over the batch",
        {
            _LOSS: [
                (_P, "p = F.softmax(teacher / temperature, dim=0)"),
                (_LOG_Q, "log_q = F.log_softmax(student / temperature, dim=0)"),
            ]
        },
    ),
    "reduction mean divides by the classes": (
        "check_loss",
        "must not be divided by the classes",
        {_LOSS: [('reduction="batchmean"', 'reduction="mean"')]},
    ),
    "the sum over the batch": (
        "check_loss",
        "the mean over the batch, not the sum",
        {_LOSS: [('reduction="batchmean"', 'reduction="sum"')]},
    ),
    "the teacher's entropy is not subtracted": (
        "check_loss",
        "KL subtracts the teacher's entropy",
        {_LOSS: [(_SOFT, "soft = -(p * log_q).sum(-1).mean()")]},
    ),
    "the teacher's best class as a label": (
        "check_loss",
        "the teacher's best class alone",
        {_LOSS: [(_SOFT, "soft = F.cross_entropy(student / temperature, teacher.argmax(-1))")]},
    ),
    "the mean square of the logits": (
        "check_loss",
        "the mean square of the difference of logits",
        {_LOSS: [(_SOFT, "soft = F.mse_loss(student / temperature, teacher / temperature)")]},
    ),
    "the sign of KL": (
        "check_loss",
        "a KL is never negative",
        {_LOSS: [(_SOFT, _SOFT.replace("= F", "= -F"))]},
    ),
    "labels against softened logits": (
        "check_loss",
        "no temperature there",
        {_LOSS: [(_HARD, _HARD.replace("(student,", "(student / temperature,"))]},
    ),
    "one loss an image": (
        "check_loss",
        "the loss must be one number",
        {_LOSS: [(_HARD, _HARD.replace("])", '], reduction="none")'))]},
    ),
    "other defaults": (
        "check_loss",
        "temperature=2.0, alpha=0.5 by default",
        {_LOSS: [("temperature=2.0, alpha=0.5", "temperature=4.0, alpha=0.7")]},
    ),
    "dim=1 and no flattening": (
        "check_loss_sequences",
        "your code raised RuntimeError: Expected target size",
        {
            _LOSS: [
                (_PAIR, "    student, teacher = student_logits, teacher_logits.detach()\n"),
                (_HARD, "    hard = F.cross_entropy(student, labels)\n"),
                (_P, "p = F.softmax(teacher / temperature, dim=1)"),
                (_LOG_Q, "log_q = F.log_softmax(student / temperature, dim=1)"),
            ]
        },
    ),
    "softmax over time": (
        "check_loss_sequences",
        "not over time",
        {
            _LOSS: [
                (_P, "p = F.softmax(teacher_logits.detach() / temperature, dim=1)"),
                (_LOG_Q, "log_q = F.log_softmax(student_logits / temperature, dim=1)"),
            ]
        },
    ),
    "batchmean on [batch, time, vocab]": (
        "check_loss_sequences",
        "divides by the batch alone",
        {
            _LOSS: [
                (_P, "p = F.softmax(teacher_logits.detach() / temperature, dim=-1)"),
                (_LOG_Q, "log_q = F.log_softmax(student_logits / temperature, dim=-1)"),
            ]
        },
    ),
    "padding counts in the soft term": (
        "check_loss_sequences",
        "must not count in the soft term",
        {_LOSS: [(_PAIR, _FLAT), (_HARD, "    hard = F.cross_entropy(student, labels)\n")]},
    ),
    "a masked sum divided by all positions": (
        "check_loss_sequences",
        "not by all of batch * time",
        {_LOSS: [(_SOFT, "soft = (p * (p.log() - log_q)).nan_to_num().sum() / labels.numel()")]},
    ),
    "a mean of each sequence first": (
        "check_loss_sequences",
        "no mean of each sequence first",
        {
            _LOSS: [
                (
                    _SOFT,
                    _SOFT + "\n    if labels.dim() == 2:\n"
                    '        rows = F.kl_div(log_q, p, reduction="none").sum(-1).split(counts.sum(1).tolist())\n'
                    "        soft = torch.stack([row.mean() for row in rows]).mean()",
                )
            ]
        },
    ),
    "the mask as floats": (
        "check_loss",
        "your code raised IndexError",
        {_LOSS: [(_COUNTS, "    counts = (labels != -100).float()\n")]},
    ),
    "a label of 0 is taken for padding": (
        "check_loss",
        "it is the mean cross-entropy",
        {_LOSS: [(_COUNTS, "    counts = labels > 0\n")]},
    ),
    "the teacher gets a gradient": (
        "check_loss_gradient",
        "the teacher's logits get a gradient",
        {_LOSS: [("teacher_logits[counts].detach()", "teacher_logits[counts]")]},
    ),
    "the student is detached in the soft term": (
        "check_loss_gradient",
        "let both terms keep their graph",
        {_LOSS: [(_LOG_Q, _LOG_Q.replace("student /", "student.detach() /"))]},
    ),
    "a Python float comes back": (
        "check_loss_gradient",
        "no .item(), .detach() or no_grad",
        {_LOSS: [(_SUM, f"{_SUM.replace('return ', 'return (')}).item()")]},
    ),
    "the student is the teacher": (
        "check_student_size",
        "the student has 9,610 weights and biases",
        {_STUDENT: [("    return student\n", "    return teacher\n")]},
    ),
    "an oversize student, most of it zero": (
        "check_student_size",
        "zeros do not make a network smaller",
        {
            _STUDENT: [
                (_NET, _NET.replace("16", "32")),
                ("magnitude_mask(layer.weight, 0.5)", "magnitude_mask(layer.weight, 0.8)"),
            ]
        },
    ),
    "never pruned": (
        "check_student_size",
        "prune with magnitude_mask",
        {_STUDENT: [("if step == 110:", "if step == 180:")]},
    ),
    "pruned by a third": (
        "check_student_size",
        "the zeros are in place, and too few",
        {_STUDENT: [("magnitude_mask(layer.weight, 0.5)", "magnitude_mask(layer.weight, 0.33)")]},
    ),
    "zeros come back while it trains on": (
        "check_student_size",
        "multiply by the mask again after every optimizer step",
        {_STUDENT: [(_KEEP, _KEEP + "            masks = {}\n")]},
    ),
    "returns the weights": (
        "check_student_size",
        "must return an nn.Sequential",
        {_STUDENT: [("    return student\n", "    return [p for p in student.parameters()]\n")]},
    ),
    "a module with the teacher inside": (
        "check_student_size",
        "it holds a Hidden",
        {
            _STUDENT: [
                (
                    "    return student\n",
                    "    hidden = type('Hidden', (torch.nn.Module,), {'forward': lambda self, x: "
                    "teacher(x)})()\n    return torch.nn.Sequential(hidden, *student)\n",
                ),
            ]
        },
    ),
    "returns nothing": (
        "check_student_size",
        "is there a `return`?",
        {_STUDENT: [("    return student\n", "")]},
    ),
    "trains on the labels alone": (
        "check_student_accuracy",
        "a student of the labels alone",
        {_STUDENT: [(_TRAINING, "temperature=4.0, alpha=0.0)")]},
    ),
    "alpha taken for the labels' weight": (
        "check_student_accuracy",
        "trust the teacher, with a large alpha",
        {_STUDENT: [(_TRAINING, "temperature=4.0, alpha=0.1)")]},
    ),
    "pruned to 75 % at the end, not trained on": (
        "check_student_accuracy",
        "after pruning, train for a few hundred steps more",
        {_STUDENT: [("if step == 110:", "if step == 179:"), ("layer.weight, 0.5)", "layer.weight, 0.75)")]},
    ),
    "trained for a few steps": (
        "check_student_accuracy",
        "for a few hundred steps more",
        {_STUDENT: [("range(180)", "range(24)"), ("step == 110", "step == 14")]},
    ),
    "never trained": (
        "check_student_accuracy",
        "that is about chance, 10 %, so it has hardly learned",
        {_STUDENT: [("        optimizer.step()\n", "")]},
    ),
    "another student than the one that was trained": (
        "check_student_accuracy",
        "on the parameters of the student that you return",
        {
            _STUDENT: [
                (
                    "    return student\n",
                    f"    student = {_NET}\n    for layer in (student[0], student[2]):\n"
                    "        layer.weight.data *= magnitude_mask(layer.weight, 0.5)\n    return student\n",
                )
            ]
        },
    ),
    "everything is pruned in the end": (
        "check_student_accuracy",
        "it takes every image for the same digit",
        {
            _STUDENT: [
                (
                    "    return student\n",
                    "    for p in student.parameters():\n        p.data *= 0\n    return student\n",
                )
            ]
        },
    ),
    "pruned to 90 % at once": (
        "check_student_accuracy",
        "of unseen images correctly, at least 91% are required",
        {_STUDENT: [("magnitude_mask(layer.weight, 0.5)", "magnitude_mask(layer.weight, 0.9)")]},
    ),
    "a learning rate that is too small": (
        "check_student_accuracy",
        "at a learning rate of about 0.01",
        {_STUDENT: [("lr=1e-2", "lr=1e-4")]},
    ),
}
