"""Answers to exercise 1 (see load.py)."""

RIGHT = {
    "half away from zero, a plain float as the scale": {
        "answer-quantize": """
def quantize_int8(x, axis=None):
    x = x.to(torch.float32)
    if axis is None:
        scale = x.abs().max().item() / 127 or 1.0
    else:
        others = [d for d in range(x.ndim) if d != axis % x.ndim]
        scale = x.abs().amax(dim=others, keepdim=True) / 127
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    steps = x / scale
    q = torch.sign(steps) * torch.floor(steps.abs() + 0.5)
    return torch.clip(q, -127, 127).to(torch.int8), scale
""",
        "answer-dequantize": """
def dequantize_int8(q, scale):
    return torch.mul(q.to(torch.float32), scale)
""",
    },
    "numpy inside": {
        "answer-quantize": """
import numpy as np

def quantize_int8(x, axis=None):
    a = x.detach().float().numpy().copy()
    reduce = None if axis is None else tuple(i for i in range(a.ndim) if i != axis % a.ndim)
    scale = np.maximum(np.abs(a).max(axis=reduce, keepdims=axis is not None) / np.float32(127), np.float32(1e-12))
    q = np.clip(np.rint(a / scale), -127, 127).astype(np.int8)
    return torch.from_numpy(q), torch.as_tensor(scale)
""",
    },
    "multiplies by the inverse in float64, floor of 1e-8, prints and warns": {
        "answer-quantize": """
import warnings

def quantize_int8(x, axis=None):
    print("quantizing", tuple(x.shape))
    warnings.warn("a warning that must not matter")
    x = x.double()
    dims = list(range(x.dim()))
    if axis is not None:
        dims.remove(axis % x.dim())
    top = torch.clamp(torch.amax(torch.abs(x), dim=dims, keepdim=axis is not None), min=127e-8)
    return torch.round(x * (127 / top)).to(torch.int8), (top / 127).float()
""",
        "answer-dequantize": """
def dequantize_int8(q, scale):
    print("back to float")
    return (q * torch.as_tensor(scale)).type(torch.float32)
""",
    },
    "slices one by one, in a class, with a list for the result": {
        "answer-quantize": """
class Int8:
    def __init__(self, x):
        self.step = float(max(abs(float(x.max())), abs(float(x.min())))) / 127
        if self.step == 0:
            self.step = 1e-30
        self.codes = (x.double() / self.step).round().char()

def quantize_int8(x, axis=None):
    if axis is None:
        one = Int8(x)
        return [one.codes, torch.tensor(one.step)]
    parts = [Int8(part) for part in x.unbind(axis)]
    shape = [1] * x.dim()
    shape[axis] = -1
    return [torch.stack([p.codes for p in parts], axis), torch.tensor([p.step for p in parts]).reshape(shape)]
""",
        "answer-dequantize": """
def dequantize_int8(q, scale):
    return torch.einsum("...,...->...", q.float(), torch.as_tensor(scale, dtype=torch.float32))
""",
    },
}

RIGHT |= {
    "the axis moved to the front, 1 in place of a scale of 0, scales in float64": {
        "answer-quantize": """
def quantize_int8(x, axis=None):
    if axis is None:
        scale = x.double().abs().max() / 127
    else:
        rows = x.double().movedim(axis, 0).flatten(1) if x.dim() > 1 else x.double()[:, None]
        shape = [1] * x.dim()
        shape[axis] = x.shape[axis]
        scale = rows.abs().max(dim=1).values.reshape(shape) / 127
    scale = scale + (scale == 0)
    return torch.round(x.double() / scale).clamp(min=-127, max=127).type(torch.int8), scale
""",
        "answer-dequantize": """
def dequantize_int8(q, scale):
    return (q.double() * scale).float()
""",
    },
    "1e-12 added, recursion along the axis, a view of x changed nowhere": {
        "answer-quantize": """
def quantize_int8(x, axis=None):
    if axis is None:
        scale = x.to(torch.float32).norm(p=float("inf")) / 127 + 1e-12
        return (x.to(torch.float32) / scale).round().to(torch.int8), scale
    parts = [quantize_int8(part) for part in x.split(1, dim=axis)]
    scales = [scale.reshape([1] * x.dim()) for _, scale in parts]
    return torch.cat([q for q, _ in parts], dim=axis), torch.cat(scales, dim=axis)
""",
    },
    "float32's eps as the floor, torch's own rounding to a grid": {
        "answer-quantize": """
def quantize_int8(x, axis=None):
    x = x.float()
    others = [d for d in range(x.dim()) if axis is None or d != axis % x.dim()]
    low, high = x, x
    for d in others:
        low, high = low.amin(d, keepdim=True), high.amax(d, keepdim=True)
    scale = torch.maximum(-low, high) / 127
    scale = torch.max(scale, torch.tensor(torch.finfo(torch.float32).eps))
    q = torch.quantize_per_tensor(x / scale, 1.0, 0, torch.qint8).int_repr()
    return q.clamp(min=-127), scale if axis is not None else scale.squeeze()
""",
    },
}

