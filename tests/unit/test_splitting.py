"""Diffs are cut into their files: what git, diff and svn print, whole or cut off, and nothing else."""

import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.splitter.agent import ALL_CHARACTERS, LINE_CHARACTERS, MOST_FILES, MOST_LISTED, PATCH_CHARACTERS, run
from functions.splitter.unified import FileChange, read_diff
from shared.errors import InputError
from shared.runtime import Team
from tests.unit.test_agents import colleagues

MODIFIED = """\
diff --git a/shop/orders.py b/shop/orders.py
index 1..2 100644
--- a/shop/orders.py
+++ b/shop/orders.py
@@ -1,3 +1,4 @@ def find():
 one
--- a/not a head
+++ two and a half
+three
 four
@@ -20 +21,2 @@
 twenty
+more
"""


async def split(diff: Any) -> dict[str, Any]:
    team = colleagues("planner", {"diff": diff})
    output: dict[str, Any] = (await run(team.task, cast(Team, team))).output
    assert team.asked == []
    return output


def only(diff: str) -> FileChange:
    (change,) = read_diff(diff)
    return change


def test_lines_have_the_numbers_of_the_new_file_and_are_no_heads() -> None:
    change = only(MODIFIED)
    assert (change.path, change.status, change.count("+"), change.count("-")) == ("shop/orders.py", "modified", 3, 1)
    first, second = change.hunks
    assert first.section == "def find():"
    assert [(line.mark, line.number, line.text) for line in first.lines] == [
        (" ", 1, "one"),
        ("-", None, "-- a/not a head"),
        ("+", 2, "++ two and a half"),
        ("+", 3, "three"),
        (" ", 4, "four"),
    ]
    assert [(line.mark, line.number) for line in second.lines] == [(" ", 21), ("+", 22)]


