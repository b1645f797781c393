"""The Distiller: it learns, it can be interrupted, two processes do what one does, and the teacher stays as it was."""

from __future__ import annotations

import copy
import inspect
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from labsupport.distillation.batches import batch_rows
from labsupport.distillation.checkpoint import resume, save_checkpoint
from labsupport.distillation.distiller import Distiller
from labsupport.distillation.losses import FeatureLoss, distillation_loss
from labsupport.distillation.targets import next_token_pairs, sequence_targets
from labsupport.lm import Llama, LlamaConfig
from labsupport.lm.train import make_optimizers


def network(*sizes: int, seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.Tanh(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])


def classification(rows: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 8, generator=generator)
    return x, (x @ torch.randn(8, 5, generator=torch.Generator().manual_seed(99))).argmax(1)


def llama(num_layers: int, seed: int) -> Llama:
    torch.manual_seed(seed)
    return Llama(LlamaConfig(30, 16, 24, num_layers=num_layers, num_heads=2, num_kv_heads=1))


def text(rows: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Counting modulo 30, padded to different lengths."""
    generator = torch.Generator().manual_seed(seed)
    tokens = (torch.randint(30, (rows, 1), generator=generator) + torch.arange(13)) % 30
    return next_token_pairs(tokens, lengths=torch.randint(4, 14, (rows,), generator=generator))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# ------------------------------------------------------------------------------------------------- it learns


def test_a_classifier_comes_to_agree_with_its_teacher() -> None:
    data, held_out = classification(), classification(seed=1)
    teacher = network(8, 32, 5, seed=1)
    Distiller(teacher, None, alpha=0.0, learning_rate=1e-2).train(data, 150, progress=False)
    student = network(8, 16, 5, seed=2)
    distiller = Distiller(student, teacher, alpha=1.0, learning_rate=1e-2)
    before = distiller.evaluate(held_out)
    history = distiller.train(data, 150, held_out=held_out, evaluate_every=100, progress=False)
    after = distiller.evaluate(held_out)
    assert after["agreement"] > 0.8 > before["agreement"]
    assert after["divergence"] < 0.3 * before["divergence"]
    assert [record["step"] for record in history] == list(range(1, 151))
    assert [i for i, record in enumerate(history) if "held_out_loss" in record] == [99, 149]
    assert history[-1]["held_out_accuracy"] == after["accuracy"]


def test_evaluation_is_that_of_the_definitions() -> None:
    (x, labels), teacher, student = classification(50), network(8, 6, 5, seed=1), network(8, 4, 5, seed=2)
    labels[::7] = -100
    found = Distiller(student, teacher, batch_size=16).evaluate((x, labels))
    with torch.no_grad():
        logits, teacher_logits = student(x)[labels != -100], teacher(x)[labels != -100]
    labels = labels[labels != -100]
    expected = {
        "loss": F.cross_entropy(logits, labels),
        "accuracy": (logits.argmax(1) == labels).float().mean(),
        "divergence": F.kl_div(logits.log_softmax(1), teacher_logits.softmax(1), reduction="batchmean"),
        "agreement": (logits.argmax(1) == teacher_logits.argmax(1)).float().mean(),
    }
    assert found == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-5)


def test_one_step_is_that_of_the_formula() -> None:
    """Plain gradient descent, one step: the gradient of `distillation_loss` on that batch, at the first step's rate."""
    (x, labels), teacher, student = classification(20), network(8, 6, 5, seed=1), network(8, 4, 5, seed=2)
    expected = copy.deepcopy(student)
    distiller = Distiller(
        student, teacher, temperature=3.0, alpha=0.7, batch_size=6, warmup=0, max_grad_norm=1e9, seed=5,
        make_optimizers=lambda model: [torch.optim.SGD(model.parameters(), lr=0.1)],
    )  # fmt: skip
    (record,) = distiller.train((x, labels), 1, progress=False)
    rows = batch_rows(20, 6, seed=5, step=0)
    loss = distillation_loss(expected(x[rows]), teacher(x[rows]), labels[rows], 3.0, 0.7)
    loss.backward()
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-6)
    for parameter, wanted in zip(student.parameters(), expected.parameters(), strict=True):
        assert wanted.grad is not None and torch.allclose(parameter, wanted - 0.1 * wanted.grad, atol=1e-7)


