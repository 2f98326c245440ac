import unittest

from toolbox.intervals import busiest, gaps, merge, subtract


class IntervalsTest(unittest.TestCase):
    def test_merge(self):
        self.assertEqual(merge([(5, 7), (1, 3), (2, 4)]), [(1, 4), (5, 7)])

    def test_subtract(self):
        self.assertEqual(subtract([(0, 10)], [(3, 5)]), [(0, 3), (5, 10)])

    def test_gaps(self):
        self.assertEqual(gaps([(2, 4)], 0, 6), [(0, 2), (4, 6)])

    def test_busiest(self):
        self.assertEqual(busiest([(0, 4), (2, 6), (3, 5)]), (3, 3))
