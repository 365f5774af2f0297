"""The table of docs/reliability.md that says what may die: every row has its tests, every test its
row, and both say the same of what is lost."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEADING = "## Which process may die"


def rows() -> list[tuple[str, str, list[str]]]:
    """(killed, lost at most, [path::test]) as the page has them."""
    page = (ROOT / "docs" / "reliability.md").read_text()
    section = page.partition(HEADING)[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert cells[0] == ["killed", "what follows", "lost at most", "test"], cells[0]
    return [(killed, lost, re.findall(r"`([^`]+)`", test)) for killed, _, lost, test in cells[1:]]


def marked_tests() -> dict[str, tuple[set[tuple[str, str]], list[str]]]:
    """path::test -> ({(child, lost) of its marks}, names of its fixtures), from the sources."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            marks = {
                tuple(keyword.value.value for keyword in mark.keywords)
                for mark in node.decorator_list
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault"
            }
            if marks:
                name = f"{path.relative_to(ROOT)}::{node.name}"
                found[name] = (marks, [argument.arg for argument in node.args.args])
    return found


def test_the_page_has_rows():
    assert len(rows()) > 10


@pytest.mark.parametrize(("killed", "lost", "tests"), rows(), ids=[row[0] for row in rows()])
def test_every_row_has_a_test_that_declares_it(killed, lost, tests):
    known = marked_tests()
    assert tests, f"the row of {killed!r} names no test"
    for test in tests:
        assert test in known, f"{test} is not there, or has no @pytest.mark.fault"
        assert (killed, lost) in known[test][0], known[test][0]


@pytest.mark.parametrize("test", marked_tests())
def test_every_declared_fault_is_a_row_and_prints_its_seed(test):
    marks, fixtures = marked_tests()[test]
    stated = {(killed, lost) for killed, lost, tests in rows() if test in tests}
    assert marks == stated
    assert "fault_seed" in fixtures, f"{test} must take its choices from fault_seed"
