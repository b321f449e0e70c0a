"""The gradient of the fused warp to its matrix, or to its grid.

A program walks over some tiles of one output, for a share of the channels, and finds positions again as the forward
pass does. In registers: the sums over channels of gradient times slope, for each pixel, and from tile to tile the sums
for each entry of the matrix, which are added up within the program in the end. It writes one row of them; torch adds up
the rows. So every sum has one fixed order. Four pixels and the gradient are read once more than the forward pass did.

Bilinear interpolation has a kink at each pixel, and the identity puts every sample on one. There the slope is the mean
of those on both sides, the symmetric sub-gradient: tiles with a kink, and no others, are read a second time for it.
"""
import triton
import triton.language as tl

from .coordinates import GRID, SIZES, away_from_zero, pixel_of, position, read, source, tap, usable

__all__ = ['warp_theta']


@triton.jit(do_not_specialize=SIZES)
def warp_theta(
        grad, image, theta, fill, out, channels, height, width, out_h, out_w, glimpses, tiles, groups, share,
        to_x, to_y, scale_x, scale_y, g_m, g_c, g_y, g_x, i_n, i_c, i_y, i_x, t_m, t0, t1, t2,
        ROWS: tl.constexpr, PADDING: tl.constexpr, FILL: tl.constexpr,
        T_H: tl.constexpr, T_W: tl.constexpr, C: tl.constexpr, STEPS: tl.constexpr):
    m, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    source_of = image + (m // glimpses).to(tl.int64) * i_n
    m = m.to(tl.int64)
    at = theta + m * t_m
    first = tl.program_id(1) * share
    zero = tl.zeros([T_H * T_W], tl.float32)
    s0, s1, s2, s3, s4, s5, s6, s7, s8 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    for tile in range(group * STEPS, tl.minimum(group * STEPS + STEPS, tiles)):
        y, x, live = pixel_of(tile, out_h, out_w, T_H, T_W)
        px, py, xn, yn, w = source(at, t0, t1, t2, x, y, width, height, to_x, to_y, scale_x, scale_y, ROWS)
        x0, fx = position(px, width, PADDING)
        y0, fy = position(py, height, PADDING)
        gx, gy = _slopes(
            grad + m * g_m, y * g_y + x * g_x, source_of, fill, first,
            tl.minimum(first + share, channels), g_c, i_c, i_y, i_x, x0, y0, fx, fy, width, height, live,
            PADDING, FILL, C)
        gx, gy = gx * (0.5 * width), gy * (0.5 * height)
        if ROWS == GRID:
            maps = tl.num_programs(0) // groups
            target = out + (((tl.program_id(1) * maps + m) * out_h + y) * out_w + x) * 2
            tl.store(target, gx, mask=live)
            tl.store(target + 1, gy, mask=live)
        if ROWS == 3:
            u, v = (px + 0.5) / (0.5 * width) - 1, (py + 0.5) / (0.5 * height) - 1
            safe = away_from_zero(w)
            gx, gy = gx / safe, gy / safe
            gw = tl.where(safe == w, -(gx * u + gy * v), 0.0)
            s6, s7, s8 = s6 + gw * xn, s7 + gw * yn, s8 + gw
        s0, s1, s2 = s0 + gx * xn, s1 + gx * yn, s2 + gx
        s3, s4, s5 = s3 + gy * xn, s4 + gy * yn, s5 + gy
    if ROWS != GRID:
        good = usable(at, t0, t1, ROWS)
        row = out + ((m * groups + group) * tl.num_programs(1) + tl.program_id(1)) * (3 * ROWS)
        sums = (s0, s1, s2, s3, s4, s5, s6, s7, s8)
        for i in tl.static_range(3 * ROWS):
            tl.store(row + i, tl.where(good, tl.sum(sums[i], 0), 0.0))


@triton.jit
def _slopes(
        grad, offset, image, fill, first, end, g_c, i_c, i_y, i_x, x0, y0, fx, fy, width, height, live,
        PADDING: tl.constexpr, FILL: tl.constexpr, C: tl.constexpr):
    """Sums over channels of the gradient times the slope along x and along y, by pixel."""
    kink_x, kink_y = fx == 0, fy == 0
    passes = 1 + tl.max(((kink_x | kink_y) & live).to(tl.int32), 0)
    gx, gy = tl.zeros([x0.shape[0], C], tl.float32), tl.zeros([x0.shape[0], C], tl.float32)
    for side in range(passes):
        back_x, back_y = (side > 0) & kink_x, (side > 0) & kink_y  # what lies on a pixel is at the end of the way to it
        left, right = x0 - back_x.to(tl.int32), x0 + 1 - back_x.to(tl.int32)
        above, below = y0 - back_y.to(tl.int32), y0 + 1 - back_y.to(tl.int32)
        wx, wy = tl.where(back_x, 1.0, fx)[:, None], tl.where(back_y, 1.0, fy)[:, None]
        left, has_left = tap(left, width, PADDING)
        right, has_right = tap(right, width, PADDING)
        above, has_above = tap(above, height, PADDING)
        below, has_below = tap(below, height, PADDING)
        for c in range(first, end, C):
            each = (c + tl.arange(0, C))[None, :]
            present = each < end
            color = tl.load(fill + each, mask=present, other=0.0) if FILL else 0.0
            pixels = image + each * i_c
            g = tl.load(grad + each * g_c + offset[:, None], mask=present, other=0.0).to(tl.float32)
            v00 = read(pixels, above * i_y + left * i_x, has_above & has_left, present, color, PADDING, FILL)
            v01 = read(pixels, above * i_y + right * i_x, has_above & has_right, present, color, PADDING, FILL)
            v10 = read(pixels, below * i_y + left * i_x, has_below & has_left, present, color, PADDING, FILL)
            v11 = read(pixels, below * i_y + right * i_x, has_below & has_right, present, color, PADDING, FILL)
            gx += g * ((v01 - v00) * (1 - wy) + (v11 - v10) * wy)
            gy += g * ((v10 - v00) * (1 - wx) + (v11 - v01) * wx)
    share = tl.where(live, 1.0 / passes, 0.0)
    return tl.sum(gx, 1) * share, tl.sum(gy, 1) * share
