"""Quotes are looked for in the text that they are from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.runtime.quoting import holds

TEXT = "[09:02] bot: **media-api** 7.3.0 is live.\nNo `photo` was lost,\n> “clients keep them”. It took 20 to 40 s … or so."


@pytest.mark.parametrize(
    "quote",
    [
        "media-api 7.3.0 is live",
        "MEDIA-API 7.3.0 is live.",
        "is live. No photo was lost, clients keep them",
        '"clients keep them".',
        "No photo … keep them",
        "media-api […] photo was lost",
        "20 to 40 s ... or so",
    ],
)
def test_what_stands_there_is_found_however_it_is_marked(quote: str) -> None:
    assert holds(TEXT, quote)


@pytest.mark.parametrize("quote", ["media-api 7.3.1", "photos were lost", "keep them … No photo", "", " ", "…", "“”", "."])
def test_what_does_not_stand_there_or_in_another_order_is_not(quote: str) -> None:
    assert not holds(TEXT, quote)


@given(st.data())
def test_whatever_is_cut_out_is_found(data: st.DataObject) -> None:
    words = TEXT.split()
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, len(words) - 1))
    cut = " ".join(words[first : last + 1])
    assert holds(TEXT, cut) == any(letter.isalnum() for letter in cut)
