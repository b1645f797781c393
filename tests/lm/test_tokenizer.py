"""Tokenizers as their files say, and text out of a stream of tokens: at each cut what decoding all of it gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from labsupport.inference.detokenize import Detokenizer, TextStream
from labsupport.inference.request import Request
from labsupport.inference.sampling import SamplingParams
from labsupport.lm.folder import eos_token_ids
from labsupport.lm.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer, byte_letters, bytes_of, ending_tokens
from labsupport.serving.logprobs import completion_logprobs

TEXT = st.text(st.sampled_from("aé€漢字🙂 x▁\n\ufffd"), max_size=12)


def byte_level() -> BpeTokenizer:
    """As GPT-2, Qwen and Llama 3: bytes as letters, some merged, some of them within characters."""
    letters = byte_letters()
    names = {byte: letter for letter, byte in letters.items()}
    pairs = [("a", "a"), (names[32], "a"), *((names[left], names[right]) for left, right in (b"\xe6\xbc", b"\xa2\xe5"))]
    vocab = {letter: byte for letter, byte in letters.items()}
    vocab |= {left + right: 256 + place for place, (left, right) in enumerate(pairs)}
    tokenizer = HuggingFaceTokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>", "<turn>"])
    return BpeTokenizer(tokenizer, [260, 261])


def byte_fallback() -> BpeTokenizer:
    """As Llama 2, TinyLlama and Mistral: pieces with a mark for the space, bytes for what is no piece."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "é", "▁a", "x"]
    tokenizer = HuggingFaceTokenizer(
        models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[("▁", "a")], unk_token="<unk>",
                   fuse_unk=True, byte_fallback=True)
    )  # fmt: skip
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return BpeTokenizer(tokenizer, 2)


KINDS: dict[str, Tokenizer] = {"bytes": ByteTokenizer(), "byte-level": byte_level(), "byte fallback": byte_fallback()}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@given(text=TEXT, cut=st.integers(0, 40))
def test_every_cut_gives_the_text_of_all_tokens(kind: str, text: str, cut: int) -> None:
    tokenizer = KINDS[kind]
    text = text.replace("▁", " ") if kind == "byte fallback" else text  # which that kind cannot tell from a space
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    prompt, rest = tokens[: min(cut, len(tokens))], tokens[min(cut, len(tokens)) :]
    stream, seen = Detokenizer(tokenizer), ""
    for token in tokens:
        seen += stream.push(token)
        assert (" " + text if kind == "byte fallback" else text).startswith(seen), "nothing is taken back"
    assert seen.encode() == b"".join(bytes_of(tokenizer, token) or b"" for token in tokens)
    whole = "".join(map(Detokenizer(tokenizer).push, rest))
    said = b"".join(bytes_of(tokenizer, token) or b"" for token in rest)
    assert said.decode(errors="replace").startswith(whole), "a continuation keeps the space before it"
    assert len(prompt) + len(rest) == len(tokens)


def test_a_whole_character_is_not_damaged_by_half_of_the_next() -> None:
    tokenizer = KINDS["byte fallback"]
    tokens = tokenizer.encode("漢字")
    assert tokenizer.decode(tokens[:-1]) == "漢\ufffd"
    assert "".join(map(Detokenizer(tokenizer).push, tokens[2:])) == "漢字"


@kinds
def test_a_replacement_character_of_the_text_is_text(kind: str) -> None:
    stream = TextStream(KINDS[kind])
    for token in KINDS[kind].encode("a\ufffd"):
        stream.push(token)
    stream.end()
    assert stream.text.strip() == "a\ufffd"


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    inner = byte_level().tokenizer
    inner.enable_truncation(16)
    inner.enable_padding(length=64)
    inner.save(str(tmp_path / "tokenizer.json"))
    loaded = BpeTokenizer.from_file(tmp_path / "tokenizer.json", -1)
    assert len(loaded.encode("x" * 414)) == 414 and len(loaded.encode("Hello")) == 5


def test_a_text_begins_as_the_model_was_trained() -> None:
    assert KINDS["byte fallback"].encode("a")[0] == 1
    assert KINDS["byte-level"].encode("a") == [97]


def test_every_token_that_ends_a_text_ends_one(tmp_path: Path) -> None:
    """Llama 3 has three, in two files."""
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [6, 7]}))
    assert eos_token_ids(tmp_path) == [5, 6, 7]
    tokenizer = KINDS["byte-level"]
    assert ending_tokens(tokenizer) == {260, 261} and tokenizer.eos_token_id == 260
    for end in (260, 261):
        request = Request("one", [97], SamplingParams(max_tokens=9), tokenizer)
        assert request.stop_tokens == {260, 261} and end in request.stop_tokens
    kept = Request("two", [97], SamplingParams(max_tokens=9, ignore_eos=True), tokenizer)
    assert kept.stop_tokens == set()


def test_a_special_token_is_a_stop_string() -> None:
    params = SamplingParams(max_tokens=9, ignore_eos=True, stop=["<turn>", "x"])
    assert Request("one", [97], params, KINDS["byte-level"]).stop_tokens == {261}


@kinds
@given(text=TEXT)
def test_tokens_of_logprobs_join_to_the_text(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]
    tokens = [token for token in tokenizer.encode(text) if bytes_of(tokenizer, token)]
    told = completion_logprobs(tokenizer, tokens, [{token: -float("inf")} for token in tokens], 0, 1)
    joined = b""
    for name in told["tokens"]:
        joined += bytes(int(part, 16) for part in name[8:].split("\\x")) if name.startswith("bytes:") else name.encode()
    assert joined == b"".join(bytes_of(tokenizer, token) or b"" for token in tokens)
    assert set(told["token_logprobs"]) <= {-9999.0}, "JSON has no infinity"
    json.dumps(told, allow_nan=False)
