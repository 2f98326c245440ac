"""Matrices as lists of rows."""

from fractions import Fraction


def multiply(a, b):
    """The product of two matrices."""
    if not a or not b or len(a[0]) != len(b):
        raise ValueError("the shapes do not fit")
    columns = list(zip(*b, strict=True))
    return [[sum(x * y for x, y in zip(row, col, strict=True)) for col in columns] for row in a]


def determinant(matrix):
    """Of a square matrix of whole numbers, exactly."""
    size = len(matrix)
    if any(len(row) != size for row in matrix):
        raise ValueError("the matrix is not square")
    rows = [[Fraction(value) for value in row] for row in matrix]
    result = Fraction(1)
    for column in range(size):
        pivot = next((r for r in range(column, size) if rows[r][column] != 0), None)
        if pivot is None:
            return 0
        if pivot != column:
            rows[pivot], rows[column] = rows[column], rows[pivot]
            result = -result
        result *= rows[column][column]
        for r in range(column + 1, size):
            factor = rows[r][column] / rows[column][column]
            rows[r] = [x - factor * y for x, y in zip(rows[r], rows[column], strict=True)]
    return int(result)


def spiral(matrix):
    """All values, from the top left corner clockwise to the middle."""
    values = []
    top, bottom = 0, len(matrix) - 1
    left, right = 0, len(matrix[0]) - 1 if matrix else -1
    while top <= bottom and left <= right:
        values += matrix[top][left : right + 1]
        values += [matrix[row][right] for row in range(top + 1, bottom + 1)]
        if top < bottom and left < right:
            values += [matrix[bottom][column] for column in range(right - 1, left - 1, -1)]
            values += [matrix[row][left] for row in range(bottom - 1, top, -1)]
        top, bottom = top + 1, bottom - 1
        left, right = left + 1, right - 1
    return values


def rotate(matrix, quarters=1):
    """Turned clockwise by so many quarters of a turn; negative ones turn back."""
    for _ in range(quarters % 4):
        matrix = [list(row) for row in zip(*matrix[::-1], strict=True)]
    return [list(row) for row in matrix]
