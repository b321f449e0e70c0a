"""How a command of this package ends that is stopped: by Ctrl-C, also while it is still loading, or by a closed pipe.

Programs that import the package as a library are left as they are. Python's own library only.
"""
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

__all__ = ['ends_quietly']

STOPPED = b'timm-stn: interrupted\n'
INTERRUPTED, CLOSED = 130, 141  # exit statuses as shells have them: 128 + the number of SIGINT, of SIGPIPE


@contextmanager
def ends_quietly() -> Iterator[None]:
    """A command runs within. It exits with 130 after Ctrl-C, and with 141 where nobody reads its output to the end.

    After Ctrl-C there is one line on stderr, and no traceback. Child processes end as at any exit.
    """
    try:
        with _interruptible():
            yield
    except BrokenPipeError:
        if not _is_unread():  # another pipe than stdout
            raise
        _leave_stdout()
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _leave_stdout()


def _is_unread() -> bool:
    """Whether whoever read stdout has left."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))  # errors alone: no other event is asked for


def _leave_stdout() -> NoReturn:
    """What is still to be written to stdout goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(CLOSED) from None


@contextmanager
def _interruptible() -> Iterator[None]:
    """KeyboardInterrupt is raised within as ever. Afterwards the process exits with 130.

    It does even where a script takes the interrupt for its regular end, as timm's train.py does, so that a shell goes
    no further (``timm-stn train ... && timm-stn push ...``).
    """
    if signal.getsignal(signal.SIGINT) is not _leave:  # no command, or one that ignores Ctrl-C, as under nohup
        yield
        return
    times: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        times.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except BaseException as error:
        if not times and not isinstance(error, KeyboardInterrupt):
            raise
        if not isinstance(error, (KeyboardInterrupt, SystemExit)):  # as of a worker that was interrupted first
            print(f'{type(error).__name__}: {error}', file=sys.stderr)
        _end_interrupted()
    finally:
        signal.signal(signal.SIGINT, _leave)
    if times:
        _end_interrupted()


def _end_interrupted() -> NoReturn:
    if os.environ.get('RANK', '0') == '0':  # once in a distributed run
        with suppress(OSError):  # stderr may be closed
            os.write(2, STOPPED)
    raise SystemExit(INTERRUPTED) from None


def _leave(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, STOPPED)
    os._exit(INTERRUPTED)


def _is_command() -> bool:
    """This process is `timm-stn` or `python -m timm_stn...`, and has run nothing else so far."""
    first, *_ = [*sys.argv, '']
    if first == '-m':  # Python still looks for the module
        return sys.orig_argv[-len(sys.argv)].removeprefix('-m').partition('.')[0] == __package__
    return Path(first).stem == 'timm-stn'


if (_is_command() and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
    signal.signal(signal.SIGINT, _leave)  # while it loads: it has no children yet, and nothing to lose
