"""llama.cpp itself, by its C interface: the shared library that xllamacpp brings exports it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PARAMS = ctypes.c_uint32 * 1024  # room for its structs of settings, of which only n_ctx and its neighbours are set


class _Params(ctypes.Structure):
    """Passed by value: the callee reads as much of it as its own struct has."""

    _fields_ = [("words", _PARAMS)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def library() -> Any:
    import xllamacpp.xllamacpp

    found = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    pointer, parameters = ctypes.c_void_p, _Params
    for name, result, arguments in (
        ("llama_model_default_params", parameters, []),
        ("llama_context_default_params", parameters, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, parameters]),
        ("llama_init_from_model", pointer, [pointer, parameters]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", ctypes.c_int32, [pointer]),
        ("llama_tokenize", ctypes.c_int32, [pointer, ctypes.c_char_p, ctypes.c_int32, pointer, ctypes.c_int32,
                                            ctypes.c_bool, ctypes.c_bool]),
        ("llama_token_to_piece", ctypes.c_int32, [pointer, ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32,
                                                  ctypes.c_int32, ctypes.c_bool]),
        ("llama_batch_init", _Batch, [ctypes.c_int32] * 3),
        ("llama_batch_free", None, [_Batch]),
        ("llama_decode", ctypes.c_int32, [pointer, _Batch]),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [pointer]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
        ("llama_free", None, [pointer]),
        ("llama_model_free", None, [pointer]),
        ("llama_log_set", None, [pointer, pointer]),
    ):  # fmt: skip
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


_QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)


class LlamaCpp:
    """A GGUF file as llama.cpp computes it, on one thread; `close` frees it."""

    def __init__(self, path: Path, context: int = 512) -> None:
        self.lib = library()
        self.lib.llama_log_set(ctypes.cast(_QUIET, ctypes.c_void_p), None)
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), self.lib.llama_model_default_params())
        if not self.model:
            raise ValueError(f"llama.cpp does not load {path}")
        params = self.lib.llama_context_default_params()
        # n_ctx, n_batch, n_ubatch, n_seq_max: the first fields
        params.words[0], params.words[1], params.words[2], params.words[3] = context, context, context, 1
        self.context = self.lib.llama_init_from_model(self.model, params)
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.batch = self.lib.llama_batch_init(context, 0, 1)

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """With the token that it adds in front, if any. special: the text of special tokens is read as these."""
        given = text.encode()
        room = len(given) + 16
        tokens = (ctypes.c_int32 * room)()
        count = self.lib.llama_tokenize(self.vocab, given, len(given), tokens, room, True, special)
        return list(tokens)[:count]

    def piece(self, token: int) -> bytes:
        """What the token adds to a text; of special tokens nothing."""
        room = ctypes.create_string_buffer(2048)
        count = self.lib.llama_token_to_piece(self.vocab, token, room, len(room), 0, False)
        return room.raw[:count]

    def logits(self, tokens: list[int]) -> Tensor:
        """Of each position, [time, vocab]."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        self.batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            self.batch.token[place], self.batch.pos[place], self.batch.logits[place] = token, place, 1
            self.batch.n_seq_id[place], self.batch.seq_id[place][0] = 1, 0
        if self.lib.llama_decode(self.context, self.batch):
            raise ValueError("llama.cpp does not compute these tokens")
        size = self.lib.llama_vocab_n_tokens(self.vocab)
        return torch.from_numpy(
            np.ctypeslib.as_array(self.lib.llama_get_logits(self.context), (len(tokens), size)).copy()
        )

    def close(self) -> None:
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)
