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
  is the same. At last ``{"passed": true}`` or ``{"failed": ...}``, or ``{"unusable": WHY}``. Where
  the assertions make objects of classes that only the policy's code defines, these are recipes
  (`Made`), which the call follows in the policy's sandbox.
"""

import array
import ast
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

    def make(name, args, kwargs, attributes):
        made = find(names, name)(*args, **kwargs)
        for attribute, value in attributes.items():
            setattr(made, attribute, value)
        return made

    arguments = [decode(task[key], make) for key in ("args", "kwargs")]
    return {"value": encode(function(*arguments[0], **arguments[1]))}


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
    names |= {name: Maker(name) for name in undefined_names(task["setup"] + "\n" + task["tests"])}
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
        except (TypeError, RecursionError) as error:
            end({"unusable": f"the tests call the function with what cannot be sent: {error}"})
        if self.count == len(self.known):
            end({"ask": asked})
        question, answer = self.known[self.count]
        self.count += 1
        if question != asked:
            end({"unusable": "the tests call the function differently each time"})
        return told(answer)


class Maker:
    """A class that the tests name and do not define: only the policy's code can have it."""

    def __init__(self, name):
        self.name = name

    def __call__(self, *args, **kwargs):
        return Made(self.name, args, kwargs)

    def __eq__(self, other):
        return self.unusable(other)

    def unusable(self, _):
        end({"unusable": f"the tests use {self.name}, which they do not define"})

    __getattr__ = __instancecheck__ = unusable


class Made:
    """A recipe: what the tests gave to a `Maker`, and the attributes that they set afterwards."""

    def __init__(self, name, args, kwargs):
        self.__dict__["recipe"] = (name, args, kwargs, {})

    def __getattribute__(self, name):
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        made, _, _, attributes = self.__dict__["recipe"]
        if name not in attributes:
            end({"unusable": f"the tests read .{name} of a {made}, which they do not define"})
        return attributes[name]

    def __setattr__(self, name, value):
        self.__dict__["recipe"][3][name] = value

    def __eq__(self, other):
        end({"unusable": f"the tests compare a {self.__dict__['recipe'][0]}, which they only make"})


def undefined_names(source):
    """What the tests read and bind nowhere."""
    read, bound = set(), {*dir(builtins), "__file__"}
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # compiling says where
        return read
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return read - bound


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
    if kind is Made:
        name, args, kwargs, attributes = value.__dict__["recipe"]
        pairs = [[[key, encode(item)] for key, item in d.items()] for d in (kwargs, attributes)]
        return {"made": [name, [encode(item) for item in args], *pairs]}
    raise TypeError(f"a value of type {kind.__name__} is no plain data")


def decode(value, make=None) -> typing.Any:
    """The inverse, of exact builtin types whoever wrote it.

    Args:
        value: what `encode` wrote, or not.
        make: follows a recipe of tests; without it there is none.

    Raises:
        ValueError: if it is not what `encode` writes.
    """
    if value is None or type(value) in (bool, str, int):
        return value
    if type(value) is list:
        return [decode(item, make) for item in value]
    if type(value) is not dict or len(value) != 1:
        raise ValueError("it is no plain data")
    ((kind, content),) = value.items()
    if kind == "made" and make:
        name, args, *pairs = content
        kwargs, attributes = ({k: decode(item, make) for k, item in d} for d in pairs)
        return make(name, [decode(item, make) for item in args], kwargs, attributes)
    if kind not in DECODERS:
        raise ValueError(f"it is no plain data: {kind}")
    try:
        return DECODERS[kind](content, lambda item: decode(item, make))
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, MemoryError):
        raise ValueError(f"it is no {kind}") from None


# Of the content, and what decodes the items in it.
DECODERS = {
    "int": lambda text, _: int(text, 16),  # of which Python limits no length
    "float": lambda text, _: float.fromhex(text),
    "complex": lambda pair, _: complex(float.fromhex(pair[0]), float.fromhex(pair[1])),
    "bytes": lambda text, _: bytes.fromhex(text),
    "bytearray": lambda text, _: bytearray.fromhex(text),
    "tuple": lambda items, inner: tuple(map(inner, items)),
    "set": lambda items, inner: set(map(inner, items)),
    "frozenset": lambda items, inner: frozenset(map(inner, items)),
    "range": lambda items, inner: range(*map(inner, items)),
    "dict": lambda items, inner: {inner(key): inner(item) for key, item in items},
}
