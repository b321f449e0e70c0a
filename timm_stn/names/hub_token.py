"""The Hub's token goes into a header of each request: one that cannot is told before, and never shown."""
import os
import re

from huggingface_hub import constants, get_token

__all__ = ['token_fault']

VARIABLES = ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN')


def token_fault(token: str | None = None) -> str | None:
    """What is wrong with a token, without showing it; None if it can be sent, or if there is none.

    Args:
        token: Default: the token that huggingface_hub finds.
    """
    whose = 'token'
    if token is None:
        given = next((name for name in VARIABLES if os.environ.get(name, '').strip()), None)
        whose = given or f'the token that `hf auth login` has left in {constants.HF_TOKEN_PATH}'
        try:
            token = get_token()
        except UnicodeError:  # a file in another encoding
            token = ''
        if token is None:
            return None
    if re.fullmatch('[!-~]+', token):
        return None
    return f'{whose} must be one word of ASCII characters; what was given is not shown here.'
