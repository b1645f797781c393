"""llama.cpp splits texts as the tokenizer does: each kind of tokenizer that people bring, made small, on hard texts."""

from __future__ import annotations

import pydoc_data.topics
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import xllamacpp
from exported import random_lm
from llama_cpp import LlamaCpp
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from labsupport.checkpoints import gguf_vocabulary, write_gguf
from labsupport.lm import LanguageModel
from labsupport.lm.tokenizer import BpeTokenizer, bytes_of

LEARNED = "\n".join(list(pydoc_data.topics.topics.values())[:20])
TEXTS = [
    "Hello, world!", "", "  two  spaces ", " x", "x\n\ny\n", "\t tab", "漢字 and 😀 emoji", "naïve — “x”",
    "don't I'LL we've", "1234567 3.14", "<0x41>", "[INST] hi [/INST]", "aaaaaaaaaaaaaaaa", "▁x ▁▁", "<s>y</s>",
    "def f(x):\n    return x**2 # c", "\u200b\ufeff", "ﬁ ½", "مرحبا", "한국어", "\r\n\r\n x", "I’m it's IT'S",
    "https://a.b/c?d=e&f=g//", "  \n  \n", "a" * 300, " " * 50 + "x", "\x00\x01",
]  # fmt: skip


def texts(letters: str, seed: int = 0) -> list[str]:
    drawn = random.Random(seed)
    parts = [LEARNED[start : start + 200] for start in range(0, len(LEARNED), len(LEARNED) // 20)]
    return TEXTS + parts + ["".join(drawn.choices(letters, k=30)) for _ in range(100)]


LETTERS = "abc ABC漢😀\n\t'.,1239▁<>/[]sñß"


def byte_level(steps: list[Any], whole_words: bool = False, normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=["<s>", "</s>", "[INST]"],
                                  show_progress=False)  # fmt: skip
    tokenizer.train_from_iterator([LEARNED, *TEXTS, "สวัสดี éBa " * 200], trainer)
    return tokenizer


def split(pattern: str) -> list[Any]:
    return [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def sentencepiece(form: str, all_pairs: bool = True) -> Tokenizer:
    """As transformers makes a tokenizer.json from a sentencepiece model: all pairs that make a token are merges."""
    special = ["<unk>", "<s>", "</s>", "[INST]"]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
                                  show_progress=False)  # fmt: skip
    trained.train_from_iterator([LEARNED, *TEXTS[:-1]], trainer)
    vocabulary = trained.get_vocab()
    merges: list[tuple[str, str]] = []
    for token in sorted(set(vocabulary) - set(special), key=vocabulary.__getitem__):
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in cuts if set(pair) <= set(vocabulary)]
        merges += known if all_pairs else known[:1]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if form == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=form, split=False)  # type: ignore[arg-type]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def with_tokenizer(tokenizer: Tokenizer) -> LanguageModel:
    own = BpeTokenizer(tokenizer, 2)
    return replace(random_lm(vocab_size=own.vocab_size, hidden_size=32, num_heads=2, num_kv_heads=1), tokenizer=own)


def differing(lm: LanguageModel, path: Path, asked: list[str]) -> list[str]:
    program = LlamaCpp(path)
    try:
        return [text for text in asked if program.tokenize(text, special=True) != lm.tokenizer.encode(text)]
    finally:
        program.close()


