"""SIMD primitives in LLVM's vector types: sums of rows held in registers, and decisions.

LLVM's loop vectoriser leaves the sums in memory, checks the arrays for overlap at every call and
uses half the register's width: rows are added at half the rate and spins decided at a third of
it. Vector types are legalised on any processor (16 floats are one AVX-512 register, two of AVX,
four of NEON).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import DTypeLike, NDArray

from scvi_qbm._jit import kernel

LANE = 16
# Floats that ``add_rows_wide`` adds to: four vectors, which AVX2 still has registers for.
TILE = 4 * LANE
_I64 = ir.IntType(64)
_I32 = ir.IntType(32)
_VECTOR = ir.VectorType(ir.FloatType(), LANE)

# Rational approximation of tanh on |x| < 7.9 (the one Eigen uses; absolute error 1e-7).
_CLIP = 7.90531110763549805
_ODD = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11,
        5.12229709037114e-08, 1.48572235717979e-05, 6.37261928876436e-04,
        4.89352455891786e-03)  # fmt: skip
_EVEN = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def _constant(value: float) -> Any:
    return ir.Constant(_VECTOR, [float(np.float32(value))] * LANE)


def _load(builder: Any, pointer: Any) -> Any:
    out = builder.load(pointer)
    out.align = 4
    return out


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    lanes = ir.Constant(ir.VectorType(_I32, LANE), [0] * LANE)
    return builder.shuffle_vector(one, undefined, lanes)


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

            places = vectors(builder.gep(target.data, [column]))
            first = [_load(builder, p) for p in places]
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
            factor = _splat(builder, builder.load(builder.gep(scale.data, [k])))
            flags = ("contract",)
            new = [
                builder.fadd(s, builder.fmul(factor, _load(builder, p), flags=flags), flags=flags)
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


def _decision(is_metropolis: bool) -> Any:
    """Decide one spin in lanes ``at`` to ``at + 15``, in place; see ``heat_bath``."""

    @intrinsic
    def decide(
        _: Any, field: Any, lam: Any, base: Any, draw: Any, spin: Any, change: Any, energy: Any,
        at: Any,
    ) -> Any:  # fmt: skip
        signature = types.void(
            field, lam, types.float32, draw, spin, change, energy, types.int64
        )  # fmt: skip

        def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
            def place(i: int) -> Any:
                data = context.make_array(sig.args[i])(context, b, args[i]).data
                return b.bitcast(b.gep(data, [args[7]]), _VECTOR.as_pointer())

            fast = {"flags": ("fast",)}
            field, lam, draw, old = (_load(b, place(i)) for i in (0, 1, 3, 4))
            x = b.fadd(b.fmul(lam, field, **fast), _splat(b, args[2]), **fast)
            if is_metropolis:
                x = b.fmul(x, old, **fast)
            low, high = _constant(-_CLIP), _constant(_CLIP)
            frozen_down, frozen_up = b.fcmp_ordered("<=", x, low), b.fcmp_ordered(">=", x, high)
            y = b.select(frozen_down, low, b.select(frozen_up, high, x))
            # tanh x = p / q with q > 0; decided without the division.
            square = b.fmul(y, y, **fast)

            def polynomial(coefficients: tuple[float, ...]) -> Any:
                out = _constant(coefficients[0])
                for c in coefficients[1:]:
                    out = b.fadd(b.fmul(out, square, **fast), _constant(c), **fast)
                return out

            p, q = b.fmul(polynomial(_ODD), y, **fast), polynomial(_EVEN)
            zero, one, minus = _constant(0.0), _constant(1.0), _constant(-1.0)
            if is_metropolis:
                # exp(-2x) = (1 - tanh x) / (1 + tanh x) against a uniform on [0, 1).
                uniform = b.fmul(b.fadd(draw, one, **fast), _constant(0.5), **fast)
                right = b.fmul(uniform, b.fadd(q, p, **fast), **fast)
                flip = b.fcmp_ordered("<", right, b.fsub(q, p, **fast))
                flip = b.or_(flip, b.fcmp_ordered("<=", x, zero))
                flip = b.and_(flip, b.not_(frozen_up))
                new = b.select(flip, b.fsub(zero, old, **fast), old)
            else:
                up = b.fcmp_ordered("<", b.fmul(draw, q, **fast), p)
                up = b.and_(b.or_(up, frozen_up), b.not_(frozen_down))
                new = b.select(up, one, minus)
            difference = b.fsub(new, old, **fast)
            gained = b.fsub(_load(b, place(6)), b.fmul(difference, field, **fast), **fast)
            for i, value in ((4, new), (5, difference), (6, gained)):
                b.store(value, place(i)).align = 4
            return context.get_dummy_value()

        return signature, generate

    return decide


# ``heat_bath(field, lam, base, draw, spin, change, energy, at)``: spin up in lanes ``at`` to
# ``at + 15`` where ``draw < tanh(lam * field + base)``, draws uniform on [-1, 1); writes spin and
# change and takes ``change * field`` off the energy.
heat_bath = _decision(False)
# The same by Metropolis: flip where ``(draw + 1) / 2 < exp(-2 s (lam * field + base))``.
metropolis = _decision(True)


@kernel(nogil=True, fastmath=True)
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
