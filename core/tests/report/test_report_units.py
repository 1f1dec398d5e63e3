import pytest
from gpusvm.report.units import cell_texts, value_text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "ns", "0"),
        (1, "ns", "1 ns"),
        (999, "ns", "999 ns"),
        (132_000.0, "ns", "132 µs"),
        (1_234_567, "ns", "1.23 ms"),
        (61.25, "s", "61.2 s"),
        (4096, "bytes", "4.00 KiB"),
        (256 << 20, "bytes", "256 MiB"),
        (1 << 40, "bytes", "1,024 GiB"),
        (1_234_567, "count", "1,234,567"),
    ],
)
def test_a_value_is_written_in_the_unit_that_suits_it(value, unit, text):
    assert value_text(value, unit) == text


def test_a_row_shares_the_unit_of_its_largest_value_and_digits_enough_for_its_least():
    assert cell_texts([966_000, 132_000, None, 0], "ns") == ("966 µs", "132 µs", "–", "0")
    assert cell_texts([2_100_000, 66_600_000], "ns") == ("2.10 ms", "66.60 ms")
    assert cell_texts([1_250_000_000, 93_400_000], "ns") == ("1.250 s", "0.093 s")
    assert cell_texts([4096, 2 << 20], "bytes") == ("0.0039 MiB", "2.0000 MiB")
    assert cell_texts([7, 47_171], "count") == ("7", "47,171")


def test_values_far_apart_get_a_unit_each():
    assert cell_texts([100, 5_000_000_000], "ns") == ("100 ns", "5.00 s")


def test_a_row_without_values_is_dashes():
    assert cell_texts([None, None], "bytes") == ("–", "–")