LLAMA3, TEKKEN = gguf_vocabulary._LLAMA3, gguf_vocabulary._TEKKEN
KINDS: dict[str, tuple[str, Callable[[], Tokenizer]]] = {
    "GPT-2": ("gpt-2", lambda: byte_level([pre_tokenizers.ByteLevel(add_prefix_space=False)])),
    "SmolLM2, Granite": (
        "smollm",
        lambda: byte_level([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    ),
    "Llama 3": ("llama-bpe", lambda: byte_level(split(LLAMA3), whole_words=True)),
    "Llama 3, merges only": ("dbrx", lambda: byte_level(split(LLAMA3))),
    "Qwen 2 and 3": (
        "qwen2",
        lambda: byte_level(split(LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), normalizer=normalizers.NFC()),
    ),
    "Mistral's tekken": ("tekken", lambda: byte_level(split(TEKKEN), whole_words=True)),
    "Llama 2, Mistral": ("default", lambda: sentencepiece("normalizer")),
    "without a space before the text": ("default", lambda: sentencepiece("never")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_splits_texts_as_the_tokenizer_does(tmp_path: Path, kind: str) -> None:
    name, make = KINDS[kind]
    lm = with_tokenizer(make())
    write_gguf(lm, tmp_path / "model.gguf", "F16")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert reader.fields["tokenizer.ggml.pre"].contents() == name
    assert differing(lm, tmp_path / "model.gguf", texts(LETTERS)) == []
    program = LlamaCpp(tmp_path / "model.gguf")
    pieces = [program.piece(token) for token in range(lm.tokenizer.vocab_size)]
    program.close()
    assert pieces == [bytes_of(lm.tokenizer, token) for token in range(lm.tokenizer.vocab_size)]


def test_what_llama_cpp_does_otherwise_is_told(tmp_path: Path) -> None:
    """And is as told: elsewhere it does the same."""
    lm = with_tokenizer(sentencepiece("first"))
    again, after = write_gguf(lm, tmp_path / "first.gguf", "F16")
    assert "begins with one" in again and "special token within" in after
    begins = [text for text in texts(LETTERS) if text.startswith((" ", "▁"))]
    inside = [text for text in texts(LETTERS) if "INST" in text or "s>" in text]
    assert set(differing(lm, tmp_path / "first.gguf", texts(LETTERS))) <= {*begins, *inside}
    assert differing(lm, tmp_path / "first.gguf", begins) == begins
    assert write_gguf(with_tokenizer(sentencepiece("normalizer")), tmp_path / "model.gguf", "F16") == []

    lm = with_tokenizer(KINDS["Qwen 2 and 3"][1]())
    (told,) = write_gguf(lm, tmp_path / "nfc.gguf", "F16")
    assert "NFC" in told and differing(lm, tmp_path / "nfc.gguf", ["e\u0301"]) == ["e\u0301"]
    lm = with_tokenizer(KINDS["Mistral's tekken"][1]())
    (told,) = write_gguf(lm, tmp_path / "tekken.gguf", "F16")
    assert "Thai" in told and differing(lm, tmp_path / "tekken.gguf", ["สวัสดี", "éBa"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sentencepiece("first", all_pairs=False), "would merge"),
        (
            lambda: byte_level([pre_tokenizers.Split(Regex("x+"), "isolated"), pre_tokenizers.ByteLevel(False)]),
            r"Split \+ ByteLevel \['x\+'\]",
        ),
        (lambda: byte_level([pre_tokenizers.ByteLevel(add_prefix_space=True)]), "would split text otherwise"),
        (lambda: byte_level([pre_tokenizers.ByteLevel(False, use_regex=False)]), "would split text otherwise"),
        (
            lambda: byte_level([pre_tokenizers.ByteLevel(False)], normalizer=normalizers.Lowercase()),
            "normalizer Lowercase",
        ),
        (lambda: byte_level([pre_tokenizers.ByteLevel(False)], whole_words=True), "would split text otherwise"),
        (lambda: Tokenizer(models.Unigram([("a", 0.0), ("<unk>", 0.0)], 1)), "that of random is Unigram"),
        (lambda: Tokenizer(models.BPE({"a": 0}, [], byte_fallback=True)), "does not write spaces as ▁"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path: Path, make: Callable[[], Tokenizer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_gguf(with_tokenizer(make()), tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


def test_merges_of_a_token_stand_together() -> None:
    def scores(*merges: str) -> dict[str, float]:
        vocabulary = dict.fromkeys(("a", "b", "ab", "ba", "aba"))
        stored = {"model": {"vocab": vocabulary, "merges": list(merges)}, "added_tokens": []}
        return gguf_vocabulary.merge_scores(stored, "x")

    assert scores("a b", "b a", "ab a", "a ba") == {"ab": 0, "ba": -1, "aba": -2}
    with pytest.raises(ValueError, match="others stand between those that give 'aba'"):
        scores("a b", "ab a", "b a", "a ba")


def test_from_text_to_text_in_llama_cpp(tmp_path: Path) -> None:
    """Sentencepiece: the prompt is a text, the answer is a text."""
    lm = with_tokenizer(sentencepiece("normalizer"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_gguf(lm, tmp_path / "model.gguf", "F32")
    params = xllamacpp.CommonParams()
    params.model.path = str(tmp_path / "model.gguf")
    params.n_parallel, params.n_ctx, params.n_gpu_layers, params.verbosity = 1, 256, 0, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    prompt = "The with statement — 漢字"
    answer = xllamacpp.Server(params).handle_completions(
        {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    )
    tokens = lm.tokenizer.encode(prompt)
    start = len(tokens)
    for _ in range(12):
        with torch.no_grad():
            scores = lm.model(torch.tensor([tokens]))[0, -1]
        scores[lm.tokenizer.eos_token_id] = -torch.inf
        tokens.append(int(scores.argmax()))
    written = b"".join(bytes_of(lm.tokenizer, token) or b"" for token in tokens[start:])
    assert answer["choices"][0]["text"] == written.decode(errors="replace")
