"""What the commands of checkpoints have in common: from a name to a model, and from a result to a folder."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from labsupport.checkpoints.options import Dtype, Format, Kind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from labsupport.lm import LanguageModel


def must_be_new(out: Path) -> None:
    if out.exists():
        raise ValueError(f"--out must be a folder that does not exist yet; {out} exists")


def load_model(model: str, device: str) -> LanguageModel:
    from labsupport.lm import ModelNotAvailable, load_lm

    try:
        lm = load_lm(model, device, verbose=False)
    except ModelNotAvailable as error:
        raise ValueError(str(error)) from error
    except (RuntimeError, AssertionError) as error:  # torch's, of a device that is not there
        raise ValueError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    typer.echo(str(lm))
    return lm


def text_of(path: Path | None, part: Literal["calibration", "evaluation"]) -> str:
    from labsupport.lm import corpus

    return corpus(part) if path is None else path.read_text(encoding="utf-8")


def tokens_of(lm: LanguageModel, text: str) -> Tensor:
    """Where the model is."""
    import torch

    return torch.tensor(lm.tokenizer.encode(text), dtype=torch.int64, device=lm.model.embed_tokens.weight.device)


def token_windows(lm: LanguageModel, text: str, sequences: int, seq_len: int) -> list[Tensor]:
    tokens = tokens_of(lm, text)
    if len(tokens) < seq_len:
        raise ValueError(f"--calibration must hold at least --seq-len = {seq_len} tokens, it holds {len(tokens)}")
    return [window for window in tokens.split(seq_len)[:sequences] if len(window) == seq_len]


def measured(lm: LanguageModel, model: nn.Module, text: str, seq_len: int, windows: int = 8) -> float:
    from labsupport.lm import perplexity as measure

    return measure(model, tokens_of(lm, text)[: windows * seq_len], seq_len)


def said_of_calibration(windows: list[Tensor], seq_len: int) -> dict[str, Any]:
    return {"calibration": {"sequences": len(windows), "seq_len": seq_len}}


def torch_dtype(dtype: Dtype | None) -> Any:
    import torch

    return None if dtype is None else getattr(torch, dtype.value)


def made_before(lm: LanguageModel) -> dict[str, Any]:
    """What labsupport.json says of how the checkpoint was made."""
    from labsupport.checkpoints.card import TOLD
    from labsupport.lm.folder import read_record

    record = {} if lm.folder is None else read_record(lm.folder)
    return {name: record[name] for name in TOLD if name in record}


def finish(
    lm: LanguageModel, small: Any, out: Path, format: Format, dtype: Dtype | None, kind: Kind | None,
    about: dict[str, Any], report: str, evaluation: Path | None, seq_len: int, evaluate: bool,
    windows: list[Tensor] | None = None,
) -> None:  # fmt: skip
    """Report, measure and write.

    Args:
        windows: the calibration of a K-quant.
    """
    if report:
        typer.echo(report)
    if evaluate:
        text = text_of(evaluation, "evaluation")
        stored = small if format is not Format.gguf else _as_stored(small, kind, windows)
        before, after = (measured(lm, each, text, seq_len) for each in (lm.model, stored))
        about["perplexity"] = {"before": before, "after": after}
        about["evaluation"] = {"text": "the course's" if evaluation is None else evaluation.name, "seq_len": seq_len}
        typer.echo(f"perplexity {before:.3f} -> {after:.3f}")
    write_checkpoint(replace(lm, model=small), out, format, dtype, kind, about, windows)


def _as_stored(model: Any, kind: Kind | None, windows: list[Tensor] | None) -> Any:
    from labsupport.checkpoints.gguf import as_stored
    from labsupport.checkpoints.gguf_kquants import column_importance

    importance = None if windows is None else column_importance(model, windows)
    return as_stored(model, "Q8_0" if kind is None else kind.value, importance)


def write_checkpoint(
    lm: LanguageModel, out: Path, format: Format, dtype: Dtype | None, kind: Kind | None, about: dict[str, Any],
    windows: list[Tensor] | None = None,
) -> None:  # fmt: skip
    from labsupport.checkpoints import save
    from labsupport.checkpoints.card import how_to_load

    peak = peak_megabytes()
    about = about | ({"peak_memory_mb": peak} if about and peak is not None else {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        save(lm, out, format.value, torch_dtype(dtype), kind and kind.value, about, windows)
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    typer.echo(f"written to {out}: {size:.1f} MB" + ("" if peak is None else f"; peak memory {peak:,.0f} MB"))
    for note in caught:
        typer.echo(f"note: {note.message}")
    for line in how_to_load(str(out), format.value):
        typer.echo(f"  {line}")


def peak_megabytes() -> float | None:
    """Of this process; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
