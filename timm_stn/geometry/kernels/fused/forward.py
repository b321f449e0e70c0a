"""The fused warp: matrix and image to the warped image, in one pass, with no grid in memory.

A program makes one tile of one output, for a share of the channels. Positions, four offsets and four weights stay in
registers for all channels; of the image, a pixel is read by each tile that needs it, mostly from the cache: tiles are
16 or 32 pixels wide, so that also a turned one reads whole sectors. The output is written once.
"""
import triton
import triton.language as tl

from .coordinates import SIZES, pixel_of, position, read, source, tap

__all__ = ['warp_forward']


@triton.jit(do_not_specialize=SIZES)
def warp_forward(
        image, theta, fill, out, channels, height, width, out_h, out_w, glimpses, tiles, share,
        to_x, to_y, scale_x, scale_y, i_n, i_c, i_y, i_x, t_m, t0, t1, t2, o_m, o_c, o_y, o_x,
        ROWS: tl.constexpr, PADDING: tl.constexpr, FILL: tl.constexpr,
        T_H: tl.constexpr, T_W: tl.constexpr, C: tl.constexpr):
    m = tl.program_id(0) // tiles
    source_of = image + (m // glimpses).to(tl.int64) * i_n
    m = m.to(tl.int64)
    y, x, live = pixel_of(tl.program_id(0) % tiles, out_h, out_w, T_H, T_W)
    px, py, _, _, _ = source(
        theta + m * t_m, t0, t1, t2, x, y, width, height, to_x, to_y, scale_x, scale_y, ROWS)
    x0, fx = position(px, width, PADDING)
    y0, fy = position(py, height, PADDING)
    left, has_left = tap(x0, width, PADDING)
    right, has_right = tap(x0 + 1, width, PADDING)
    above, has_above = tap(y0, height, PADDING)
    below, has_below = tap(y0 + 1, height, PADDING)
    exact = ((fx == 0) & (fy == 0))[:, None]
    fx, fy = fx[:, None], fy[:, None]
    target = out + m * o_m + (y * o_y + x * o_x)[:, None]
    first = tl.program_id(1) * share
    for c in range(first, tl.minimum(first + share, channels), C):
        each = (c + tl.arange(0, C))[None, :]
        present = each < channels
        color = tl.load(fill + each, mask=present, other=0.0) if FILL else 0.0
        pixels = source_of + each * i_c
        v00 = read(pixels, above * i_y + left * i_x, has_above & has_left, present, color, PADDING, FILL)
        v01 = read(pixels, above * i_y + right * i_x, has_above & has_right, present, color, PADDING, FILL)
        v10 = read(pixels, below * i_y + left * i_x, has_below & has_left, present, color, PADDING, FILL)
        v11 = read(pixels, below * i_y + right * i_x, has_below & has_right, present, color, PADDING, FILL)
        value = (v00 * (1 - fx) + v01 * fx) * (1 - fy) + (v10 * (1 - fx) + v11 * fx) * fy
        value = tl.where(exact, v00, value)
        tl.store(target + each * o_c, value.to(out.dtype.element_ty), mask=live[:, None] & present)
