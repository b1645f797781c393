"""Answers to exercise 2 (see load.py)."""

RIGHT = {
    "math.prod, divmod": {
        "answer-bytes": """
import math

def kv_cache_bytes(batch_size, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element=2):
    return math.prod((2, batch_size, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element))
""",
        "answer-batch-size": """
def max_batch_size(memory_bytes, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element=2):
    one = kv_cache_bytes(1, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element)
    whole, rest = divmod(memory_bytes, one)
    return whole
""",
    },
    "keys and values apart, layer by layer, printed": {
        "answer-bytes": """
def kv_cache_bytes(batch_size, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element=2):
    total = 0
    for layer in range(num_layers):
        keys = batch_size * num_kv_heads * seq_len * head_dim * bytes_per_element
        values = keys
        total += keys + values
    print(f"{total / 2**30:.2f} GiB")
    return total
""",
    },
    "adds sequences until the next one does not fit": {
        "answer-batch-size": """
def max_batch_size(memory_bytes, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element=2):
    batch = 0
    while kv_cache_bytes(batch + 1, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element) <= memory_bytes:
        batch += 1
    return batch
""",
    },
    "bisection": {
        "answer-batch-size": """
def max_batch_size(memory_bytes, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element=2):
    fits, too_many = 0, 1
    cost = lambda batch: kv_cache_bytes(batch, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element)
    while cost(too_many) <= memory_bytes:
        too_many *= 2
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if cost(middle) <= memory_bytes else (fits, middle)
    return fits
""",
    },
    "exact fractions, its own product, a guard for what does not fit": {
        "answer-bytes": """
from fractions import Fraction

def kv_cache_bytes(batch_size, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element=2):
    per_token = Fraction(2 * num_layers * num_kv_heads * head_dim) * Fraction(bytes_per_element)
    return int(per_token * seq_len * batch_size)
""",
        "answer-batch-size": """
def max_batch_size(memory_bytes, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element=2):
    sequence = 2 * seq_len * num_layers * num_kv_heads * head_dim * bytes_per_element
    if memory_bytes < sequence:
        return 0
    return (memory_bytes - memory_bytes % sequence) // sequence
""",
    },
}

RIGHT |= {
    "one sequence, layer and head after the other": {
        "answer-bytes": """
def kv_cache_bytes(batch_size, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element=2):
    total = 0
    for sequence in range(batch_size):
        for layer in range(num_layers):
            for head in range(num_kv_heads):
                for vector in ("key", "value"):
                    total += seq_len * head_dim * bytes_per_element
    return total
""",
        "answer-batch-size": """
def max_batch_size(memory_bytes, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element=2):
    count, left = 0, memory_bytes
    while (left := left - kv_cache_bytes(1, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element)) >= 0:
        count += 1
    return count
""",
    },
    "recursion, a product of all arguments, options passed on": {
        "answer-bytes": """
from functools import reduce
from operator import mul

def kv_cache_bytes(batch_size, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element=2):
    return reduce(mul, [value for value in locals().values() if isinstance(value, int)], 2)
""",
        "answer-batch-size": """
def max_batch_size(memory_bytes, *sizes, **options):
    one = kv_cache_bytes(1, *sizes, **options)
    return 0 if memory_bytes < one else 1 + max_batch_size(memory_bytes - one, *sizes, **options)
""",
    },
}

_PRODUCT = "elements = batch_size * seq_len * num_layers * num_kv_heads * head_dim"
_RETURN = "return 2 * elements * bytes_per_element  # keys and values"
_ONE = (
    "one = kv_cache_bytes(1, seq_len,\n                         num_layers, num_kv_heads, head_dim, bytes_per_element)"
)
_FIT = "return memory_bytes // one"


def _bytes(old: str, new: str) -> dict:
    return {"answer-bytes": [(old, new)]}


def _batch(old: str, new: str) -> dict:
    return {"answer-batch-size": [(old, new)]}


