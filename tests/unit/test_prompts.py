import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ai import Prompt, load_prompt
from shared.errors import ConfigurationError, InputError

GOOD = """---
version: 2
tier: fast
temperature: 0.5
input:
  type: object
  required: [brief]
  properties: {brief: {type: string, minLength: 1}}
output: {type: object, properties: {title: {type: string}}, required: [title]}
---

Read this:

<untrusted>
{{ input.brief }}
</untrusted>
"""


def write(folder: Path, content: str) -> Path:
    path = folder / "prompt.md"
    path.write_text(content)
    return path


def refusal(folder: Path, content: str) -> str:
    path = write(folder, content)
    with pytest.raises(ConfigurationError) as caught:
        load_prompt(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}:")
    return message.removeprefix(f"{path}:")


def test_a_prompt_file_is_read_whole(tmp_path: Path) -> None:
    prompt = load_prompt(write(tmp_path, GOOD))
    assert (prompt.version, prompt.tier, prompt.temperature) == (2, "fast", 0.5)
    assert prompt.schema == {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    assert prompt.text.startswith("Read this:\n")
    assert prompt.fingerprint == hashlib.sha256(GOOD.encode()).hexdigest()


def test_a_prompt_bears_the_name_of_its_agent_and_of_a_file_that_is_not_its_first(tmp_path: Path) -> None:
    (tmp_path / "writer").mkdir()
    for name in ("prompt.md", "review.md"):
        (tmp_path / "writer" / name).write_text(GOOD, encoding="utf-8")
    assert [load_prompt(tmp_path / "writer" / name).name for name in ("prompt.md", "review.md")] == ["writer", "writer/review"]


def test_any_change_of_the_file_changes_the_fingerprint(tmp_path: Path) -> None:
    before = load_prompt(write(tmp_path, GOOD)).fingerprint
    assert load_prompt(write(tmp_path, GOOD + " ")).fingerprint != before


def test_temperature_and_schema_may_be_left_out(tmp_path: Path) -> None:
    prompt = load_prompt(write(tmp_path, "---\nversion: 1\ntier: default\n---\nHello {{ input.name }}"))
    assert prompt.temperature is None
    assert prompt.schema is None
    assert prompt.render({"name": "Ada", "more": 1}) == "Hello Ada\n"


@pytest.mark.parametrize(
    ("line", "tools"),
    [("tools: [http_get, calculate]\n", ("http_get", "calculate")), ("tools: null\n", ()), ("tools: []\n", ()), ("", ())],
)
def test_a_prompt_may_name_tools(tmp_path: Path, line: str, tools: tuple[str, ...]) -> None:
    content = GOOD.replace("temperature: 0.5\n", line)
    assert load_prompt(write(tmp_path, content)).tools == tools


def test_a_prompt_of_one_place_is_still_text() -> None:
    prompt = Prompt(version=1, tier="fast", temperature=None, schema=None, text="{{ input.items }}")
    assert prompt.render({"items": [1, "two"]}) == '[1,"two"]'


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("---\nversion: 2", "version: 2", "1: must start with front matter"),
        ("required: [title]}\n---", "required: [title]}", "1: the front matter has no end"),
        ("version: 2", "version: 0", "2: version must be a whole number"),
        ("version: 2\n", "", "1: version must be a whole number"),
        ("version: 2", "version: true", "2: version must be a whole number"),
        ("tier: fast", "tier: quick", "3: tier must be one of default, fast"),
        ("temperature: 0.5", "temperature: 1.5", "4: temperature must be a number from 0 to 1"),
        ("temperature: 0.5", "temperature: warm", "4: temperature must be a number from 0 to 1"),
        ("temperature: 0.5", "tools: [http_gte]", "4: there is no tool 'http_gte'; did you mean 'http_get'?"),
        (
            "temperature: 0.5",
            "tools: [shell]",
            "4: there is no tool 'shell'; the tools are calculate, http_get, search_documents",
        ),
        ("temperature: 0.5", "tools: calculate", "4: tools must be a list of different names"),
        ("temperature: 0.5", "tools: [calculate, calculate]", "4: tools must be a list of different names"),
        ("temperature: 0.5", "tools: [[calculate]]", "4: tools must be a list of different names"),
        ("temperature: 0.5", "temprature: 0.5", "4: 'temprature' is not a field"),
        ("temperature: 0.5", "tier: fast", "4: tier stands twice, first in line 3"),
        ("temperature: 0.5", "temperature: [", "6: is not YAML"),
        ("{title: {type: string}}", "{title: {type: text}}", "9: output.properties.title.type is 'text'"),
        ("{{ input.brief }}", "{{ brief }}", "15: {{ brief }} looks up 'brief'"),
        ("{{ input.brief }}", "{{ input.question }}", "15: {{ input.question }} may have no value"),
        ("{{ input.brief }}", "{{ 1 + 1 }}", "15: '{{ 1 + 1 }}' is not a look-up"),
        (GOOD[GOOD.index("\nRead") :], "\n\n", "12: there is no text"),
        (GOOD[4 : GOOD.index("\n---\n\nRead")], "- a list", "1: the front matter must be fields"),
    ],
)
def test_a_mistake_in_a_prompt_file_is_reported_with_its_line(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert refusal(tmp_path, GOOD.replace(old, new)).startswith(expected)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be read \(No such file"):
        load_prompt(tmp_path / "none.md")
    (tmp_path / "prompt.md").write_bytes(b"---\nversion: 1\n\xff")
    with pytest.raises(ConfigurationError, match=r"prompt.md:3: is not UTF-8"):
        load_prompt(tmp_path / "prompt.md")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "input.brief is missing"),
        ({"brief": ""}, "input.brief is shorter than 1 characters"),
        ({"brief": 7}, "input.brief is not of type string"),
        (None, "input is not of type object"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(tmp_path: Path, values: Any, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load_prompt(write(tmp_path, GOOD)).render(values)
    assert str(caught.value) == f"the agent's input does not fit: {expected}"


@given(
    st.lists(st.sampled_from(["<", "</", "untrusted", ">", " ", "\n", "UNTRUSTED", "/", "{{ input.brief }}", "x"]), min_size=1).map(
        "".join
    )
)
def test_no_value_can_open_or_close_an_untrusted_part(brief: str) -> None:
    prompt = Prompt(version=1, tier="fast", temperature=None, schema=None, text="<untrusted>\n{{ input.brief }}\n</untrusted>")
    for value in (brief, {brief: [brief]}):
        rendered = prompt.render({"brief": value}).casefold().replace(" ", "").replace("\n", "")
        assert rendered.count("<untrusted") == rendered.count("</untrusted") == 1


def test_values_are_never_evaluated(tmp_path: Path) -> None:
    rendered = load_prompt(write(tmp_path, GOOD)).render({"brief": "{{ input.brief }} {{ input.none }}"})
    assert "{{ input.brief }} {{ input.none }}" in rendered
