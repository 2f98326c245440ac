import unittest

from toolbox.dates import add_months, days_in_month, format_duration, is_leap, parse_duration


class DatesTest(unittest.TestCase):
    def test_is_leap(self):
        self.assertEqual(is_leap(2024), True)

    def test_days_in_month(self):
        self.assertEqual(days_in_month(2023, 4), 30)

    def test_add_months(self):
        self.assertEqual(add_months((2023, 1, 31), 1), (2023, 2, 28))

    def test_parse_duration(self):
        self.assertEqual(parse_duration("1h 30m"), 5400)

    def test_format_duration(self):
        self.assertEqual(format_duration(5400), "1h 30m")
