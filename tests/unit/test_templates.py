from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InputError
from shared.templates import paths, render

CONTEXT: dict[str, Any] = {
    "input": {"brief": "dogs", "n": 0, "flag": False, "none": None, "empty": "", "max-words": 5, "tags": ["a", {"b": "c"}]},
    "steps": {
        "plan": {"output": {"questions": ["who?", "why?"]}},
        "debate/judge": {"output": "yes"},
        "research": {"output": [[1, 2], [3]]},
    },
    "item": {"x": 1},
}
names = st.from_regex(r"[A-Za-z0-9_-]{1,6}(/[A-Za-z0-9_-]{1,6}){0,2}", fullmatch=True)
parts = st.tuples(names, st.lists(names | st.integers(0, 999_999), max_size=4)).map(lambda path: (path[0], *path[1]))
plain = st.text().filter(lambda text: "{" not in text and "}" not in text)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.just("{{ input.secret }}"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def written(path: tuple[str | int, ...]) -> str:
    first, *rest = path
    return str(first) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)


def context_with(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The smallest mapping in which `path` leads to `value`."""
    for part in reversed(path):
        value = {part: value}
    return dict(value)


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ input.brief }}", "dogs"),
        ("{{input.brief}}", "dogs"),
        ("{{ input.n }}", 0),
        ("{{ input.flag }}", False),
        ("{{ input.none }}", None),
        ("{{ input.empty }}", ""),
        ("{{ input.max-words }}", 5),
        ("{{ input.tags[1].b }}", "c"),
        ("{{ steps.plan.output.questions }}", ["who?", "why?"]),
        ("{{ steps.plan.output.questions[1] }}", "why?"),
        ("{{ steps.debate/judge.output }}", "yes"),
        ("{{ steps.research.output[0][1] }}", 2),
        (
            "About {{ input.brief }}: {{ input.n }}, {{ input.flag }}, {{ input.none }}{{ input.empty }}.",
            "About dogs: 0, false, null.",
        ),
        (" {{ input.brief }}", " dogs"),
        ("{{ item }}!", '{\n  "x": 1\n}!'),
        ("no place", "no place"),
        ("{ } }} { {", "{ } }} { {"),
        ("{{ input.brief }}}", "dogs}"),
        (7, 7),
        (None, None),
    ],
)
def test_a_place_becomes_its_value(template: Any, value: Any) -> None:
    rendered = render(template, CONTEXT)
    assert (rendered, type(rendered)) == (value, type(value))


def test_places_are_found_at_every_depth_and_keys_are_left_alone() -> None:
    template = {"a": ["{{ input.n }}", ("{{ input.brief }}",)], "{{ input.n }}": {"b": "x {{ item.x }}"}, "c": 1.5}
    assert render(template, CONTEXT) == {"a": [0, ["dogs"]], "{{ input.n }}": {"b": "x 1"}, "c": 1.5}
    assert list(paths(template)) == [("input", "n"), ("input", "brief"), ("item", "x")]


def test_the_template_is_not_changed() -> None:
    template = {"a": ["{{ input.n }}"]}
    render(template, CONTEXT)
    assert template == {"a": ["{{ input.n }}"]}


@pytest.mark.parametrize(
    "template",
    [
        "{{ input.missing }}",
        "{{ missing }}",
        "x {{ input.tags[9] }}",
        "{{ input.brief.length }}",
        "{{ input[0] }}",
        "{{ input.tags.0 }}",
        "{{ input.none.x }}",
    ],
)
def test_a_place_without_a_value_is_an_error_that_names_the_path(template: str) -> None:
    [path] = paths(template)
    with pytest.raises(InputError) as caught:
        render(template, CONTEXT)
    assert f"{{{{ {written(path)} }}}} has no value" in str(caught.value)
    assert "dogs" not in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ }}",
        "{{",
        "{{\n",
        "text {{ input.brief",
        "{{ input.brief }",
        "{{ input..brief }}",
        "{{ .brief }}",
        "{{ input.brief. }}",
        "{{ input['brief'] }}",
        "{{ input.tags[-1] }}",
        "{{ input.tags[1234567] }}",
        "{{ input.n + 1 }}",
        "{{ input.brief | upper }}",
        "{{ len(input) }}",
        "{{ a {{ input.brief }}",
        "{{{ input.brief }}}",
        "{{ input.brief }} {{ }}",
        "{{ /plan }}",
        "{{ input /plan }}",
    ],
)
def test_braces_that_hold_no_path_are_refused_when_checked_and_when_rendered(template: str) -> None:
    with pytest.raises(InputError, match="is not a look-up"):
        list(paths({"deep": [template]}))
    with pytest.raises(InputError, match="is not a look-up"):
        render({"deep": [template]}, CONTEXT)


@given(parts, json_values)
def test_a_string_that_is_one_place_becomes_the_value_itself(path: tuple[str | int, ...], value: Any) -> None:
    assert render(f"{{{{ {written(path)} }}}}", context_with(path, value)) == value


@given(parts, st.text(), plain, plain)
def test_looked_up_text_is_never_evaluated_again(path: tuple[str | int, ...], text: str, before: str, after: str) -> None:
    for data in (text, f"{{{{ {written(path)} }}}}", "{{ secret }}", "{{ not a path"):
        rendered = render(f"{before}|{{{{ {written(path)} }}}}|{after}", {"secret": "evaluated", **context_with(path, data)})
        assert rendered == f"{before}|{data}|{after}"


@given(st.lists(parts, max_size=4), plain)
def test_paths_finds_what_render_looks_up(looked_up: list[tuple[str | int, ...]], between: str) -> None:
    template = between.join(f"{{{{ {written(path)} }}}}" for path in looked_up)
    assert list(paths(template)) == looked_up


class _Recorder(dict[str, Any]):
    """A value in which every path exists, and which notes the paths that were looked up."""

    def __init__(self, log: list[tuple[str | int, ...]], path: tuple[str | int, ...] = ()) -> None:
        super().__init__()
        self._log = log
        self._path = path

    def __getitem__(self, part: Any) -> "_Recorder":
        path = (*self._path, part)
        # A longer path replaces the shorter one that led to it.
        if self._log and self._path and self._log[-1] == self._path:
            self._log.pop()
        self._log.append(path)
        return _Recorder(self._log, path)


@given(st.text(alphabet="{} a.b[0]/-\n") | st.text())
def test_render_accepts_just_what_paths_accepts_and_looks_up_the_same(template: str) -> None:
    looked_up: list[tuple[str | int, ...]] = []
    try:
        expected = list(paths(template))
    except InputError:
        with pytest.raises(InputError, match="is not a look-up"):
            render(template, _Recorder(looked_up))
    else:
        render(template, _Recorder(looked_up))
        assert looked_up == expected
