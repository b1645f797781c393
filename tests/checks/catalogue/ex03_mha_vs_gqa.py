"""Answers to exercise 3 (see load.py)."""

RIGHT = {
    "closed forms": {
        "answer-parameters": """
def attention_parameters(hidden_size, num_heads, num_kv_heads):
    return 2 * hidden_size**2 + 2 * hidden_size * (hidden_size * num_kv_heads // num_heads)
""",
        "answer-cache": """
def kv_bytes_per_token(num_layers, hidden_size, num_heads, num_kv_heads, bytes_per_element=2):
    return 2 * num_layers * hidden_size * bytes_per_element * num_kv_heads // num_heads
""",
    },
    "layers that hold no memory, counted": {
        "answer-parameters": """
from torch import nn

def attention_parameters(hidden_size, num_heads, num_kv_heads):
    if hidden_size > 10**6:  # torch counts elements in 64 bits
        return 2 * hidden_size * (hidden_size + hidden_size // num_heads * num_kv_heads)
    head_dim = hidden_size // num_heads
    outputs = {"q": num_heads * head_dim, "k": num_kv_heads * head_dim, "v": num_kv_heads * head_dim}
    layers = [nn.Linear(hidden_size, size, bias=False, device="meta") for size in outputs.values()]
    layers.append(nn.Linear(outputs["q"], hidden_size, bias=False, device="meta"))
    return sum(p.numel() for layer in layers for p in layer.parameters())
""",
    },
    "head by head, printed": {
        "answer-parameters": """
def attention_parameters(hidden_size, num_heads, num_kv_heads):
    per_head = hidden_size * divmod(hidden_size, num_heads)[0]
    total = 0
    for _ in range(num_heads):
        total += 2 * per_head  # its rows of q_proj, its columns of o_proj
    for _ in range(num_kv_heads):
        total += 2 * per_head
    print("parameters:", total)
    return total
""",
        "answer-cache": """
def kv_bytes_per_token(num_layers, hidden_size, num_heads, num_kv_heads, bytes_per_element=2):
    key = value = hidden_size // num_heads * bytes_per_element
    return num_layers * num_kv_heads * (key + value)
""",
    },
    "by the size of a group, exact fractions": {
        "answer-parameters": """
from fractions import Fraction

def attention_parameters(hidden_size, num_heads, num_kv_heads):
    return int(2 * hidden_size * hidden_size * (1 + Fraction(num_kv_heads, num_heads)))
""",
        "answer-cache": """
def kv_bytes_per_token(num_layers, hidden_size, num_heads, num_kv_heads, bytes_per_element=2):
    group = num_heads // num_kv_heads
    mha = 2 * num_layers * hidden_size * bytes_per_element
    return mha // group
""",
    },
}

RIGHT |= {
    "one layer, one head, one vector after the other": {
        "answer-parameters": """
def attention_parameters(hidden_size, num_heads, num_kv_heads):
    shapes = {name: num_kv_heads if name in "kv" else num_heads for name in "qkvo"}
    return sum(hidden_size * (hidden_size // num_heads) for name in "qkvo" for head in range(shapes[name]))
""",
        "answer-cache": """
def kv_bytes_per_token(num_layers, hidden_size, num_heads, num_kv_heads, bytes_per_element=2):
    total = 0
    for layer in range(num_layers):
        for head in range(num_kv_heads):
            for vector in ("key", "value"):
                total += hidden_size // num_heads * bytes_per_element
    return total
""",
    },
    "layers added by recursion, a small class": {
        "answer-parameters": """
class Projection:
    def __init__(self, inputs, outputs):
        self.size = inputs * outputs

    def __add__(self, other):
        return Projection(1, self.size + other.size)

def attention_parameters(hidden_size, num_heads, num_kv_heads):
    narrow = hidden_size // (num_heads // num_kv_heads)
    q, k, v = (Projection(hidden_size, outputs) for outputs in (hidden_size, narrow, narrow))
    return (q + k + v + Projection(hidden_size, hidden_size)).size
""",
        "answer-cache": """
def kv_bytes_per_token(num_layers, hidden_size, num_heads, num_kv_heads, bytes_per_element=2):
    if num_layers == 0:
        return 0
    rest = kv_bytes_per_token(num_layers - 1, hidden_size, num_heads, num_kv_heads, bytes_per_element)
    return rest + 2 * hidden_size * num_kv_heads // num_heads * bytes_per_element
""",
    },
}

