"""Vector operations of 16 float32 lanes that LLVM's own vectoriser would not find, and the scalar fma.

Every product is a chain of fused multiply-adds in ascending order of the inner index, one chain per result, so a
result does not depend on the shape of the tile it was computed in. Sums over a row have 16 chains, by index modulo 16,
then a fixed tree. Arrays are C-contiguous float32; `x_at` is the place of the first element, `x_step` from row to row.
"""

from holdfast.kernels.cpu.jit import AVAILABLE, cgutils, intrinsic, ir, types

LANES = 16

if AVAILABLE:
    FLOAT, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
    VECTOR = ir.VectorType(FLOAT, LANES)
    MASK = ir.VectorType(ir.IntType(1), LANES)


def _fma(b, *args):
    kind = args[0].type
    name = "llvm.fma.f32" if kind == FLOAT else "llvm.fma.v16f32"
    return b.call(cgutils.get_or_insert_function(b.module, ir.FunctionType(kind, [kind] * 3), name), args)


def _pointer(context, b, array_type, array, *offsets):
    """Address of a float32 element of an array."""
    at = offsets[0]
    for offset in offsets[1:]:
        at = b.add(at, offset)
    return b.gep(context.make_array(array_type)(context, b, array).data, [at])


def _load(b, pointer, mask=None):
    pointer = b.bitcast(pointer, VECTOR.as_pointer())
    if mask is None:
        return b.load(pointer, align=4)
    kind = ir.FunctionType(VECTOR, [VECTOR.as_pointer(), I32, MASK, VECTOR])
    load = cgutils.get_or_insert_function(b.module, kind, "llvm.masked.load.v16f32.p0")
    return b.call(load, [pointer, ir.Constant(I32, 4), mask, ir.Constant(VECTOR, [0.0] * LANES)])


def _store(b, value, pointer, mask=None):
    pointer = b.bitcast(pointer, VECTOR.as_pointer())
    if mask is None:
        b.store(value, pointer, align=4)
        return
    kind = ir.FunctionType(ir.VoidType(), [VECTOR, VECTOR.as_pointer(), I32, MASK])
    store = cgutils.get_or_insert_function(b.module, kind, "llvm.masked.store.v16f32.p0")
    b.call(store, [value, pointer, ir.Constant(I32, 4), mask])


def _splat(b, scalar, kind=None):
    kind = kind or VECTOR
    one = b.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
    return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def _first_lanes(b, count):
    """The mask of the first `count` lanes."""
    lanes = ir.VectorType(I64, LANES)
    return b.icmp_signed("<", ir.Constant(lanes, list(range(LANES))), _splat(b, count, lanes))


@intrinsic
def fma(typing, a, b, c):
    """a * b + c, rounded once."""

    def code(context, builder, signature, args):
        return _fma(builder, *args)

    return types.float32(types.float32, types.float32, types.float32), code


@intrinsic
def as_int(typing, x):
    """The bits of a float32."""

    def code(context, builder, signature, args):
        return builder.bitcast(args[0], I32)

    return types.int32(types.float32), code


@intrinsic
def as_float(typing, x):
    """The float32 of these bits."""

    def code(context, builder, signature, args):
        return builder.bitcast(args[0], FLOAT)

    return types.float32(types.int32), code


