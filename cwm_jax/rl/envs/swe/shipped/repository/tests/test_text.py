import unittest

from toolbox.text import abbreviate, common_prefix, distance, slug, wrap


class TextTest(unittest.TestCase):
    def test_wrap(self):
        self.assertEqual(wrap("the quick brown fox", 10), ["the quick", "brown fox"])
        self.assertEqual(wrap("abcdef", 4), ["abcd", "ef"])

    def test_slug(self):
        self.assertEqual(slug("Hello, World!"), "hello-world")

    def test_distance(self):
        self.assertEqual(distance("kitten", "sitting"), 3)

    def test_common_prefix(self):
        self.assertEqual(common_prefix(["flower", "flow", "flight"]), "fl")

    def test_abbreviate(self):
        self.assertEqual(abbreviate("abcdefghij", 7), "ab...ij")
