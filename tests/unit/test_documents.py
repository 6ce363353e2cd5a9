"""A text becomes a document: what is taken, under which name, and where it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InputError
from shared.state.documents import MAX_BYTES, PASSAGE, document, passages


@given(st.text(st.sampled_from("ab.!? \n\t。é"), max_size=8000))
def test_all_passages_in_a_row_are_the_text(text: str) -> None:
    cut = passages(text)
    assert "".join(cut) == text
    assert all(0 < len(passage) <= PASSAGE for passage in cut) or text == ""
    assert all(len(passage) >= PASSAGE // 3 for passage in cut[:-1]), "a passage says next to nothing"


PARAGRAPH = "Twelve words make one sentence, and this is one of them, too. "


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (PARAGRAPH * 12 + "\n\n" + PARAGRAPH * 30, "too. \n\n"),
        (PARAGRAPH * 60, "too. "),
        ('"Is it?" she said. "It is!" ' * 100, " "),
        ("一つの文です。" * 500, "。"),
        ("word\n" * 1000, "\n"),
        ("word " * 1000, " "),
        ("x" * 4000, "x"),
    ],
    ids=["paragraph", "sentence", "speech", "sentence without spaces", "line", "word", "nowhere"],
)
def test_a_passage_ends_where_the_text_pauses(text: str, end: str) -> None:
    cut = passages(text)
    assert len(cut) > 1
    assert all(passage.endswith(end) for passage in cut[:1])
    assert len(cut) <= len(text) // (PASSAGE // 3) + 1


def test_a_paragraph_s_end_is_preferred_to_a_later_sentence_s() -> None:
    first = PARAGRAPH * 12 + "\n\n"
    assert passages(first + PARAGRAPH * 30)[0] == first


def test_what_looks_the_same_is_the_same() -> None:
    one = document("a", "\ufeffNaïve.\r\nYes.".encode())
    other = document("a", "Nai\u0308ve.\nYes.".encode())
    assert one == other
    assert one.passages == ["Naïve.\nYes."]


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("a.pdf", b"%PDF\0", "not text: it holds NUL bytes"),
        ("a.txt", b"line\n\xff\xfe", "not UTF-8 text: line 2"),
        ("a.txt", b"", "is empty"),
        ("a.txt", "\ufeff \n".encode(), "is empty"),
        ("a.txt", b"x" * (MAX_BYTES + 1), "more than the 5,000,000 bytes"),
        ("", b"text", "cannot be a document's name"),
        (" ", b"text", "cannot be a document's name"),
        ("a\nb", b"text", "cannot be a document's name"),
        ("\ud800", b"text", "cannot be a document's name"),
        ("x" * 201, b"text", "cannot be a document's name"),
    ],
)
def test_what_cannot_be_a_document_is_refused_in_one_line(name: str, data: bytes, part: str) -> None:
    with pytest.raises(InputError, match=part) as raised:
        document(name, data)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_a_document_may_have_five_megabytes() -> None:
    largest = document("a", b"x" * MAX_BYTES)
    assert sum(map(len, largest.passages)) == MAX_BYTES