def _tile(rows: int, vectors: int, masked: bool = False):
    """out[rows, vectors * 16] = x[rows, inner] . w[inner, vectors * 16], or added to it; masked: `count` columns."""

    @intrinsic
    def tile(typing, x, x_at, x_step, w, w_at, w_step, out, out_at, out_step, inner, adds, count):
        def code(context, b, signature, args):
            x, x_at, x_step, w, w_at, w_step, out, out_at, out_step, inner, adds, count = args
            kinds = signature.args
            mask = _first_lanes(b, count) if masked else None
            places = []
            for row in range(rows):
                start = _pointer(context, b, kinds[6], out, out_at, b.mul(out_step, ir.Constant(I64, row)))
                places.append([b.gep(start, [ir.Constant(I64, v * LANES)]) for v in range(vectors)])
            sums = [[cgutils.alloca_once(b, VECTOR) for _ in range(vectors)] for _ in range(rows)]
            with b.if_else(adds) as (then, otherwise):
                with then:
                    for row, v in ((r, v) for r in range(rows) for v in range(vectors)):
                        b.store(_load(b, places[row][v], mask), sums[row][v])
                with otherwise:
                    for row, v in ((r, v) for r in range(rows) for v in range(vectors)):
                        b.store(ir.Constant(VECTOR, [0.0] * LANES), sums[row][v])
            with cgutils.for_range(b, inner) as loop:
                k = loop.index
                first = _pointer(context, b, kinds[3], w, w_at, b.mul(k, w_step))
                weights = [_load(b, b.gep(first, [ir.Constant(I64, v * LANES)]), mask) for v in range(vectors)]
                for row in range(rows):
                    at = _pointer(context, b, kinds[0], x, x_at, k, b.mul(x_step, ir.Constant(I64, row)))
                    value = _splat(b, b.load(at))
                    for v in range(vectors):
                        total = _fma(b, value, weights[v], b.load(sums[row][v]))
                        b.store(total, sums[row][v])
            for row in range(rows):
                for v in range(vectors):
                    _store(b, b.load(sums[row][v]), places[row][v], mask)
            return context.get_dummy_value()

        at = types.intp
        return types.void(x, at, at, w, at, at, out, at, at, at, types.boolean, at), code

    return tile


tile_8x2, tile_4x2, tile_1x8, tile_1x2 = _tile(8, 2), _tile(4, 2), _tile(1, 8), _tile(1, 2)
tile_8x1, tile_4x1, tile_1x1 = (_tile(rows, 1, masked=True) for rows in (8, 4, 1))


def _reduce(b, count, first, term, combine):
    """combine over rounds of 16 lanes of term(at, mask, so far), then lanes 0-7 with 8-15, 0-3 with 4-7 and so on."""
    total = cgutils.alloca_once(b, VECTOR)
    b.store(ir.Constant(VECTOR, [first] * LANES), total)
    rounds = b.sdiv(b.add(count, ir.Constant(I64, LANES - 1)), ir.Constant(I64, LANES))
    with cgutils.for_range(b, rounds) as loop:
        at = b.mul(loop.index, ir.Constant(I64, LANES))
        b.store(term(at, _first_lanes(b, b.sub(count, at)), b.load(total)), total)
    value, width = b.load(total), LANES
    while width > 1:
        width //= 2
        low, high = (ir.Constant(ir.VectorType(I32, width), list(range(s, s + width))) for s in (0, width))
        undefined = ir.Constant(value.type, ir.Undefined)
        value = combine(b.shuffle_vector(value, undefined, low), b.shuffle_vector(value, undefined, high))
    return b.extract_element(value, ir.Constant(I32, 0))


@intrinsic
def sum_row(typing, x, x_at, count):
    """The sum of x[x_at : x_at + count]."""

    def code(context, b, signature, args):
        def term(at, mask, total):
            return b.fadd(total, _load(b, _pointer(context, b, signature.args[0], args[0], args[1], at), mask))

        return _reduce(b, args[2], 0.0, term, b.fadd)

    return types.float32(x, types.intp, types.intp), code


@intrinsic
def sum_squares(typing, x, x_at, count):
    """The sum of the squares of x[x_at : x_at + count]."""

    def code(context, b, signature, args):
        def term(at, mask, total):
            value = _load(b, _pointer(context, b, signature.args[0], args[0], args[1], at), mask)
            return _fma(b, value, value, total)

        return _reduce(b, args[2], 0.0, term, b.fadd)

    return types.float32(x, types.intp, types.intp), code


