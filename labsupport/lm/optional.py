"""SmolLM2 in the chapters: used where the reader asks for it, and elsewhere represented by the course's own run.

A chapter sets a switch, ``SMOLLM2 = False``, in one cell. With True, `optional_smollm2` loads the model, and fetches it
if it must. With False it gives None, and `measured_or_recorded` shows the table that was recorded with the same code.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from labsupport.device import choose_device, describe
from labsupport.files import write_atomically
from labsupport.lm.folder import LanguageModel
from labsupport.lm.load import load_lm

if TYPE_CHECKING:
    import pandas as pd

RECORDS = Path(__file__).parent / "recorded"
SWITCH = "LABSUPPORT_SMOLLM2"  # "1" or "0" overrides the chapter's switch: for tests, and to run a chapter headless
RECORD = "LABSUPPORT_RECORD"  # "1": what is measured replaces the record (for whoever maintains the course)


def optional_smollm2(wanted: bool) -> LanguageModel | None:
    """SmolLM2 if ``wanted``, fetched once if this machine lacks it; else None, and a line that says how to get it.

    Raises:
        ModelNotAvailable: it is wanted, and neither the cache nor any source could supply it.
    """
    wanted = {"0": False, "1": True}.get(os.environ.get(SWITCH, ""), wanted)
    if wanted:
        return load_lm("smollm2-135m", choose_device())
    print("SmolLM2 is off: its tables come from the course's own run. Set SMOLLM2 = True to measure here.")
    return None


def measured_or_recorded(name: str, lm: LanguageModel | None, measure: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """``measure()`` if there is a model to measure, else the recorded table ``name``; one printed line says which.

    Raises:
        ValueError: no model, and no record of this name.
    """
    path = RECORDS / f"{name}.json"
    if lm is None:
        return _read(name, path)
    table = measure()
    if os.environ.get(RECORD) == "1":
        write_atomically(path, json.dumps({"where": where_measured(lm)} | _split(table), indent=1) + "\n")
    print("Measured here:", where_measured(lm))
    return table


def where_measured(lm: LanguageModel) -> str:
    """Weights, processor and threads (or GPU) and torch, in one line."""
    device = lm.model.embed_tokens.weight.device
    there = f"{platform.machine()}, {torch.get_num_threads()} thread(s)" if device.type == "cpu" else describe(device)
    return f"{lm.name} from {lm.source}; {there}, torch {torch.__version__}"


def _split(table: pd.DataFrame) -> dict[str, Any]:
    return json.loads(table.to_json(orient="split", double_precision=8))


def _read(name: str, path: Path) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        known = ", ".join(sorted(record.stem for record in RECORDS.glob("*.json"))) or "none"
        raise ValueError(f"name must be a recorded table where there is no model ({known}); got {name!r}")
    record = json.loads(path.read_text(encoding="utf-8"))
    print("Recorded, not measured here:", record.pop("where"))
    return pd.DataFrame(**record)
