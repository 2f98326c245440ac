"""The format's rules once more, written for clearness alone: the oracle of tracer and format."""

import json
import re
import sys

MARK = "  # << START_OF_TRACE"


def naive_text(context: str) -> str:
    """Prompt and frames of a context; runs it in this process."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", context)
    marked = next(i for i, line in enumerate(lines, 1) if line.rstrip("\n").endswith(MARK))
    is_module = "def " not in lines[marked - 1]
    name = None if is_module else re.search(r"def (\w+)", lines[marked - 1])[1]
    seen = []  # (event, scope, line, [(name, repr)] or repr)
    entry = []

    def on_event(frame, event, arg):
        if frame.f_code.co_filename != "naive" or not entry:
            return on_event
        if event in ("call", "line"):
            names = {k: v for k, v in frame.f_locals.items() if k not in hidden}
            shown = [(k, safe(v)) for k, v in names.items()]
        else:
            shown = safe(arg[1] if event == "exception" else arg)
        seen.append((event, frame, frame.f_lineno, shown))
        return on_event

    def on_call(frame, event, arg):
        code = frame.f_code
        if code.co_filename != "naive":
            return None
        if not entry and code.co_name == (name or "<module>"):
            entry.append(frame)
        # while a generator that is the entry is suspended, nothing else is seen
        inside = entry and (frame is entry[0] or entry[0] in list(callers(frame)))
        return on_event(frame, event, arg) if inside else None

    namespace = {"__name__": "__main__", "__builtins__": __builtins__}
    hidden = {*namespace, "__annotations__"} if is_module else set()
    code = compile(context, "naive", "exec")
    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        exec(code, namespace)
        if not entry:
            namespace[name]()
    except Exception:
        pass
    finally:
        sys.settrace(before)
    first_end = next(  # the entry's last return: later calls of it are other traces
        (i for i, s in enumerate(seen) if s[0] == "return" and s[1] is entry[0] and ends(seen, i)),
        None,
    )
    return prompt(context) + text(seen[: first_end + 1], lines, marked if is_module else None)


def callers(frame):
    while frame.f_back:
        frame = frame.f_back
        yield frame


def ends(seen, index):
    """Whether this return is the scope's last event."""
    return all(later[1] is not seen[index][1] for later in seen[index + 1 :])


def safe(value):
    try:
        parts = re.split(r"""('[^']*'|"[^"]*")""", repr(value))  # each other one is a literal
        parts[::2] = [re.sub(" at 0x[0-9a-f]+", "", part) for part in parts[::2]]
        return "".join(parts)
    except Exception as error:
        return f"<{type(value).__name__} object, repr raised {type(error).__name__}>"


def prompt(context):
    return f"<|begin_of_text|><|trace_context_start|>{context}<|frame_sep|>"


def text(seen, lines, module_line):
    out, last = "", None  # last: (scope, locals) of the call or line frame before
    for number, (event, scope, lineno, shown) in enumerate(seen):
        if module_line and not number:
            lineno = module_line
        action = f"<|action_sep|>{lines[lineno - 1].replace(MARK, '')}"
        if event in ("call", "line"):
            known = dict(last[1]) if last and last[0] is scope and event == "line" else {}
            values = {k: ".." if known.get(k) == v else v for k, v in shown}
            out += f"<|{event}_sep|>{json.dumps(values)}{action}<|frame_sep|>"
            last = (scope, shown)
        else:
            out += f"<|{event}_sep|>{action}<|arg_sep|>{json.dumps(shown)}<|frame_sep|>"
            last = None if event == "return" else last
    return out + "<|end_of_text|>"
