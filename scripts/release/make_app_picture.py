#!/usr/bin/env python
"""Take docs/app.png anew, the page of `timm-stn app`: `python scripts/release/make_app_picture.py`.

Needs `pip install "timm-stn[app]" selenium`, and Debian's packages chromium and chromium-driver.
"""
import argparse
import time
from io import BytesIO
from pathlib import Path

from app_browser import app, browser, missing, move, result, until
from PIL import Image

from timm_stn.whole_file import place_of_file, write_whole

PICTURE = Path(__file__).resolve().parents[2] / 'docs' / 'app.png'
WIDTH, HEIGHT = 1280, 860
DIGIT, SLIDERS = 9, dict(turn=55, scale=0.85, right=0.08)  # which example, and how it is distorted
COLORS = 128


def picture() -> Image.Image:
    """The page with a distorted digit."""
    with app() as running, browser() as driver:
        driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(
            width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False))
        driver.get(running.url)
        shown = until(lambda: result(driver), 'the first answer')
        driver.find_elements('css selector', '#examples button')[DIGIT].click()
        shown = until(lambda: (now := result(driver)) != shown and now, 'another digit')
        for slider, value in SLIDERS.items():
            move(driver, slider, value)
            shown = until(lambda before=shown: (now := result(driver)) != before and now, f'the answer after {slider}')
        time.sleep(0.5)  # bars and buttons move to their places
        return Image.open(BytesIO(driver.get_screenshot_as_png())).convert('RGB')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Take the picture of the page.')
    parser.add_argument('--output', type=place_of_file, default=str(PICTURE), help='(default: %(default)s)')
    args = parser.parse_args(argv)
    if missing():
        raise SystemExit(f'not installed: {missing()}')
    small = picture().quantize(COLORS, dither=Image.Dither.NONE)
    write_whole(args.output, lambda path: small.save(path, format='PNG', optimize=True))
    print(f'{args.output}: {args.output.stat().st_size:,} bytes')


if __name__ == '__main__':
    main()
