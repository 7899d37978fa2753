"""The size of regular expressions with their repetitions."""

import pytest

from decoding.text.regex_size import count_unrolled_atoms


@pytest.mark.parametrize(
    ("pattern", "atoms"),
    [
        ("", 0),
        ("abc", 3),
        ("a|b", 2),
        ("a{3}b", 4),
        ("a{2,5}", 5),
        ("a{3,}", 3),
        ("a{0}", 1),
        ("(ab){10}", 20),
        ("((a{9}){9}){9}", 729),
        ("((a{999}){999}){999}", 999**3),
        ("((a{ 999 }){999 , }){2,  999}", 999**3),
        ("((a{0000000999}){0000000999}){0000000999}", 999**3),
        ("(?x)(a{9 9 9}){9 9 9}", 999**2 + 1),
        (f"a{{{'9' * 5000}}}", 9_999_999_999),
        (r"\{3}", 3),
        (r"\p{L}{3}", 3),
        (r"\p{L" + 100 * "a" + "}", 104),
        (r"\d{4}-\d{2}", 7),
        ("[a-z{9}]{3}", 3),
        (r"[\]a]{3}", 3),
        ("[[ab]&&[b]]{3}", 3),
        ("a{3", 3),
        ("(a", 1),
        ("a)", 2),
    ],
)
def test_repetitions_are_unrolled(pattern: str, atoms: int) -> None:
    assert count_unrolled_atoms(pattern) == atoms
