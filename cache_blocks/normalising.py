"""What a source says, whatever it looks like and whichever Python reads it."""

from __future__ import annotations

import ast
import functools
import textwrap
from typing import Any, Final, cast

from cache_blocks import forking

_parsing = forking.lock()  # CPython 3.11 cannot build two syntax trees at the same time (SystemError)
_NOT_CODE: Final = frozenset({"kind", "type_comment", "type_ignores"})


@functools.lru_cache(maxsize=1024)
def normalise_source(source: str) -> str:
    """Return what a source says, without comments, formatting, docstrings and decorators.

    Decorators configure how Prefect runs the task, not what it computes. A source that does not parse on its
    own, such as a lambda's, is returned as it is.
    """
    try:
        with _parsing:
            tree = ast.parse(textwrap.dedent(source))
    except SyntaxError:
        return source
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            node.decorator_list = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.JoinedStr):  # Python 3.12.0 to 3.12.3 end some with an empty text
            node.values = [value for value in node.values if not _is_empty_text(value)]
    return _canonical(tree)


def _is_empty_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value == ""


def _canonical(node: Any) -> str:
    """Return a syntax tree as text; `ast.unparse` and `ast.dump` differ between Python versions."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if name not in _NOT_CODE)
        said = ",".join(f"{name}={_canonical(value)}" for name, value in fields if value is not None and value != [])
        return f"{type(node).__name__}({said})"
    if isinstance(node, list):
        return f"[{','.join(_canonical(item) for item in cast('list[Any]', node))}]"
    return ascii(node)
