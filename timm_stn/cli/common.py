"""What commands share: errors for the user, and checks of arguments."""
import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

__all__ = ['Refused', 'attempt', 'check_output', 'positive']


class Refused(Exception):
    """What the user asked for cannot be done; the message is for the user."""


def attempt(argument: str, run: Callable[..., Any], *values: Any, hint: str = '') -> Any:
    """What others raise on the user's values, in one line: timm, torch and the Hub have errors of many types."""
    try:
        return run(*values)
    except Exception as error:
        raise Refused(f'argument {argument}: {type(error).__name__}: {error} {hint}'.rstrip()) from error


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'takes a positive integer, got {text!r}')
    return int(text)


def check_output(path: str) -> None:
    if Image.registered_extensions().get(Path(path).suffix.lower()) is None:
        raise Refused(f'argument --output: takes the name of a picture, as look.png, got {path!r}')
