"""The gradient of the fused warp to the image: each pixel gathers from the outputs that read it, in a fixed order.

Output pixels are sorted by the cell, between four pixels of the image, that they read. `cells` finds the cell of each
once more; torch sorts them stably, and says where each cell begins. In `gather` a program makes some pixels of the
gradient: for the two pairs of cells around each it walks through their lists, K entries at a time, finds positions
again, and adds gradient times weight up in registers: nothing is added in memory, and all in one order. A gradient is
read four times, by each pixel that it goes to; what was outside the image is in no list. Where a map collapsed, all of
its outputs are in one list, which takes as many steps as it has entries, by K.
"""
import triton
import triton.language as tl

from .coordinates import SIZES, ZEROS, position, source, tap

__all__ = ['cells', 'gather']


@triton.jit(do_not_specialize=SIZES)
def cells(
        theta, out, height, width, out_h, out_w, glimpses, outputs, nowhere, to_x, to_y, scale_x, scale_y,
        t_m, t0, t1, t2, ROWS: tl.constexpr, PADDING: tl.constexpr, P: tl.constexpr):
    q = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    live = q < outputs
    q = tl.minimum(q, outputs - 1)
    m, y, x = _place(q, out_h, out_w)
    x0, _, y0, _ = _positions(
        theta + m * t_m, y, x, height, width, to_x, to_y, scale_x, scale_y, t0, t1, t2, ROWS, PADDING)
    if PADDING == ZEROS:
        inside = (x0 >= -1) & (x0 < width) & (y0 >= -1) & (y0 < height)
    else:
        inside = live
        x0 = tl.minimum(tap(x0, width, PADDING)[0], tap(x0 + 1, width, PADDING)[0])
        y0 = tl.minimum(tap(y0, height, PADDING)[0], tap(y0 + 1, height, PADDING)[0])
    cell = ((m // glimpses) * (height + 1) + y0 + 1) * (width + 1) + x0 + 1
    tl.store(out + q, tl.where(inside, cell, nowhere).to(out.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=SIZES)
def gather(
        grad, theta, order, starts, out, count, channels, height, width, out_h, out_w, to_x, to_y, scale_x, scale_y,
        g_m, g_c, g_y, g_x, t_m, t0, t1, t2, o_n, o_c, o_y, o_x,
        ROWS: tl.constexpr, PADDING: tl.constexpr, P: tl.constexpr, K: tl.constexpr, C: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P * K) // K  # K places for each pixel
    place, live = tl.arange(0, P * K) % K, i < count
    i = tl.minimum(i, count - 1)
    n, y, x = _place(i, height, width)
    each = (tl.program_id(1) * C + tl.arange(0, C))[None, :]
    total = tl.zeros([P, C], tl.float32)
    for below in tl.static_range(2):
        cell = starts + (n * (height + 1) + y + below) * (width + 1) + x
        first, last = tl.load(cell), tl.load(cell + 2)  # of two cells beside each other
        last = tl.where(live, last, first)
        for k in range(0, tl.max(last - first, 0), K):
            entry = first + k + place
            on = entry < last
            q = tl.load(order + entry, mask=on, other=0)
            m, row, column = _place(q, out_h, out_w)
            x0, fx, y0, fy = _positions(
                theta + m * t_m, row, column, height, width, to_x, to_y, scale_x, scale_y, t0, t1, t2, ROWS, PADDING)
            weight = _weight(x, x0, fx, width, PADDING) * _weight(y, y0, fy, height, PADDING)
            pixel = m * g_m + (row * g_y + column * g_x)
            g = tl.load(grad + pixel[:, None] + each * g_c, mask=on[:, None] & (each < channels), other=0.0)
            total += tl.sum(tl.reshape(weight[:, None] * g.to(tl.float32), (P, K, C)), 1)
    i = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    n, y, x = _place(i, height, width)
    target = out + (n * o_n + y * o_y + x * o_x)[:, None] + each * o_c
    tl.store(target, total.to(out.dtype.element_ty), mask=(i < count)[:, None] & (each < channels))


@triton.jit
def _place(i, height, width):
    """Number of the image, row and column of pixel i of all images; one division in 64 bits, which are slow."""
    n = i // (height * width)
    rest = (i - n * (height * width)).to(tl.int32)
    return n, rest // width, rest % width


@triton.jit
def _positions(
        at, y, x, height, width, to_x, to_y, scale_x, scale_y, t0, t1, t2, ROWS: tl.constexpr, PADDING: tl.constexpr):
    """What output pixels read."""
    px, py, _, _, _ = source(at, t0, t1, t2, x, y, width, height, to_x, to_y, scale_x, scale_y, ROWS)
    x0, fx = position(px, width, PADDING)
    y0, fy = position(py, height, PADDING)
    return x0, fx, y0, fy


@triton.jit
def _weight(i, before, share, n, PADDING: tl.constexpr):
    """Of pixel i along an axis, for what reads the pixel `before` and its successor."""
    if PADDING == ZEROS:
        return tl.where(before == i, 1 - share, tl.where(before + 1 == i, share, 0.0))
    else:
        first, second = tap(before, n, PADDING)[0], tap(before + 1, n, PADDING)[0]
        return tl.where(first == i, 1 - share, 0.0) + tl.where(second == i, share, 0.0)
