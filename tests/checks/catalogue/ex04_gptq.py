"""Answers to exercise 4 (see load.py)."""

_CELL = "answer-gptq"

RIGHT = {
    "symmetric grid, scales of the given weight, falling diagonal, 5 % damping": {
        _CELL: """
def gptq_quantize(weight, inputs, bits=4, group_size=64):
    w = weight.double().clone()
    limit = 2 ** (bits - 1) - 1
    scales = torch.stack([part.abs().amax(1) / limit for part in w.split(group_size, dim=1)], dim=1)
    scales[scales == 0] = 1
    x = inputs.double()
    h = 2 * x.t().mm(x) / len(x)
    diagonal = h.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += 0.05 * diagonal.mean()
    order = torch.argsort(h.diagonal(), descending=True)
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h[order][:, order]))).mT
    w = w[:, order]
    out = torch.zeros_like(w)
    for position, column in enumerate(order.tolist()):
        s = scales[:, column // group_size]
        out[:, position] = (w[:, position] / s).round().clamp(-limit, limit) * s
        error = (w[:, position] - out[:, position]) / u[position, position]
        w[:, position:] -= torch.outer(error, u[position, position:])
    return out[:, order.argsort()].float()
"""
    },
    "lazy blocks, full-range symmetric grid, 0.5 % damping, one group after the other": {
        _CELL: """
def gptq_quantize(weight, inputs, bits=4, group_size=64):
    W, n = weight.clone(), weight.shape[1]
    H = inputs.T.matmul(inputs)
    H[range(n), range(n)] += 0.005 * torch.mean(torch.diag(H))
    Hinv = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    Q = torch.zeros_like(W)
    for start in range(0, n, group_size):
        stop = min(start + group_size, n)
        block, errors = W[:, start:stop].clone(), torch.zeros(len(W), stop - start)
        scale = 2 * block.abs().max(dim=1).values / (2**bits - 1) + 1e-12
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        for i in range(stop - start):
            column, d = block[:, i], Hinv[start + i, start + i]
            Q[:, start + i] = torch.clamp(torch.round(column / scale), low, high) * scale
            errors[:, i] = (column - Q[:, start + i]) / d
            block[:, i:] -= errors[:, i : i + 1] @ Hinv[start + i : start + i + 1, start + i : stop]
        W[:, stop:] -= errors @ Hinv[start:stop, stop:]
    return Q
"""
    },
    "optimal brain surgeon: the inverse downdated after each column": {
        _CELL: """
def gptq_quantize(weight, inputs, bits=4, group_size=64):
    w = weight.double()
    h = inputs.double().T @ inputs.double()
    inverse = torch.linalg.inv(h + 0.01 * h.trace() / len(h) * torch.eye(len(h), dtype=torch.float64))
    result = []
    for j in range(w.shape[1]):
        if j % group_size == 0:
            low = w[:, j : j + group_size].min(dim=1).values
            step = (w[:, j : j + group_size].max(dim=1).values - low) / (2**bits - 1)
            step = torch.where(step > 0, step, torch.ones_like(step))
        level = low + step * torch.clamp(torch.round((w[:, j] - low) / step), 0, 2**bits - 1)
        result.append(level)
        w = w - torch.outer((w[:, j] - level) / inverse[j, j], inverse[j])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j, j] = 1
    print("done")
    return torch.stack(result, dim=1)
"""
    },
    "row by row, solving for the best later columns each time": {
        _CELL: """
def gptq_quantize(weight, inputs, bits=4, group_size=64):
    h = inputs.double().T @ inputs.double()
    dead = torch.diag(h) == 0
    h[dead, dead] = 1.0
    h = h + 0.02 * h.diag().mean() * torch.eye(len(h), dtype=h.dtype)
    w, q = weight.double().T.clone(), torch.zeros(*weight.T.shape, dtype=torch.float64)
    for j in range(len(w)):
        if j % group_size == 0:
            group = w[j : j + group_size]
            high, low = group.amax(0).clamp_min(0), group.amin(0).clamp_max(0)
            s = ((high - low) / (2**bits - 1)).clamp_min(1e-10)
            z = torch.round(-low / s)
        q[j] = s * (((w[j] / s).round() + z).clamp(0, 2**bits - 1) - z)
        if j + 1 < len(w):
            w[j + 1 :] += torch.linalg.solve(h[j + 1 :, j + 1 :], h[j + 1 :, j])[:, None] * (w[j] - q[j])
    return q.T
"""
    },
    "dead weights set to 0 as in the paper's code, numpy, a Parameter comes back": {
        _CELL: """
import numpy as np

def gptq_quantize(weight, inputs, bits=4, group_size=64):
    w, x = weight.detach().numpy().astype(np.float64), inputs.detach().numpy().astype(np.float64)
    h = np.einsum("ni,nj->ij", x, x)
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += 0.01 * np.mean(np.diag(h)) * np.identity(len(h))
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    levels = 2**bits - 1
    for j in range(w.shape[1]):
        if j % group_size == 0:
            low = np.minimum(w[:, j : j + group_size].min(1), 0)
            s = np.maximum((np.maximum(w[:, j : j + group_size].max(1), 0) - low) / levels, 1e-9)
            z = np.rint(-low / s)
        q = (np.clip(np.rint(w[:, j] / s) + z, 0, levels) - z) * s
        w[:, j + 1 :] -= np.outer((w[:, j] - q) / u[j, j], u[j, j + 1 :])
        w[:, j] = q
    return torch.nn.Parameter(torch.from_numpy(w).float())
"""
    },
    "H from batches, a mean over rows, errors kept apart from the weight": {
        _CELL: """
def gptq_quantize(weight, inputs, bits=4, group_size=64):
    h = sum(batch.T @ batch for batch in inputs.double().split(100)) / len(inputs)
    h = h + torch.diag(torch.where(h.diagonal() == 0, 1.0, 0.03 * h.diagonal().mean()))
    u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    errors, result = torch.zeros_like(weight).double(), torch.zeros_like(weight).double()
    for start in range(0, weight.shape[1], group_size):
        columns = range(start, min(start + group_size, weight.shape[1]))
        now = weight.double() - errors @ torch.triu(u, 1)
        limit = 2 ** (bits - 1) - 1
        scale = now[:, list(columns)].abs().amax(1) / limit
        scale = torch.where(scale == 0, torch.finfo(torch.float64).tiny, scale)
        for j in columns:
            moved = weight[:, j].double() - errors[:, :j] @ u[:j, j]
            result[:, j] = (moved / scale).round().clamp(-limit, limit) * scale
            errors[:, j] = (moved - result[:, j]) / u[j, j]
    return result
"""
    },
    "the course's own GPTQ": {
        _CELL: """
from labsupport.quantization.gptq import gptq_quantize as course_gptq

def gptq_quantize(weight, inputs, bits=4, group_size=64):
    return course_gptq(weight, inputs.T @ inputs, bits=bits, group_size=group_size, act_order=True).dequantize()
"""
    },
    "the course's own GPTQ, symmetric": {
        _CELL: """
from labsupport.quantization.gptq import gptq_quantize as course_gptq

def gptq_quantize(weight, inputs, bits=4, group_size=64):
    return course_gptq(weight, inputs.T @ inputs, bits=bits, group_size=group_size, symmetric=True).dequantize()
"""
    },
}