def test_a_language_model_learns_from_its_teacher_and_padding_does_not_count() -> None:
    data = text()
    teacher = llama(2, seed=1)
    Distiller(teacher, None, alpha=0.0, batch_size=8, make_optimizers=make_optimizers).train(data, 60, progress=False)
    student = llama(1, seed=2)
    distiller = Distiller(student, teacher, alpha=1.0, batch_size=8, make_optimizers=make_optimizers)
    before = distiller.evaluate(data)["divergence"]
    distiller.train(data, 40, progress=False)
    assert distiller.evaluate(data)["divergence"] < 0.5 * before
    inputs, labels = data
    other = inputs.clone()
    other[:, 1:][labels[:, :-1] == -100] = 7  # what stands in the padding
    assert distiller.evaluate((other, labels)) == pytest.approx(distiller.evaluate(data))


def test_a_student_learns_sequences_that_the_teacher_wrote() -> None:
    teacher = llama(2, seed=1)
    Distiller(teacher, None, alpha=0.0, batch_size=8, make_optimizers=make_optimizers).train(text(), 60, progress=False)
    written = sequence_targets(teacher, torch.arange(30)[:, None], max_tokens=6)
    student = llama(1, seed=2)
    distiller = Distiller(student, None, alpha=0.0, batch_size=8, make_optimizers=make_optimizers)
    before = distiller.evaluate(written)["accuracy"]
    distiller.train(written, 100, progress=False)
    assert distiller.evaluate(written)["accuracy"] > 0.7 > before


@pytest.mark.parametrize("objective", ["features", "mixed"])
def test_the_projection_is_trained_with_the_student(objective: Any) -> None:
    data, teacher, student = classification(), network(8, 24, 5, seed=1), network(8, 16, 5, seed=2)
    options: dict[str, Any] = {"feature_layers": [("1", "1")], "learning_rate": 1e-2, "alpha": 1.0}
    distiller = Distiller(student, teacher, objective, **options)
    (first,) = distiller.train(data, 1, progress=False)
    (projection,) = distiller.projections
    assert isinstance(projection, FeatureLoss) and projection.projection.weight.shape == (24, 16)
    start = weights(projection)
    history = distiller.train(data, 150, progress=False)
    assert distiller.projections[0] is projection and not same(start, weights(projection))
    assert history[-1]["loss"] < 0.5 * first["loss"]


@pytest.mark.parametrize(("objective", "shares"), [("features", (0.4, 0.0, 0.6)), ("mixed", (0.4, 0.6, 0.18))])
def test_each_objective_is_the_sum_of_its_terms(objective: Any, shares: tuple[float, float, float]) -> None:
    (x, labels), teacher, student = classification(32), network(8, 24, 5, seed=1), network(8, 16, 5, seed=2)
    distiller = Distiller(
        student, teacher, objective, 3.0, alpha=0.6, feature_layers=[("1", "1")], feature_weight=0.3, batch_size=32,
        learning_rate=1e-12,
    )  # fmt: skip
    (record,) = distiller.train((x, labels), 1, progress=False)
    with torch.no_grad():
        terms = (
            F.cross_entropy(student(x), labels),
            distillation_loss(student(x), teacher(x), labels, 3.0, alpha=1.0),
            distiller.projections[0](student[:2](x), teacher[:2](x)),
        )
    assert record["loss"] == pytest.approx(sum(share * term.item() for share, term in zip(shares, terms, strict=True)))


# ------------------------------------------------------------------------------------------------- the teacher


def test_the_teacher_is_frozen_and_the_student_trains() -> None:
    data, teacher, student = classification(), network(8, 16, 5, seed=1, dropout=0.5), network(8, 8, 5, dropout=0.5)
    teacher.insert(1, nn.BatchNorm1d(16))
    before, seen = weights(teacher), []
    teacher.register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))
    modes = []
    student.register_forward_hook(lambda module, *_: modes.append(module.training))
    teacher.train()
    student.eval()
    Distiller(student, teacher).train(data, 5, progress=False)
    assert seen == [(False, False)] * 5
    assert modes == [True] * 5 and not student.training
    assert same(before, weights(teacher))
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "attention"}, "objective must be one of 'logits', 'features', 'mixed'; got 'attention'"),
        ({"divergence": "mse"}, "divergence must be one of 'forward_kl', 'reverse_kl', 'jensen_shannon'; got 'mse'"),
        ({"temperature": 0.0}, "temperature must be positive and finite; got 0"),
        ({"alpha": -0.1}, "alpha must be between 0 and 1; got -0.1"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"objective": "mixed"}, "feature_layers must be given for objective 'features' and 'mixed'"),
        ({"feature_layers": [("1", "1")]}, "feature_layers must be given .* and only there"),
        ({"objective": "mixed", "feature_layers": [("1", "hidden")]}, "there is no 'hidden'"),
    ],
)
def test_unknown_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distiller(network(8, 4, 5), network(8, 6, 5), **options)


