#!/usr/bin/env python
"""Draw docs/demo.png anew, the picture that `timm-stn demo` makes: `python scripts/release/make_demo_picture.py`.

Its PNG text chunk `made from` has the SHA-256 of the weights and of the digits. A test compares both with the files of
the checkout, and the picture with one that it draws.
"""
import argparse
import hashlib
import json
from pathlib import Path

import timm
from PIL import Image, PngImagePlugin

import timm_stn  # noqa: F401
from timm_stn.cli.digits import DEMO, EXAMPLES, draw_digits, read_sheet
from timm_stn.names.weights import WEIGHTS
from timm_stn.names.zoo import card_folder
from timm_stn.whole_file import place_of_file, write_whole

PICTURE = Path(__file__).resolve().parents[2] / 'docs' / 'demo.png'
COUNT = 12  # digits


def draw() -> Image.Image:
    images, labels = read_sheet(card_folder(DEMO) / EXAMPLES)
    return draw_digits(timm.create_model(DEMO, pretrained=True).eval(), images[:COUNT], labels[:COUNT])[0]


def made_from() -> dict[str, str]:
    """SHA-256 by name of the files that the picture depends on."""
    return {name: hashlib.sha256((card_folder(DEMO) / name).read_bytes()).hexdigest() for name in (WEIGHTS, EXAMPLES)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Draw the picture of the README.')
    parser.add_argument('--output', type=place_of_file, default=str(PICTURE), help='(default: %(default)s)')
    args = parser.parse_args(argv)
    info = PngImagePlugin.PngInfo()
    info.add_text('made from', json.dumps(made_from()))
    picture = draw()
    write_whole(args.output, lambda path: picture.save(path, format='PNG', optimize=True, pnginfo=info))
    print(f'{args.output}: {args.output.stat().st_size:,} bytes')


if __name__ == '__main__':
    main()
