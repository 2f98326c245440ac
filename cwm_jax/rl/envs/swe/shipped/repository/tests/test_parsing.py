import unittest

from toolbox.parsing import evaluate, settings, split_record, tokens


class ParsingTest(unittest.TestCase):
    def test_tokens(self):
        self.assertEqual(tokens("1+2"), [1, "+", 2])

    def test_evaluate(self):
        self.assertEqual(evaluate("1 + 2 * 3"), 7)

    def test_split_record(self):
        self.assertEqual(split_record('a,"b,c"'), ["a", "b,c"])

    def test_settings(self):
        self.assertEqual(settings("[a]\nx = 1"), {"": {}, "a": {"x": "1"}})
