"""Turns errors of the Hub's client, the network and the disk into one error that says what to do."""
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import gettempdir

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError

from ..names.brief import short
from . import silence

__all__ = ['PushError', 'explained', 'hint']

EXPLAINED: tuple[type[Exception], ...] = (  # the last: errors of the HTTP library
    HFValidationError, OSError, RuntimeError, SafetensorError, *HfHubHTTPError.__bases__)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
AGAIN = 'The repository is unchanged, unless only the reply was lost: push again'
TOKENS = 'https://huggingface.co/settings/tokens'


class PushError(RuntimeError):
    """The Hub refused the push, was not reached, or holds other files than sent; the message says what to do."""


@contextmanager
def explained(repo: str, token: str | None) -> Iterator[None]:
    """Raise errors of client, network and disk as a PushError that says what to do; tokens never appear in it."""
    try:
        yield
    except PushError:
        raise
    except EXPLAINED as error:
        text = hint(error, repo)
        for secret in filter(None, (token, get_token())):
            text = text.replace(secret, '<token>')
        raise PushError(f'push to {repo}: {text}') from error


def hint(error: BaseException, repo: str) -> str:
    """The cause of an error in a push, and what to do."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # the client's upload threads wrap errors
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        return _hint_of_status(error, repo)
    said = short(' '.join(str(error).split()).rstrip('.'))
    if isinstance(error, RuntimeError):
        return said
    if isinstance(error, HFValidationError):
        return f'repo must be ORG/NAME, got {repo!r}: {said}'
    if isinstance(error, LocalTokenNotFoundError):
        return f'no token: log in with `hf auth login`, or set HF_TOKEN; {TOKENS}'
    if isinstance(error, OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set, so nothing was sent: unset it'
    if getattr(error, 'errno', None) in DISK_FULL or 'os error 28' in said or 'os error 27' in said:
        return f'no room on the disk: free some in {gettempdir()}, or set TMPDIR to another folder ({said})'
    if 'Timeout' in type(error).__name__:  # of the HTTP library
        return f'the Hub has said nothing for {silence.SILENCE:g} s, which ends the push ({said}). {AGAIN} later.'
    return f'{type(error).__name__}: {said}. {AGAIN}; files that have arrived are not sent twice.'


def _hint_of_status(error: HfHubHTTPError, repo: str) -> str:
    status = error.response.status_code
    url = f'{HfApi().endpoint}/{repo}'
    said = short(' '.join((error.server_message or str(error)).split()))
    if isinstance(error, GatedRepoError):
        return f'the repository is gated: accept its conditions at {url} with the account of your token ({said})'
    if status == 401:
        known = 'authorization' in error.response.request.headers
        who = 'the Hub does not know your token' if known else 'you are not logged in'
        return f'{who}: log in with `hf auth login`, or set HF_TOKEN to a token that may write; {TOKENS} ({said})'
    if isinstance(error, RepositoryNotFoundError):
        return f'there is no such repository, or your token may not see it: {url} ({said})'
    if status == 403:
        space = repo.partition('/')[0]
        return f'your token may not write to {space!r}: make one that may at {TOKENS}, or name another ORG ({said})'
    if status in (409, 412):
        return f'somebody else has pushed meanwhile, and this was not committed: see {url}, and push again ({said})'
    if status == 429 or status >= 500:
        return f'the Hub is out of order (status {status}: {said}). {AGAIN} later.'
    return f'the Hub refused it (status {status}): {said}'
