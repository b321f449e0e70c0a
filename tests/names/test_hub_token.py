"""Tokens that can be sent, and those that cannot."""
import pytest
from huggingface_hub import constants

from timm_stn.names.hub_token import token_fault


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    for name in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
    return tmp_path / 'token'


BAD = ['hf_ümlaut', 'hf_a b', 'hf_\ta', 'hf_\x7f', 'hf_\udcff']


def test_what_is_well(monkeypatch, nobody):
    assert token_fault() is None and token_fault('hf_abc') is None
    for text in ('hf_abc', 'hf_abc\n', ' hf_abc\r\n', ' \n'):  # the client strips these
        monkeypatch.setenv('HF_TOKEN', text)
        assert token_fault() is None
    monkeypatch.delenv('HF_TOKEN')
    nobody.write_text('hf_abc\n')
    assert token_fault() is None


@pytest.mark.parametrize('token', [*BAD, '', 'hf_a\nb'])
def test_what_is_given(token):
    fault = token_fault(token)
    assert fault.startswith('token must be one word of ASCII') and (not token or token not in fault)


@pytest.mark.parametrize('name', ['HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'])
@pytest.mark.parametrize('token', BAD)
def test_what_is_in_the_environment(monkeypatch, token, name):
    monkeypatch.setenv(name, token)
    assert token_fault().startswith(f'{name} must be one word of ASCII') and 'hf_' not in token_fault()


@pytest.mark.parametrize('content', ['hf_ümlaut'.encode(), 'hf_ümlaut'.encode('latin-1'), b'hf_a b'])
def test_what_is_in_the_file(nobody, content):
    nobody.write_bytes(content)
    assert f'in {nobody} must be one word of ASCII' in token_fault()
