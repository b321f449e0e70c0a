"""What strangers' names and messages become before they are shown."""
from timm_stn.names.brief import listed, short


def test_what_is_short_stays_as_it_is():
    assert short('a' * 2000) == 'a' * 2000 and short(RuntimeError('why')) == 'why'
    assert listed([]) == '[]' and listed(['a', "b'"]) == repr(['a', "b'"])


def test_what_is_long_says_how_long_it_is():
    assert short('a' * 12345, 10) == 'aaaaaaaaaa ... (12,345 characters)'
    assert short(short('a' * 12345)) == short('a' * 12345)
    names = [f'x{i}' * 1000 for i in range(100_000)]
    assert listed(names).endswith("(2,000 characters)', and 99,992 more]") and len(listed(names)) < 2000