_LINE = "scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)"
_ROUND = "q = (x / scale).round().clamp(-127, 127).to(torch.int8)"

WRONG = {
    "the reciprocal as the scale": (
        "check_scale",
        "the reciprocal of max|x| / 127",
        {
            "answer-quantize": [
                (_LINE, "scale = 127 / largest"),
                (_ROUND, "q = (x * scale).round().clamp(-128, 127).to(torch.int8)"),
            ]
        },
    ),
    "divides by 128": (
        "check_scale",
        "max|x| / 128",
        {"answer-quantize": [(_LINE, "scale = (largest / 128).clamp(min=1e-12)")]},
    ),
    "divides by 255": (
        "check_scale",
        "max|x| / 255",
        {"answer-quantize": [(_LINE, "scale = (largest / 255).clamp(min=1e-12)")]},
    ),
    "2 max|x| / 255": (
        "check_scale",
        "2 max|x| / 255",
        {"answer-quantize": [(_LINE, "scale = (2 * largest / 255).clamp(min=1e-12)")]},
    ),
    "max instead of max of magnitudes": (
        "check_scale",
        "take the largest absolute value",
        {
            "answer-quantize": [
                ("largest = x.abs()", "largest = x.clone()"),
                (_LINE, "scale = (largest / 127).clamp(min=1e-12)"),
            ]
        },
    ),
    "asymmetric: range over 255": (
        "check_scale",
        "that of asymmetric quantization",
        {
            "answer-quantize": """
def quantize_int8(x, axis=None):
    scale = (x.max() - x.min()) / 255
    zero_point = -128 - (x.min() / scale).round()
    return ((x / scale).round() + zero_point).clamp(-128, 127).to(torch.int8), scale
"""
        },
    ),
    "half the range over 127": (
        "check_scale",
        "(max - min) / 254",
        {
            "answer-quantize": """
def quantize_int8(x, axis=None):
    scale = (x.max() - x.min()) / 254
    return (x / scale).round().clamp(-127, 127).to(torch.int8), scale
"""
        },
    ),
    "computes in float16": (
        "check_scale",
        "not precise enough for float32",
        {"answer-quantize": [("x = x.float()", "x = x.half()"), ("torch.finfo(torch.float32).tiny", "6e-8")]},
    ),
    "adds an epsilon of 1e-4 to the scale": (
        "check_scale",
        "not precise enough for float32",
        {"answer-quantize": [(_LINE, "scale = largest / 127 + 1e-4")]},
    ),
    "the scale keeps its dimensions without an axis": (
        "check_scale",
        "scale must be a 0-d tensor or a float; got a tensor of float32 [1]",
        {"answer-quantize": [("largest = largest.reshape(())", "pass")]},
    ),
    "returns codes only": (
        "check_scale",
        "must return two values",
        {"answer-quantize": [("return q, scale", "return q")]},
    ),
    "forgets the return": ("check_scale", "is there a `return`?", {"answer-quantize": [("return q, scale", "pass")]}),
    "an object that is equal to everything": (
        "check_scale",
        "scale must be a float tensor; got an object of type Equal",
        {
            "answer-quantize": """
class Equal:
    def __eq__(self, other): return True
    def __le__(self, other): return True
    def __getattr__(self, name): return lambda *a, **k: self
    def __float__(self): return 1.0
    @classmethod
    def __torch_function__(cls, *a, **k): return torch.tensor(True)

def quantize_int8(x, axis=None):
    return Equal(), Equal()
"""
        },
    ),
    "a tensor subclass that is equal to everything": (
        "check_scale",
        "got an object of type Equal",
        {
            "answer-quantize": """
class Equal(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None): return torch.tensor(True)

def quantize_int8(x, axis=None):
    return x.to(torch.int8).as_subclass(Equal), x.sum().as_subclass(Equal)
"""
        },
    ),
    "raises an error of its own": (
        "check_scale",
        "raised AttributeError: 'Tensor' object has no attribute 'maximum_value' (line 5 of its cell: largest = "
        "x.maximum_value())",
        {"answer-quantize": [("largest = x.abs()\n", "largest = x.maximum_value()\n")]},
    ),
    "the scale first": (
        "check_scale",
        "scale must be of a floating-point type; got a tensor of int8",
        {"answer-quantize": [("return q, scale", "return scale, q")]},
    ),
    "a dictionary": (
        "check_scale",
        "must return two values, (q, scale); it returned a dict of 2",
        {"answer-quantize": [("return q, scale", "return {'q': q, 'scale': scale}")]},
    ),
    "an epsilon of 1e-6 added": (
        "check_scale",
        "add nothing to the scale",
        {"answer-quantize": [(_LINE, "scale = largest / 127 + 1e-6")]},
    ),
    "4 bits": (
        "check_scale",
        "that of 4 bits",
        {"answer-quantize": [(_LINE, "scale = (largest / 7).clamp(min=1e-12)")]},
    ),
    "leaves by exit()": (
        "check_scale",
        "raised SystemExit",
        {"answer-quantize": [("return q, scale", "raise SystemExit")]},
    ),
    "uint8 codes with an offset": (
        "check_codes",
        "q must be of type torch.int8; got a tensor of uint8",
        {"answer-quantize": [(_ROUND, "q = ((x / scale).round() + 128).clamp(0, 255).to(torch.uint8)")]},
    ),
    "float codes": (
        "check_codes",
        "q must be of type torch.int8; got a tensor of float32",
        {"answer-quantize": [(".clamp(-127, 127).to(torch.int8)", ".clamp(-127, 127)")]},
    ),
    "truncates": ("check_codes", "a cast to int8 does not round", {"answer-quantize": [(".round()", "")]}),
    "rounds down": ("check_codes", "rounded down", {"answer-quantize": [(".round()", ".floor()")]}),
    "128 steps, no clamp: the largest code wraps": (
        "check_codes",
        "wrap around",
        {"answer-quantize": [(_ROUND, "q = (x / (largest / 128)).round().to(torch.int32).to(torch.int8)")]},
    ),
    "128 steps, clamped to -128": (
        "check_codes",
        "steps of max|x| / 128",
        {"answer-quantize": [(_ROUND, "q = (x / (largest / 128)).round().clamp(-128, 127).to(torch.int8)")]},
    ),
    "flat codes": (
        "check_codes",
        "must have x's shape",
        {"answer-quantize": [("return q, scale", "return q.flatten(), scale")]},
    ),
    "works in place on x": (
        "check_codes",
        "changed its argument x in place",
        {"answer-quantize": [(_ROUND, "q = x.div_(scale).round().clamp(-127, 127).to(torch.int8)")]},
    ),
    "ignores the axis": (
        "check_axis",
        "there is a single scale",
        {"answer-quantize": [("x = x.float()", "x, axis = x.float(), None")]},
    ),
    "reduces over the axis instead of keeping it": (
        "check_axis",
        "`axis` is the dimension that keeps its own scales",
        {"answer-quantize": [("dim != axis % x.dim()", "dim == axis % x.dim()")]},
    ),
    "drops the reduced dimensions": (
        "check_axis",
        "does not broadcast against x",
        {"answer-quantize": [("return q, scale", "return q, scale.squeeze()")]},
    ),
    "negative axes count wrongly": (
        "check_axis",
        "for a 2 x 3 x 5 tensor, axis=-1",
        {"answer-quantize": [("dim != axis % x.dim()", "dim != abs(axis)")]},
    ),
    "the mean of the magnitudes of a slice": (
        "check_axis",
        "max|x| / 127 of that slice is",
        {
            "answer-quantize": [
                (
                    "largest.amax(dim, keepdim=True)",
                    "largest.amax(dim, keepdim=True) if axis is None else largest.mean(dim, keepdim=True)",
                )
            ]
        },
    ),
    "slices divided by 128": (
        "check_axis",
        "it is max|x| / 128",
        {"answer-quantize": [(_LINE, "scale = (largest / (127 if axis is None else 128)).clamp(min=1e-12)")]},
    ),
    "max instead of max of magnitudes, in slices": (
        "check_axis",
        "take the largest absolute value",
        {
            "answer-quantize": [
                ("largest = x.abs()", "largest = x.abs() if axis is None else x.clone()"),
                (_LINE, "scale = (largest / 127).clamp(min=1e-12)"),
            ]
        },
    ),
    "scales of the slices in reverse order": (
        "check_axis",
        "index 0: the scale is",
        {"answer-quantize": [("return q, scale", "return q, scale if axis is None else scale.flip(axis)")]},
    ),
    "scales of the slices in float16": (
        "check_axis",
        "max|x| / 127 of that slice is",
        {"answer-quantize": [("return q, scale", "return q, scale if axis is None else scale.half()")]},
    ),
    "works in place on x where there is an axis": (
        "check_axis",
        "changed its argument x in place",
        {
            "answer-quantize": [
                (_ROUND, "q = (x / scale if axis is None else x.div_(scale)).round().clamp(-127, 127).to(torch.int8)")
            ]
        },
    ),
    "divides by the scale on the way back": (
        "check_dequantize",
        "you divide by the scale",
        {"answer-dequantize": [("q.float() * scale", "q.float() / scale")]},
    ),
    "one scale for all rows on the way back": (
        "check_dequantize",
        "for one scale a row the result is not q * scale",
        {"answer-dequantize": [("q.float() * scale", "q.float() * scale.max()")]},
    ),
    "comes back as float64": (
        "check_dequantize",
        "tensor of float32; got a tensor of float64",
        {"answer-dequantize": [("q.float() * scale", "q.double() * scale")]},
    ),
    "comes back as float16": (
        "check_dequantize",
        "tensor of float32; got a tensor of float16",
        {"answer-dequantize": [("q.float() * scale", "(q * scale).half()")]},
    ),
    "shifts by a zero point that is not there": (
        "check_dequantize",
        "is not q * scale",
        {"answer-dequantize": [("q.float() * scale", "(q.float() - 128) * scale")]},
    ),
    "scales only along rows on the way back": (
        "check_dequantize",
        "one scale",
        {"answer-dequantize": [("q.float() * scale", "q.float() * scale[:, :1]")]},
    ),
    "clips outliers at six standard deviations": (
        "check_round_trip",
        "a vector with one outlier of 300, 300 came back as",
        {
            "answer-quantize": [
                (
                    "x = x.float()",
                    "x = x.float()\n    if axis is None and x.numel() > 64:\n        x = x.clamp(-6 * x.std(), 6 "
                    "* x.std())",
                )
            ]
        },
    ),
    "no floor: 0 / 0 for zeros": (
        "check_edge_cases",
        "for a tensor of zeros the scale is 0",
        {"answer-quantize": [(_LINE, "scale = largest / 127")]},
    ),
    "scale inf for zeros": (
        "check_edge_cases",
        "for a tensor of zeros the scale is inf",
        {"answer-quantize": [(_LINE, "scale = torch.where(largest > 0, largest / 127, torch.inf)")]},
    ),
    "a floor that is too high": (
        "check_edge_cases",
        "values up to 1e-30, the scale is 5e-05: a floor this high",
        {"answer-quantize": [("torch.finfo(torch.float32).tiny", "5e-5")]},
    ),
    "squares overflow": (
        "check_edge_cases",
        "values up to 1e30",
        {"answer-quantize": [("largest = x.abs()", "largest = (x * x).sqrt()")]},
    ),
    "a floor of 1e-5 under the scale": (
        "check_edge_cases",
        "the scale is 1e-05: a floor this high",
        {"answer-quantize": [("torch.finfo(torch.float32).tiny", "1e-5")]},
    ),
    "a floor of 1e-6 under the scale": (
        "check_edge_cases",
        "the scale is 1e-06: a floor this high",
        {"answer-quantize": [("torch.finfo(torch.float32).tiny", "1e-6")]},
    ),
    "a floor for the whole tensor alone": (
        "check_edge_cases",
        "for a matrix with two rows of zeros, axis=0 the scale is 0",
        {"answer-quantize": [(_LINE, _LINE + " if axis is None else largest / 127")]},
    ),
    "1 wherever the scale is below 1e-6": (
        "check_edge_cases",
        "a floor this high",
        {"answer-quantize": [(_LINE, "scale = largest / 127\n    scale = torch.where(scale < 1e-6, 1.0, scale)")]},
    ),
    "raises on zeros": (
        "check_edge_cases",
        "for a tensor of zeros your code raised ValueError: empty range",
        {"answer-quantize": [(_LINE, _LINE + '\n    if largest.max() == 0:\n        raise ValueError("empty range")')]},
    ),
}
