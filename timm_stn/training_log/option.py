"""The option ``--stn-log N``, which is taken out of the arguments of a script."""
from collections.abc import Sequence

__all__ = ['HELP', 'OPTION', 'take_option']

OPTION = '--stn-log'
HELP = """--stn-log N   of timm-stn, not of timm: every N optimizer steps, a line on what the transformers do goes to
              stn_log.jsonl in the folder of the run (and to TensorBoard, and W&B with --log-wandb); now and then a
              picture to stn_log/, for timm-stn show RUN --over-time"""


def take_option(args: Sequence[str]) -> tuple[int | None, list[str]]:
    """The number of optimizer steps between lines, None where it is not asked for, and the script's own arguments.

    Raises:
        ValueError: It is not a positive integer.
    """
    own: list[str] = []
    every = None
    left = iter(args)
    for arg in left:
        name, equals, value = arg.partition('=')
        if arg == '--':
            own += [arg, *left]
        elif name == OPTION:
            every = _positive(value if equals else next(left, None))
        else:
            own.append(arg)
    return every, own


def _positive(text: str | None) -> int:
    if text is None or not (text.isascii() and text.isdecimal()) or int(text) < 1:
        got = 'nothing' if text is None else repr(text)
        raise ValueError(f'argument {OPTION}: takes a positive integer, the optimizer steps between lines, got {got}')
    return int(text)