def test_other_bad_input_is_named(tmp_path: Path) -> None:
    student, teacher = network(8, 4, 5), network(8, 6, 5)
    with pytest.raises(ValueError, match="teacher may be None only with alpha=0"):
        Distiller(student, None)
    with pytest.raises(ValueError, match="student must not share parameters with teacher"):
        Distiller(student, nn.Sequential(student))
    x, labels = classification()
    distiller = Distiller(student, teacher)
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        distiller.train((x, labels), 0)
    with pytest.raises(ValueError, match="data must hold as many labels as inputs, at least 1; got 200 and 10"):
        distiller.train((x, labels[:10]), 1)
    with pytest.raises(ValueError, match=r"data must be a tuple \(inputs, labels\) of tensors; got Tensor"):
        distiller.train(x, 1)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- interruptions


class Interrupted(Exception):
    pass


def interrupt_at(step: int):
    """An `after_step` that stops the run after ``step`` updates."""
    calls = []

    def after_step(_: nn.Module) -> None:
        calls.append(1)
        if len(calls) == step:
            raise Interrupted

    return after_step


@pytest.mark.parametrize("stop", [1, 14, 20, 29])
def test_an_interrupted_run_ends_with_the_same_bits(stop: int, tmp_path: Path) -> None:
    """Dropout, batch norm, Adam's moments, a trained projection, the history: all as if nothing had happened."""
    data, held_out = classification(), classification(40, seed=1)
    path = tmp_path / "folder" / "student.checkpoint.pt"
    options: dict[str, Any] = {
        "checkpoint": path,
        "checkpoint_every": 10,
        "held_out": held_out,
        "evaluate_every": 7,
        "progress": False,
    }

    def start() -> Distiller:
        student = network(8, 16, 16, 5, seed=2, dropout=0.3)
        student.insert(1, nn.BatchNorm1d(16))
        return Distiller(student, network(8, 24, 5, seed=1), "mixed", feature_layers=[("2", "1")], batch_size=30)

    whole = start()
    whole.train(data, 30, **options)
    first = start()
    with pytest.raises(Interrupted):
        first.train(data, 30, after_step=interrupt_at(stop), **options)
    assert path.exists() == (stop > 10)
    resumed = start()
    torch.manual_seed(123)  # another process has other random numbers
    done: list[int] = []
    history = resumed.train(data, 30, after_step=lambda _: done.append(1), **options)
    assert len(done) == 30 - (stop - 1) // 10 * 10
    assert same(weights(whole.student), weights(resumed.student))
    assert same(weights(whole.projections[0]), weights(resumed.projections[0]))
    assert history == whole.history
    assert list(path.parent.iterdir()) == []  # neither the checkpoint nor a temporary file is left


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    data, teacher = classification(), network(8, 6, 5, seed=1)
    options: dict[str, Any] = {"checkpoint": path, "checkpoint_every": 2, "progress": False}
    with pytest.raises(Interrupted):
        Distiller(network(8, 4, 5), teacher).train(data, 9, after_step=interrupt_at(3), **options)
    with pytest.raises(ValueError, match=r"checkpoint.pt is of another run: temperature was 2.0, now it is 4.0"):
        Distiller(network(8, 4, 5), teacher, temperature=4.0).train(data, 9, **options)
    with pytest.raises(ValueError, match="is of another run: steps was 9, now it is 10"):
        Distiller(network(8, 4, 5), teacher).train(data, 10, **options)
    with pytest.raises(ValueError, match="is of another run: data"):
        Distiller(network(8, 4, 5), teacher).train(classification(seed=3), 9, **options)
    with pytest.raises(ValueError, match="is of another run: teacher"):
        Distiller(network(8, 4, 5), network(8, 6, 5, seed=4)).train(data, 9, **options)
    assert path.exists()


