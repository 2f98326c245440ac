"""Calls of a repository's functions, inside the sandbox; on its own, for a `Worker`.

It is given what to call and no result, so that nothing here can be made to say "passed": what a
call comes to is compared on the host.
"""

import contextlib
import importlib
import json
import marshal
import os
import signal
import sys

MAX_REPR = 20_000  # assumed: characters of a result that are compared


def handle(request):
    """Files and calls in, the results' spellings out."""
    asked = marshal.loads(request)
    folder = os.path.join(os.getcwd(), "repository")
    for path, content in asked["files"].items():
        place = os.path.join(folder, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(content)
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    signal.signal(signal.SIGPROF, out_of_time)
    spelt = [outcome(module, call, asked["call_s"]) for module, call in asked["calls"]]
    return json.dumps(spelt).encode()


def outcome(module, call, within_s):
    """``["returns", repr]``, ``["raises", type, message]`` or ``["hangs"]``."""
    signal.setitimer(signal.ITIMER_PROF, within_s)  # processor time: the same on a busy machine
    try:
        names = vars(importlib.import_module(module))
        return ["returns", repr(eval(call, dict(names)))[:MAX_REPR]]
    except TimeIsUp:
        return ["hangs"]
    except Exception as error:
        text = "its message cannot be read"
        with contextlib.suppress(Exception):
            text = str(error)[:MAX_REPR]
        return ["raises", type(error).__name__, text]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


class TimeIsUp(BaseException):
    pass


def out_of_time(number, frame):
    raise TimeIsUp
