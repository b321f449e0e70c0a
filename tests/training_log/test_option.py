"""`--stn-log N` is taken out of a script's arguments, and all else is left."""
import pytest

from timm_stn.training_log.option import take_option


@pytest.mark.parametrize(('args', 'every', 'own'), [
    ([], None, []),
    (['--lr', '1', '--stn-log', '50', 'data'], 50, ['--lr', '1', 'data']),
    (['--stn-log=7', '-b', '-1'], 7, ['-b', '-1']),
    (['--stn-log', '5', '--stn-log', '6'], 6, []),
    (['--stn-logs', '5', '--stn', '--', '--stn-log', '6'], None, ['--stn-logs', '5', '--stn', '--', '--stn-log', '6']),
])
def test_it_is_taken_out(args, every, own):
    assert take_option(args) == (every, own)


@pytest.mark.parametrize('given', ['0', '-1', '1.5', 'x', '', '²', None])
def test_other_numbers_are_refused(given):
    with pytest.raises(ValueError, match=r"argument --stn-log: takes a positive integer, .*, got ('.*'|nothing)$"):
        take_option(['--stn-log'] if given is None else ['--stn-log', given])
