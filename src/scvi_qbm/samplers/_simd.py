"""One SIMD primitive: add multiples of chosen rows to part of a vector, held in registers.

LLVM's loop vectoriser leaves the sum in memory and checks the arrays for overlap at every call,
which halves the rate; vector types in the generated code avoid both. They are legalised on any
processor (16 floats are one AVX-512 register, two of AVX, four of NEON).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import DTypeLike, NDArray

__all__ = ["TILE", "add_rows", "add_rows_narrow", "add_rows_wide", "aligned_zeros"]

LANE = 16
#: Floats that ``add_rows_wide`` adds to: four vectors, which AVX2 still has registers for.
TILE = 4 * LANE
_I64 = ir.IntType(64)
_I32 = ir.IntType(32)
_VECTOR = ir.VectorType(ir.FloatType(), LANE)


def _add_rows(n_vectors: int) -> Any:
    """``f[c:c+w] += sum_k coef[k] * A[rows[k], c:c+w]`` over k < count, w = 16 * n_vectors."""

    @intrinsic
    def add(_: Any, f: Any, A: Any, column: Any, rows: Any, coef: Any, count: Any) -> Any:
        signature = types.void(f, A, types.int64, rows, coef, types.int64)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            target, matrix, index, scale = (
                context.make_array(sig.args[i])(context, builder, args[i]) for i in (0, 1, 3, 4)
            )
            column, count = args[2], args[5]
            stride = builder.extract_value(matrix.shape, 1)

            def vectors(pointer: Any) -> list[Any]:
                steps = [ir.Constant(_I64, LANE * v) for v in range(n_vectors)]
                return [
                    builder.bitcast(builder.gep(pointer, [s]), _VECTOR.as_pointer()) for s in steps
                ]

            def load(pointer: Any) -> Any:
                out = builder.load(pointer)
                out.align = 4
                return out

            places = vectors(builder.gep(target.data, [column]))
            first = [load(p) for p in places]
            corner = builder.gep(matrix.data, [column])
            before = builder.block
            loop = builder.append_basic_block("rows")
            done = builder.append_basic_block("done")
            zero = ir.Constant(_I64, 0)
            builder.cbranch(builder.icmp_signed(">", count, zero), loop, done)

            builder.position_at_end(loop)
            k = builder.phi(_I64)
            k.add_incoming(zero, before)
            sums = [builder.phi(_VECTOR) for _ in first]
            row = builder.load(builder.gep(index.data, [k]))
            source = vectors(builder.gep(corner, [builder.mul(row, stride)]))
            undefined = ir.Constant(_VECTOR, ir.Undefined)
            one = builder.insert_element(
                undefined, builder.load(builder.gep(scale.data, [k])), ir.Constant(_I32, 0)
            )
            lanes = ir.Constant(ir.VectorType(_I32, LANE), [0] * LANE)
            factor = builder.shuffle_vector(one, undefined, lanes)
            flags = ("contract",)
            new = [
                builder.fadd(s, builder.fmul(factor, load(p), flags=flags), flags=flags)
                for s, p in zip(sums, source, strict=True)
            ]
            following = builder.add(k, ir.Constant(_I64, 1))
            k.add_incoming(following, loop)
            for s, a, b in zip(sums, first, new, strict=True):
                s.add_incoming(a, before)
                s.add_incoming(b, loop)
            builder.cbranch(builder.icmp_signed("<", following, count), loop, done)

            builder.position_at_end(done)
            results = [builder.phi(_VECTOR) for _ in first]
            for r, a, b in zip(results, first, new, strict=True):
                r.add_incoming(a, before)
                r.add_incoming(b, loop)
            for r, p in zip(results, places, strict=True):
                builder.store(r, p).align = 4
            return context.get_dummy_value()

        return signature, generate

    return add


add_rows_wide = _add_rows(TILE // LANE)
add_rows_narrow = _add_rows(1)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def add_rows(
    f: NDArray[np.float32],
    A: NDArray[np.float32],
    rows: NDArray[np.int64],
    coef: NDArray[np.float32],
    count: int,
) -> None:
    """``f += sum_k coef[k] * A[rows[k]]`` over k < count; lengths are multiples of 16."""
    width = f.shape[0]
    column = 0
    while column + TILE <= width:
        add_rows_wide(f, A, column, rows, coef, count)
        column += TILE
    while column < width:
        add_rows_narrow(f, A, column, rows, coef, count)
        column += LANE


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros that start at a cache line: loads of 64 bytes that cross one cost double."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, dtype=np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset : offset + size].view(dtype).reshape(shape)
