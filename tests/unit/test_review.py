"""Reviews: findings only where the change is, ranked, said once, and no approval over a serious one."""

from typing import Any

import pytest

from functions.splitter.unified import read_diff
from shared.ai.offline.change import remarks
from shared.errors import InputError
from tests.support.library import ROOT
from tests.unit.test_agents import ask, colleagues, work

FILE = {
    "path": "shop/orders.py",
    "patch": "@@\n     4   a\n     5 + b\n@@\n    20 + c",
    "ranges": [[4, 5], [20, 20]],
    "note": "",
}
OVERVIEW = [
    {"path": path, "was": "", "status": "modified", "added": 2, "removed": 1, "reviewed": True, "note": ""}
    for path in ("a.py", "b.py")
]
SAYS = {"verdict": "approve", "summary": "Fine.", "general": [], "caveats": ""}


def finding(line: int, severity: str = "low", **more: Any) -> dict[str, Any]:
    return {"line": line, "severity": severity, "category": "correctness", "message": f"Line {line}.", "suggestion": "", **more}


async def reviewed(*findings: dict[str, Any]) -> Any:
    given = {"file": FILE, "title": "T", "description": "", "guidelines": ""}
    return await ask("reviewer", given, says={"findings": list(findings)})


async def edited(*reviews: dict[str, Any] | None, says: Any = SAYS, **more: Any) -> Any:
    given = {"title": "", "description": "", "overview": OVERVIEW, "more": 0, "reviews": list(reviews), **more}
    return await ask("editor", given, says=says)


def review(path: str, *findings: dict[str, Any], dropped: int = 0) -> dict[str, Any]:
    return {"path": path, "findings": list(findings), "dropped": dropped}


async def test_findings_on_lines_that_are_not_in_the_change_are_dropped() -> None:
    answer = await reviewed(*(finding(line) for line in (1, 3, 4, 5, 6, 19, 20, 21, 4711)))
    assert [one["line"] for one in answer["findings"]] == [4, 5, 20]
    assert (answer["path"], answer["dropped"]) == ("shop/orders.py", 6)


async def test_the_reviewer_sees_the_patch_and_what_is_told_about_it() -> None:
    team = colleagues("reviewer", {"file": FILE, "title": "T", "guidelines": "No c."}, says={"findings": []})
    await work("reviewer", team)
    (asked,) = team.asked
    assert asked["values"] == {"path": "shop/orders.py", "patch": FILE["patch"], "about": {"title": "T"}, "guidelines": "No c."}


@pytest.mark.parametrize(
    ("agent", "given"),
    [("reviewer", {}), ("reviewer", {"file": {"path": "a"}}), ("editor", {"overview": []})],
)
async def test_what_is_no_work_for_them_is_refused(agent: str, given: Any) -> None:
    with pytest.raises(InputError, match="give"):
        await ask(agent, given)


async def test_findings_are_ranked_across_files() -> None:
    output = await edited(
        review("a.py", finding(9), finding(1, "high"), dropped=2),
        review("b.py", finding(3, "critical"), finding(2, "high"), dropped=1),
    )
    assert [(one["file"], one["line"]) for one in output["findings"]] == [("b.py", 3), ("a.py", 1), ("b.py", 2), ("a.py", 9)]
    assert output["dropped"] == 3
    headings = [line for line in output["text"].splitlines() if line.startswith("#")]
    assert headings == ["# Review", "## Critical", "## High", "## Low", "## Files"]
    assert "3 findings were dropped" in output["text"]


async def test_what_is_said_twice_is_said_once() -> None:
    same = {"message": "No time-out."}
    output = await edited(
        review(
            "a.py",
            finding(1, **same),
            finding(7, **same),
            finding(1, **same),
            finding(7, "high", message="Also wrong.", category="security"),
        ),
        review("b.py", finding(1, **same), finding(1, "medium", message="Loses data.", suggestion="Keep it.")),
    )
    found = [(one["file"], one["line"], one["also"], one["message"]) for one in output["findings"]]
    assert found == [
        ("a.py", 7, [], "Also wrong."),
        ("b.py", 1, [], "Loses data. No time-out."),
        ("a.py", 1, [7], "No time-out."),
    ]


@pytest.mark.parametrize(
    ("severity", "says", "verdict"),
    [
        ("critical", "approve", "request changes"),
        ("high", "comment", "request changes"),
        ("medium", "approve", "comment"),
        ("medium", "request changes", "request changes"),
        ("low", "approve", "approve"),
        ("low", "comment", "comment"),
    ],
)
async def test_a_verdict_is_never_milder_than_the_findings(severity: str, says: str, verdict: str) -> None:
    output = await edited(review("a.py", finding(1, severity)), review("b.py"), says={**SAYS, "verdict": says})
    assert output["verdict"] == verdict


