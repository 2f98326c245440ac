"""A small package with tests of unittest; no network."""

FILES = {
    "shapes/__init__.py": "from shapes.area import Square, area, total\n",
    "shapes/area.py": '''\
"""Areas of shapes."""


class Square:
    def __init__(self, side):
        self.side = side

    def area(self):
        return self.side * self.side


def area(shape):
    return shape.area()


def total(shapes):
    result = 0
    for shape in shapes:
        result = result + area(shape)
    return result


def scaled(width, height):
    if width > height:
        return width - height
    return height
''',
    "tests/__init__.py": "",
    "tests/test_area.py": """\
import unittest

from shapes import Square, area, total
from shapes.area import scaled


class AreaTest(unittest.TestCase):
    def test_square(self):
        self.assertEqual(area(Square(3)), 9)

    def test_total(self):
        self.assertEqual(total([Square(1), Square(2)]), 5)

    def test_scaled(self):
        self.assertEqual(scaled(5, 2), 3)
        self.assertEqual(scaled(2, 2), 2)

    def test_nothing(self):
        self.assertEqual(1, 1)
""",
}
PASSED = tuple(
    sorted(f"tests.test_area.AreaTest.test_{n}" for n in ("square", "total", "scaled", "nothing"))
)
COMMAND = "python -m unittest discover -v -s tests -t . 2>&1"
