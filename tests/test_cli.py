from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from labsupport import __version__, doctor
from labsupport.cli import app
from labsupport.lm import load_lm
from labsupport.quantization import quantize_model

runner = CliRunner()


def invoke(*arguments: object, code: int = 0) -> str:
    outcome = runner.invoke(app, [str(argument) for argument in arguments])
    if outcome.exception and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    assert outcome.exit_code == code, outcome.output
    return outcome.output


def test_help_lists_the_commands_that_exist() -> None:
    output = invoke("--help")
    every = (
        "doctor compress prune distil convert perplexity train release collect grade check progress override export "
        "serve loadtest stack"
    )
    for command in every.split():
        assert f"\n  {command}" in output
        assert len(invoke(command, "--help").splitlines()) > 5


def test_version() -> None:
    assert invoke("--version").strip() == __version__


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom labsupport import cli\ntry: cli.main()\nexcept SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'pandas', 'matplotlib')))"
    )
    outcome = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "compress" in outcome.stdout


def test_doctor_exits_0_when_ready_and_1_when_not(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [doctor.Finding("packages", "torch", "2.13")]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    assert invoke("doctor").splitlines()[-1].startswith("ready for chapter")
    findings.append(doctor.Finding("packages", "numpy", "not installed", "missing", "pip install numpy"))
    assert "pip install numpy" in invoke("doctor", code=1).splitlines()[-1]


def test_doctor_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("packages", "torch", "2.13")])
    answer = json.loads(invoke("doctor", "--json"))
    assert answer["ready"] is True
    assert answer["findings"] == [{"area": "packages", "name": "torch", "detail": "2.13", "state": "ok", "remedy": ""}]


def test_a_terminal_that_lacks_a_character_is_no_reason_to_crash() -> None:
    code = (
        "from labsupport import cli, doctor\n"
        "doctor.examine = lambda: [doctor.Finding('models', 'tiny', 'in C:\\\\Users\\\\π')]\n"
        "cli.main()"
    )
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    outcome = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, env=environment)
    assert outcome.returncode == 0, outcome.stderr.decode()
    assert rb"Users\\u03c0" in outcome.stdout


def test_compress_writes_a_model_that_is_loaded(tmp_path: Path) -> None:
    out = tmp_path / "small"
    arguments = ("--method", "rtn", "--bits", 4, "--group-size", 32, "--sequences", 2, "--seq-len", 64, "--evaluate")
    output = invoke("compress", "tiny", "--out", out, *arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"small"}
    record = json.loads((out / "labsupport.json").read_text(encoding="utf-8"))
    assert (record["name"], record["method"], record["bits"], record["group_size"]) == ("tiny", "rtn", 4, 32)
    before, after = record["perplexity"]["before"], record["perplexity"]["after"]
    assert before < after < 1.5 * before
    assert f"perplexity {before:.3f} -> {after:.3f}" in output and f'load_lm("{out}")' in output
    report = record["report"]
    assert report["bytes_after"] < report["bytes_before"] / 2
    assert 4 < record["bits_per_weight"] < 6
    assert {layer["name"] for layer in report["layers"]} > {"layers.0.self_attn.q_proj", "layers.3.mlp.down_proj"}

    lm, loaded = load_lm("tiny", verbose=False), load_lm(out, verbose=False)
    small = quantize_model(lm.model, [torch.arange(64)], "rtn", bits=4, group_size=32, progress=False)
    assert torch.equal(loaded.model(torch.arange(40)[None]), small(torch.arange(40)[None]))
    assert f"perplexity {after:.3f}" in invoke("perplexity", out, "--seq-len", 64)


def test_a_checkpoint_goes_from_command_to_command(tmp_path: Path) -> None:
    few = ("--sequences", 1, "--seq-len", 64)
    for command in (
        ("prune", "tiny", "--out", tmp_path / "pruned", "--method", "neurons", "--sparsity", 0.25, *few),
        ("prune", tmp_path / "pruned", "--out", tmp_path / "zeros", "--pattern", "2:4", *few),
        ("distil", tmp_path / "zeros", "--out", tmp_path / "taught", "--steps", 1),
        ("compress", tmp_path / "taught", "--out", tmp_path / "small", "--group-size", 32, *few),
        ("convert", tmp_path / "small", "--out", tmp_path / "awq", "--format", "awq", "--dtype", "float32"),
        ("convert", tmp_path / "awq", "--out", tmp_path / "gguf", "--format", "gguf"),
    ):
        assert f"written to {command[3]}" in invoke(*command)
    neurons = {
        name: load_lm(tmp_path / name, verbose=False).model.config.intermediate_size for name in ("pruned", "taught")
    }
    assert neurons["taught"] < neurons["pruned"] < load_lm("tiny", verbose=False).model.config.intermediate_size
    tokens = torch.arange(30)[None]
    small, awq = (load_lm(tmp_path / name, verbose=False).model for name in ("small", "awq"))
    assert torch.equal(small(tokens), awq(tokens))
    assert (tmp_path / "gguf" / "model.gguf").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-such-model",), "no-such-model"),
        (("tiny", "--seq-len", 1_000_000_000), "at least --seq-len"),
        (("tiny", "--calibration", "no-such-file.txt"), "no-such-file.txt"),
        (("tiny", "--format", "awq", "--bits", 3), "awq is for 4 bits"),
        (("tiny", "--format", "gptq", "--method", "int8_dynamic"), "quantizes its inputs"),
        (("tiny", "--format", "gguf", "--group-size", 48), "multiple of 32"),
        (("tiny", "--format", "compressed-tensors", "--act-order"), "static_groups=True"),
        (("tiny", "--device", "cuda:7"), "--device cuda:7"),
    ],
)
def test_compress_says_in_one_line_what_is_wrong(tmp_path: Path, arguments: tuple[object, ...], message: str) -> None:
    output = invoke("compress", *arguments, "--out", tmp_path / "small", code=2)
    error = next(line for line in output.splitlines() if line.startswith("error:"))
    assert message in error
    assert not list(tmp_path.iterdir())


def test_compress_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    assert "exists" in invoke("compress", "tiny", "--out", tmp_path, code=2)
    assert (tmp_path / "thesis.txt").read_text() == "important"


def test_train_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, object] = {}

    def train(out: Path, steps: int, seed: int) -> dict[str, float]:
        asked.update(out=out, steps=steps, seed=seed)
        return {"evaluation_loss": 1.5}

    monkeypatch.setattr("labsupport.lm.train.train", train)
    assert json.loads(invoke("train", "--out", tmp_path, "--steps", 3, "--seed", 7)) == {"evaluation_loss": 1.5}
    assert asked == {"out": tmp_path, "steps": 3, "seed": 7}


@pytest.mark.parametrize(("check", "in_step", "code"), [(True, True, 0), (True, False, 1), (False, False, 0)])
def test_release_fails_only_a_check_that_finds_something(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, check: bool, in_step: bool, code: int
) -> None:
    asked: list[tuple[Path, bool]] = []

    def release(course_dir: Path, check: bool = False) -> SimpleNamespace:
        asked.append((course_dir, check))
        return SimpleNamespace(in_step=in_step)

    monkeypatch.setattr("labsupport.grading.release.release", release)
    invoke("release", "--course-dir", tmp_path, *["--check"] * check, code=code)
    assert asked == [(tmp_path, check)]


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "nbformat", None)
    monkeypatch.delitem(sys.modules, "labsupport.grading.release", raising=False)
    output = invoke("release", "--course-dir", tmp_path, code=2)
    assert "error: nbformat is not installed" in output
