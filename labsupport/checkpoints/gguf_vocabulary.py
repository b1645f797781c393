"""How a GGUF file says what a tokenizer does: ``gpt2`` (byte-level BPE) or ``llama`` (sentencepiece).

``gpt2`` has the merges, and a name for the regular expression that splits the text before them (``ggml.pre``).
``llama`` has no merges: llama.cpp merges the two neighbours whose union has the highest score, as sentencepiece does. A
tokenizer.json made from a sentencepiece model lists just these merges, from the highest score to the lowest; so minus
the rank of a token's merges is a score that orders them alike (`merge_scores`).
"""

from __future__ import annotations

import json
import re
from typing import Any

import gguf
from tokenizers import Tokenizer

from labsupport.checkpoints.companions import chat_template, tokenizer_of
from labsupport.lm import LanguageModel

# The regular expressions that split text before byte pairs are merged; and llama.cpp's names for them, for tokenizers
# that look a whole word up before they merge (ignore_merges), and for others.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS: dict[tuple[str, bool], str] = {
    (_LLAMA3, True): "llama-bpe",
    (_LLAMA3, False): "dbrx",
    (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"), False): "qwen2",
    (_TEKKEN, True): "tekken",
}
_SPACE = "▁"  # sentencepiece's


def write_vocabulary(writer: gguf.GGUFWriter, lm: LanguageModel) -> list[str]:
    """Returns what llama.cpp does otherwise with rare texts, in words.

    Raises:
        ValueError: llama.cpp would split text otherwise than the tokenizer; or it has more tokens than the model.
    """
    tokenizer = tokenizer_of(lm)
    stored = json.loads(tokenizer.to_str())
    if stored["model"]["type"] != "BPE":
        raise ValueError(
            f"format gguf needs a BPE tokenizer, byte-level or of sentencepiece; that of {lm.name} is "
            f"{stored['model']['type']}"
        )
    special = {token["id"] for token in stored["added_tokens"] if token["special"]}
    added = {token["id"]: token["content"] for token in stored["added_tokens"]}
    tokens = {index: token for token, index in stored["model"]["vocab"].items()} | added
    count = lm.model.config.vocab_size
    if max(tokens) >= count:
        raise ValueError(f"format gguf needs vocab_size of at least {max(tokens) + 1}, the tokenizer's; got {count}")
    kinds, names = gguf.TokenType, [tokens.get(index, f"[PAD{index}]") for index in range(count)]
    known = dict.fromkeys(tokens, kinds.NORMAL) | dict.fromkeys(added, kinds.USER_DEFINED)
    known |= dict.fromkeys(special, kinds.CONTROL)
    eos, bos = lm.tokenizer.eos_token_id, _begins_with(tokenizer)
    unknown = stored["model"]["vocab"].get(stored["model"].get("unk_token"), eos)
    if stored["model"].get("byte_fallback"):
        prefix, notes = sentencepiece_spaces(stored, lm.name)
        scores = merge_scores(stored, lm.name)
        known |= {index: kinds.BYTE for index, token in tokens.items() if re.fullmatch("<0x[0-9A-F]{2}>", token)}
        known |= {unknown: kinds.UNKNOWN} if unknown >= 0 else {}
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([scores.get(name, 0.0) for name in names])
    else:
        pre, notes = pre_tokenizer(stored, lm.name)
        prefix = False
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["model"]["merges"]]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges(merges or _no_merges(names))
    writer.add_token_list(names)
    writer.add_token_types([known.get(index, kinds.UNUSED) for index in range(count)])
    for add, token in (
        (writer.add_eos_token_id, eos), (writer.add_bos_token_id, eos if bos is None else bos),
        (writer.add_pad_token_id, eos), (writer.add_unk_token_id, unknown),
    ):  # fmt: skip
        add(max(token, 0))
    for token in getattr(lm.tokenizer, "eos_token_ids", ())[1:2]:
        writer.add_eot_token_id(token)
    writer.add_add_bos_token(bos is not None)
    writer.add_add_space_prefix(prefix)
    template = chat_template(lm)
    if template is not None:
        writer.add_chat_template(template)
    return notes


def _no_merges(names: list[str]) -> list[str]:
    """llama.cpp wants a list with something in it, and OpenVINO merges that give a token. The bytes C0, C1 and F5 stand
    in no UTF-8 text, so the third may be called the merge of the others: a merge that never happens."""
    if not {"\xc0", "\xc1", "\xf5"} <= set(names):
        return [f"{names[0]} {names[0]}"]
    names[names.index("\xf5")] = "\xc0\xc1"
    return ["\xc0 \xc1"]


