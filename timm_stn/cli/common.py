"""Shared by all commands: errors for the user, and checks of arguments."""
import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..names.brief import short
from ..names.hub_token import token_fault
from ..view.draw import picture_format
from ..whole_file import check_place

__all__ = ['Refused', 'attempt', 'check_output', 'positive', 'quiet_argument', 'refusal']


class Refused(Exception):
    """The command cannot do what the user asked for; the message is for the user."""


def attempt(argument: str, run: Callable[..., Any], *values: Any, hint: str = '') -> Any:
    """`run(*values)`, with any error (timm, torch and the Hub raise many types) as a one-line :class:`Refused`."""
    try:
        return run(*values)
    except Exception as error:
        raise refusal(argument, error, hint) from error


def refusal(argument: str, error: Exception, hint: str = '') -> Refused:
    fault = token_fault() if isinstance(error, UnicodeEncodeError) else None  # timm has asked the Hub
    text = fault or f'{type(error).__name__}: {short(error)}'.rstrip().rstrip(':')
    if hint and not fault:
        text += f' {hint}' if text.endswith(('.', '?', '!')) else f'. {hint}'
    return Refused(f'argument {argument}: {text}')


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'takes a positive integer, got {text!r}')
    return int(text)


def quiet_argument(add: Callable[..., Any]) -> None:
    add('--quiet', action='store_true', help='no progress bars (where stderr is no terminal, there are none anyway)')


def check_output(path: str) -> None:
    """Refuse the name of a picture that could not be written, before there is anything to draw."""
    try:
        picture_format(Path(path))
        check_place(Path(path))
    except ValueError as error:
        raise Refused(f'argument --output: takes the name of a picture, as look.png, got {path!r}') from error
    except OSError as error:
        raise Refused(f'argument --output: cannot write {path!r}: {error.strerror or error}') from error
