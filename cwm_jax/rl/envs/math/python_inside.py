"""Runs one program of the policy, in a sandbox. A self-contained file."""

import json
import linecache
import sys
import traceback
import types

FILE = "program.py"
TEXT_CHARACTERS = 4000  # assumed: of a traceback's end


def handle(request):
    """The reply is ``{"error": ...}``: a traceback, or null; what was printed comes by itself."""
    code = json.loads(request)["code"]
    linecache.cache[FILE] = (len(code), None, code.splitlines(True), FILE)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    error = None
    try:
        exec(compile(code, FILE, "exec"), module.__dict__)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as raised:
        error = formatted(raised)
    return json.dumps({"error": error}).encode()


def formatted(error):
    below = error.__traceback__ and error.__traceback__.tb_next
    try:
        lines = traceback.format_exception(type(error), error, below)
    except BaseException:  # of an exception that cannot be shown
        lines = [type(error).__name__]
    return "".join(lines)[-TEXT_CHARACTERS:].rstrip()