_FACTOR = "factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)"
_UPDATE = "weight[:, j + 1 :] -= error[:, None] * factor[j, j + 1 :]"
_STORE = "        weight[:, j] = quantized\n"
_ERROR = "error = (weight[:, j] - quantized) / factor[j, j]"
_DAMP = "    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))\n"
_GROUP = "find_grid(weight[:, j : j + group_size], bits)"

WRONG = {
    "returns the weight as it is": (
        "check_levels",
        "nothing is quantized",
        {_CELL: [("    weight = weight.clone()\n", "    return weight.clone()\n")]},
    ),
    "returns integer codes": (
        "check_levels",
        "not codes; got a tensor of uint8",
        {_CELL: [("    return weight\n    ### END", "    return weight.round().to(torch.uint8)\n    ### END")]},
    ),
    "returns codes as floats": (
        "check_levels",
        "codes come back, not weights",
        {_CELL: [(_STORE, "        weight[:, j] = codes\n")]},
    ),
    "returns the transpose": (
        "check_levels",
        "must have the weight's shape",
        {_CELL: [("    return weight\n    ### END", "    return weight.T\n    ### END")]},
    ),
    "returns nothing": (
        "check_levels",
        "is there a `return`?",
        {_CELL: [("    return weight\n    ### END", "    ### END")]},
    ),
    "works in place on the weight": (
        "check_levels",
        "changed its argument weight in place",
        {_CELL: [("weight = weight.clone()", "weight = weight.view_as(weight)")]},
    ),
    "codes are not clamped": (
        "check_levels",
        "clamp the codes to the grid: the update moves weights beyond the range",
        {_CELL: [(".clamp(0, 2**bits - 1)\n", "\n")]},
    ),
    "codes are clamped at one end": (
        "check_levels",
        "clamp the codes to the grid: the update moves weights beyond the range",
        {_CELL: [(".clamp(0, 2**bits - 1)\n", ".clamp(min=0)\n")]},
    ),
    "one level too many": (
        "check_levels",
        "bits allow",
        {_CELL: [(".clamp(0, 2**bits - 1)\n", ".clamp(0, 2**bits)\n")]},
    ),
    "5 bits by default": (
        "check_levels",
        "no bits and no group_size given (4 and 64), row",
        {_CELL: [("bits=4, group_size=64", "bits=5, group_size=64")]},
    ),
    "groups of 32 by default": (
        "check_levels",
        "no bits and no group_size given (4 and 64), row",
        {_CELL: [("bits=4, group_size=64", "bits=4, group_size=32")]},
    ),
    "no defaults": (
        "check_levels",
        "missing 2 required positional arguments: 'bits' and 'group_size'",
        {_CELL: [("bits=4, group_size=64", "bits, group_size")]},
    ),
    "subtracts the mean of the inputs in place": (
        "check_levels",
        "changed its argument inputs in place",
        {_CELL: [("hessian = inputs.T @ inputs", "inputs -= inputs.mean(0)\n    hessian = inputs.T @ inputs")]},
    ),
    "codes are not clamped, scales of the given weight": (
        "check_levels",
        "clamp the codes",
        {
            _CELL: [
                (".clamp(0, 2**bits - 1)\n", "\n"),
                (_GROUP, "find_grid(given[:, j : j + group_size], bits)"),
                ("weight = weight.clone()", "given, weight = weight, weight.clone()"),
            ]
        },
    ),
    "moves columns that are rounded already": (
        "check_levels",
        "leave columns alone once they are rounded",
        {
            _CELL: [
                (_FACTOR, "factor = torch.linalg.inv(hessian)"),
                (_UPDATE, "pass"),
                (_STORE, _STORE + "        weight -= error[:, None] * factor[j]\n"),
            ]
        },
    ),
    "always 4 bits": (
        "check_levels",
        "3 bits allow 8",
        {
            _CELL: [
                (_GROUP, "find_grid(weight[:, j : j + group_size], 4)"),
                (".clamp(0, 2**bits - 1)\n", ".clamp(0, 15)\n"),
            ]
        },
    ),
    "returns an object of its own": (
        "check_levels",
        "got an object of type Weight",
        {
            _CELL: [
                (
                    "    return weight\n    ### END",
                    "    return weight.as_subclass(type('Weight', (torch.Tensor,), {}))\n    ### END",
                )
            ]
        },
    ),
    "X Xᵀ instead of Xᵀ X": (
        "check_levels",
        "your code raised RuntimeError: The size of tensor a",
        {_CELL: [("hessian = inputs.T @ inputs", "hessian = inputs @ inputs.T")]},
    ),
    "group_size must divide": (
        "check_levels",
        "and one of 24) your code raised",
        {
            _CELL: [
                (
                    "    weight = weight.clone()\n",
                    "    weight = weight.clone()\n    weight.view(len(weight), -1, group_size)\n",
                )
            ]
        },
    ),
    "one grid for all rows of a group": (
        "check_grid",
        "each row and each group needs a scale of its own",
        {
            _CELL: [
                (
                    "group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)",
                    "group.amin().clamp(max=0), group.amax().clamp(min=0)",
                )
            ]
        },
    ),
    "one grid for the whole tensor": (
        "check_grid",
        "each row and each group needs a scale of its own",
        {
            _CELL: [
                (_GROUP, "find_grid(given.reshape(1, -1), bits)"),
                ("weight = weight.clone()", "given, weight = weight, weight.clone()"),
            ]
        },
    ),
    "one grid a row, groups ignored": (
        "check_grid",
        "for groups of different size",
        {
            _CELL: [
                (_GROUP, "find_grid(given, bits)"),
                ("weight = weight.clone()", "given, weight = weight, weight.clone()"),
            ]
        },
    ),
    "3 bits by default": (
        "check_grid",
        "spread all 2**bits levels over its range",
        {_CELL: [("bits=4, group_size=64", "bits=3, group_size=64")]},
    ),
    "groups of 128 by default": (
        "check_grid",
        "for no bits and no group_size given (4 and 64), row",
        {_CELL: [("bits=4, group_size=64", "bits=4, group_size=128")]},
    ),
    "at most 4 bits": (
        "check_grid",
        "for 8 bits errors are those of steps",
        {_CELL: [("    weight = weight.clone()\n", "    weight, bits = weight.clone(), min(bits, 4)\n")]},
    ),
    "NaN for a group of zeros": (
        "check_grid",
        "a group of zeros has no range, its scale is 0, and 0 / 0 is NaN",
        {_CELL: [(".clamp(min=1e-12)", "")]},
    ),
    "an error for a group of zeros": (
        "check_grid",
        "for a row of zeros, and a group of zeros in another row your code raised ValueError: empty range",
        {
            _CELL: [
                (
                    "    return scale, (-low",
                    "    if (high == low).any():\n        raise ValueError('empty range')\n    return scale, (-low",
                )
            ]
        },
    ),
    "a floor of 1e-3 under the scale": (
        "check_grid",
        "came back as zeros",
        {_CELL: [("min=1e-12", "min=1e-3")]},
    ),
    "rounds down": (
        "check_grid",
        "that is rounded down",
        {_CELL: [("(weight[:, j] / scale).round()", "(weight[:, j] / scale).floor()")]},
    ),
    "truncates instead of rounding": (
        "check_grid",
        "that is truncated, toward zero",
        {_CELL: [("(weight[:, j] / scale).round()", "(weight[:, j] / scale).trunc()")]},
    ),
    "X Xᵀ, cut to size": (
        "check_grid",
        "H is a multiple of the identity",
        {
            _CELL: [
                ("hessian = inputs.T @ inputs", "hessian = (inputs @ inputs.T)[: weight.shape[1], : weight.shape[1]]"),
                (
                    "hessian[dead, dead] = 1\n",
                    "hessian[dead, dead] = 1\n    hessian = hessian + 0.3 * hessian.diagonal().mean()\n",
                ),
            ]
        },
    ),
    "H is computed and never used": (
        "check_uses_inputs",
        "this is round-to-nearest",
        {_CELL: [(_UPDATE, "pass")]},
    ),
    "the lower factor, so nothing moves": (
        "check_uses_inputs",
        "check that U is upper triangular",
        {_CELL: [("upper=True", "upper=False")]},
    ),
    "does not divide by U[j, j]": (
        "check_uses_inputs",
        "divide the error by U[j, j]",
        {_CELL: [(_ERROR, "error = weight[:, j] - quantized")]},
    ),
    "damping of 0.01, whatever the inputs": (
        "check_uses_inputs",
        "make the damping a share of H's mean diagonal",
        {_CELL: [("0.01 * hessian.diagonal().mean() *", "0.01 *")]},
    ),
    "damping of 100, whatever the inputs": (
        "check_uses_inputs",
        "a share of H's mean diagonal",
        {_CELL: [("0.01 * hessian.diagonal().mean() *", "100 *")]},
    ),
    "adds the error instead of subtracting it": (
        "check_update",
        "move the wrong way, by the right amount: subtract the correction",
        {_CELL: [("-= error[:, None]", "+= error[:, None]")]},
    ),
    "the factor of H, not of its inverse": (
        "check_update",
        "of H⁻¹, not of H",
        {_CELL: [("torch.linalg.inv(hessian)", "hessian")]},
    ),
    "H⁻¹ instead of its Cholesky factor": (
        "check_update",
        "not H⁻¹ itself",
        {_CELL: [(_FACTOR, "factor = torch.linalg.inv(hessian)")]},
    ),
    "damping of 64 %: the sum of the diagonal for its mean": (
        "check_update",
        "and the damping 1 % of H's mean diagonal",
        {_CELL: [("hessian.diagonal().mean()", "hessian.diagonal().sum()")]},
    ),
    "errors stay in their group": (
        "check_update",
        "stop at the end of their group",
        {
            _CELL: [
                (
                    _UPDATE,
                    "end = (j // group_size + 1) * group_size\n        weight[:, j + 1 : end] -= error[:, None] * "
                    "factor[j, j + 1 : end]",
                )
            ]
        },
    ),
    "only the next column makes up": (
        "check_update",
        "hardly compensate",
        {_CELL: [(_UPDATE, "weight[:, j + 1 : j + 2] -= error[:, None] * factor[j, j + 1 : j + 2]")]},
    ),
    "only the last batch of inputs counts": (
        "check_output_error",
        "is H summed over all rows of inputs",
        {_CELL: [("hessian = inputs.T @ inputs", "for batch in inputs.split(64):\n        hessian = batch.T @ batch")]},
    ),
    "H without most of what is off its diagonal": (
        "check_update",
        "where 1 is best",
        {_CELL: [(_DAMP, _DAMP + "    hessian = 0.5 * (hessian + torch.diag(hessian.diagonal()))\n")]},
    ),
    "the covariance in place of XᵀX": (
        "check_output_error",
        "not the covariance: subtract no mean",
        {
            _CELL: [
                ("hessian = inputs.T @ inputs", "centred = inputs - inputs.mean(0)\n    hessian = centred.T @ centred")
            ]
        },
    ),
    "torch.cov": (
        "check_output_error",
        "not the covariance: subtract no mean",
        {_CELL: [("hessian = inputs.T @ inputs", "hessian = torch.cov(inputs.T)")]},
    ),
    "torch.corrcoef": (
        "check_output_error",
        "of round-to-nearest's, GPTQ reaches",
        {_CELL: [("hessian = inputs.T @ inputs", "hessian = torch.corrcoef(inputs.T).nan_to_num()")]},
    ),
    "H from the first half of the inputs": (
        "check_output_error",
        "is H summed over all rows of inputs",
        {_CELL: [("hessian = inputs.T @ inputs", "seen = inputs[: len(inputs) // 2]\n    hessian = seen.T @ seen")]},
    ),
    "no damping, dead columns not set": (
        "check_dead_columns",
        "H is singular there",
        {_CELL: [(_DAMP, ""), ("    hessian[dead, dead] = 1\n", "")]},
    ),
    "no damping, dead columns set": (
        "check_dead_columns",
        "20 inputs for 64 columns",
        {_CELL: [(_DAMP, "")]},
    ),
    "gives up compensation where H is singular": (
        "check_dead_columns",
        "of round-to-nearest's; H is singular there",
        {
            _CELL: [
                (
                    "    hessian[dead, dead] = 1\n",
                    "    singular = dead.any() or len(inputs) < len(dead)\n    hessian[dead, dead] = 1\n",
                ),
                (_UPDATE, f"if not singular:\n            {_UPDATE}"),
            ]
        },
    ),
    "dead columns become NaN": (
        "check_dead_columns",
        "NaN or inf",
        {_CELL: [("    return weight\n    ### END", "    return weight / (~dead)\n    ### END")]},
    ),
}
