"""Where an output pixel lies in the source, and which pixels there it reads: what the fused kernels share.

Everything is in registers: a matrix is read once by each program, a grid once by each pixel. Positions are in pixels of
the source, 0 at the centre of the first. They are found as the output pixel's own place, in these pixels, and how far
the matrix moves it: nowhere, exactly, for the identity.
"""
import triton
import triton.language as tl

__all__ = ['GRID', 'SIZES', 'ZEROS', 'away_from_zero', 'pixel_of', 'position', 'read', 'source', 'tap', 'usable']

ZEROS: tl.constexpr = tl.constexpr(0)  # torch's codes
REFLECTION: tl.constexpr = tl.constexpr(2)
GRID: tl.constexpr = tl.constexpr(0)  # in the place of a matrix's number of rows
LIMIT: tl.constexpr = tl.constexpr(1e6)  # parameters of larger magnitude are treated as invalid
LEAST: tl.constexpr = tl.constexpr(1e-6)  # magnitude of a denominator
SIZES = ('height', 'width', 'out_h', 'out_w', 'glimpses', 'tiles', 'groups', 'outputs', 'count')  # no kernel for each


@triton.jit
def pixel_of(tile, out_h, out_w, T_H: tl.constexpr, T_W: tl.constexpr):
    """Row and column of the pixels of a tile of T_H x T_W, and which of them the output has; the others repeat some."""
    p = tl.arange(0, T_H * T_W)
    across = (out_w + T_W - 1) // T_W
    y = tile // across * T_H + p // T_W
    x = tile % across * T_W + p % T_W
    return tl.minimum(y, out_h - 1), tl.minimum(x, out_w - 1), (y < out_h) & (x < out_w)


@triton.jit
def usable(at, s_row, s_column, ROWS: tl.constexpr):
    """Whether no entry of a matrix is NaN, infinite or beyond the limit."""
    good = tl.abs(tl.load(at)) <= LIMIT
    for i in tl.static_range(1, 3 * ROWS):
        good = good & (tl.abs(tl.load(at + (i // 3) * s_row + (i % 3) * s_column)) <= LIMIT)
    return good


@triton.jit
def homogeneous(at, s_row, s_column, x, y, good, ROW: tl.constexpr):
    """A row of the matrix times (x, y, 1); of one that is not usable, the identity's."""
    a = tl.where(good, tl.load(at + ROW * s_row), 1.0 if ROW == 0 else 0.0)
    b = tl.where(good, tl.load(at + ROW * s_row + s_column), 1.0 if ROW == 1 else 0.0)
    c = tl.where(good, tl.load(at + ROW * s_row + 2 * s_column), 1.0 if ROW == 2 else 0.0)
    return a * x + (b * y + c)


@triton.jit
def away_from_zero(w):
    return tl.where(tl.abs(w) < LEAST, tl.where(w < 0, -LEAST, LEAST), w)


@triton.jit
def source(at, s0, s1, s2, x, y, width, height, to_x, to_y, scale_x, scale_y, ROWS: tl.constexpr):
    """Positions that output pixels (x, y) read, where those lie in [-1, 1], and the denominators of a homography.

    `at` points to a matrix (strides s0, s1), or to a grid of coordinates (strides s0, s1, s2). `to_x` is 1 / (output
    width), `scale_x` the width over that of the output.
    """
    if ROWS == GRID:
        px = ((tl.load(at + y * s0 + x * s1) + 1) * width - 1) * 0.5
        py = ((tl.load(at + y * s0 + x * s1 + s2) + 1) * height - 1) * 0.5
        return px, py, px, py, px
    else:
        good = usable(at, s0, s1, ROWS)
        xn, yn = (2 * x + 1) * to_x - 1, (2 * y + 1) * to_y - 1
        u, v = homogeneous(at, s0, s1, xn, yn, good, 0), homogeneous(at, s0, s1, xn, yn, good, 1)
        w = xn
        if ROWS == 3:
            w = homogeneous(at, s0, s1, xn, yn, good, 2)
            u, v = u / away_from_zero(w), v / away_from_zero(w)
        px = (x + 0.5) * scale_x - 0.5 + (u - xn) * (0.5 * width)
        py = (y + 0.5) * scale_y - 0.5 + (v - yn) * (0.5 * height)
        return px, py, xn, yn, w


@triton.jit
def position(p, n, PADDING: tl.constexpr):
    """The pixel before positions along an axis of n pixels, and the way past it; what is far away comes near."""
    least, most = -1.5, n + 0.5  # no kinks
    if PADDING == REFLECTION:
        p = p + 0.5
        p = p - tl.floor(p / (2.0 * n)) * (2.0 * n) - 0.5
        least, most = -0.5, 2.0 * n - 0.5
    p = tl.minimum(tl.maximum(p, least), most)
    before = tl.floor(p)
    return before.to(tl.int32), p - before


@triton.jit
def tap(i, n, PADDING: tl.constexpr):
    """The pixel that stands at place i, from -2 to 2 n, and whether there is one."""
    j = i
    if PADDING == REFLECTION:
        j = tl.where(j < 0, -1 - j, j)
        j = tl.where(j >= n, 2 * n - 1 - j, j)
    inside = (i >= 0) & (i < n) if PADDING == ZEROS else i == i
    return tl.minimum(tl.maximum(j, 0), n - 1), inside


@triton.jit
def read(pixels, offset, inside, present, color, PADDING: tl.constexpr, FILL: tl.constexpr):
    """Pixels (P, C) in float32, or the colour where there are none."""
    if PADDING == ZEROS:
        value = tl.load(pixels + offset[:, None], mask=inside[:, None] & present, other=0.0).to(tl.float32)
        return tl.where(inside[:, None], value, color) if FILL else value
    else:
        return tl.load(pixels + offset[:, None], mask=present, other=0.0).to(tl.float32)
