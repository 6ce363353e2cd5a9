"""Messages of releases: this build reads them, and says everything that they said, so that builds understand each other.

tests/fixtures/envelopes/<release>/<type>.json is what that release wrote, with every field filled in. A release adds its folder;
the folder of the release before stays. A folder may grow until its release is out, and is never changed after.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from shared.messages import TYPES, Envelope, decode

FOLDER = Path(__file__).parents[1] / "fixtures" / "envelopes"
GOLDEN = sorted(FOLDER.glob("*/*.json"))
NOW = datetime(2026, 11, 25, 13, tzinfo=UTC)


def read(golden: bytes) -> Envelope:
    return decode(golden, now=NOW, max_bytes=524_288)


def lost(before: Any, after: Any, place: str = "") -> list[str]:
    """Where `after` does not say what `before` said. What it says beyond that an earlier build ignores."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [found for key, value in before.items() for found in lost(value, after.get(key, ...), f"{place}.{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            found
            for index, (one, other) in enumerate(zip(before, after, strict=True))
            for found in lost(one, other, f"{place}.{index}")
        ]
    return [] if before == after else [place]


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_message_of_an_earlier_release_is_read_and_loses_nothing_on_the_way_back(file: Path) -> None:
    golden = file.read_bytes()
    assert lost(orjson.loads(golden), orjson.loads(read(golden).encode())) == []


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_message_of_a_later_build_is_read_by_this_one(file: Path) -> None:
    golden = orjson.loads(file.read_bytes())
    assert read(orjson.dumps(with_more(golden))) == read(orjson.dumps(golden))


def test_a_field_that_is_no_longer_said_is_noticed() -> None:
    said = {"a": 1, "b": [{"c": None}], "d": {"e": 2}}
    assert lost(said, said | {"f": 3}) == []
    assert lost(said, {"a": 1, "b": [{}], "d": {"e": 3}}) == [".b.0.c", ".d.e"]


@pytest.mark.parametrize("release", sorted({file.parent for file in GOLDEN}), ids=lambda folder: folder.name)
def test_no_type_of_a_release_is_gone(release: Path) -> None:
    assert {file.stem for file in release.glob("*.json")} <= set(TYPES)


def test_the_newest_release_has_every_type_and_field_of_today() -> None:
    newest = max(GOLDEN, key=lambda file: [int(part) for part in file.parent.name.split(".")]).parent
    for name, model in TYPES.items():
        data = orjson.loads((newest / f"{name}.json").read_bytes())["data"]
        assert set(data) == set(model.model_fields), name
        payload = read((newest / f"{name}.json").read_bytes()).data
        same = [field for field in model.model_fields if getattr(payload, field) == _default(model, field)]
        assert same == [], f"{name}: a field at its default shows nothing"


def _default(model: type[BaseModel], field: str) -> Any:
    info = model.model_fields[field]
    return ... if info.is_required() else info.get_default(call_default_factory=True)


def with_more(golden: dict[str, Any]) -> dict[str, Any]:
    """The message as a later build might write it: another attribute, another field, and one more in what is inside of it."""
    data = golden["data"] | {"later": {"x": 1}}
    if "usage" in data:
        data["usage"] = data["usage"] | {"later": 1}
    return golden | {"later": "1", "data": data}
