"""The files of the table of cases (cases.toml), made from its short notation. Needs nothing of the package."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tomllib
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
CASES = tomllib.loads((Path(__file__).with_name("cases.toml")).read_text(encoding="utf-8"))["case"]
FULL = {path.stem.partition("_")[0]: path.stem for path in (ROOT / "exercises").glob("ex*.ipynb")}


class Unflagged(zipfile.ZipInfo):
    """An entry whose name is written in an encoding of its own, without the flag for UTF-8."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        encoding, _, name = self.filename.partition("!")
        return name.encode(encoding), self.flag_bits & ~0x800


def content(text: str) -> bytes:
    kind, _, rest = text.partition(":")
    if kind == "nb":
        return (ROOT / "exercises" / f"{FULL[rest]}.ipynb").read_bytes()
    if kind == "both":
        one, two = (json.loads(content(f"nb:{name}")) for name in rest.split("+"))
        return json.dumps(one | {"cells": one["cells"] + two["cells"]}).encode()
    if kind == "bare":
        notebook = json.loads(content(f"nb:{rest}"))
        cells = [{key: cell[key] for key in cell if key != "id"} | {"metadata": {}} for cell in notebook["cells"]]
        return json.dumps(notebook | {"cells": cells, "nbformat_minor": 2}).encode()
    if text == "apple":
        return b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X"
    if kind in ("tgz", "zip"):
        name, _, inner = rest.partition("=")
        return tar({name: inner}) if kind == "tgz" else zipped({name: inner})
    return text.encode()


def when(text: str) -> datetime:
    return datetime.fromisoformat(text[1:11]) if text.startswith("@") else datetime(2026, 1, 1, 12)


def zipped(files: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in files.items():
            entry = (Unflagged if "!" in name else zipfile.ZipInfo)(name, when(text).timetuple()[:6])
            archive.writestr(entry, content(text))
    return made.getvalue()


def tar(files: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content(text)), int(when(text).timestamp())
            archive.addfile(member, io.BytesIO(content(text)))
    return made.getvalue()


def make(case: dict[str, Any], place: Path) -> dict[str, Path]:
    sources: dict[str, Path] = {}
    place.mkdir()
    for kind in ("folder", "zip", "zip2", "tar"):
        if kind not in case:
            continue
        sources[kind] = place / (kind if kind == "folder" else f"{kind}.{'tgz' if kind == 'tar' else 'zip'}")
        if kind == "folder":
            for name, text in case[kind].items():
                path = sources[kind] / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content(text))
        else:
            sources[kind].write_bytes((tar if kind == "tar" else zipped)(case[kind]))
            os.utime(sources[kind], (1_700_000_000, 1_700_000_000))
    return sources
