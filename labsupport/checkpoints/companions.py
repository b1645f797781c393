"""What belongs to a checkpoint besides its weights: tokenizer, chat template, defaults of generation, licence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from labsupport.lm import LanguageModel
from labsupport.lm.config import LlamaConfig
from labsupport.lm.config_writing import config_to_hugging_face
from labsupport.lm.tokenizer import BpeTokenizer, ByteTokenizer, byte_letters

_COPIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
_CARRIED = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range")  # of config.json


def write_companions(lm: LanguageModel, folder: Path) -> None:
    """Unchanged from the folder that ``lm`` was read from; what is not there is made from its tokenizer.

    Raises:
        ValueError: the tokenizer is of a kind that has no file.
    """
    names = [] if lm.folder is None else [path.name for path in lm.folder.iterdir()]
    copy_licences(lm, folder)
    for name in names:
        if name in _COPIED:
            shutil.copyfile(Path(lm.folder or "") / name, folder / name)
    if "tokenizer.json" not in names:
        tokenizer_of(lm).save(str(folder / "tokenizer.json"))
    if "tokenizer_config.json" not in names:
        about: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": lm.model.config.max_positions,
            "clean_up_tokenization_spaces": False,
        }  # fmt: skip
        if lm.tokenizer.eos_token_id >= 0:
            about["eos_token"] = tokenizer_of(lm).id_to_token(lm.tokenizer.eos_token_id)
        (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def copy_licences(lm: LanguageModel, folder: Path) -> None:
    for path in [] if lm.folder is None else lm.folder.iterdir():
        if path.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE")) and path.is_file():
            shutil.copyfile(path, folder / path.name)


def config_json(lm: LanguageModel, config: LlamaConfig) -> dict[str, Any]:
    """``config.json``, with the special tokens of the source's."""
    written = config_to_hugging_face(config, lm.tokenizer.eos_token_id)
    source = None if lm.folder is None else lm.folder / "config.json"
    if source is not None and source.is_file():
        found = json.loads(source.read_text(encoding="utf-8"))
        written |= {name: found[name] for name in _CARRIED if name in found}
    return written


def tokenizer_of(lm: LanguageModel) -> Tokenizer:
    """
    Raises:
        ValueError: the tokenizer is of a kind that has no file.
    """
    if isinstance(lm.tokenizer, BpeTokenizer):
        return lm.tokenizer.tokenizer
    if isinstance(lm.tokenizer, ByteTokenizer):
        return byte_tokenizer()
    raise ValueError(f"tokenizer must be a ByteTokenizer or a BpeTokenizer; got {type(lm.tokenizer).__name__}")


def byte_tokenizer() -> Tokenizer:
    """`ByteTokenizer` as others read it: a byte-level BPE without merges. Printable bytes are named by themselves."""
    names = {byte: letter for letter, byte in byte_letters().items()}
    tokenizer = Tokenizer(models.BPE(vocab={names[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([names[ByteTokenizer.eos_token_id]])
    return tokenizer


def chat_template(lm: LanguageModel) -> str | None:
    """The source's, from its own file or from tokenizer_config.json."""
    if lm.folder is None:
        return None
    alone, config = lm.folder / "chat_template.jinja", lm.folder / "tokenizer_config.json"
    if alone.is_file():
        return alone.read_text(encoding="utf-8")
    found = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if isinstance(found, list):  # several, by name
        found = next((each["template"] for each in found if each["name"] == "default"), None)
    return found
