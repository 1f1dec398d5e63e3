"""Two recordings of one execution are compared line by line."""

from gpusvm.explore.recording import first_difference


def test_the_same():
    assert first_difference(["a", "b"], ["a", "b"]) is None


def test_the_first_line_that_differs():
    assert first_difference(["a", "b", "c"], ["a", "x", "y"]) == "line 2 of its trace was 'b' and is 'x', after 'a'"


def test_an_end_that_comes_too_soon():
    assert first_difference(["a", "b"], ["a"]) == "line 2 of its trace was 'b' and is 'the end', after 'a'"


def test_the_very_first():
    assert first_difference(["a"], []) == "line 1 of its trace was 'a' and is 'the end'"
