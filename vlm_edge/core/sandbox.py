"""A Jinja2 environment in which a template can neither reach Python nor run for long: every step and size is metered.

Jinja2's own sandbox keeps templates away from Python's internals but lets them loop and allocate without end. Here a template
is rewritten after parsing: only the kinds of node that chat templates need are let through, loops pay for each turn, and what
makes or compares values goes through functions that check sizes first. Imported only when there is a template: Jinja2 is slow
to load.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Sequence, ValuesView
from types import BuiltinMethodType
from typing import Any, NoReturn, cast

from jinja2 import TemplateRuntimeError, TemplateSyntaxError, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_STEPS = 500_000
MAX_SIZE = 1 << 20
"""Of one value: characters, and ITEM_SIZE for each item of a list or mapping, however deep."""
ITEM_SIZE, SIZE_PER_STEP, MAX_INT_BITS = 16, 16, 64

_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign, nodes.AssignBlock, nodes.With,
    nodes.Macro, nodes.Break, nodes.Continue, nodes.Name, nodes.NSRef, nodes.Const, nodes.List, nodes.Tuple, nodes.Dict,
    nodes.Pair, nodes.Keyword, nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Getattr, nodes.Getitem,
    nodes.Slice, nodes.Concat, nodes.Compare, nodes.Operand, nodes.Add, nodes.Sub, nodes.Mul, nodes.Mod, nodes.And,
    nodes.Or, nodes.Not, nodes.Neg, nodes.Pos,
)  # fmt: skip
_FILTERS = (
    "capitalize", "count", "d", "default", "first", "float", "int", "items", "join", "last", "length", "list", "lower",
    "map", "reject", "rejectattr", "replace", "reverse", "select", "selectattr", "string", "title", "tojson", "trim",
    "upper",
)  # fmt: skip
_TESTS = (
    "!=", "==", "boolean", "defined", "divisibleby", "eq", "equalto", "even", "false", "float", "in", "integer",
    "iterable", "lower", "mapping", "ne", "none", "number", "odd", "sequence", "string", "true", "undefined", "upper",
)  # fmt: skip
_METHODS = frozenset({
    "capitalize", "count", "endswith", "find", "get", "index", "isdigit", "items", "join", "keys", "lower", "lstrip",
    "removeprefix", "removesuffix", "replace", "rfind", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
    "title", "upper", "values",
})  # fmt: skip
_PLAIN = (str, int, float, list, tuple, dict, type(None))
_PASSED_ON = (Iterator, KeysView, ValuesView, ItemsView, range)


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates that raise TemplateError once they have taken MAX_STEPS or made a value beyond MAX_SIZE.

    Its counter serves one rendering at a time.
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            # A finalizer that takes the context, and no optimizer: else constant expressions are computed while compiling.
            finalize=self._printed,
            optimized=False,
            extensions=["jinja2.ext.loopcontrols", Generation],
        )
        self.steps = 0
        self.template_cost = 0
        self.globals = {"namespace": Namespace, "range": self.globals["range"], "raise_exception": _refuse}
        filters = self.filters | {"join": _join, "replace": _replace, "tojson": _tojson}
        self.filters = {name: self._metered(cast("Callable[..., Any]", filters[name])) for name in _FILTERS}
        self.filters |= {"_turns": self._turns, "_sized": self._sized, "_joined": self._joined}
        self.tests = {name: self._metered(cast("Callable[..., Any]", self.tests[name])) for name in _TESTS}

    def spend(self, steps: int) -> None:
        """Count steps; raises TemplateRuntimeError beyond MAX_STEPS."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise TemplateRuntimeError(f"it takes more than {MAX_STEPS} steps")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        guarded = _Guard().visit(super()._parse(source, name, filename))
        self.template_cost = _cost(guarded)
        return guarded  # type: ignore[no-any-return]

    def _turns(self, values: Iterable[Any], cost: int) -> Iterator[Any]:
        for value in values:
            self.spend(cost)
            yield value

    def _sized(self, value: Any) -> Any:
        self.spend(1 + size(value) // SIZE_PER_STEP)
        return value

    def _joined(self, parts: Sequence[Any]) -> str:
        self._sized(parts)
        return "".join(map(str, parts))

    @pass_context
    def _printed(self, _: Context, value: Any) -> Any:
        if isinstance(value, _PASSED_ON):
            raise TemplateRuntimeError(f"it prints a {type(value).__name__}")
        return self._sized(value)

    def _metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or test that pays for its arguments, and whose result is checked."""
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def metered(*args: Any, **named: Any) -> Any:
            for value in (*args[skipped:], *named.values()):
                self._sized(value)
            return self._sized(function(*args, **named))

        return metered

    def call(self, context: Context, function: Any, /, *args: Any, **named: Any) -> Any:
        """A call of a macro costs as much as the whole template, any other what its arguments weigh."""
        if isinstance(function, Macro):
            self.spend(self.template_cost)
            return super().call(context, function, *args, **named)
        for value in (*args, *named.values()):
            self._sized(value)
        owner = function.__self__ if isinstance(function, BuiltinMethodType) else None
        if isinstance(owner, _PLAIN):
            self._sized(owner)
            if isinstance(owner, str) and function.__name__ in _GROWING:
                return self._sized(_GROWING[function.__name__](owner, *args))
        result = super().call(context, function, *args, **named)
        return result if isinstance(result, Namespace) else self._sized(result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Sums of texts or lists, and arithmetic on small numbers; no repetition, no powers, no formatting."""
        self._sized((left, right))
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        sums = operator == "+" and any(isinstance(left, k) and isinstance(right, k) for k in (str, list, tuple))
        if operator == "**" or not (numbers or sums):
            kinds = f"{type(left).__name__} {operator} {type(right).__name__}"
            raise TemplateRuntimeError(f"it computes {kinds}")
        return self._sized(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Of plain values, a few methods that return no more than they are given."""
        if isinstance(obj, _PLAIN) and attr not in _METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """An error at once; Jinja2's own waits until the value is used and prints as nothing."""
        raise SecurityError(f"it reaches for {attribute!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> None:
        """Nothing: without it, `is_safe_attribute` refuses format strings, whose widths could ask for any size."""


def size(value: Any) -> int:
    """What MAX_SIZE limits; raises TemplateRuntimeError for more, for large integers and for objects of other kinds."""
    if isinstance(value, _PASSED_ON):
        return 1
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, list | tuple | dict):
            total += ITEM_SIZE * len(item)
        elif isinstance(item, int) and item.bit_length() > MAX_INT_BITS:
            raise TemplateRuntimeError("it makes a number that is too large")
        elif not isinstance(item, int | float | Undefined | None):
            raise TemplateRuntimeError(f"it treats a {type(item).__name__} as a value")
        if total > MAX_SIZE:
            raise TemplateRuntimeError(f"it makes a value beyond {MAX_SIZE} characters")
        if isinstance(item, list | tuple):
            waiting += item
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
    return total


class Generation(Extension):
    """`{% generation %}`: marks the assistant's words for training; to a prompt it adds nothing."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements in between."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Guard(NodeTransformer):
    """Refuses nodes that chat templates do not need, and puts meters into those that loop, make or compare values."""

    def visit(self, node: nodes.Node, *args: Any, **named: Any) -> Any:
        if not isinstance(node, _NODES) or (isinstance(node, nodes.For) and node.recursive):
            raise TemplateSyntaxError(f"{type(node).__name__} is not supported", node.lineno)
        return super().visit(node, *args, **named)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - named by the base class
        cost = 1 + sum(map(_cost, (*node.body, *([node.test] if node.test else []))))
        self.generic_visit(node)
        node.iter = _through("_turns", node.iter, nodes.Const(cost))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("_joined", nodes.Tuple(node.nodes, "load", lineno=node.lineno))

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return _through("_sized", self.generic_visit(node))

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return _through("_sized", self.generic_visit(node))

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("_sized", node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _through("_sized", node)
        node.arg = _through("_sized", node.arg)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _through("_sized", node.expr)
        for operand in node.ops:
            operand.expr = _through("_sized", operand.expr)
        return node


def _through(name: str, node: Any, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _cost(node: nodes.Node) -> int:
    """Nodes in a tree, and the text that it prints."""
    total, waiting = 0, [node]
    while waiting:
        item = waiting.pop()
        total += 1 + (len(item.data) // SIZE_PER_STEP if isinstance(item, nodes.TemplateData) else 0)
        waiting += item.iter_child_nodes()
    return total


def _refuse(message: str) -> NoReturn:
    raise TemplateRuntimeError(str(message))


def _join(values: Iterable[Any], d: str = "") -> str:
    return _join_method(d, values)


def _join_method(separator: str, values: Iterable[Any]) -> str:
    parts = [str(value) for value in values if size(value) >= 0]
    if sum(map(len, parts)) + len(separator) * len(parts) > MAX_SIZE:
        raise TemplateRuntimeError(f"it makes a value beyond {MAX_SIZE} characters")
    return separator.join(parts)


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    whole = str(text)
    if len(whole) + whole.count(old) * len(new) > MAX_SIZE:
        raise TemplateRuntimeError(f"it makes a value beyond {MAX_SIZE} characters")
    return whole.replace(old, new, count)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """As transformers has it for chat templates: without the escapes that HTML needs."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=min(indent, ITEM_SIZE) if indent else None)


_GROWING: dict[str, Callable[..., str]] = {"join": _join_method, "replace": _replace}
"""Methods whose result can be far larger than what goes in."""
