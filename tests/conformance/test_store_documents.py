"""What the state promises of documents, of every way to reach it."""

import asyncio
from datetime import datetime

import pytest

from shared.clock import ManualClock
from shared.errors import NotFound
from shared.state import WorkflowStore, document
from shared.state.documents import MAX_BYTES

from .conftest import START

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_document_is_kept_replaced_and_forgotten(store: WorkflowStore, clock: ManualClock) -> None:
    note = document("notes.md", "The ferry was late.\r\n\r\nÆøå.".encode())
    assert await store.put_document(note) == "added"
    (kept,) = await store.list_documents()
    assert datetime.fromisoformat(kept.pop("added_at")) == START
    assert kept == {"name": "notes.md", "sha256": note.sha256, "size_bytes": 28, "passages": 1}
    await clock.advance(60)
    assert await store.put_document(document("notes.md", "The ferry was late.\n\nÆøå.".encode())) == "unchanged"
    assert datetime.fromisoformat((await store.list_documents())[0]["added_at"]) == START
    assert await store.put_document(document("notes.md", b"It sailed on time.")) == "replaced"
    assert await store.search_documents("ferry") == []
    assert [hit["text"] for hit in await store.search_documents("sailed")] == ["It sailed on time."]
    await store.remove_document("notes.md")
    assert (await store.list_documents(), await store.search_documents("sailed")) == ([], [])
    with pytest.raises(NotFound, match=r"notes\.md"):
        await store.remove_document("notes.md")


async def test_what_many_put_under_one_name_at_once_is_one_of_them_whole(store: WorkflowStore) -> None:
    texts = [f"from {n}. ".encode() * 1000 for n in range(6)]
    await asyncio.gather(*(store.put_document(document("same", text)) for text in texts))
    (kept,) = await store.list_documents()
    hits = await store.search_documents("from", 50)
    assert len(hits) == kept["passages"] == len(document("same", texts[0]).passages)
    assert "".join(hit["text"] for hit in sorted(hits, key=lambda hit: hit["position"])).encode() in texts


async def test_a_search_finds_passages_with_all_words_best_first_else_with_any(store: WorkflowStore) -> None:
    texts = {
        "a": "the ferry to Oban",
        "b": "the Oban ferry, a late ferry",
        "c": "the tea in the garden of the house",
        "d": "ÄRGER, naïve",
    }
    for name, text in texts.items():
        await store.put_document(document(name, text.encode()))

    async def found(query: str, limit: int = 10) -> list[str]:
        return [hit["document"] for hit in await store.search_documents(query, limit)]

    assert await store.search_documents("late ferry") == [{"document": "b", "position": 1, "text": texts["b"]}]
    assert await found("ferry") == ["b", "a"]
    assert await found("ferry", 1) == ["b"]
    assert await found("ferry", 0) == await found("ferry", -3) == []
    assert await found('"oban ferry"') == ["b"]
    assert await found("ferry -late") == ["a"]
    assert await found("tea or late") == ["b", "c"]
    # In decomposed letters, and of another case.
    assert await found("nai\u0308ve") == await found("ärger") == ["d"]
    # No passage has all of these; the rare words count for more than "the".
    assert await found("why was the tea late") == ["c", "b", "a"]
    assert await found("the garden zebra") == ["c", "a", "b"]
    # What is far behind is not asked for.
    assert await found("ferry" + " " * 1000 + "-late") == ["b", "a"]
    # Who excludes a word means it.
    assert await found("zebra ferry -late") == []
    for nothing in ("", "   ", "-", '"', "\0", "\ud800", "& | ! ( ) :* <-> \\", "%_';--", "zebra", "x" * 100_000):
        assert await found(nothing) == [], nothing


async def test_a_rare_word_counts_for_more_than_several_common_ones(store: WorkflowStore) -> None:
    for name in range(30):
        await store.put_document(document(f"common {name}", b"it is what it was and that is it"))
    await store.put_document(document("rare", b"gangway"))
    hits = await store.search_documents("what is that gangway")
    assert [hit["document"] for hit in hits[:2]] == ["rare", "common 0"]


async def test_a_search_gives_no_more_than_fifty(store: WorkflowStore) -> None:
    for name in range(60):
        await store.put_document(document(str(name), b"ferry"))
    assert [len(await store.search_documents(query, 1000)) for query in ("ferry", "ferry zebra")] == [50, 50]
    assert len(await store.search_documents("ferry")) == 10


async def test_the_largest_document_is_kept_whole(store: WorkflowStore) -> None:
    text = ("Wörter und wieder Wörter. " * 400_000).encode()[:MAX_BYTES]
    large = document("large", text.decode(errors="ignore").encode())
    assert await store.put_document(large) == "added"
    (kept,) = await store.list_documents()
    assert (kept["size_bytes"], kept["passages"]) == (len(text.decode(errors="ignore").encode()), len(large.passages))
