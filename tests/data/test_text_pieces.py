from __future__ import annotations

import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from minimind.data.text_pieces import split_text

TEXTS = st.text(alphabet="ab 1,.\n\t'中\u3000é", max_size=200)


@given(text=st.text(max_size=300), max_chars=st.integers(8, 50))
def test_pieces_make_up_the_text(text: str, max_chars: int) -> None:
    pieces = split_text(text, max_chars)
    assert "".join(pieces) == text
    assert all(len(piece) <= max_chars for piece in pieces)
    assert all(pieces) or not text


@given(text=TEXTS)
def test_a_cut_before_white_space_changes_no_word(text: str) -> None:
    """Words are what byte-level BPE merges within."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def words(part: str) -> list[str]:
        return [word for word, _ in splitter.pre_tokenize_str(part)]

    pieces = split_text(text, 24)
    cut_at_space = all(piece[0].isspace() for piece in pieces[1:])
    if cut_at_space:
        assert [word for piece in pieces for word in words(piece)] == words(text)


def test_the_pattern_is_that_of_the_installed_package() -> None:
    words = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("ab  cd\n\nef")
    assert tokenizers.__version__
    assert [span for _, span in words] == [(0, 2), (2, 3), (3, 6), (6, 7), (7, 8), (8, 10)]