def test_a_checkpoint_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    model = network(8, 5)
    save_checkpoint(path, {"seed": 1}, [{"step": 1.0}], model, [])

    def half_written(state: dict, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"seed": 1}, [{"step": 1.0}, {"step": 2.0}], model, [])
    assert resume(path, {"seed": 1}, model, []) == [{"step": 1.0}]
    assert list(tmp_path.iterdir()) == [path]


def test_after_step_keeps_pruned_weights_at_zero() -> None:
    student = network(8, 16, 5)
    mask = torch.rand(16, 8) < 0.5

    @torch.no_grad()
    def hold(model: Any) -> None:
        model[0].weight.masked_fill_(mask, 0.0)

    Distiller(student, network(8, 6, 5, seed=1), weight_decay=0.1).train(
        classification(), 10, after_step=hold, progress=False
    )
    weight = student.state_dict()["0.weight"]
    assert (weight[mask] == 0).all() and (weight[~mask] != 0).all()


@given(rows=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 5), epochs=st.integers(1, 4))
def test_every_row_is_seen_once_an_epoch(rows: int, batch_size: int, seed: int, epochs: int) -> None:
    steps = -(-rows * epochs // batch_size)
    seen = torch.cat([batch_rows(rows, batch_size, seed, step) for step in range(steps)])
    for epoch in seen[: rows * epochs].view(epochs, rows):
        assert sorted(epoch.tolist()) == list(range(rows))


# ------------------------------------------------------------------------------------------------- two processes

SCRIPT = """
import sys
import torch
from torch import Tensor, nn
from labsupport.distillation import Distiller, next_token_pairs
from labsupport.lm import Llama, LlamaConfig

{helpers}

x, labels = classification()
runs = {{
    "classifier": (
        network(8, 16, 5, seed=2).double(), network(8, 24, 5, seed=1).double(), (x.double(), labels),
        {{"objective": "mixed", "feature_layers": [("1", "1")], "batch_size": 31}},
    ),
    "language model": (llama(1, seed=2), llama(2, seed=1), text(), {{"batch_size": 5}}),
}}
results = {{}}
for name, (student, teacher, data, options) in runs.items():
    distiller = Distiller(student, teacher, seed=3, **options)
    history = distiller.train(data, 12, held_out=data, checkpoint=sys.argv[1] + ".checkpoint", checkpoint_every=5)
    results[name] = {{"weights": weights(student), "history": history}}
torch.save(results, f"{{sys.argv[1]}}.{{distiller.rank}}")
"""


@pytest.fixture(scope="module")
def one_and_two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list[dict], Path]:
    """What a script leaves when it is run as it is, and for each process when torchrun starts two of it."""
    folder = tmp_path_factory.mktemp("torchrun")
    script = folder / "distil.py"
    functions: list[Any] = [network, classification, llama, text, weights]
    helpers = "\n".join(map(inspect.getsource, functions))
    script.write_text(SCRIPT.format(helpers=helpers), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    for name, launcher in (("one", []), ("two", [*torchrun, str(port)])):
        command = [sys.executable, *launcher, str(script), str(folder / name)]
        outcome = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert outcome.returncode == 0, outcome.stderr[-3000:]
    two = [torch.load(folder / f"two.{rank}") for rank in range(2)]
    return torch.load(folder / "one.0"), two, folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tolerance"), [("classifier", 1e-10), ("language model", 1e-5)])
def test_two_processes_do_what_one_does(
    name: str, tolerance: float, one_and_two_processes: tuple[dict, list[dict], Path]
) -> None:
    """The same global batch, odd sizes and padding included: the same losses and weights up to rounding."""
    one, two, _ = one_and_two_processes
    assert same(two[0][name]["weights"], two[1][name]["weights"])
    assert two[0][name]["history"] == two[1][name]["history"]
    for record, wanted in zip(two[0][name]["history"], one[name]["history"], strict=True):
        assert record == pytest.approx(wanted, rel=100 * tolerance)
    for key, value in one[name]["weights"].items():
        assert torch.allclose(two[0][name]["weights"][key], value, atol=tolerance * 10), key


@pytest.mark.slow
def test_only_rank_0_writes(one_and_two_processes: tuple[dict, list[dict], Path]) -> None:
    _, _, folder = one_and_two_processes
    assert sorted(path.name for path in folder.iterdir()) == ["distil.py", "one.0", "two.0", "two.1"]
