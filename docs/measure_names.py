"""Count what makes code hard to read: names that say nothing, docstrings that are fragments, functions that are long.

python docs/measure_names.py            # figures of the package, and the mean length of the documents' sentences
python docs/measure_names.py --check    # say what is wrong, and end with 1 if anything is
python docs/measure_names.py --root DIR # of another checkout, to compare with
"""

from __future__ import annotations

import argparse
import ast
import io
import runpy
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ("recycle_onnx",)
NAMED = ("recycle_onnx", "optimum", "samples", "benchmarks", "docs", "tests/helpers")
"""Where names count; tests may call what they have made as they like."""
VAGUE = frozenset(("found", "given", "done"))
"""Names that say that something happened to a thing, and not what the thing is."""
KEPT = {"recycle_onnx/checkpoint/draft_vocabulary.py": "given", "recycle_onnx/serve/ollama_objects.py": "done"}
"""Public names that applications use already, `DraftVocabulary.given`, and those of formats that are not ours."""
NO_VERBS = frozenset((
    "A", "All", "An", "As", "At", "Both", "By", "Each", "Every", "Everything", "For", "From", "How", "In",
    "Its", "Of", "One", "Only", "The", "These", "This", "Those", "Until", "What", "Where", "Whether", "Which",
    "While", "Who", "Why", "Within", "Without",
))  # fmt: skip
"""First words of a fragment. Ruff's D401 knows wrong forms of verbs; it lets most of these pass."""

MOST_LINES, MOST_PARAMETERS = 50, 8
"""Of a function, from its `def` to its end. `self` and `cls` do not count; `*args` and `**kwargs` are one each."""
MANY_PARAMETERS = {"recycle_onnx/runtime/loading.py": "load"}
"""The one exception: applications call it first, and their editors show them each keyword with its default."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def nodes(root: Path, folders: tuple[str, ...]) -> Iterator[tuple[str, ast.AST]]:
    """Yield every node of every module's syntax tree, and the module's path."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            yield from ((name, node) for node in _nodes_of(path.read_text(encoding="utf-8")))


@cache
def _nodes_of(text: str) -> list[ast.AST]:
    """Return the nodes of a module; it is walked once for all that is counted in it."""
    return list(ast.walk(ast.parse(text)))


def duplicate_classes(root: Path = ROOT) -> dict[str, list[str]]:
    """Return classes of the package that share a name, and where they are."""
    places = defaultdict(list)
    for path, node in nodes(root, PACKAGE):
        if isinstance(node, ast.ClassDef):
            places[node.name].append(f"{path}:{node.lineno}")
    return {name: where for name, where in sorted(places.items()) if len(where) > 1}


def vague_names(root: Path = ROOT) -> list[str]:
    """List variables, parameters, attributes and functions that have one of the vague names."""
    return [
        f"{path}:{line}: {name}"
        for path, node in nodes(root, NAMED)
        for name, line in _bound(node)
        if name.strip("_") in VAGUE and KEPT.get(path) != name
    ]


def _bound(node: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the names that a node binds. What other libraries call theirs is read, not bound: `task.done()`."""
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield (node.id if isinstance(node, ast.Name) else node.attr), node.lineno
    elif isinstance(node, ast.arg):
        yield node.arg, node.lineno
    elif isinstance(node, Function | ast.ClassDef):
        yield node.name, node.lineno
    elif isinstance(node, ast.alias | ast.ExceptHandler):
        name = node.asname if isinstance(node, ast.alias) else node.name
        yield name or "", node.lineno


def fragments(root: Path = ROOT) -> list[str]:
    """List docstrings of functions that begin with no verb; properties are named by noun phrases."""
    return [
        f"{path}:{node.lineno}: {text.splitlines()[0]}"
        for path, node in nodes(root, PACKAGE)
        if isinstance(node, Function) and not _is_property(node) and (text := ast.get_docstring(node))
        if text.split()[0].rstrip(",.:;") in NO_VERBS or not text[0].isupper()
    ]


def _is_property(function: Function) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in function.decorator_list)


def large_functions(root: Path = ROOT) -> list[str]:
    """List functions that are longer, or have more parameters, than a reader keeps in mind."""
    return [
        f"{path}:{node.lineno}: {node.name} has {what}"
        for path, node in nodes(root, NAMED)
        if isinstance(node, Function)
        for what in _excess(node, MANY_PARAMETERS.get(path) != node.name)
    ]


def _excess(function: Function, counted: bool) -> Iterator[str]:
    """Yield how many lines and parameters are too many; `counted` parameters only."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if lines > MOST_LINES:
        yield f"{lines} lines; at most {MOST_LINES}"
    named = function.args
    parameters = [
        each for each in (*named.posonlyargs, *named.args, named.vararg, *named.kwonlyargs, named.kwarg) if each
    ]
    count = sum(parameter.arg not in ("self", "cls") for parameter in parameters)
    if counted and count > MOST_PARAMETERS:
        yield f"{count} parameters; at most {MOST_PARAMETERS}"


def comments(root: Path = ROOT) -> float:
    """Count comments, and docstrings of constants and fields, for each hundred lines of code."""
    count = lines = 0
    for path in sorted((root / PACKAGE[0]).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines += sum(bool(line.strip()) for line in text.splitlines())
        count += sum(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(text).readline))
        count += sum(len(_attribute_docstrings(node)) for node in _nodes_of(text))
    return 100 * count / lines


def _attribute_docstrings(node: ast.AST) -> list[ast.stmt]:
    """Return the strings behind assignments, which say what the name is for."""
    body = node.body if isinstance(node, ast.Module | ast.ClassDef | Function) else []
    return [
        text
        for before, text in pairwise(body)
        if isinstance(before, ast.Assign | ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    ]


def complaints(root: Path = ROOT) -> list[str]:
    """List all that is wrong, one line each."""
    twice = [f"{name} is the name of several classes: {', '.join(w)}" for name, w in duplicate_classes(root).items()]
    return [*twice, *vague_names(root), *fragments(root), *large_functions(root)]


def main() -> None:
    """Print the figures, or what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="say what is wrong")
    parser.add_argument("--root", type=Path, default=ROOT, help="a checkout")
    asked = parser.parse_args()
    if asked.check:
        sys.exit("\n".join(complaints(asked.root)) or 0)
    pages = runpy.run_path(str(asked.root / "docs" / "measure_prose.py"))["pages"]()
    sentences = [sentence for page in pages for sentence in page.sentences]
    print(f"{len(duplicate_classes(asked.root)):6} class names that several classes share")
    print(f"{len(vague_names(asked.root)):6} names that are {', '.join(sorted(VAGUE))}")
    print(f"{len(fragments(asked.root)):6} docstrings of functions that begin with no verb")
    print(f"{len(large_functions(asked.root)):6} functions over {MOST_LINES} lines or {MOST_PARAMETERS} parameters")
    print(f"{comments(asked.root):6.1f} comments in a hundred lines of code")
    words = sum(len(sentence.split()) for sentence in sentences)
    print(f"{words / len(sentences):6.1f} words in a sentence of the documents")


if __name__ == "__main__":
    main()
