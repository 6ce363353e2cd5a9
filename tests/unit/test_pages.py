"""What is left of a web page."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ai.tools.pages import text_of

PAGE = """<!DOCTYPE html><html><head><title>Ferries &amp; tides</title><STYLE>p > b {color: red}</STYLE>
<script>if (a < b) document.write("</p><b>hidden</b>")</script ></head><body class="a">
<!-- a > comment --><h1>The
  ferry</h1><p>was <b>very</b>&nbsp;late &lt;again&gt; &#8212; 5 < 6 &unknown; &#99999999999;</p><ul><li>one<li>two</ul>
<table><tr><td>a</td><td>b</td></tr></table><svg><text>drawn</text></svg><noscript>no</noscript><br>end"""


def test_a_page_is_read_as_a_person_reads_it() -> None:
    assert text_of(PAGE).splitlines() == [
        "Ferries & tides",
        "The ferry",
        "was very late <again> — 5 < 6 &unknown; \ufffd",
        "one",
        "two",
        "a b",
        "end",
    ]


@pytest.mark.parametrize("page", ["<script>never closed", "<!-- never closed", "<p never closed", "</p never closed", "<?php x"])
def test_what_is_never_closed_hides_the_rest(page: str) -> None:
    assert text_of(f"seen{page}") == "seen"


@pytest.mark.parametrize(
    "piece",
    ["<", "<a ", "<a b='", "<!--", "<![CDATA[", "<!x", "<?", "</", "</x ", "&", "&#", "&#1", "&amp", "<b>", "<b><i></b>",
     "<script>", "<script></", "<script></script", "<script></script>", "<style><script>", "\n", "<p>\n", "< "],
)  # fmt: skip
def test_a_megabyte_of_anything_is_read_in_a_moment(piece: str) -> None:
    page = (piece * 1_000_000)[:1_000_000]
    begun = time.process_time()
    text_of(page)
    assert time.process_time() - begun < 5, "an eighth of this would do; what is quadratic takes hours"


@given(st.text("<>/!-ab &#;x\n\"'=", max_size=60) | st.text(max_size=60))
def test_any_text_is_a_page(page: str) -> None:
    assert text_of(page) == "\n".join(" ".join(line.split()) for line in text_of(page).splitlines() if line.split())
