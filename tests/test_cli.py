from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from labsupport import __version__, cli, doctor
from labsupport.cli import app
from labsupport.lm import Llama, corpus, load_lm, perplexity
from labsupport.quantization import quantize_model

runner = CliRunner()


def invoke(*arguments: object, code: int = 0) -> str:
    outcome = runner.invoke(app, [str(argument) for argument in arguments])
    if outcome.exception and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    assert outcome.exit_code == code, outcome.output
    return outcome.output


class Tied(nn.Module):
    """An embedding and a head that are one tensor, and a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("codes", torch.arange(10, dtype=torch.uint8))
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("nothing", torch.zeros(0))


def test_help_lists_the_commands_that_exist() -> None:
    output = invoke("--help")
    every = "doctor compress train release collect grade check progress override export serve loadtest stack"
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


def test_compress_writes_a_smaller_model_and_a_record(tmp_path: Path) -> None:
    out = tmp_path / "small"
    arguments = ("--method", "rtn", "--bits", 4, "--group-size", 32, "--sequences", 2, "--seq-len", 64, "--evaluate")
    output = invoke("compress", "tiny", "--out", out, *arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"small"}
    record = json.loads((out / "compression.json").read_text(encoding="utf-8"))
    assert (record["model"], record["method"], record["bits"], record["group_size"]) == ("tiny", "rtn", 4, 32)
    before, after = record["perplexity"]["before"], record["perplexity"]["after"]
    assert before < after < 1.5 * before
    assert f"perplexity {before:.3f} -> {after:.3f}" in output
    report = record["report"]
    assert report["bytes_after"] < report["bytes_before"] / 2
    assert 4 < report["bits_per_weight"] < 6
    assert {layer["name"] for layer in report["layers"]} > {"layers.0.self_attn.q_proj", "layers.3.mlp.down_proj"}

    # what was written is the compressed model: it turns an untrained one, quantized the same way, into it
    weights = load_file(out / "model.safetensors")
    assert sum(tensor.nbytes for tensor in weights.values()) == report["bytes_after"]
    lm = load_lm("tiny")
    torch.manual_seed(0)
    window = torch.arange(64)
    loaded = quantize_model(Llama(lm.model.config), [window], "rtn", bits=4, group_size=32, progress=False)
    missing, unexpected = loaded.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied to the embedding
    evaluation = torch.tensor(lm.tokenizer.encode(corpus("evaluation")))[: 8 * 64]
    assert perplexity(loaded, evaluation, seq_len=64) == pytest.approx(after, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-such-model",), "no-such-model"),
        (("tiny", "--seq-len", 1_000_000_000), "at least --seq-len"),
        (("tiny", "--calibration", "no-such-file.txt"), "no-such-file.txt"),
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


def test_saving_keeps_integers_and_one_copy_of_what_is_tied(tmp_path: Path) -> None:
    model = Tied()
    cli.save_compressed(model, {"bits": 4}, tmp_path / "deep" / "small")
    saved = load_file(tmp_path / "deep" / "small" / "model.safetensors")
    assert set(saved) == {"embed.weight", "codes", "empty", "nothing"}
    assert saved["codes"].dtype == torch.uint8
    missing, unexpected = Tied().load_state_dict(saved, strict=False)
    assert (missing, unexpected) == (["head.weight"], [])


def test_saving_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        cli.save_compressed(Tied(), {"not JSON": object()}, tmp_path / "small")
    assert not list(tmp_path.iterdir())


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
