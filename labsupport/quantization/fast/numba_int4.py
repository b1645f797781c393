"""The 4-bit kernel, compiled from Python by Numba (optional; without it, PyTorch's own kernels are used).

Decoding is limited by reading the weights from memory, so a kernel that reads packed 4-bit weights is faster as long as
unpacking keeps up. Here it does, because everything stays in integers: x becomes 16-bit fixed point with one scale per
group of weights (an error of at most max|x| / 65278 within the group, far below that of the weights), stored as two
bytes, x = 256 high + low. AVX2's vpmaddubsw then multiplies 32 nibbles by 32 of those bytes at once. Nibbles are at
most 15, so eight of its sums fit in 16 bits (8 * 2 * 15 * 128 < 2**15) and nothing saturates. `tile` puts 16 outputs
side by side, so that a group's scales and zero points are applied to 16 sums together.

Indices are uint64: signed ones need a test for negative values, which keeps LLVM from vectorizing.
"""

from __future__ import annotations

import llvmlite.ir as ir
import numpy as np
import torch
from jaxtyping import Float, Float16, UInt8
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from labsupport.quantization.fast.compiled import FAST_MATH, in_threads, to_array

OUTPUTS = 16  # per block
INPUTS = 32  # multiplied at a time: 16 bits suffice for their sums
_LARGEST = 256 * 127 + 127  # the largest 16-bit x whose two bytes both fit a signed byte


class Int4Matmul:
    """multiply(x) is x @ (scale * (codes - zero_point)).T in float32, for group_size and columns that 32 divides.

    codes: [out, columns] 0..15; scale: [out, groups], positive; zero_point: [out, groups] 0..15.
    """

    def __init__(
        self,
        codes: UInt8[Tensor, "out columns"],
        scale: Float16[Tensor, "out groups"],
        zero_point: UInt8[Tensor, "out groups"],
        group_size: int,
    ) -> None:
        self.out_features, self.group_size = codes.shape[0], group_size
        # Numba has no float16 on CPUs: the kernel gets the bits.
        grids = (_by_block(scale).view(torch.int16).numpy(), _by_block(zero_point).numpy())
        self.arrays = tile(codes).numpy(), *grids

    def __call__(self, x: Float[Tensor, "n columns"]) -> Float[Tensor, "n out"]:
        packed, scale, zero_point = self.arrays
        blocks = packed.shape[0]
        out = np.empty((x.shape[0], blocks * OUTPUTS), np.float32)
        in_threads(
            _int4_matmul, (to_array(x), packed, scale, zero_point, self.group_size, out), blocks, 2 * packed.size
        )
        result = torch.from_numpy(out)
        return result if blocks * OUTPUTS == self.out_features else result[:, : self.out_features]

    def unpack(self) -> tuple[UInt8[Tensor, "out columns"], Float16[Tensor, "out groups"], UInt8[Tensor, "out groups"]]:
        """codes, scale and zero_point as they were given."""
        packed, scale, zero_point = (torch.from_numpy(array) for array in self.arrays)
        rows = [grid.transpose(1, 2).flatten(0, 1)[: self.out_features].contiguous() for grid in (scale, zero_point)]
        return untile(packed, self.out_features), rows[0].view(torch.float16), rows[1]