GIT = "diff --git a/x.txt b/x.txt\n"
HEADS = {
    "added": (f"{GIT}new file mode 100644\n--- /dev/null\n+++ b/x.txt\n@@ -0,0 +1 @@\n+a\n", ("x.txt", "", "added", False)),
    "added empty": (f"{GIT}new file mode 100644\nindex 0..1\n", ("x.txt", "", "added", False)),
    "deleted": (f"{GIT}deleted file mode 100644\n--- a/x.txt\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n", ("x.txt", "", "deleted", False)),
    "renamed": (
        "diff --git a/old.txt b/new.txt\nsimilarity index 100%\nrename from old.txt\nrename to new.txt\n",
        ("new.txt", "old.txt", "renamed", False),
    ),
    "copied": ("diff --git a/o.txt b/n.txt\ncopy from o.txt\ncopy to n.txt\n", ("n.txt", "o.txt", "copied", False)),
    "binary": (f"{GIT}index 1..2 100644\nBinary files a/x.txt and b/x.txt differ\n", ("x.txt", "", "modified", True)),
    "a binary patch": (f"{GIT}GIT binary patch\nliteral 3\nKcmZ\n\n", ("x.txt", "", "modified", True)),
    "of another mode": (f"{GIT}old mode 100644\nnew mode 100755\n", ("x.txt", "", "modified", False)),
    "of a mail": (f"From: ann\nSubject: x\n\n---\n x | 1 +\n\n{GIT}--- a/x.txt\n+++ b/x.txt\n@@ -0,0 +1 @@\n+a\n-- \n2.39\n", None),
    "of no git": ("--- x.txt\t2026-01-01 10:00\n+++ x.txt\t2026-01-02 10:00\n@@ -1 +1 @@\n-a\n+b\n", None),
    "of no git, with prefixes": ("diff -ru a/x.txt b/x.txt\n--- a/x.txt\n+++ b/x.txt\n@@ -1 +1 @@\n-a\n+b\n", None),
    "of svn": ("Index: x.txt\n=====\n--- x.txt\t(revision 1)\n+++ x.txt\t(working copy)\n@@ -1 +1 @@\n-a\n+b\n", None),
    "without prefixes": (
        "diff --git b/x.txt b/x.txt\n--- b/x.txt\n+++ b/x.txt\n@@ -1 +1 @@\n-a\n+b\n",
        ("b/x.txt", "", "modified", False),
    ),
    "with other prefixes": ("diff --git i/x.txt w/x.txt\n--- i/x.txt\n+++ w/x.txt\n@@ -1 +1 @@\n-a\n+b\n", None),
    "with spaces": (
        "diff --git a/my x.txt b/my x.txt\n--- a/my x.txt\t\n+++ b/my x.txt\t\n@@ -1 +1 @@\n-a\n+b\n",
        ("my x.txt", "", "modified", False),
    ),
    "with an umlaut": ('diff --git "a/f\\303\\274r.txt" "b/f\\303\\274r.txt"\nold mode 1\n', ("für.txt", "", "modified", False)),
    "of Windows": (f"{GIT}--- a/x.txt\n+++ b/x.txt\n@@ -1 +1 @@\n-a\n+b\n".replace("\n", "\r\n"), None),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_file_is_recognised(name: str) -> None:
    diff, expected = HEADS[name]
    change = only(diff)
    assert (change.path, change.was, change.status, change.binary) == (expected or ("x.txt", "", "modified", False))
    assert change.count("+") == diff.count("\n+b") + diff.count("\n+a")


def test_a_file_without_a_last_line_end_and_with_empty_lines_stripped() -> None:
    told = "\\ No newline at end of file\n"
    change = only(f"{GIT}--- a/x.txt\n+++ b/x.txt\n@@ -1,3 +1,3 @@\n a\n\n-b\n{told}+c\n{told}")
    assert [(line.mark, line.number) for line in change.hunks[0].lines] == [(" ", 1), (" ", 2), ("-", None), ("+", 3)]


def test_a_hunk_that_ends_with_removed_lines_is_read_to_its_end() -> None:
    change = only(f"{GIT}--- a/x.txt\n+++ b/x.txt\n@@ -1,3 +1,2 @@\n+new\n a\n-b\n-c\n")
    assert (change.count("+"), change.count("-")) == (1, 2)


def test_a_diff_that_was_cut_off_is_read_as_far_as_it_goes() -> None:
    whole = MODIFIED * 2
    for end in range(len("diff --git a/shop/orders.py b/shop/orders.py\n"), len(whole)):
        changes = read_diff(whole[:end])
        assert changes[0].path.startswith("shop")
        numbers = [line.number for hunk in changes[0].hunks for line in hunk.lines if line.number is not None]
        assert numbers == [1, 2, 3, 4, 21, 22][: len(numbers)]


def test_what_git_itself_prints_is_understood(tmp_path: Path) -> None:
    before, after = tmp_path / "before.txt", tmp_path / "after.txt"
    before.write_text("".join(f"line {number}\n" for number in range(100)))
    lines = [f"line {number}" for number in range(100) if number % 30]
    lines.insert(50, "-- new")
    after.write_text("\n".join(lines))
    command = ["git", "diff", "--no-index", str(before), str(after)]
    printed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    change = only(printed)
    shown = {line.number: line.text for hunk in change.hunks for line in hunk.lines if line.number is not None}
    assert len(shown) > 20
    assert {number: lines[number - 1] for number in shown} == shown


@given(st.text(alphabet=st.sampled_from(list("@+- \\adiff/git\n012,\"'\t"))), st.integers(0, 200))
def test_no_text_breaks_it(noise: str, at: int) -> None:
    for change in read_diff(MODIFIED[:at] + noise + MODIFIED[at:]):
        assert change.path


@pytest.mark.parametrize("given", [None, 7, "", "Please review my change.", "Index: of names\n--- a\n+++ b\n", "{}"])
async def test_what_is_no_diff_is_refused(given: str) -> None:
    with pytest.raises(InputError, match="not a unified diff; give what `git diff`"):
        await split(given)


async def test_reviewers_get_the_patch_with_numbers_and_where_it_is() -> None:
    output = await split(MODIFIED)
    (file,) = output["files"]
    assert file["patch"].splitlines() == [
        "@@ def find():",
        "     1   one",
        "       - -- a/not a head",
        "     2 + ++ two and a half",
        "     3 + three",
        "     4   four",
        "@@",
        "    21   twenty",
        "    22 + more",
    ]
    assert file["ranges"] == [[1, 4], [21, 22]]
    about = {"path": "shop/orders.py", "was": "", "status": "modified", "added": 3, "removed": 1, "note": ""}
    assert output["overview"] == [{**about, "reviewed": True}]
    assert {name: file[name] for name in about} == about


async def test_files_without_lines_are_named_and_not_reviewed() -> None:
    combined = "diff --cc y.txt\nindex 1,2..3\n--- a/y.txt\n+++ b/y.txt\n@@@ -1,1 -1,1 +1,2 @@@\n++a\n"
    removed = "diff --git a/z.txt b/z.txt\n--- a/z.txt\n+++ b/z.txt\n@@ -3 +2,0 @@\n-a\n"
    output = await split(HEADS["deleted"][0] + HEADS["binary"][0] + HEADS["renamed"][0] + removed + combined)
    assert output["files"] == []
    assert [(one["status"], one["reviewed"], one["note"]) for one in output["overview"]] == [
        ("deleted", False, "deleted"),
        ("modified", False, "binary"),
        ("renamed", False, "no line changed"),
        ("modified", False, "lines were only removed"),
        ("modified", False, "a merge's combined diff cannot be reviewed; give the diff against one parent"),
    ]


def file_of(lines: int, *, name: str = "big.txt", text: str = "x") -> str:
    body = "".join(f"+{text}\n" for _ in range(lines))
    return f"diff --git a/{name} b/{name}\nnew file mode 100644\n--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{lines} @@\n{body}"


async def test_a_huge_file_is_reviewed_up_to_a_limit_and_says_so() -> None:
    output = await split(file_of(10_000) + file_of(1, name="small.txt", text="y" * 10_000))
    big, small = output["files"]
    shown = big["ranges"][0][1]
    assert len(big["patch"]) <= PATCH_CHARACTERS
    assert big["note"] == output["overview"][0]["note"] == f"only the first {shown} of 10000 lines were reviewed"
    assert big["patch"].splitlines()[-1] == f"{shown:>6} + x"
    assert (len(small["patch"].splitlines()[1]), small["note"]) == (len("     1 + …") + LINE_CHARACTERS, "")


async def test_a_change_of_many_files_is_reviewed_up_to_a_limit_and_says_so() -> None:
    output = await split("".join(file_of(1, name=f"{number}.txt") for number in range(MOST_LISTED + 5)))
    assert [len(output["files"]), len(output["overview"]), output["more"]] == [MOST_FILES, MOST_LISTED, 5]
    assert output["overview"][MOST_FILES]["note"] == f"not reviewed: only the first {MOST_FILES} files of a change are"


async def test_all_that_is_reviewed_fits_into_a_message() -> None:
    output = await split("".join(file_of(2000, name=f"{number}.txt", text="long line") for number in range(30)))
    assert sum(len(file["patch"]) for file in output["files"]) <= ALL_CHARACTERS
    assert [file["reviewed"] for file in output["overview"]].count(True) == len(output["files"]) < 30
