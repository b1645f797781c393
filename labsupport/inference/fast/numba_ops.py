"""The parts of a decode step that are not matmuls, compiled by Numba (optional; without it the engine runs `Llama`).

A step for 16 sequences runs each of these 30 times on a few thousand numbers. PyTorch spends more time on dispatching
than on computing, and gathers keys that could be read in place.

    add_and_norm        x += y, then RMSNorm of x
    rotate_and_store    rotary embedding of queries and keys, and both caches written
    decode_attention    one query a sequence over its blocks, in place

and where the blocks hold 8-bit codes (labsupport.kvcache.quantized)

    turn                     a Hadamard rotation of each head
    find_ranges, store_codes scale and minimum of each row, and its codes
    decode_attention_int8    `decode_attention` on codes

Indices are uint64: signed ones are tested for being negative, which stops the vectoriser.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from labsupport.quantization.fast.compiled import FAST_MATH


@njit(fastmath=FAST_MATH, nogil=True, cache=True)
def add_and_norm(x, y, weight, eps, out):  # type: ignore[no-untyped-def]
    """x, y, out: [tokens, hidden]. ``x`` is changed; ``out`` gets x / sqrt(mean(x²) + eps) · weight."""
    U, f32 = np.uint64, np.float32
    hidden = U(x.shape[1])
    for row in range(U(x.shape[0])):
        total = f32(0)
        for i in range(hidden):
            value = x[row, i] + y[row, i]
            x[row, i] = value
            total += value * value
        factor = f32(1) / np.sqrt(total / f32(hidden) + f32(eps))
        for i in range(hidden):
            out[row, i] = x[row, i] * factor * weight[i]


@njit(fastmath=FAST_MATH, nogil=True, cache=True)
def rotate_and_store(qkv, cos, sin, slots, num_heads, keys, values):  # type: ignore[no-untyped-def]
    """qkv: [tokens, (num_heads + 2 · num_kv_heads) · head_dim]; its queries are turned in place.

    cos, sin: [tokens, head_dim], as in labsupport.lm.model.rotate.
    slots: [tokens], block · block_size + place in it. keys, values: [blocks, num_kv_heads, block_size, head_dim].
    """
    U = np.uint64
    heads, kv_heads, block_size, head_dim = U(num_heads), U(keys.shape[1]), U(keys.shape[2]), U(keys.shape[3])
    half = head_dim // U(2)
    for token in range(U(qkv.shape[0])):
        slot = U(slots[token])
        block, place = slot // block_size, slot % block_size
        for head in range(heads):
            first = head * head_dim
            for i in range(half):
                a, b = qkv[token, first + i], qkv[token, first + half + i]
                qkv[token, first + i] = a * cos[token, i] - b * sin[token, i]
                qkv[token, first + half + i] = b * cos[token, half + i] + a * sin[token, half + i]
        for head in range(kv_heads):
            key, value = (heads + head) * head_dim, (heads + kv_heads + head) * head_dim
            for i in range(half):
                a, b = qkv[token, key + i], qkv[token, key + half + i]
                keys[block, head, place, i] = a * cos[token, i] - b * sin[token, i]
                keys[block, head, place, half + i] = b * cos[token, half + i] + a * sin[token, half + i]
            for i in range(head_dim):
                values[block, head, place, i] = qkv[token, value + i]


@njit(fastmath=FAST_MATH, nogil=True, cache=True)
def decode_attention(query, keys, values, tables, seen, lengths, out, first, last):  # type: ignore[no-untyped-def]
    """Sequences first .. last, each over its tokens seen .. length.

    query, out: [sequences, num_heads · head_dim]; tables: [sequences, blocks]; seen, lengths: [sequences].
    """
    U, f32 = np.uint64, np.float32
    kv_heads, block_size, head_dim = U(keys.shape[1]), U(keys.shape[2]), U(keys.shape[3])
    group = U(query.shape[1]) // (kv_heads * head_dim)
    scale = f32(1) / np.sqrt(f32(head_dim))
    weights = np.empty((group, U(tables.shape[1]) * block_size), np.float32)
    powers = np.empty(weights.shape[1], np.int32)
    for row in range(U(first), U(last)):
        length, oldest = U(lengths[row]), U(seen[row])
        for head in range(kv_heads):
            start = head * group * head_dim
            for index in range(oldest // block_size, (length + block_size - U(1)) // block_size):
                block, begin = U(tables[row, index]), index * block_size
                count = min(block_size, length - begin)
                for g in range(group):
                    q = start + g * head_dim
                    for t in range(U(0), count - count % U(4), U(4)):  # four keys share each load of the query
                        score0, score1, score2, score3 = f32(0), f32(0), f32(0), f32(0)
                        for i in range(head_dim):
                            score0 += query[row, q + i] * keys[block, head, t, i]
                            score1 += query[row, q + i] * keys[block, head, t + U(1), i]
                            score2 += query[row, q + i] * keys[block, head, t + U(2), i]
                            score3 += query[row, q + i] * keys[block, head, t + U(3), i]
                        weights[g, begin + t], weights[g, begin + t + U(1)] = score0 * scale, score1 * scale
                        weights[g, begin + t + U(2)], weights[g, begin + t + U(3)] = score2 * scale, score3 * scale
                    for t in range(count - count % U(4), count):
                        score0 = f32(0)
                        for i in range(head_dim):
                            score0 += query[row, q + i] * keys[block, head, t, i]
                        weights[g, begin + t] = score0 * scale
            for g in range(group):
                _softmax(weights[g], powers, oldest, length)
            for i in range(group * head_dim):
                out[row, start + i] = f32(0)
            for index in range(oldest // block_size, (length + block_size - U(1)) // block_size):
                block, begin = U(tables[row, index]), index * block_size
                count = min(block_size, length - begin)
                for g in range(group):
                    o = start + g * head_dim
                    for t in range(U(0), count - count % U(4), U(4)):
                        weight0, weight1 = weights[g, begin + t], weights[g, begin + t + U(1)]
                        weight2, weight3 = weights[g, begin + t + U(2)], weights[g, begin + t + U(3)]
                        for i in range(head_dim):
                            out[row, o + i] += (
                                weight0 * values[block, head, t, i] + weight1 * values[block, head, t + U(1), i]
                                + weight2 * values[block, head, t + U(2), i]
                                + weight3 * values[block, head, t + U(3), i]
                            )  # fmt: skip
                    for t in range(count - count % U(4), count):
                        for i in range(head_dim):
                            out[row, o + i] += weights[g, begin + t] * values[block, head, t, i]


@njit(fastmath=FAST_MATH, nogil=True, cache=True)
def turn(x, size):  # type: ignore[no-untyped-def]
    """x: [rows, head_dim], in place: x H for each piece of ``size`` = 2**n numbers (Walsh-Hadamard transform)."""
    U, f32 = np.uint64, np.float32
    root = f32(1) / np.sqrt(f32(size))
    for row in range(U(x.shape[0])):
        for i in range(U(x.shape[1])):
            x[row, i] *= root
        half = U(1)
        while half < U(size):
            for start in range(U(0), U(x.shape[1]), U(2) * half):
                for i in range(start, start + half):
                    a, b = x[row, i], x[row, i + half]
                    x[row, i], x[row, i + half] = a + b, a - b
            half *= U(2)


@njit(fastmath=FAST_MATH, nogil=True, cache=True)
def find_ranges(x, ranges):  # type: ignore[no-untyped-def]
    """x: [rows, head_dim]; ranges: [rows, 2] gets scale and minimum: minimum + 255 · scale is the largest number."""
    U = np.uint64
    for row in range(U(x.shape[0])):
        low = high = x[row, 0]
        for i in range(U(x.shape[1])):
            low, high = min(low, x[row, i]), max(high, x[row, i])
        ranges[row, 0], ranges[row, 1] = (high - low) / np.float32(255), low


@njit(fastmath=FAST_MATH, nogil=True, cache=True)
def store_codes(x, scales, slots, codes):  # type: ignore[no-untyped-def]
    """x: [tokens, num_kv_heads, head_dim]; scales: [tokens, num_kv_heads, 2]; codes: [blocks, num_kv_heads, block_size,
    head_dim]; slots as in `rotate_and_store`."""
    U, f32 = np.uint64, np.float32
    block_size = U(codes.shape[2])
    for token in range(U(x.shape[0])):
        block, place = U(slots[token]) // block_size, U(slots[token]) % block_size
        for head in range(U(x.shape[1])):
            scale, minimum = max(scales[token, head, 0], f32(1e-7)), scales[token, head, 1]
            for i in range(U(x.shape[2])):
                code = np.rint((x[token, head, i] - minimum) / scale)
                codes[block, head, place, i] = np.uint8(min(max(code, f32(0)), f32(255)))


@njit(fastmath=FAST_MATH, nogil=True, cache=True)
def decode_attention_int8(query, keys, values, key_scales, value_scales, tables, seen, lengths, out, first, last):  # type: ignore[no-untyped-def]
    """As `decode_attention`. keys, values: uint8 codes of the same shape; number = code · scale + minimum.

    key_scales, value_scales: [sequences, blocks, num_kv_heads, block_size, 2], in the order of ``tables``. A code is
    never dequantized: q · k = scale · (q · code) + minimum · Σ q, and likewise for the values.
    """
    U, f32 = np.uint64, np.float32
    kv_heads, block_size, head_dim = U(keys.shape[1]), U(keys.shape[2]), U(keys.shape[3])
    group = U(query.shape[1]) // (kv_heads * head_dim)
    root = f32(1) / np.sqrt(f32(head_dim))
    weights = np.empty((group, U(tables.shape[1]) * block_size), np.float32)
    powers = np.empty(weights.shape[1], np.int32)
    for row in range(U(first), U(last)):
        length, oldest = U(lengths[row]), U(seen[row])
        for head in range(kv_heads):
            start = head * group * head_dim
            for g in range(group):
                q = start + g * head_dim
                total = f32(0)
                for i in range(head_dim):
                    total += query[row, q + i]
                for index in range(oldest // block_size, (length + block_size - U(1)) // block_size):
                    block, begin = U(tables[row, index]), index * block_size
                    for t in range(min(block_size, length - begin)):
                        score = f32(0)
                        for i in range(head_dim):
                            score += query[row, q + i] * f32(keys[block, head, t, i])
                        scale, minimum = key_scales[row, index, head, t, 0], key_scales[row, index, head, t, 1]
                        weights[g, begin + t] = root * (scale * score + minimum * total)
                _softmax(weights[g], powers, oldest, length)
                for i in range(head_dim):
                    out[row, q + i] = f32(0)
                total = f32(0)
                for index in range(oldest // block_size, (length + block_size - U(1)) // block_size):
                    block, begin = U(tables[row, index]), index * block_size
                    for t in range(min(block_size, length - begin)):
                        weight = weights[g, begin + t] * value_scales[row, index, head, t, 0]
                        total += weights[g, begin + t] * value_scales[row, index, head, t, 1]
                        for i in range(head_dim):
                            out[row, q + i] += weight * f32(values[block, head, t, i])
                for i in range(head_dim):
                    out[row, q + i] += total


@njit(fastmath=FAST_MATH, nogil=True, cache=True)
def _softmax(scores, powers, oldest, length):  # type: ignore[no-untyped-def]
    """In place, of oldest .. length; the weights before become 0.

    exp(x) = 2**n · 2**f with f in ±1/2, in a form that can be vectorised: 2**f is its Taylor polynomial of degree 6
    (relative error 2e-7), 2**n is made of bits. ``powers``: room for it.
    """
    f32, i32 = np.float32, np.int32
    for token in range(oldest):
        scores[token] = f32(0)
    largest = f32(-np.inf)
    for token in range(oldest, length):
        largest = max(largest, scores[token])
    for token in range(oldest, length):
        x = max((scores[token] - largest) * f32(1.4426950408889634), f32(-126))
        n = np.floor(x + f32(0.5))
        y = (x - n) * f32(0.6931471805599453)
        series = f32(1 / 24) + y * (f32(1 / 120) + y * f32(1 / 720))
        series = f32(1) + y * (f32(1) + y * (f32(0.5) + y * (f32(1 / 6) + y * series)))
        scores[token] = series
        powers[token] = (i32(n) + i32(127)) << i32(23)
    two_to_the_n = powers.view(np.float32)
    total = f32(0)
    for token in range(oldest, length):
        scores[token] *= two_to_the_n[token]
        total += scores[token]
    for token in range(oldest, length):
        scores[token] /= total
