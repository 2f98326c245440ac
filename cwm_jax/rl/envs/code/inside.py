"""What runs in the two sandboxes: the policy's code in one, assertions about it in the other.

A self-contained file, for nothing else of the project can be read there. Requests and replies are
JSON; values in them are spelt by `encode`.

* ``code``, and for a call ``name``, ``args``, ``kwargs``: the policy's code, as a whole program or
  for one call. The reply is ``{"value": ...}`` or ``{"failed": KIND, "type": ..., "text": ...}``,
  and nobody trusts it: it is what the policy's code returns, however it came about.
* ``tests``, ``setup``, ``entry``, ``known``: assertions of a data set, which is not trusted either,
  in a sandbox where the policy's code never is. The function that they call is a proxy: a call
  whose answer is known returns it, the first other one ends the process with ``{"ask": ...}``. The
  host has it answered, and starts the assertions again with one answer more; up to there every run
  is the same. At last ``{"passed": true}`` or ``{"failed": ...}``, or ``{"unusable": WHY}``.
"""

import array
import atexit
import bisect
import builtins
import collections
import fractions
import functools
import heapq
import itertools
import json
import linecache
import math
import operator
import random
import re
import string
import sys
import threading
import traceback
import types
import typing
from collections.abc import Callable

reply: Callable[[bytes], None]  # from the sandbox: answers and ends the process
TEXT_CHARACTERS = 2000  # assumed: of an error's end, for people
FILE = "solution.py"
# The names that solutions of LeetCode's style take for granted; none of them hides a builtin.
MODULES = (
    bisect,
    collections,
    fractions,
    functools,
    heapq,
    itertools,
    json,
    math,
    operator,
    random,
    re,
    string,
    sys,
    typing,
)
STARRED = (bisect, collections, functools, heapq, itertools, math, typing)


# With these an assertion could pass, or a loop end early, without a comparison.
NEVER_RAISED = ("StopIteration", "StopAsyncIteration", "AssertionError")


def handle(request):
    task = json.loads(request)
    return json.dumps(run_tests(task) if "tests" in task else run_code(task)).encode()


def run_code(task):
    try:
        compiled = compile(task["code"], FILE, "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return failed("compile", error)
    is_program = "name" not in task
    module = types.ModuleType("__main__" if is_program else "solution")
    module.__dict__.update(known_names())
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    show_lines(FILE, task["code"])
    try:
        if not is_program:
            return call(compiled, module.__dict__, task)
        exec(compiled, module.__dict__)
    except SystemExit as error:
        if not is_program or error.code not in (None, 0):
            return failed("exit", error)
    except BaseException as error:
        return failed("raised", error)
    end_program()
    return {"value": None}


def call(compiled, names, task):
    exec(compiled, names)
    function = find(names, task["name"])
    return {"value": encode(function(*decode(task["args"]), **decode(task["kwargs"])))}


def find(names, name):
    """A method of LeetCode's class, or a function."""
    if hasattr(names.get("Solution"), name):
        return getattr(names["Solution"](), name)
    found = names.get(name)
    if found is None or found is known_names().get(name):
        raise NameError(f"the answer defines no {name!r}")
    return found


def end_program():
    """What the interpreter's end would do; the process is left in another way."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()


def run_tests(task):
    random.seed(0)  # the same draws in every run
    proxy, names = Proxy(task["known"]), dict[str, object](__name__="tests")
    exec(compile(task["setup"], "setup.py", "exec"), names)
    names[task["entry"]] = proxy
    show_lines("tests.py", task["tests"])
    try:
        exec(compile(task["tests"], "tests.py", "exec"), names)
        check = names.get("check")
        if callable(check) and check is not proxy:  # HumanEval's style
            check(proxy)
    except Exception as error:
        kind = "assert" if isinstance(error, AssertionError) else "raised"
        return {**failed(kind, error), "calls": proxy.count}
    return {"passed": True, "calls": proxy.count}


class Proxy:
    """The policy's function, as its answers so far."""

    def __init__(self, known):
        self.known, self.count = known, 0

    def __call__(self, *args, **kwargs):
        try:
            asked = {"args": encode(args), "kwargs": encode(kwargs)}
        except TypeError as error:
            end({"unusable": f"the tests call the function with what cannot be sent: {error}"})
        if self.count == len(self.known):
            end({"ask": asked})
        question, answer = self.known[self.count]
        self.count += 1
        if question != asked:
            end({"unusable": "the tests call the function differently each time"})
        return told(answer)


def told(answer):
    """Returns or raises what came from the candidate's sandbox."""
    if "failed" not in answer:
        try:
            return decode(answer["value"])
        except (ValueError, RecursionError) as error:
            end({"failed": "value", "text": str(error)})
    kind = getattr(builtins, str(answer.get("type")), RuntimeError)
    usable = isinstance(kind, type) and issubclass(kind, Exception)
    if not usable or kind.__name__ in NEVER_RAISED:
        kind = RuntimeError
    text = str(answer.get("text"))
    try:
        error = kind(text)
    except TypeError:  # UnicodeDecodeError and the like take other arguments
        error = RuntimeError(text)
    raise error


def end(message):
    """Answers the host and ends this process."""
    reply(json.dumps(message).encode())
    raise AssertionError("a reply ends the process")


def show_lines(name, source):
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)