def _begins_with(tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer puts before a text, if any."""
    plain, full = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    return full[0] if len(full) > len(plain) and full[0] != plain[0] else None


def pre_tokenizer(stored: dict[str, Any], name: str) -> tuple[str, list[str]]:
    """llama.cpp's name for how a byte-level tokenizer splits text before it merges; and what differs, in words.

    Raises:
        ValueError: llama.cpp has no name for it that is known here.
    """
    normalizer = (stored.get("normalizer") or {}).get("type")
    steps = _steps(stored.get("pre_tokenizer"))
    kinds = [step.get("type") for step in steps]
    whole_words = bool(stored["model"].get("ignore_merges"))
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    splits = [step for step in steps if step.get("type") == "Split"]
    patterns = [step["pattern"].get("Regex") for step in splits]
    regex = all(step.get("use_regex", True) for step in levels) or not stored["model"]["merges"]
    found = None
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and regex and not whole_words:
        found = "smollm"
    if kinds == ["ByteLevel"] and regex and not whole_words:
        found = "gpt-2"
    if kinds == ["Split", "ByteLevel"] and splits[0]["behavior"] == "Isolated" and not splits[0].get("invert"):
        found = None if levels[0].get("use_regex", True) else _PATTERNS.get((patterns[0], whole_words))
    if found is None or any(step.get("add_prefix_space") for step in levels) or normalizer not in (None, "NFC"):
        raise ValueError(
            f"format gguf: llama.cpp would split text otherwise than the tokenizer of {name}, whose pre_tokenizer is "
            f"{' + '.join(map(str, kinds))} {patterns or ''}".rstrip()
            + (f", and its normalizer {normalizer}" if normalizer else "")
        )
    notes = ["llama.cpp does not bring letters with separate accents into Unicode's form NFC, as the tokenizer does"]
    split = "llama.cpp splits words with combining marks (Thai, Hindi) and words like éBa otherwise than the tokenizer"
    return found, notes * (normalizer == "NFC") + [split] * (found == "tekken")


def _steps(found: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [] if not found else found.get("pretokenizers") or found.get("normalizers") or [found]


def sentencepiece_spaces(stored: dict[str, Any], name: str) -> tuple[bool, list[str]]:
    """Whether a text begins with a space that it does not have; and what llama.cpp does otherwise, in words.

    Raises:
        ValueError: the tokenizer does something to texts besides.
    """
    prefix, scheme = False, None
    replaced = False
    for step in [*_steps(stored.get("normalizer")), *_steps(stored.get("pre_tokenizer"))]:
        if step == {"type": "Prepend", "prepend": _SPACE}:
            prefix = True
        elif step == {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}:
            replaced = True
        elif step["type"] == "Metaspace" and step["replacement"] == _SPACE and not step.get("split", True):
            replaced, scheme = True, step.get("prepend_scheme", "always")
            prefix = scheme != "never"
        else:
            raise ValueError(
                f"format gguf: llama.cpp would split text otherwise than the tokenizer of {name}, which has the step "
                f"{step['type']}"
            )
    if not replaced:
        raise ValueError(f"format gguf: the tokenizer of {name} falls back to bytes, but does not write spaces as ▁")
    again = (
        "llama.cpp puts a space before a text that begins with one, too, as sentencepiece does, and the tokenizer not"
    )
    after = "llama.cpp puts a space after each special token within a text, the tokenizer at its beginning only"
    return prefix, [again] * (prefix and scheme is not None) + [after] * (scheme == "first")


def merge_scores(stored: dict[str, Any], name: str) -> dict[str, float]:
    """Of each token that comes of a merge: minus the rank of its merges.

    Raises:
        ValueError: no scores have llama.cpp do what the tokenizer does: the merges of a token do not stand together, or
            two tokens whose union is a token are not merged.
    """
    vocabulary = set(stored["model"]["vocab"]) - {token["content"] for token in stored["added_tokens"]}
    scores: dict[str, float] = {}
    pairs, last = set(), ""
    for merge in stored["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        token = left + right
        if token != last and token in scores:
            raise ValueError(
                f"format gguf: llama.cpp orders merges by tokens, and in the tokenizer of {name} others stand between "
                f"those that give {token!r}"
            )
        scores.setdefault(token, -float(len(scores)))
        pairs.add((left, right))
        last = token
    for token in vocabulary:
        for cut in range(1, len(token)):
            pair = token[:cut], token[cut:]
            if pair not in pairs and pair[0] in vocabulary and pair[1] in vocabulary and "<0x" not in token:
                raise ValueError(
                    f"format gguf: llama.cpp would merge {pair[0]!r} and {pair[1]!r}, which the tokenizer of {name} "
                    f"does not; only vocabularies of sentencepiece merge all that makes a token"
                )
    return scores