@intrinsic
def max_row(typing, x, x_at, count):
    """The largest of x[x_at : x_at + count]; minus infinity when there is none."""

    def code(context, b, signature, args):
        def larger(a, c):
            return b.select(b.fcmp_ordered(">", a, c), a, c)

        def term(at, mask, most):
            value = _load(b, _pointer(context, b, signature.args[0], args[0], args[1], at), mask)
            return larger(b.select(mask, value, ir.Constant(VECTOR, [float("-inf")] * LANES)), most)

        return _reduce(b, args[2], float("-inf"), term, larger)

    return types.float32(x, types.intp, types.intp), code


@intrinsic
def count_from(typing, x, x_at, count, bound):
    """How many of x[x_at : x_at + count] are `bound` or more."""

    def code(context, b, signature, args):
        x, x_at, count, bound = args
        bits = ir.IntType(LANES)
        total = cgutils.alloca_once_value(b, ir.Constant(I64, 0))
        popcount = cgutils.get_or_insert_function(b.module, ir.FunctionType(bits, [bits]), f"llvm.ctpop.i{LANES}")
        rounds = b.sdiv(b.add(count, ir.Constant(I64, LANES - 1)), ir.Constant(I64, LANES))
        with cgutils.for_range(b, rounds) as loop:
            at = b.mul(loop.index, ir.Constant(I64, LANES))
            mask = _first_lanes(b, b.sub(count, at))
            value = _load(b, _pointer(context, b, signature.args[0], x, x_at, at), mask)
            found = b.and_(mask, b.fcmp_ordered(">=", value, _splat(b, bound)))
            b.store(b.add(b.load(total), b.zext(b.call(popcount, [b.bitcast(found, bits)]), I64)), total)
        return b.load(total)

    return types.intp(x, types.intp, types.intp, types.float32), code


@intrinsic
def transpose_16(typing, x, x_at, x_step, out, out_at, out_step):
    """out[j, i] = x[i, j] for 16 x 16 elements, by four rounds of interleaving rows that are eight apart."""

    def code(context, b, signature, args):
        x, x_at, x_step, out, out_at, out_step = args
        rows = [
            _load(b, _pointer(context, b, signature.args[0], x, x_at, b.mul(x_step, ir.Constant(I64, i))))
            for i in range(LANES)
        ]
        kind = ir.VectorType(I32, LANES)
        low = ir.Constant(kind, [i // 2 + LANES * (i % 2) for i in range(LANES)])
        high = ir.Constant(kind, [LANES // 2 + i // 2 + LANES * (i % 2) for i in range(LANES)])
        for _ in range(4):
            rows = [
                b.shuffle_vector(rows[i // 2], rows[i // 2 + LANES // 2], high if i % 2 else low) for i in range(LANES)
            ]
        for j, row in enumerate(rows):
            _store(b, row, _pointer(context, b, signature.args[3], out, out_at, b.mul(out_step, ir.Constant(I64, j))))
        return context.get_dummy_value()

    at = types.intp
    return types.void(x, at, at, out, at, at), code


@intrinsic
def copy_row(typing, x, x_at, out, out_at, count):
    """out[out_at : out_at + count] = x[x_at : x_at + count]."""

    def code(context, b, signature, args):
        source = _pointer(context, b, signature.args[0], args[0], args[1])
        target = _pointer(context, b, signature.args[2], args[2], args[3])
        cgutils.raw_memcpy(b, target, source, args[4], 4)
        return context.get_dummy_value()

    return types.void(x, types.intp, out, types.intp, types.intp), code


@intrinsic
def clear_row(typing, out, out_at, count):
    """out[out_at : out_at + count] = 0."""

    def code(context, b, signature, args):
        target = _pointer(context, b, signature.args[0], args[0], args[1])
        cgutils.memset(b, target, b.mul(args[2], ir.Constant(I64, 4)), 0)
        return context.get_dummy_value()

    return types.void(out, types.intp, types.intp), code
