"""What the commands of checkpoints have in common: from a name to a model, and from a result to a folder."""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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


def load_model(model: str, device: str, dtype: Dtype | None = None, on_disk: bool = False) -> LanguageModel:
    """``dtype``: on a GPU, of the arithmetic, too. ``on_disk``: its layers are read when needed, and not kept."""
    from labsupport.device import choose_device, choose_dtype, describe
    from labsupport.lm import ModelNotAvailable, load_lm
    from labsupport.lm.by_layer import open_folder
    from labsupport.lm.load import find_folder

    try:
        place = choose_device(device)
        precision = choose_dtype(place, None if place.type == "cpu" or dtype is None else dtype.value)
    except ValueError as error:
        raise ValueError(f"--device {device}: {error}") from error
    try:
        if on_disk:
            lm = open_folder(find_folder(model), place, precision)
        else:
            lm = load_lm(model, place, precision, verbose=False)
    except ModelNotAvailable as error:
        raise ValueError(str(error)) from error
    except (RuntimeError, AssertionError) as error:  # torch's, of a device that is not there
        raise ValueError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    typer.echo(f"{lm}; on {describe(place)}")
    return lm


def partial(out: Path) -> Path:
    """Where the finished layers of an unfinished run are kept."""
    return out.with_name(f"{out.name}.partial")


@contextmanager
def told_if_interrupted(work: Path) -> Iterator[None]:
    """Ctrl-C is no loss: say so. At the end of the block ``work`` is removed."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"interrupted: the same command goes on with the layers that {work} holds", err=True)
        raise typer.Exit(130) from None
    shutil.rmtree(work, ignore_errors=True)


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
    from labsupport.lm.by_layer import in_memory, is_on_disk

    model = in_memory(model) if is_on_disk(model) else model
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
    status = Path("/proc/self/status")  # Linux; what getrusage says there begins with the parent's
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None
    if found:
        return int(found[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
