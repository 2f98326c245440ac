"""Which fields of which classes a source tree reads, as far as its annotations tell.

A receiver's class is known from annotations (parameters, fields, results), assignments and loops;
a container counts as its items. Where nothing tells the class of ``x``, ``x.execution`` is of
every class that a field of that name has anywhere. Reads in ``__post_init__`` do not count: a
check is not a use.
"""

import ast
from collections.abc import Iterable

Functions = ast.FunctionDef | ast.AsyncFunctionDef
Names = dict[str, set[str]]


def fields_read(modules: Iterable[ast.Module], classes: set[str]) -> set[tuple[str, str]]:
    """(class, field) for every attribute read on a value of one of these classes."""
    modules = list(modules)
    reader = _Reader(modules)
    for module in modules:
        reader.visit_scope(module, {}, set(_strings(module)))
    return {(owner, field) for owner, field in reader.reads if owner in classes}


class _Reader:
    def __init__(self, modules: list[ast.Module]) -> None:
        nodes = [node for module in modules for node in ast.walk(module)]
        self.classes = {n.name for n in nodes if isinstance(n, ast.ClassDef)}
        self.attributes: dict[tuple[str, str], set[str]] = {}
        self.results: Names = {name: {name} for name in self.classes}
        self.reads: set[tuple[str, str]] = set()
        for node in nodes:
            if isinstance(node, Functions):
                self.results.setdefault(node.name, set()).update(self._annotated(node.returns))
            elif isinstance(node, ast.ClassDef):
                self._add_attributes(node)

    def _add_attributes(self, node: ast.ClassDef) -> None:
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                self.attributes[node.name, item.target.id] = self._annotated(item.annotation)
        for method in (item for item in node.body if isinstance(item, Functions)):
            names = self._parameters(method)
            for item in ast.walk(method):
                if isinstance(item, ast.Assign):
                    self._add_own(node.name, item.targets[0], self.kinds(item.value, names))
                elif isinstance(item, ast.AnnAssign):
                    self._add_own(node.name, item.target, self._annotated(item.annotation))

    def _add_own(self, owner: str, target: ast.expr, kinds: set[str]) -> None:
        if isinstance(target, ast.Attribute):  # self.config = config
            self.attributes.setdefault((owner, target.attr), set()).update(kinds)

    def _annotated(self, annotation: ast.expr | None) -> set[str]:
        if annotation is None:
            return set()
        words = {n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)}
        words |= {n.attr for n in ast.walk(annotation) if isinstance(n, ast.Attribute)}
        return words & self.classes

    def _parameters(self, function: Functions) -> Names:
        every = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        return {arg.arg: self._annotated(arg.annotation) for arg in every}

    def visit_scope(self, scope: ast.AST, outer: Names, strings: set[str]) -> None:
        """Reads of a module, class or function body, and of the scopes in it."""
        names = {name: set(kinds) for name, kinds in outer.items()}
        nodes = list(_own_nodes(scope))
        for _ in range(2):  # an assignment may follow its use in the text
            for node in nodes:
                self._bind(node, names)
        for node in nodes:
            self._record(node, names, strings)
            if isinstance(node, ast.ClassDef):
                self.visit_scope(node, names | {"self": {node.name}, "cls": {node.name}}, strings)
            elif isinstance(node, Functions) and node.name != "__post_init__":
                inner = self._parameters(node)
                if "self" in inner:
                    inner["self"] = names.get("self", set())
                self.visit_scope(node, names | inner, strings)

    def _bind(self, node: ast.AST, names: Names) -> None:
        if isinstance(node, ast.Assign):
            self._assign(node.targets[0], node.value, names)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.setdefault(node.target.id, set()).update(self._annotated(node.annotation))
        elif isinstance(node, ast.For | ast.comprehension):
            self._assign(node.target, node.iter, names)
        elif isinstance(node, ast.NamedExpr):
            self._assign(node.target, node.value, names)

    def _assign(self, target: ast.expr, value: ast.expr, names: Names) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for part, item in zip(target.elts, value.elts, strict=False):
                self._assign(part, item, names)
        elif isinstance(target, ast.Tuple):  # enumerate, zip, items
            for part in target.elts:
                self._assign(part, value, names)
        elif isinstance(target, ast.Name):
            names.setdefault(target.id, set()).update(self.kinds(value, names))

    def kinds(self, value: ast.expr, names: Names) -> set[str]:
        """Classes that the value may have."""
        if isinstance(value, ast.Name):
            return names.get(value.id, set())
        if isinstance(value, ast.Attribute):
            owners = self.kinds(value.value, names) or {n for n, _ in self.attributes}
            found = [self.attributes.get((owner, value.attr), set()) for owner in owners]
            return set().union(*found)
        if isinstance(value, ast.Call):
            called = getattr(value.func, "id", getattr(value.func, "attr", ""))
            found = self.results.get(called, set())
            if found or called not in ("replace", "enumerate", "zip", "sorted", "list", "tuple"):
                return found
            return set().union(*(self.kinds(arg, names) for arg in value.args))
        if isinstance(value, ast.Subscript | ast.Starred | ast.Await):
            return self.kinds(value.value, names)
        if isinstance(value, ast.ListComp | ast.GeneratorExp):
            return self.kinds(value.elt, names)
        parts = {ast.IfExp: ("body", "orelse"), ast.BoolOp: ("values",), ast.List: ("elts",)}
        found = [getattr(value, part) for part in parts.get(type(value), ())]
        flat = [v for part in found for v in (part if isinstance(part, list) else [part])]
        return set().union(*(self.kinds(v, names) for v in flat))

    def _record(self, node: ast.AST, names: Names, strings: set[str]) -> None:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            self.reads |= {(owner, node.attr) for owner in self.kinds(node.value, names)}
        called_by_name = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if called_by_name and node.func.id == "getattr":
            owners = self.kinds(node.args[0], names)  # getattr(config, axis) for axis in AXES
            self.reads |= {(owner, text) for owner in owners for text in strings}


def _own_nodes(scope: ast.AST) -> Iterable[ast.AST]:
    """The nodes below a scope, but not those inside the functions and classes it defines."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, ast.ClassDef | Functions):
            yield from _own_nodes(child)


def _strings(module: ast.Module) -> Iterable[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
