"""The syntax tree of a chat template, changed so that it reports what it does."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.visitor import NodeTransformer

STEP, MADE, SPREAD, TOGETHER = "#step", "#made", "#spread", "#together"
"""Filters by names that no template can write: steps taken, a new value, arguments from a list, and `~`."""


def metered(template: nodes.Template) -> nodes.Template:
    """Change a template so that it counts steps in loops, macros and blocks, and reports new values."""
    _Meter().visit(template)
    return template


class _Meter(NodeTransformer):
    def __init__(self) -> None:
        self._nodes = 0

    def visit(self, node: nodes.Node, *args: Any, **named: Any) -> Any:
        self._nodes += 1
        return super().visit(node, *args, **named)

    def _counted(self, node: Any) -> int:
        before = self._nodes
        self.generic_visit(node)
        return self._nodes - before

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 -- as jinja2 names them
        steps = self._counted(node)
        node.body.insert(0, _step(node, steps))
        if node.test is not None:  # what it rejects never comes to the body
            node.test = nodes.And(_filter(node, nodes.Const(True), STEP, nodes.Const(steps)), node.test)
        return node

    def visit_Macro(self, node: Any) -> nodes.Node:  # noqa: N802
        node.body.insert(0, _step(node, self._counted(node)))
        return node  # type: ignore[no-any-return]

    visit_CallBlock = visit_Block = visit_Macro  # noqa: N815

    def visit_List(self, node: Any) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _filter(node, node, MADE)

    visit_Dict = visit_Tuple = visit_List  # noqa: N815

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, node, MADE) if isinstance(node.arg, nodes.Slice) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, nodes.List(node.nodes, lineno=node.lineno), TOGETHER)

    def visit_Call(self, node: Any) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.dyn_args is not None:
            node.dyn_args = _filter(node, node.dyn_args, SPREAD)
        return node  # type: ignore[no-any-return]

    visit_Filter = visit_Test = visit_Call  # noqa: N815

    def visit_EvalContextModifier(self, node: nodes.Node) -> nodes.Node:  # noqa: N802
        raise TemplateSyntaxError("autoescape is for web pages", node.lineno)

    visit_ScopedEvalContextModifier = visit_EvalContextModifier  # noqa: N815


def _step(node: nodes.Node, steps: int) -> nodes.Node:
    value = _filter(node, nodes.Const(None), STEP, nodes.Const(steps))
    return nodes.ExprStmt(value, lineno=node.lineno)


def _filter(node: nodes.Node, value: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=node.lineno, environment=node.environment)
