"""Contexts whose traces are kept as golden text, each for a rule of the format."""

import textwrap

MARK = "  # << START_OF_TRACE"


def context(source: str) -> str:
    """A dedented source whose line with ``#>`` is marked."""
    return textwrap.dedent(source).replace("  #>", MARK)


CONTEXTS = {
    "loop": context(
        """
        def f(nums):
            total = 0
            for n in nums:
                total += n
            return total
        def main():  #>
            return f([1, 1, 3])
        """
    ),
    "callee_resets_the_diff": context(
        """
        def double(x):
            return 2 * x

        def main():  #>
            a = 1
            b = double(a)
            c = len([a, b])
            return a + b + c
        """
    ),
    "recursion": context(
        """
        def fact(n):
            if n < 2:
                return 1
            return n * fact(n - 1)

        def main():  #>
            return fact(3)
        """
    ),
    "generator": context(
        """
        def count(n):
            for i in range(n):
                yield i
            return 'done'

        def main():  #>
            total = 0
            for i in count(2):
                total += i
            return total
        """
    ),
    "generator_as_entry": context(
        """
        def pairs(n):  #>
            got = yield n
            yield got

        def other():
            return 5

        g = pairs(3)
        next(g)
        other()
        g.send('x')
        list(g)
        """
    ),
    "generators_in_turns": context(
        """
        def count(n):  #>
            for i in range(2):
                yield n + i

        list(zip(count(0), count(10)))
        """
    ),
    "comprehensions_and_closures": context(
        """
        def main():  #>
            k = 2
            squares = [i * i for i in range(2)]
            scaled = {s: s * k for s in squares}
            total = sum(v + k for v in scaled.values())
            add = lambda x: x + k
            return add(total)
        """
    ),
    "closure": context(
        """
        def counter(start):
            value = start
            def step(by=1):
                nonlocal value
                value += by
                return value
            return step

        def main():  #>
            step = counter(3)
            step()
            return step(by=4)
        """
    ),
    "exceptions": context(
        """
        def check(x):
            if x < 0:
                raise ValueError(f'negative: {x}')
            return x

        def main():  #>
            try:
                check(-1)
            except ValueError as error:
                message = str(error)
            finally:
                done = True
            return message
        """
    ),
    "escaping_exception": context(
        """
        def main():  #>
            values = {'a': 1}
            return values['b']
        """
    ),
    "statement_over_lines": context(
        """
        def main():  #>
            values = [
                1,
                len('ab'),
            ]
            return dict(
                first=values[0],
                second=max(
                    values
                ),
            )
        """
    ),
    "objects": context(
        """
        class Point:
            scale = 10
            def __init__(self, x):
                self.x = x
            def moved(self, by):
                return Point(self.x + by)
            def __repr__(self):
                return f'Point({self.x})'

        class Plain:
            pass

        def main():  #>
            plain = Plain()
            method = plain.__init__
            iterator = iter([1])
            return Plain, iterator, plain
        """
    ),
    "class_body": context(
        """
        def main():  #>
            class Box:
                size = 2
                def area(self):
                    return self.size ** 2
            return Box().area()
        """
    ),
    "mutation_and_deletion": context(
        """
        def main():  #>
            a = [1]
            b = a
            b.append(2)
            del b
            b = a
            a = a + []
            return b
        """
    ),
    "text": context(
        """
        def main():  #>
            s = 'é\\n"quoted" \\\\ 日本'
            t = b'\\x00\\xff'
            address = ' at 0x7f0000000000'
            found = ['look at 0x12345 here', b'it\\'s at 0xabcd', iter(s)]
            return s + s[::-1]
        """
    ),
    "decorated_with_defaults": context(
        """
        import functools

        def twice(function):
            @functools.wraps(function)
            def wrapped(*args, **kwargs):
                return 2 * function(*args, **kwargs)
            return wrapped

        @twice
        def main(a=1, *rest, b='x', **options):  #>
            return len(rest) + a

        main(5, 6, b='y', c=None)
        """
    ),
    "called_from_the_module": context(
        """
        def f(x):  #>
            return x + 1

        y = f(3)
        f(4)
        """
    ),
    "module": context(
        """
        import sys  #>
        words = 'b a'.split()
        for word in sorted(words):
            print(word)
        """
    ),
    "with_and_while_else": context(
        """
        class Managed:
            def __enter__(self):
                return 1
            def __exit__(self, *exc):
                return True
            def __repr__(self):
                return 'Managed()'

        def main():  #>
            with Managed() as m:
                1 / 0
            while m:
                m -= 1
            else:
                m = 9
            return m
        """
    ),
    "no_final_newline": context("\ndef main():  #>\n    x = 1   \n    return x").rstrip("\n"),
}
