import unittest

from toolbox.matrices import determinant, multiply, rotate, spiral


class MatricesTest(unittest.TestCase):
    def test_multiply(self):
        self.assertEqual(multiply([[1, 2], [3, 4]], [[0, 1], [1, 0]]), [[2, 1], [4, 3]])

    def test_determinant(self):
        self.assertEqual(determinant([[1, 2], [3, 4]]), -2)

    def test_spiral(self):
        self.assertEqual(spiral([[1, 2], [4, 3]]), [1, 2, 3, 4])

    def test_rotate(self):
        self.assertEqual(rotate([[1, 2], [3, 4]]), [[3, 1], [4, 2]])
