"""Issues' texts: read from real forms of output, the same every time, and without the fix."""

from cwm_jax.forager.tasks.statement import Failure, normalised, read_failure, statement

PYTEST = """\
============================= test session starts ==============================
tests/test_area.py::test_area_of_a_square FAILED                         [100%]

=================================== FAILURES ===================================
____________________________ test_area_of_a_square _____________________________
tests/test_area.py:7: in test_area_of_a_square
    assert area(Square(3)) == 9
E   assert 6 == 9
E    +  where 6 = area(<Square object at 0x7f0123456789>)
=========================== short test summary info ============================
FAILED tests/test_area.py::test_area_of_a_square - assert 6 == 9
"""
UNITTEST = """\
test_size (tests.test_area.AreaTest.test_size) ... ERROR

======================================================================
ERROR: test_size (tests.test_area.AreaTest.test_size)
----------------------------------------------------------------------
Traceback (most recent call last):
  File "/tmp/testbed/tests/test_area.py", line 9, in test_size
    self.assertEqual(size([]), 0)
                     ^^^^^^^^
  File "/tmp/testbed/shapes.py", line 3, in size
    return total
NameError: name 'total' is not defined

----------------------------------------------------------------------
Ran 1 test in 0.002s
"""


def text_of(failure, *, mended=(), num_failing=1, seed="0"):
    return statement(failure, kind="operators", num_failing=num_failing, mended=mended, seed=seed)


def test_a_failure_is_read_from_pytest():
    assert read_failure("t", PYTEST) == Failure(
        test="t",
        checked="assert area(Square(3)) == 9",
        error=("assert 6 == 9", "+  where 6 = area(<Square object at 0x...>)"),
    )


def test_a_failure_is_read_from_unittest():
    assert read_failure("t", UNITTEST) == Failure(
        test="t",
        checked="self.assertEqual(size([]), 0)",
        error=("NameError: name 'total' is not defined",),
    )


def test_output_without_an_error_has_no_failure():
    assert read_failure("t", "1 passed in 0.01s\n") is None


def test_an_issue_says_what_is_seen_and_which_test_shows_it():
    failure = read_failure("tests.test_area.AreaTest.test_size", UNITTEST)
    text = text_of(failure, num_failing=3)
    assert text.startswith("# NameError: size\n")
    assert "    self.assertEqual(size([]), 0)\n" in text
    assert "`tests.test_area.AreaTest.test_size` fails for it, and 2 more tests fail" in text


def test_no_line_of_the_fix_is_told():
    failure = Failure(
        test="t::test_it",
        checked="assert f(1) == 2",
        error=("ValueError: near `return value + step`", "in the end"),
    )
    assert "return value + step" in text_of(failure)
    text = text_of(failure, mended=["    return value + step"])
    assert "return value + step" not in text
    assert "in the end" in text


def test_words_that_stand_everywhere_hide_nothing():
    failure = Failure(test="t::test_it", checked="assert f(1) or else_", error=("else: no",))
    assert "else: no" in text_of(failure, mended=["else:"])


def test_the_same_seed_gives_the_same_words_and_others_give_others():
    failure = read_failure("t::test_it", PYTEST)
    texts = [text_of(failure, seed=str(seed)) for seed in range(8)]
    assert texts == [text_of(failure, seed=str(seed)) for seed in range(8)]
    assert len({*texts}) > 1


def test_what_two_runs_differ_in_is_taken_out():
    first = normalised("<A at 0x7f00deadbeef> /tmp/tmpab12/x in 0.12s")
    assert first == normalised("<A at 0x7f11deadbeef> /tmp/tmpcd34/x in 3.50s")