def tile(codes: UInt8[Tensor, "out columns"]) -> UInt8[Tensor, "blocks eights 64"]:
    """Codes 0..15 in the order in which the kernel reads them; outputs are padded with zeros to whole blocks.

    64 bytes hold 8 inputs of 16 outputs: byte 4 j + i has input i of output j in its low nibble, input i + 4 in its
    high one.
    """
    padded = torch.nn.functional.pad(codes, (0, 0, 0, -codes.shape[0] % OUTPUTS))
    nibbles = padded.view(-1, OUTPUTS, codes.shape[1] // 8, 2, 4)  # block, output, eight, half, input
    low, high = nibbles.unbind(3)
    return (low | (high << 4)).transpose(1, 2).flatten(2).contiguous()


def untile(packed: UInt8[Tensor, "blocks eights 64"], out_features: int) -> UInt8[Tensor, "out columns"]:
    """The inverse of `tile`."""
    halves = torch.stack((packed & 15, packed >> 4), dim=2)  # block, eight, half, 4 * output + input
    nibbles = halves.unflatten(3, (OUTPUTS, 4)).permute(0, 3, 1, 2, 4)
    return nibbles.flatten(2).flatten(0, 1)[:out_features].contiguous()


def _by_block(grid: Tensor) -> Tensor:
    """[out, groups] -> [blocks, groups, 16]."""
    padded = torch.nn.functional.pad(grid, (0, 0, 0, -grid.shape[0] % OUTPUTS))
    return padded.view(-1, OUTPUTS, grid.shape[1]).transpose(1, 2).contiguous()


@njit(fastmath=FAST_MATH, nogil=True, cache=True)
def _int4_matmul(x, packed, scale_bits, zero_point, group_size, out, first, last):  # type: ignore[no-untyped-def]
    """Blocks first .. last of outputs."""
    U, f32, i32 = np.uint64, np.float32, np.int32
    rows, eights, groups = U(x.shape[0]), U(packed.shape[1]), U(scale_bits.shape[1])
    x_bytes = np.empty((rows, eights, U(16)), np.int8)
    x_scale, x_sum = np.empty((rows, groups), np.float32), np.empty((rows, groups), np.float32)
    _to_16_bits(x, U(group_size), x_bytes, x_scale, x_sum)
    eights_a_group = U(group_size // 8)
    sums, total = np.empty(OUTPUTS, np.int32), np.empty(OUTPUTS, np.float32)
    bits = np.empty(OUTPUTS, np.int32)
    scale = bits.view(np.float32)
    for block in range(U(first), U(last)):
        for r in range(rows):
            total[:] = f32(0)
            for group in range(groups):
                sums[:] = i32(0)
                end = min(eights, (group + U(1)) * eights_a_group)
                for eight in range(group * eights_a_group, end, U(INPUTS // 8)):
                    _multiply_32(packed, block, eight, x_bytes, r, sums)
                x_step, x_total = x_scale[r, group] * f32(2.0**112), x_sum[r, group]
                for j in range(U(OUTPUTS)):
                    # The bits of a positive float16, moved into place, are a float32 that is 2**112 times too small.
                    bits[j] = i32(scale_bits[block, group, j]) << i32(13)
                for j in range(U(OUTPUTS)):
                    total[j] += x_step * scale[j] * (f32(sums[j]) - f32(zero_point[block, group, j]) * x_total)
            for j in range(U(OUTPUTS)):
                out[r, block * U(OUTPUTS) + j] = total[j]


@njit(fastmath=FAST_MATH, nogil=True, cache=True)
def _to_16_bits(x, group_size, x_bytes, x_scale, x_sum):  # type: ignore[no-untyped-def]
    """x = x_scale * (256 high + low) for each row and group; x_sum is the sum of what x_scale multiplies.

    x_bytes: for each 8 inputs 16 bytes, 8 high and 8 low.
    """
    U, f32, i32 = np.uint64, np.float32, np.int32
    columns = U(x.shape[1])
    integers = np.empty(columns, np.int32)
    for r in range(U(x.shape[0])):
        for group in range(U(x_scale.shape[1])):
            start, end = group * group_size, min(columns, (group + U(1)) * group_size)
            largest, not_finite = f32(0), f32(0)
            for k in range(start, end):
                largest = max(largest, abs(x[r, k]))
                not_finite += f32(0) * x[r, k]  # NaN for infinity and NaN, which integers cannot hold
            to_integer = f32(_LARGEST) / largest if largest > f32(1e-30) else f32(0)
            total = i32(0)
            for k in range(start, end):
                integers[k] = i32(np.floor(x[r, k] * to_integer + f32(0.5)))
                total += integers[k]
            x_scale[r, group] = largest / f32(_LARGEST) + not_finite
            x_sum[r, group] = f32(total)
        for eight in range(columns // U(8)):
            for i in range(U(8)):
                high = (integers[eight * U(8) + i] + i32(128)) >> i32(8)
                x_bytes[r, eight, i] = high
                x_bytes[r, eight, i + U(8)] = integers[eight * U(8) + i] - high * i32(256)


def _multiply_32_loops(packed, block, eight, x_bytes, r, sums):  # type: ignore[no-untyped-def]
    """sums[j] += the products of 32 inputs with output j: what _multiply_32 does, for CPUs without AVX2."""
    U, i32 = np.uint64, np.int32
    for e in range(eight, eight + U(INPUTS // 8)):
        for j in range(U(OUTPUTS)):
            for i in range(U(4)):
                byte = packed[block, e, U(4) * j + i]
                low = i32(x_bytes[r, e, i]) * i32(256) + i32(x_bytes[r, e, i + U(8)])
                high = i32(x_bytes[r, e, i + U(4)]) * i32(256) + i32(x_bytes[r, e, i + U(12)])
                sums[j] += i32(byte & 15) * low + i32(byte >> 4) * high


@intrinsic
def _multiply_32_avx2(typing_context, packed, block, eight, x_bytes, r, sums):  # type: ignore[no-untyped-def]
    """The same with vpmaddubsw: LLVM's builder stands in for the C intrinsics that Numba lacks."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        i8, i16, i32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
        bytes32, shorts16, ints8 = ir.VectorType(i8, 32), ir.VectorType(i16, 16), ir.VectorType(i32, 8)
        types_of, values = signature.args, arguments

        def pointer(position, *indices):  # type: ignore[no-untyped-def]
            array = context.make_array(types_of[position])(context, builder, values[position])
            return cgutils.get_item_pointer(context, builder, types_of[position], array, indices)

        def load(start, offset, kind, align=1):  # type: ignore[no-untyped-def]
            address = builder.gep(start, [ir.Constant(i32, offset)])
            return builder.load(builder.bitcast(address, kind.as_pointer()), align=align)

        def broadcast(start, offset):  # type: ignore[no-untyped-def]
            """4 bytes, 8 times."""
            single = builder.insert_element(ir.Constant(ints8, ir.Undefined), load(start, offset, i32), i32(0))
            repeated = builder.shuffle_vector(single, single, ir.Constant(ints8, [0] * 8))
            return builder.bitcast(repeated, bytes32)

        def instruction(name, result, operand):  # type: ignore[no-untyped-def]
            kind = ir.FunctionType(result, [operand, operand])
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            return lambda x, y: builder.call(function, [x, y])

        multiply_bytes = instruction("llvm.x86.avx2.pmadd.ub.sw", shorts16, bytes32)
        multiply_shorts = instruction("llvm.x86.avx2.pmadd.wd", ints8, shorts16)
        zero = ir.Constant(ir.IntType(64), 0)
        weights = pointer(0, values[1], values[2], zero)
        x_start = pointer(3, values[4], values[2], zero)
        fifteen, four = ir.Constant(bytes32, [15] * 32), ir.Constant(shorts16, [4] * 16)
        for half in range(2):  # 8 outputs
            high_sum = low_sum = ir.Constant(shorts16, [0] * 16)
            for e in range(INPUTS // 8):
                byte = load(weights, 64 * e + 32 * half, bytes32)
                shifted = builder.bitcast(builder.lshr(builder.bitcast(byte, shorts16), four), bytes32)
                for n, nibble in enumerate((builder.and_(byte, fifteen), builder.and_(shifted, fifteen))):
                    high, low = (broadcast(x_start, 16 * e + 8 * part + 4 * n) for part in range(2))
                    high_sum = builder.add(high_sum, multiply_bytes(nibble, high))
                    low_sum = builder.add(low_sum, multiply_bytes(nibble, low))
            total = builder.add(
                multiply_shorts(high_sum, ir.Constant(shorts16, [256] * 16)),
                multiply_shorts(low_sum, ir.Constant(shorts16, [1] * 16)),
            )
            target = builder.bitcast(pointer(5, ir.Constant(ir.IntType(64), 8 * half)), ints8.as_pointer())
            builder.store(builder.add(builder.load(target, align=4), total), target, align=4)
        return context.get_dummy_value()

    return types.void(packed, block, eight, x_bytes, r, sums), generate


_multiply_32 = _multiply_32_avx2 if torch.cpu._is_avx2_supported() else njit(_multiply_32_loops)
