"""The model card says of every format and every command what the folder is, from what, how, and who loads it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from exported import quantized, random_lm
from typer.testing import CliRunner

from labsupport.checkpoints import FORMATS, save
from labsupport.checkpoints.card import LOADED_BY
from labsupport.cli import app
from labsupport.lm import LanguageModel, load_lm


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as hubs have it: its card names the licence, and the licence is with it."""
    folder = tmp_path_factory.mktemp("source") / "lm"
    save(random_lm(intermediate_size=128), folder, "huggingface")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: mit\n")
    (folder / "LICENSE.txt").write_text("free")
    return folder


@pytest.mark.parametrize("format", FORMATS)
def test_of_each_format(source: Path, tmp_path: Path, format: str) -> None:
    lm: LanguageModel = load_lm(source, verbose=False)
    lm = lm if format == "huggingface" else quantized(lm, "rtn")
    about = {"method": "rtn", "bits": 4, "symmetric": False, "perplexity": {"before": 2.0, "after": 2.5}}
    save(lm, tmp_path / "small", format, about=about)
    card = (tmp_path / "small" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\npipeline_tag: text-generation\n---\n# small\n")
    for line in ("- source: a test, stored there as float32", "- method: rtn", "- bits: 4", "- symmetric: no",
                 "- perplexity: before 2, after 2.5", "- licence: that of the source (apache-2.0, LICENSE.txt)",
                 f"in the format {format}.", *(f"- {program}: " for program in LOADED_BY[format])):  # fmt: skip
        assert line in card
    assert (tmp_path / "small" / "LICENSE.txt").read_text() == "free"


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    save(random_lm(), tmp_path / "lm", "huggingface")
    card = (tmp_path / "lm" / "README.md").read_text()
    assert card.startswith("---\npipeline_tag") and "- perplexity: not measured" in card
    assert "- licence: that of the source, which came without its text" in card
    save(replace(load_lm("tiny", verbose=False)), tmp_path / "tiny", "huggingface")
    assert "- licence: that of the source" in (tmp_path / "tiny" / "README.md").read_text()


def test_of_each_command(source: Path, tmp_path: Path) -> None:
    """And what one command said of the making, the next carries on."""
    text = source.parent / "text.txt"
    text.write_text("".join(chr(33 + index * 7 % 90) for index in range(400)))
    learned = ("--calibration", text, "--sequences", 2, "--seq-len", 64)
    for command, out, told in (
        (("compress", source, "--method", "rtn", "--group-size", 32, "--format", "awq", *learned), "a",
         ("method: rtn", "bits: 4", "group size: 32", "symmetric: no", "sequences 2, seq len 64")),
        (("convert", tmp_path / "a", "--format", "labsupport"), "b",
         ("method: rtn", "bits: 4", "group size: 32", "sequences 2, seq len 64")),
        (("prune", source, "--pattern", "2:4", *learned), "c",
         ("method: wanda", "sparsity: 0.5", "pattern: 2:4")),
        (("compress", source, "--method", "int8_dynamic", "--smooth", *learned), "d",
         ("method: int8_dynamic", "bits: 8", "smooth: yes")),
        (("convert", source, "--format", "gguf"), "e", ("kind: Q8_0",)),
    ):  # fmt: skip
        evaluate = ("--evaluate", "--evaluation", text) + (("--seq-len", 64) if command[0] == "convert" else ())
        outcome = CliRunner().invoke(app, [str(word) for word in (*command, "--out", tmp_path / out, *evaluate)])
        assert outcome.exit_code == 0, outcome.output
        card = (tmp_path / out / "README.md").read_text()
        for part in (*told, "text text.txt, seq len 64", "licence: that of the source"):
            assert f"{part}" in card, (out, part)
        assert re.search(r"- perplexity: before \S+, after \S+", card)
