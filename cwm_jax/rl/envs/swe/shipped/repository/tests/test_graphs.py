import unittest

from toolbox.graphs import components, neighbours, order, shortest_path


class GraphsTest(unittest.TestCase):
    def test_neighbours(self):
        self.assertEqual(neighbours([(1, 2)]), {1: [2], 2: [1]})

    def test_components(self):
        self.assertEqual(components([(1, 2), (2, 3), (7, 8)]), [[1, 2, 3], [7, 8]])

    def test_order(self):
        self.assertEqual(order([("shirt", "tie"), ("tie", "coat")]), ["shirt", "tie", "coat"])

    def test_shortest_path(self):
        self.assertEqual(shortest_path([(1, 2, 4), (2, 3, 1), (1, 3, 9)], 1, 3), (5, [1, 2, 3]))
