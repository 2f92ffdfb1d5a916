"""How templates are rewritten before they are compiled: what Jinja has no hook for becomes a filter."""

from __future__ import annotations

import math
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

__all__ = ["CONCAT", "COPY", "KEY", "LOOK", "TICK", "WRITTEN", "Bounds", "Signed"]

# Names of those filters.
TICK, CONCAT, WRITTEN = "_minicpm4_tick", "_minicpm4_concat", "_minicpm4_written"
LOOK, COPY, KEY = "_minicpm4_look", "_minicpm4_copy", "_minicpm4_key"


class Bounds(NodeTransformer):
    """Sends what loops run over, what ~ joins, what is compared, cut and put together through the meter:
    Jinja's own hooks have filters, tests, calls and operators."""

    def __init__(self, environment: jinja2.Environment) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._filtered(node.iter, TICK)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._filtered(nodes.List(node.nodes, lineno=node.lineno), CONCAT)

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        if isinstance(node.value, float) and not math.isfinite(node.value):
            raise jinja2.TemplateSyntaxError("a number is too large", node.lineno)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        before: nodes.Compare | nodes.Operand = node
        for operand in node.ops:
            if operand.op in ("in", "notin"):
                before.expr = self._filtered(before.expr, KEY)
            operand.expr = self._filtered(operand.expr, LOOK)
            before = operand
        if node.ops[0].op not in ("in", "notin"):
            node.expr = self._filtered(node.expr, LOOK)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = self._filtered(node.node, COPY)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return self._filtered(node, COPY)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        for pair in node.items:
            pair.key = self._filtered(pair.key, KEY)
        return self._filtered(node, COPY)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return self._filtered(node, COPY) if node.ctx == "load" else node

    def _filtered(self, node: Any, name: str) -> nodes.Filter:
        call = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
        call.set_environment(self._environment)
        return call


class Signed(Bounds):
    """Every literal of a template is a string that knows that it is the template's."""

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        super().visit_Const(node)
        return self._filtered(node, WRITTEN) if isinstance(node.value, str) else node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return self._filtered(nodes.Const(node.data, lineno=node.lineno), WRITTEN)