def failed(kind, error):
    try:
        below = error.__traceback__ and error.__traceback__.tb_next
        lines = traceback.format_exception(type(error), error, below and below.tb_next)
        text = "".join(lines)[-TEXT_CHARACTERS:]
    except BaseException:  # of an exception that cannot be shown
        text = "an exception that cannot be shown"
    return {"failed": kind, "type": type(error).__name__, "text": text}


def known_names():
    names = {module.__name__: module for module in MODULES}
    for module in STARRED:
        names |= {
            name: getattr(module, name)
            for name in getattr(module, "__all__", dir(module))
            if not name.startswith("_") and not hasattr(builtins, name)
        }
    return names


def encode(value):
    """A value as JSON can hold it; only exact builtin types, and a few containers, as plain ones.

    What is no plain text, list or small number is an object with one key, which names its type.

    Raises:
        TypeError: for a value of another type.
    """
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if abs(value) < 1 << 53 else {"int": hex(value)}
    if kind is float:
        return {"float": value.hex()}
    if kind is complex:
        return {"complex": [value.real.hex(), value.imag.hex()]}
    if kind in (bytes, bytearray):
        return {kind.__name__: bytes(value).hex()}
    if kind in (list, collections.deque, array.array):
        return [encode(item) for item in value]
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [encode(item) for item in value]}
    if kind is range:
        return {"range": [encode(n) for n in (value.start, value.stop, value.step)]}
    if kind in (dict, collections.Counter, collections.defaultdict, collections.OrderedDict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):  # a named tuple
        return {"tuple": [encode(item) for item in tuple(value)]}
    raise TypeError(f"a value of type {kind.__name__} is no plain data")


def decode(value):
    """The inverse, of exact builtin types whoever wrote it.

    Raises:
        ValueError: if it is not what `encode` writes.
    """
    if value is None or type(value) in (bool, str, int):
        return value
    if type(value) is list:
        return [decode(item) for item in value]
    if type(value) is not dict or len(value) != 1:
        raise ValueError("it is no plain data")
    ((kind, content),) = value.items()
    if kind not in DECODERS:
        raise ValueError(f"it is no plain data: {kind}")
    try:
        return DECODERS[kind](content)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, MemoryError):
        raise ValueError(f"it is no {kind}") from None


DECODERS = {
    "int": lambda text: int(text, 16),  # of which Python limits no length
    "float": lambda text: float.fromhex(text),
    "complex": lambda pair: complex(float.fromhex(pair[0]), float.fromhex(pair[1])),
    "bytes": lambda text: bytes.fromhex(text),
    "bytearray": lambda text: bytearray.fromhex(text),
    "tuple": lambda items: tuple(map(decode, items)),
    "set": lambda items: set(map(decode, items)),
    "frozenset": lambda items: frozenset(map(decode, items)),
    "range": lambda items: range(*map(decode, items)),
    "dict": lambda items: {decode(key): decode(item) for key, item in items},
}
