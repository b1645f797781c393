"""Whatever options meet: a command writes what can be loaded, or refuses before it works, and says what helps."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import random_lm
from typer.testing import CliRunner

from labsupport import quantization
from labsupport.checkpoints import save
from labsupport.checkpoints.options import Dtype, Format, Kind, Method
from labsupport.cli import app
from labsupport.lm import load_lm

LAYERS = 3
CHOICES: dict[str, tuple[Any, ...]] = {
    "--format": tuple(format.value for format in Format),
    "--method": (None, *(method.value for method in Method)),
    "--bits": (None, 2, 3, 4, 8),
    "--group-size": (None, 32, 48),
    "--symmetric": (None, True),
    "--act-order": (None, True),
    "--static-groups": (None, True),
    "--smooth": (None, True),
    "--kind": (None, None, Kind.f16.value, Kind.q4_k.value),
    "--dtype": (None, None, Dtype.float16.value),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "lm"
    save(random_lm(num_layers=LAYERS, intermediate_size=128), folder, "huggingface")
    (folder.parent / "text.txt").write_text("".join(chr(33 + index * 7 % 90) for index in range(400)))
    return folder


def words(options: dict[str, Any]) -> list[str]:
    return [
        word for name, value in options.items() if value for word in ([name] if value is True else [name, str(value)])
    ]


def run(*arguments: object) -> tuple[int, str]:
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if outcome.exception and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    return outcome.exit_code, outcome.output


def meetings(count: int) -> list[dict[str, Any]]:
    """Each format with each method, and with each value of each option, in drawn company of few."""
    drawn, found = random.Random(0), []
    pairs = list(itertools.product(CHOICES["--format"], CHOICES["--method"]))
    others = [name for name in CHOICES if name not in ("--format", "--method")]
    for format, method in drawn.sample(pairs * 20, count):
        few = drawn.sample(others, 2)
        found.append({"--format": format, "--method": method} | {name: drawn.choice(CHOICES[name]) for name in few})
    return found


def check(options: dict[str, Any], source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether it was written."""
    worked: list[int] = []
    real = quantization.quantize_model

    def watched(model: Any, *arguments: Any, **more: Any) -> Any:
        worked.append(len(model.layers))
        return real(model, *arguments, **more)

    monkeypatch.setattr(quantization, "quantize_model", watched)
    text = ("--calibration", source.parent / "text.txt", "--sequences", 2, "--seq-len", 64)
    code, output = run("compress", source, "--out", out, *words(options), *text)
    monkeypatch.setattr(quantization, "quantize_model", real)
    if code == 0:
        assert f"written to {out}" in output
        assert (out / "README.md").is_file()
        if options["--format"] != "gguf":
            assert load_lm(out, verbose=False).model(torch.arange(9)[None]).isfinite().all()
        return True
    assert code == 2 and not out.exists()
    error = next(line for line in output.splitlines() if line.startswith("error:"))
    assert LAYERS not in worked, f"it worked before it said {error}"
    assert re.search(r"\b(take|give|leave|needs|for)\b", error), error
    assert re.search(r"--\w|format \w|static_groups|symmetric=|head_bits|group_size", error), error
    return False


def test_written_or_refused_before_the_work(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = [check(each, source, tmp_path / str(index), monkeypatch) for index, each in enumerate(meetings(30))]
    assert 4 < sum(written) < 26


@pytest.mark.slow
def test_written_or_refused_before_the_work_for_long(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, each in enumerate(meetings(200)[30:]):
        check(each, source, tmp_path / str(index), monkeypatch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kind", "F16"), "--kind is for --format gguf"),
        (("--dtype", "float16", "--format", "gguf"), "give --kind F32 or F16"),
        (("--kind", "Q4_K", "--format", "gguf", "--method", "rtn"), "leave --method out"),
        (("--kind", "Q4_K", "--format", "gguf", "--bits", "4", "--smooth"), "leave --bits, --smooth out"),
        (("--method", "int8_dynamic", "--bits", "4"), "has 8 bits; got --bits 4"),
        (("--method", "int8_static", "--group-size", "32"), "leave --group-size out"),
        (("--method", "awq", "--symmetric"), "--symmetric is for --method rtn and gptq"),
        (("--method", "rtn", "--act-order"), "--act-order is for --method gptq"),
        (("--static-groups",), "give --act-order, too"),
        (("--smooth",), "--smooth is for --method int8_dynamic"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    """Before the model is looked for: there is none of that name."""
    code, output = run("compress", "no-such-model", "--out", tmp_path / "out", *options)
    assert code == 2 and message in output


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("prune", ("--format", "gptq"), "take labsupport, huggingface or gguf"),
        ("prune", ("--format", "gguf", "--dtype", "float16"), "give --kind"),
        ("prune", ("--method", "neurons", "--pattern", "2:4"), "--pattern is for methods that remove weights"),
        ("distil", ("--format", "awq"), "take labsupport, huggingface or gguf"),
        ("distil", ("--kind", "Q8_0"), "--kind is for --format gguf"),
        ("convert", ("--format", "awq"), "this one has float weights: take huggingface"),
        ("convert", ("--format", "gguf", "--calibration", "x.txt"), "give --kind Q4_K"),
    ],
)
def test_other_commands(source: Path, tmp_path: Path, command: str, options: tuple[str, ...], message: str) -> None:
    code, output = run(command, source, "--out", tmp_path / "out", *options)
    assert code == 2 and message in output and not (tmp_path / "out").exists()


def test_a_k_quant_from_the_command_line(source: Path, tmp_path: Path) -> None:
    text = ("--calibration", source.parent / "text.txt", "--sequences", 2, "--seq-len", 64)
    evaluate = ("--evaluate", "--evaluation", source.parent / "text.txt")
    for command, name in (("compress", "one"), ("convert", "two")):
        out = tmp_path / name
        code, output = run(command, source, "--out", out, "--format", "gguf", "--kind", "Q4_K", *text, *evaluate)
        assert code == 0, output
        card = (out / "README.md").read_text()
        assert "kind: Q4_K" in card and "sequences 2, seq len 64" in card and "perplexity: before" in card
    assert (tmp_path / "one" / "model.gguf").read_bytes() == (tmp_path / "two" / "model.gguf").read_bytes()
    before, after = re.findall(r"before (\S+), after (\S+)", card)[0]
    assert before != after, "what is measured is what is written"
