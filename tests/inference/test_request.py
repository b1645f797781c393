"""What a client sees while tokens come: text that never shrinks, stops where it should, and breaks no character."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models

from labsupport.inference.detokenize import Detokenizer, TextStream, longest_overlap
from labsupport.inference.request import Request, RequestStatus
from labsupport.inference.sampling import SamplingParams
from labsupport.lm.tokenizer import BpeTokenizer, ByteTokenizer

BYTES = ByteTokenizer()


def run(tokens: list[int], **params: object) -> tuple[Request, list[str]]:
    """A request given these tokens until it ends, and its text after each."""
    request = Request("a", [65], SamplingParams(**{"max_tokens": 1000, **params}), BYTES)  # type: ignore[arg-type]
    request.move_to(RequestStatus.RUNNING)
    texts = []
    for token in tokens:
        reason = request.append_token(token)
        if reason is not None:
            request.finish(reason)
        texts.append(request.text)
        if reason is not None:
            break
    return request, texts


@settings(max_examples=300)
@given(st.text(alphabet="aé€🙂\ufffdx", max_size=12), st.lists(st.text(alphabet="aé€x", min_size=1, max_size=3),
                                                             max_size=3))  # fmt: skip
def test_stream_of_bytes_gives_the_text_up_to_the_first_stop_string(text: str, stops: list[str]) -> None:
    stream, seen, stopped = TextStream(BYTES, stops), "", False
    for token in BYTES.encode(text):
        stopped = stream.push(token)
        assert stream.text.startswith(seen), "text that was handed out changed"
        seen = stream.text
        assert text.startswith(seen), "a part of a character was handed out"
        if stopped:
            break
        assert not any(stop in seen for stop in stops)
    # the earliest completed, that is: the one found when its last byte came
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert stopped == bool(ends)
    if stopped:
        first = min(ends)
        assert seen == text[: min(text.find(s) for s in stops if s in text[:first])]
    else:
        stream.end()
        assert stream.text == text, "and a U+FFFD that somebody wrote is text"


@given(st.binary(max_size=20).filter(lambda b: 0 not in b))
def test_bytes_that_are_no_text_decode_as_they_do_at_once(data: bytes) -> None:
    detokenizer = Detokenizer(BYTES)
    text = "".join(detokenizer.push(token) for token in data)
    whole = BYTES.decode(data)
    assert whole.startswith(text) and set(whole[len(text) :]) <= {"\ufffd"} and len(whole) - len(text) <= 3


def test_half_a_character_is_never_handed_out() -> None:
    request, texts = run([*"a€b".encode()], max_tokens=3)
    assert texts == ["a", "a", "a"] and request.finish_reason == "length" and "\ufffd" not in request.text
    assert run([*"a€b".encode()])[1] == ["a", "a", "a", "a€", "a€b"]


def test_partial_stop_string_is_held_back_and_given_if_it_was_none() -> None:
    request, texts = run([*b"one END two ENDING"], stop="ENDING")
    assert request.finish_reason == "stop" and request.text == "one END two "
    assert texts[4:8] == ["one ", "one ", "one ", "one END "]
    request, _ = run([*b"one EN"], stop="END", max_tokens=6)
    assert request.finish_reason == "length" and request.text == "one EN"


def test_stop_string_across_tokens_of_several_characters() -> None:
    vocab = {"ab": 0, "cd": 1, "ef": 2}
    backend = HuggingFaceTokenizer(models.WordLevel(vocab, unk_token="ab"))
    backend.decoder = decoders.Fuse()
    stream = TextStream(BpeTokenizer(backend, -1), ["bcde"])
    assert [stream.push(token) for token in (1, 0, 1, 2)] == [False, False, False, True]
    assert stream.text == "cda"


def test_leading_space_that_a_tokenizer_strips_is_kept_inside() -> None:
    vocab = {"▁one": 0, "▁two": 1, "s": 2}
    backend = HuggingFaceTokenizer(models.WordLevel(vocab, unk_token="s"))
    backend.decoder = decoders.Metaspace()
    tokenizer = BpeTokenizer(backend, -1)
    detokenizer = Detokenizer(tokenizer)
    tokens = [0, 1, 2, 1, 0]
    assert "".join(map(detokenizer.push, tokens)) == tokenizer.decode(tokens) == "one twos two one"


@given(st.text(alphabet="ab", max_size=8), st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3))
def test_longest_overlap_by_brute_force(text: str, stops: list[str]) -> None:
    sizes = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    assert longest_overlap(text, stops) == max(sizes, default=0)


def test_end_of_text_and_stop_tokens() -> None:
    request, _ = run([97, 0, 98])
    assert (request.finish_reason, request.text, request.output_token_ids) == ("stop", "a", [97, 0])
    request, _ = run([97, 0, 98], ignore_eos=True, max_tokens=3)
    assert (request.finish_reason, request.text, request.output_token_ids) == ("length", "ab", [97, 0, 98])
    request, _ = run([97, 98, 99], stop_token_ids=[98])
    assert (request.finish_reason, request.text, request.output_token_ids) == ("stop", "a", [97, 98])
    request, _ = run([97, 0], max_tokens=2)
    assert request.finish_reason == "stop", "the end of the text counts for more than that it is also the last token"
    request, _ = run([*b"xy", 0], stop="yz")
    assert request.text == "xy", "what was held back is given at the end"


def test_status_moves_only_as_drawn() -> None:
    request = Request("a", [1], SamplingParams(), BYTES)
    with pytest.raises(ValueError, match="from waiting to preempted"):
        request.move_to(RequestStatus.PREEMPTED)
    request.move_to(RequestStatus.RUNNING)
    request.move_to(RequestStatus.PREEMPTED)
    request.finish("abort")
    assert request.finished and request.num_preemptions == 1 and request.times.finished is not None
    with pytest.raises(ValueError, match="from finished to running"):
        request.move_to(RequestStatus.RUNNING)
    with pytest.raises(ValueError, match="prompt_token_ids"):
        Request("a", [], SamplingParams(), BYTES)


def test_outputs_are_snapshots() -> None:
    request = Request("a", [1], SamplingParams(logprobs=1), BYTES)
    request.move_to(RequestStatus.RUNNING)
    request.append_token(97, {97: -0.5})
    first = request.output()
    request.append_token(98, {98: -0.25})
    assert first.token_ids == [97] and first.logprobs == [{97: -0.5}] and first.text == "a" and not first.finished
    assert request.output().token_ids == [97, 98]
    assert Request("b", [1], SamplingParams(), BYTES).output().logprobs is None


def test_seeded_requests_draw_the_same_numbers() -> None:
    a, b, c = (Request("a", [1], SamplingParams(seed=seed), BYTES) for seed in (7, 7, 8))
    drawn = [[each.next_uniform() for _ in range(5)] for each in (a, b, c)]
    assert drawn[0] == drawn[1] != drawn[2]
