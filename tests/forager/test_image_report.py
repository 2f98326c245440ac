"""What came of sources: lines that are read back, and a table of them."""

import dataclasses
import json

import pytest

from cwm_jax.forager.images.report import FAILURES, BuildRow, render

BUILT = BuildRow(
    source="thing==1.2",
    image="thing-1.2-0123456789ab",
    recipe="pyproject extra test",
    commit="abcdef" * 6 + "abcd",
    passed=12,
    failed=1,
    skipped=2,
    flaky=1,
    build_s=34.56,
    tests_s=7.0,
    all_s=50.0,
)
FAILED = BuildRow(source="a|b", failure="install", detail="no\nsuch \x1b[31mpackage " + "x" * 100)


@pytest.mark.parametrize("row", [BUILT, FAILED])
def test_a_row_is_read_back(row):
    line = json.dumps(row.to_json())
    assert "\n" not in line and BuildRow.from_json(json.loads(line)) == row


def test_a_line_says_how_it_ended():
    assert BUILT.to_json()["status"] == "built" and FAILED.to_json()["status"] == "failed"
    assert set(FAILURES) == {
        *("source", "no-recipe", "install", "no-tests", "tests-fail"),
        *("timeout", "disk", "sandbox", "excluded"),
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"failure": "instal", "image": ""}, "did you mean 'install'"),
        ({"failure": "install"}, "expected one of them"),
        ({"image": ""}, "expected one of them"),
        ({"passed": -1}, "passed is -1; expected at least 0"),
        ({"passed": "1"}, "passed is '1'; expected int"),
        ({"build_s": -0.5}, "build_s is -0.5"),
        ({"source": None}, "source is None"),
        ({"status": "failed"}, "has the status 'failed'; expected 'built'"),
        ({"other": 1}, "unknown key 'other'"),
    ],
)
def test_what_is_no_row_is_refused(changes, says):
    with pytest.raises(ValueError) as caught:
        BuildRow.from_json({**BUILT.to_json(), **changes})
    assert says in str(caught.value)


@pytest.mark.parametrize("values", [None, [], {"source": "x"}, {"status": "failed"}])
def test_what_is_no_object_of_a_row_is_refused(values):
    with pytest.raises(ValueError, match=r"expected an object with a status|missing source"):
        BuildRow.from_json(values)


def test_rows_are_a_table_with_counts_of_failures():
    rows = [BUILT, FAILED, dataclasses.replace(FAILED, source="c", failure="disk", detail="")]
    rows += [dataclasses.replace(rows[-1], source="d")]
    assert render(rows).splitlines() == [
        "| source | image or failure | recipe | commit | passed | failed | skipped | flaky "
        "| build s | tests s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| thing==1.2 | thing-1.2-0123456789ab | pyproject extra test | abcdefabcdef "
        "| 12 | 1 | 2 | 1 | 34.6 | 7.0 |",
        "| a\\|b | install: no such [31mpackage "
        + "x" * 59
        + " |  |  | 0 | 0 | 0 | 0 | 0.0 | 0.0 |",
        "| c | disk |  |  | 0 | 0 | 0 | 0 | 0.0 | 0.0 |",
        "| d | disk |  |  | 0 | 0 | 0 | 0 | 0.0 | 0.0 |",
        "",
        "1 of 4 sources have an image.",
        "",
        "| failure | sources | meaning |",
        "| --- | --- | --- |",
        "| disk | 2 | it takes too much room |",
        "| install | 1 | no recipe installs it |",
    ]


def test_without_failures_there_is_no_second_table():
    assert render([BUILT]).endswith("\n\n1 of 1 sources have an image.\n")
    assert render([]).endswith("\n\n0 of 0 sources have an image.\n")
