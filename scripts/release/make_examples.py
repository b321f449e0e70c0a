#!/usr/bin/env python
"""Write the sheet of held-out digits that `timm-stn demo` shows without MNIST.

    python scripts/release/make_examples.py --data DIR

The sheet has the first digits of `timm_stn.data.test_set`, not the best ones, in rows; the PNG's text chunk `labels`
has their classes, one character each.
"""
import argparse
from pathlib import Path

from PIL import Image, PngImagePlugin
from torch import Tensor

from timm_stn.data import DISTORTIONS, test_set
from timm_stn.names.zoo import card_folder
from timm_stn.whole_file import write_whole


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Write a sheet of distorted held-out digits.')
    add = parser.add_argument
    add('--data', help='folder with MNIST (default: the environment variable TIMM_STN_DATA)')
    add('--set', default='RTS', choices=list(DISTORTIONS), help='distortion (default: %(default)s)')
    add('--side', type=int, default=8, help='digits in a row and in a column (default: %(default)s)')
    add('--output', type=Path, default=card_folder('stn_mnist_cnn_rts') / 'examples.png', help='(default: %(default)s)')
    return parser.parse_args(argv)


def sheet(images: Tensor, side: int) -> Image.Image:
    """Images (side * side, 1, S, S) in [0, 1] as tiles, row by row."""
    size = images.shape[-1]
    tiles = images.reshape(side, side, size, size).transpose(1, 2).reshape(side * size, side * size)
    return Image.fromarray((tiles * 255).round().byte().numpy())


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    images, labels = test_set(args.set, args.data)
    count = args.side ** 2
    info = PngImagePlugin.PngInfo()
    info.add_text('labels', ''.join(map(str, labels[:count].tolist())))
    picture = sheet(images[:count], args.side)
    write_whole(args.output, lambda path: picture.save(path, format='PNG', optimize=True, pnginfo=info))
    print(f'{count} digits, {args.output.stat().st_size} bytes, in {args.output}')


if __name__ == '__main__':
    main()