async def test_a_file_whose_review_failed_is_said_not_to_be_reviewed() -> None:
    output = await edited(None, review("b.py"))
    assert [(one["reviewed"], one["note"]) for one in output["files"]] == [(False, "not reviewed: the review failed"), (True, "")]
    assert "| `a.py` | modified | +2 −1 | no: not reviewed: the review failed |" in output["text"]  # noqa: RUF001


async def test_text_of_others_does_not_break_the_markdown() -> None:
    odd = {"message": "Two\nlines.", "suggestion": "```\ncode\n```"}
    output = await edited(review("a`|b.py", finding(1, **odd)), overview=[{**OVERVIEW[0], "path": "a`|b.py"}])
    assert "- **`a'\\|b.py:1`** · correctness: Two lines.\n  - Suggestion:\n    \n    ````\n    ```\n    code" in output["text"]
    assert "| `a'\\|b.py` |" in output["text"]


# Without a model


def checked(line: str, path: str = "a.py") -> list[tuple[str, str]]:
    found = remarks({"path": path, "patch": f"@@\n     7 + {line}\n     8   {line}\n       - {line}"})["findings"]
    assert {one["line"] for one in found} <= {7}, "only what was added is looked at"
    assert all(one["message"].startswith("Pattern check: ") for one in found)
    return [(one["severity"], one["category"]) for one in found]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('API_KEY = "qp_prod_7f3b91c04e"', [("critical", "security")]),
        ("aws = AKIAIOSFODNN7EXAMPLE", [("critical", "security")]),
        ("-----BEGIN RSA PRIVATE KEY-----", [("critical", "security")]),
        ('password = os.environ["PASSWORD"]', []),
        ('token = ""', []),
        ("<<<<<<< HEAD", [("critical", "correctness")]),
        ("db.execute(f\"update orders set note = '{note}'\")", [("high", "security")]),
        ('db.execute("select 1 where id = ?", (id,))', []),
        ('db.execute("select * from t where id = %s" % id)', [("high", "security")]),
        ("subprocess.run(command, shell=True)", [("high", "security")]),
        ("    except:", [("medium", "correctness")]),
        ("    except ValueError:", []),
        ("httpx.get(url)", [("medium", "reliability")]),
        ("httpx.get(url, timeout=5)", []),
        ("breakpoint()", [("medium", "maintainability")]),
        ("print(x)", [("low", "maintainability")]),
        ("blueprint(x)", []),
        ("# TODO: more", [("low", "maintainability")]),
        ("x" * 141, [("low", "style")]),
        ("x" * 140, []),
    ],
)
def test_a_pattern_is_found_in_added_lines_alone(line: str, expected: list[tuple[str, str]]) -> None:
    assert checked(line) == expected


def test_patterns_of_a_language_are_looked_for_in_its_files_alone() -> None:
    assert checked("print(x)", "a.rb") == []
    assert checked("console.log(x)", "a.ts") == [("low", "maintainability")]
    assert checked("console.log(x)", "a.md") == []


def test_a_secret_is_not_repeated_in_what_is_said_about_it() -> None:
    found = remarks({"path": "a.py", "patch": '     1 + secret = "hunter2hunter2"'})["findings"]
    assert found
    assert "hunter2" not in str(found)


async def test_without_a_model_code_without_a_test_is_noticed() -> None:
    alone = await edited(review("a.py"), review("b.py"), says=None)
    assert alone["general"] == ["No test is among the changed files, and code is: a.py, b.py."]
    assert alone["verdict"] == "approve"
    assert "no proof that nothing is wrong" in alone["summary"]
    for test in ("tests/test_a.py", "a_test.go", "src/a.spec.ts", "spec/a.rb"):
        assert (await edited(review("a.py"), overview=[*OVERVIEW, {**OVERVIEW[0], "path": test}], says=None))["general"] == []
    assert (await edited(overview=[{**OVERVIEW[0], "path": "README.md"}], says=None))["general"] == []


def test_the_example_is_a_diff_of_four_files() -> None:
    changes = read_diff((ROOT / "examples" / "change.diff").read_text(encoding="utf-8"))
    assert [change.status for change in changes] == ["renamed", "deleted", "modified", "modified"]