WRONG = {
    "one layer of one sequence": (
        "check_bytes",
        "that is one layer of one sequence",
        _bytes(_PRODUCT, "elements = seq_len * num_kv_heads * head_dim"),
    ),
    "forgets the factor 2 for keys and values": (
        "check_bytes",
        "a factor of 2 is missing: keys and values are both kept",
        _bytes("2 * elements", "elements"),
    ),
    "forgets the layers": (
        "check_bytes",
        "that is one layer; each of num_layers",
        _bytes("num_layers * num_kv", "num_kv"),
    ),
    "forgets the batch": ("check_bytes", "that is one sequence", _bytes("= batch_size *", "=")),
    "forgets the tokens": ("check_bytes", "that is one token", _bytes("* seq_len *", "*")),
    "forgets the heads": ("check_bytes", "that is one head", _bytes("* num_kv_heads *", "*")),
    "forgets the width of a head": ("check_bytes", "head_dim is missing", _bytes(" * head_dim", "")),
    "counts elements": ("check_bytes", "those are elements, not bytes", _bytes(" * bytes_per_element", "")),
    "always 2 bytes": ("check_bytes", "assumes 2 bytes for every element", _bytes("* bytes_per_element", "* 2")),
    "always 4 bytes": ("check_bytes", "assumes 4 bytes for every element", _bytes("* bytes_per_element", "* 4")),
    "bits": ("check_bytes", "those are bits", _bytes("2 * elements", "16 * elements")),
    "whole GiB": ("check_bytes", "those are GiB, rounded down", _bytes(_RETURN, _RETURN.split("  #")[0] + " // 2**30")),
    "KiB": ("check_bytes", "those are KiB", _bytes(_RETURN, _RETURN.split("  #")[0] + " // 1024")),
    "MiB": ("check_bytes", "those are MiB", _bytes(_RETURN, _RETURN.split("  #")[0] + " // 1024**2")),
    "GiB as a float": (
        "check_bytes",
        "must return an int; got the float",
        _bytes(_RETURN, _RETURN.split("  #")[0] + " / 2**30"),
    ),
    "a float": ("check_bytes", "use // and whole numbers throughout", _bytes("2 * elements", "2.0 * elements")),
    "a tensor": (
        "check_bytes",
        "must return an int; got a tensor of int64 []",
        _bytes(_RETURN, "import torch; return torch.tensor(2 * elements * bytes_per_element)"),
    ),
    "text": ("check_bytes", "must return an int; got the str", _bytes(_RETURN, "return f'{2 * elements} bytes'")),
    "an object that is equal to everything": (
        "check_bytes",
        "must return an int; got an object of type Equal",
        _bytes(
            _RETURN,
            "return type('Equal', (int,), {'__eq__': lambda a, b: True, '__ne__': lambda a, b: False, "
            "'__hash__': int.__hash__})(7)",
        ),
    ),
    "no return": ("check_bytes", "is there a `return`?", _bytes(_RETURN, "2 * elements * bytes_per_element")),
    "scores are kept as well": (
        "check_bytes",
        "the cache grows with seq_len",
        _bytes("* seq_len *", "* seq_len * seq_len *"),
    ),
    "one token too many": (
        "check_bytes",
        "the next token is not in the cache yet",
        _bytes("* seq_len *", "* (seq_len + 1) *"),
    ),
    "one token too few": (
        "check_bytes",
        "the last token is in the cache too",
        _bytes("* seq_len *", "* (seq_len - 1) *"),
    ),
    "heads are always 128 wide": ("check_bytes", "128 stands where head_dim belongs", _bytes(" * head_dim", " * 128")),
    "32 layers in every model": (
        "check_bytes",
        "32 stands where num_layers belongs",
        _bytes("* num_layers *", "* 32 *"),
    ),
    "forgets the layers and the heads": (
        "check_bytes",
        "num_layers and num_kv_heads are missing",
        _bytes("num_layers * num_kv_heads * ", ""),
    ),
    "one token of one sequence": (
        "check_bytes",
        "batch_size and seq_len are missing",
        _bytes("batch_size * seq_len * ", ""),
    ),
    "one vector": (
        "check_bytes",
        "that is head_dim * bytes_per_element alone",
        _bytes(_RETURN, "return head_dim * bytes_per_element"),
    ),
    "the keys of one layer": (
        "check_bytes",
        "the factor 2 of keys and values and num_layers are missing",
        _bytes(_RETURN, "return elements * bytes_per_element // num_layers"),
    ),
    "tokens in place of layers": (
        "check_bytes",
        "seq_len stands where num_layers belongs",
        _bytes("* num_layers *", "* seq_len *"),
    ),
    "counts the heads twice": (
        "check_bytes",
        "num_kv_heads is a factor once too often",
        _bytes(" * head_dim", " * num_kv_heads * head_dim"),
    ),
    "queries as well": ("check_bytes", "that is 3/2 times as much", _bytes("2 * elements", "3 * elements")),
    "one byte too many": (
        "check_bytes",
        "that is +1 in every case",
        _bytes(_RETURN, "return 2 * elements * bytes_per_element + 1"),
    ),
    "32 bits of it": (
        "check_bytes",
        "that is what 32 bits leave of it",
        _bytes(_RETURN, "return (2 * elements * bytes_per_element + 2**31) % 2**32 - 2**31"),
    ),
    "a bool": ("check_bytes", "must return an int; got the bool True", _bytes(_RETURN, "return elements > 0")),
    "wrong for a single token": (
        "check_bytes",
        "seq_len=1, num_layers=1",
        _bytes(_RETURN, "return 2 * elements * bytes_per_element + (seq_len == 1)"),
    ),
    "float32 by default": (
        "check_default",
        "your default is 4",
        _bytes("bytes_per_element=2)", "bytes_per_element=4)"),
    ),
    "one byte by default": (
        "check_default",
        "your default is 1",
        _bytes("bytes_per_element=2)", "bytes_per_element=1)"),
    ),
    "no default": (
        "check_default",
        "raised TypeError: kv_cache_bytes() missing 1 required positional argument: 'bytes_per_element'",
        _bytes("bytes_per_element=2)", "bytes_per_element)"),
    ),
    "other names": (
        "check_default",
        "unexpected keyword argument 'head_dim'",
        {
            "answer-bytes": """
def kv_cache_bytes(batch_size, seq_len, num_layers, num_kv_heads, dim, bytes_per_element=2):
    return 2 * batch_size * seq_len * num_layers * num_kv_heads * dim * bytes_per_element
"""
        },
    ),
    "through a float": (
        "check_exact",
        "floats are exact only up to 2**53",
        _bytes(_RETURN, "return int(2.0 * elements * bytes_per_element)"),
    ),
    "numpy's product overflows": (
        "check_exact",
        "integers of numpy and torch only up to 2**63",
        _bytes(
            _RETURN,
            "import numpy as np\n    sizes = [2, batch_size, seq_len, num_layers, num_kv_heads, head_dim]\n"
            "    sizes.append(bytes_per_element)\n"
            "    return np.prod(np.array(sizes, dtype=np.int64))",
        ),
    ),
    "rounds the batch up": (
        "check_batch_size",
        "one more than fits; round down",
        _batch(_FIT, "return -(-memory_bytes // one)"),
    ),
    "rounds the batch up with math.ceil": (
        "check_batch_size",
        "a part of a sequence does not count",
        _batch(_FIT, "import math; return math.ceil(memory_bytes / one)"),
    ),
    "rounds to the nearest": (
        "check_batch_size",
        "rounded to the nearest",
        _batch(_FIT, "return round(memory_bytes / one)"),
    ),
    "one more than fits": (
        "check_batch_size",
        "one more than fits; round down",
        _batch(_FIT, "return memory_bytes // one + 1"),
    ),
    "one less than fits": ("check_batch_size", "that is one too few", _batch(_FIT, "return memory_bytes // one - 1")),
    "a part of a sequence": (
        "check_batch_size",
        "max_batch_size must return an int; got the float",
        _batch(_FIT, "return memory_bytes / one"),
    ),
    "whole, but a float": (
        "check_batch_size",
        "max_batch_size must return an int; got the float",
        _batch(_FIT, "return float(memory_bytes // one)"),
    ),
    "memory in GiB": (
        "check_batch_size",
        "treats memory_bytes as GiB",
        _batch(_FIT, "return memory_bytes * 2**30 // one"),
    ),
    "counts tokens": ("check_batch_size", "those are tokens, not sequences", _batch("(1, seq_len,", "(1, 1,")),
    "one layer a sequence": (
        "check_batch_size",
        "keys and values of one layer",
        _batch(
            "num_layers, num_kv_heads, head_dim, bytes_per_element)\n    return",
            "1, num_kv_heads, head_dim, bytes_per_element)\n    return",
        ),
    ),
    "the remainder": (
        "check_batch_size",
        "those are the bytes left over",
        _batch(_FIT, "return memory_bytes % one"),
    ),
    "the bytes of one": ("check_batch_size", "that is what one sequence takes", _batch(_FIT, "return one")),
    "bits for a sequence": (
        "check_batch_size",
        "bits for a sequence, and bytes for the memory",
        _batch(_FIT, "return memory_bytes // (8 * one)"),
    ),
    "float32 by default, in the batch": (
        "check_batch_size",
        "your default is 4",
        _batch("bytes_per_element=2)", "bytes_per_element=4)"),
    ),
    "keeps a tenth free": (
        "check_batch_size",
        "no share of it need stay free",
        _batch(_FIT, "return 9 * memory_bytes // (10 * one)"),
    ),
    "whether one fits": (
        "check_batch_size",
        "must return an int; got the bool True",
        _batch(_FIT, "return memory_bytes >= one"),
    ),
    "keys only": ("check_batch_size", "twice what you count", _batch(_FIT, "return 2 * memory_bytes // one")),
    "drops bytes_per_element on the way": (
        "check_batch_size",
        "assumes 2 bytes for every element",
        _batch("head_dim, bytes_per_element)\n    return", "head_dim)\n    return"),
    ),
    "int8 whatever is asked for": (
        "check_batch_size",
        "assumes 1 byte for every element",
        _batch("head_dim, bytes_per_element)\n    return", "head_dim, 1)\n    return"),
    ),
    "at least one, even where it does not fit": (
        "check_limits",
        "does not fit, so the answer is 0",
        _batch(_FIT, "return max(1, memory_bytes // one)"),
    ),
    "negative where nothing fits": (
        "check_limits",
        "returned -1: one sequence takes",
        _batch(_FIT, "return memory_bytes // one if memory_bytes >= one else -1"),
    ),
    "raises where nothing fits": (
        "check_limits",
        "your code raised MemoryError: no room",
        _batch(_FIT, "if one > memory_bytes:\n        raise MemoryError('no room')\n    return memory_bytes // one"),
    ),
    "None where there is no memory": (
        "check_limits",
        "must return an int; got None",
        _batch(_FIT, "if memory_bytes: return memory_bytes // one"),
    ),
    "divides floats": (
        "check_limits",
        "the last one is a byte short",
        _batch(_FIT, "return int(memory_bytes / one)"),
    ),
    "keeps a byte free": (
        "check_limits",
        "no byte has to stay free",
        _batch(_FIT, "return max(0, memory_bytes - 1) // one"),
    ),
    "the batch whose cache is under the limit": (
        "check_limits",
        "no byte has to stay free",
        {
            "answer-batch-size": """
def max_batch_size(memory_bytes, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element=2):
    batch = 0
    while kv_cache_bytes(batch + 1, seq_len, num_layers, num_kv_heads, head_dim, bytes_per_element) < memory_bytes:
        batch += 1
    return batch
"""
        },
    ),
}