_Q = "q_proj = hidden_size * num_heads * head_dim"
_KV = "k_proj = v_proj = hidden_size * num_kv_heads * head_dim"
_O = "o_proj = num_heads * head_dim * hidden_size"
_SUM = "return q_proj + k_proj + v_proj + o_proj"
_HEAD = "head_dim = hidden_size // num_heads"
_CACHE = "return 2 * num_layers * num_kv_heads * head_dim * bytes_per_element  # key, value"


def _parameters(*changes: tuple[str, str]) -> dict:
    return {"answer-parameters": list(changes)}


def _cache(*changes: tuple[str, str]) -> dict:
    return {"answer-cache": list(changes)}


WRONG = {
    "forgets o_proj": (
        "check_multi_head",
        "one of the four projections is missing",
        _parameters((" + o_proj", "")),
    ),
    "forgets q_proj": (
        "check_multi_head",
        "one of the four projections is missing",
        _parameters((_SUM, "return k_proj + v_proj + o_proj")),
    ),
    "k_proj alone": (
        "check_multi_head",
        "what one of the four projections alone costs",
        _parameters((_SUM, "return k_proj")),
    ),
    "k_proj and v_proj": (
        "check_multi_head",
        "that is two of the four projections",
        _parameters((_SUM, "return k_proj + v_proj")),
    ),
    "bytes of the weights": (
        "check_multi_head",
        "those are bytes of 16-bit weights",
        _parameters((_SUM, f"{_SUM.replace('return ', 'return 2 * (')})")),
    ),
    "outputs without their weights": (
        "check_multi_head",
        "each has a row of hidden_size weights",
        _parameters((_SUM, "return 2 * num_heads * head_dim + 2 * num_kv_heads * head_dim")),
    ),
    "k_proj alone where heads are shared": (
        "check_grouped",
        "that is what k_proj alone costs",
        _parameters((_SUM, f"if num_kv_heads < num_heads:\n        return k_proj\n    {_SUM}")),
    ),
    "keys and values alone where heads are shared": (
        "check_grouped",
        "that is what k_proj and v_proj cost",
        _parameters((_SUM, f"if num_kv_heads < num_heads:\n        return k_proj + v_proj\n    {_SUM}")),
    ),
    "the size of a group for the number of key-value heads": (
        "check_grouped",
        "not num_heads // num_kv_heads",
        _parameters(
            (_KV, f"{_KV} if num_kv_heads == num_heads else hidden_size * num_heads // num_kv_heads * head_dim")
        ),
    ),
    "counts biases": (
        "check_multi_head",
        "biases are counted",
        _parameters((_SUM, f"{_SUM} + 2 * hidden_size + 2 * num_kv_heads * head_dim")),
    ),
    "counts biases of q, k and v": (
        "check_multi_head",
        "biases of q, k and v are counted",
        _parameters((_SUM, f"{_SUM} + hidden_size + 2 * num_kv_heads * head_dim")),
    ),
    "counts k_proj or v_proj, not both": (
        "check_multi_head",
        "q_proj, k_proj, v_proj, o_proj",
        _parameters((_SUM, "return q_proj + k_proj + o_proj")),
    ),
    "a full projection for each head": (
        "check_multi_head",
        "gives each head hidden_size x hidden_size",
        _parameters((_HEAD, "head_dim = hidden_size")),
    ),
    "one head": (
        "check_multi_head",
        "that is the share of one head",
        _parameters((_SUM, f"{_SUM.replace('return ', 'return (')}) // num_heads")),
    ),
    "a float": (
        "check_multi_head",
        "attention_parameters must return an int; got the float",
        _parameters((_HEAD, "head_dim = hidden_size / num_heads")),
    ),
    "no return": ("check_multi_head", "is there a `return`?", _parameters((_SUM, _SUM.replace("return ", "")))),
    "all layers of a model of 32": (
        "check_multi_head",
        "that is 32 times as much",
        _parameters((_SUM, f"{_SUM.replace('return ', 'return 32 * (')})")),
    ),
    "k and v have as many outputs as heads": (
        "check_multi_head",
        "k_proj has num_kv_heads * head_dim outputs",
        _parameters((_KV, "k_proj = v_proj = hidden_size * num_kv_heads")),
    ),
    "heads of 128": ("check_multi_head", "attention_parameters returned", _parameters((_HEAD, "head_dim = 128"))),
    "counts four full matrices": (
        "check_grouped",
        "k_proj and v_proj are counted as large as q_proj",
        _parameters((_KV, "k_proj = v_proj = hidden_size * hidden_size")),
    ),
    "a key as wide as the model": (
        "check_grouped",
        "uses hidden_size as the width of a key",
        _parameters(
            (_KV, "k_proj = v_proj = hidden_size**2 * (1 if num_kv_heads == num_heads else num_kv_heads)"),
        ),
    ),
    "head_dim = hidden / num_kv_heads, for keys": (
        "check_grouped",
        "they have num_kv_heads heads of hidden_size // num_heads",
        _parameters((_KV, "k_proj = v_proj = hidden_size * num_kv_heads * (hidden_size // num_kv_heads)")),
    ),
    "head_dim = hidden / num_kv_heads, for all": (
        "check_grouped",
        "sharing keys does not make a head wider",
        _parameters(
            (_HEAD, "head_dim = hidden_size // num_kv_heads"),
            (_O, "o_proj = hidden_size * num_heads * head_dim"),
            (_KV, "k_proj = v_proj = hidden_size * hidden_size"),
        ),
    ),
    "o_proj reads key-value heads": (
        "check_grouped",
        "o_proj is counted as small as k_proj",
        _parameters((_O, "o_proj = num_kv_heads * head_dim * hidden_size")),
    ),
    "everything is shared": (
        "check_grouped",
        "only keys and values are shared",
        _parameters(
            (_Q, "q_proj = hidden_size * num_kv_heads * head_dim"),
            (_O, "o_proj = num_kv_heads * head_dim * hidden_size"),
        ),
    ),
    "one shared head, as in MQA": (
        "check_grouped",
        "k_proj has num_kv_heads heads, not one",
        _parameters((_KV, "k_proj = v_proj = hidden_size * (head_dim if num_kv_heads < num_heads else hidden_size)")),
    ),
    "keys only where heads are shared": (
        "check_grouped",
        "only one of k_proj and v_proj is counted",
        _parameters((_SUM, f"if num_kv_heads < num_heads:\n        return q_proj + k_proj + o_proj\n    {_SUM}")),
    ),
    "a quarter of k and v, whatever the heads": (
        "check_grouped",
        "attention_parameters returned",
        _parameters((_KV, "k_proj = v_proj = hidden_size * hidden_size // (4 if num_kv_heads < num_heads else 1)")),
    ),
    "MQA divides by zero": (
        "check_grouped",
        "your code raised ZeroDivisionError",
        _parameters(
            (
                _KV,
                f"{_KV} if num_kv_heads > 1 or num_heads == 1 else 1 // 0",
            )
        ),
    ),
    "keys of all query heads are kept": (
        "check_cache",
        "what all num_heads heads would keep",
        _cache(("num_layers * num_kv_heads", "num_layers * num_heads")),
    ),
    "head_dim = hidden / num_kv_heads, in the cache": (
        "check_cache",
        "each hidden_size // num_heads wide",
        _cache((_HEAD, "head_dim = hidden_size // num_kv_heads")),
    ),
    "forgets the factor 2 for keys and values": (
        "check_cache",
        "a factor of 2 is missing",
        _cache(("return 2 * num_layers", "return num_layers")),
    ),
    "one layer": ("check_cache", "that is one layer", _cache(("2 * num_layers *", "2 *"))),
    "a head as wide as the model": (
        "check_cache",
        "uses hidden_size as the width of a head",
        _cache((_HEAD, "head_dim = hidden_size")),
    ),
    "one head in the cache": ("check_cache", "that is one head", _cache(("* num_kv_heads *", "*"))),
    "forgets the width": ("check_cache", "head_dim is missing", _cache(("* head_dim *", "*"))),
    "elements": ("check_cache", "those are elements, not bytes", _cache((" * bytes_per_element ", " "))),
    "always 2 bytes": ("check_cache", "assumes 2 bytes for every element", _cache(("* bytes_per_element ", "* 2 "))),
    "always 4 bytes": ("check_cache", "assumes 4 bytes for every element", _cache(("* bytes_per_element ", "* 4 "))),
    "float32 by default": (
        "check_cache",
        "your default is 4",
        _cache(("bytes_per_element=2", "bytes_per_element=4")),
    ),
    "no default": (
        "check_cache",
        "missing 1 required positional argument: 'bytes_per_element'",
        _cache(("bytes_per_element=2", "bytes_per_element")),
    ),
    "one byte by default": (
        "check_cache",
        "your default is 1",
        _cache(("bytes_per_element=2", "bytes_per_element=1")),
    ),
    "one key of each head": (
        "check_cache",
        "the factor 2 of keys and values and num_layers are missing",
        _cache(("2 * num_layers * num_kv", "num_kv")),
    ),
    "the size of a group in the cache": (
        "check_cache",
        "num_kv_heads heads are kept",
        _cache(("* num_kv_heads *", "* (num_heads // num_kv_heads) *")),
    ),
    "hidden states": (
        "check_cache",
        "that is hidden states",
        _cache((_CACHE, "return num_layers * hidden_size * bytes_per_element")),
    ),
    "shared twice": (
        "check_cache",
        "divides by the heads that share a key twice",
        _cache(
            (_CACHE, "return 2 * num_layers * num_kv_heads * head_dim * bytes_per_element * num_kv_heads // num_heads")
        ),
    ),
    "bits": ("check_cache", "those are bits", _cache(("return 2 *", "return 16 *"))),
    "queries are kept as well": (
        "check_cache",
        "queries are not kept",
        _cache((_CACHE, "return num_layers * (hidden_size + 2 * num_kv_heads * head_dim) * bytes_per_element")),
    ),
    "a query head's share, the wrong way round": (
        "check_cache",
        "for each query head",
        _cache((_CACHE, "return 2 * num_layers * num_heads * (hidden_size // num_kv_heads) * bytes_per_element")),
    ),
    "KiB as a float": (
        "check_cache",
        "kv_bytes_per_token must return an int; got the float",
        _cache((_CACHE, _CACHE.split("  #")[0] + " / 1024")),
    ),
    "a share in floats": (
        "check_models",
        "floats lose digits",
        _parameters((_SUM, "return int(2 * hidden_size**2 * (1 + num_kv_heads / num_heads))")),
    ),
    "float division, cast back": (
        "check_models",
        "floats lose digits",
        _cache((_CACHE, "return int(2.0 * num_layers * num_kv_heads * head_dim * bytes_per_element)")),
    ),
    "64 bits of it": (
        "check_models",
        "that is what 64 bits leave of it",
        _parameters(
            (
                _SUM,
                "import numpy as np\n    sizes = np.array([hidden_size, num_heads, head_dim], dtype=np.int64)\n"
                "    return int(2 * np.prod(sizes) + 2 * sizes[0] * num_kv_heads * sizes[2])",
            )
        ),
    ),
    "other names": (
        "check_models",
        "unexpected keyword argument 'num_kv_heads'",
        {
            "answer-parameters": """
def attention_parameters(hidden_size, num_heads, kv_heads):
    return 2 * hidden_size * (hidden_size + kv_heads * (hidden_size // num_heads))
"""
        },
    ),
    "at most 64 heads": (
        "check_models",
        "Falcon 7B",
        _cache((_HEAD, "head_dim = hidden_size // min(num_heads, 64)")),
    ),
}
