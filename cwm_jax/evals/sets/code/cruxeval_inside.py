"""Evaluates what a model said about ``f``, in the sandbox where ``f`` may be defined already.

A self-contained text, put after the code of a problem, or alone. The model's text is looked at
before any of it is evaluated.
"""


def cruxeval_output(said):
    """The value of an expression, or of the right side of an assertion."""
    import ast

    tree = ast.parse(said.strip().removeprefix("assert "), mode="eval")
    body = tree.body
    if isinstance(body, ast.Compare) and len(body.ops) == 1 and isinstance(body.ops[0], ast.Eq):
        tree.body = body.comparators[0]
    return eval(compile(tree, "output", "eval"), {})


def cruxeval_input(said):
    """What ``f`` returns for the arguments: ``f(1)``, ``1`` or ``assert f(1) == 2``."""
    import ast

    said = said.strip().removeprefix("assert ")
    try:
        body = ast.parse(said, mode="eval").body
    except SyntaxError:  # several arguments, perhaps by name
        body = None
    if isinstance(body, ast.Compare):
        body = body.left
    if not isinstance(body, ast.Call) or getattr(body.func, "id", "") != "f":
        body = ast.parse(f"f({said})", mode="eval").body
    assert isinstance(body, ast.Call)
    _cruxeval_check([*body.args, *(keyword.value for keyword in body.keywords)])
    return eval(compile(ast.Expression(body), "input", "eval"))


def _cruxeval_check(arguments):
    """Arguments are values: what could change ``f``, or find the interpreter, is refused.

    They have literals, operators, lambdas and comprehensions, pure builtin functions, methods of
    the builtin types, and data that the problem's code names.
    """
    import ast
    import builtins

    types = (str, bytes, list, tuple, dict, set, frozenset, int, float, complex, range)
    pure = "abs all any bool bytearray chr divmod enumerate filter int len map max min ord pow"
    pure = {*pure.split(), *["repr", "reversed", "round", "slice", "sorted", "sum", "zip"]}
    pure |= {kind.__name__ for kind in types}
    methods = {name for kind in types for name in dir(kind) if not name.startswith("_")}
    nodes = [node for argument in arguments for node in ast.walk(argument)]
    bound = {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr not in methods:
            raise ValueError(f"an argument has .{node.attr}; expected methods of builtin types")
        if isinstance(node, ast.Name) and node.id not in bound:
            named = globals().get(node.id)
            is_data = type(named) in types and not node.id.startswith("_")
            is_pure = node.id in pure and node.id not in globals() and hasattr(builtins, node.id)
            if not (is_data or is_pure):
                raise ValueError(f"an argument has {node.id}; expected a value")
