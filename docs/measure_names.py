"""Count what makes code hard to read for a stranger: names that say nothing, and docstrings that are fragments.

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
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ("recycle_onnx",)
NAMED = ("recycle_onnx", "optimum", "samples", "benchmarks", "docs", "tests/helpers")
"""Where names count; tests may call what they have made as they like."""
VAGUE = frozenset(("found", "given", "done"))
"""Names that say that something happened to a thing, and not what the thing is."""
KEPT = {"recycle_onnx/checkpoint/draft_vocabulary.py": "given"}
"""Public names that applications use already: `DraftVocabulary.given`."""
NO_VERBS = frozenset((
    "A", "All", "An", "As", "At", "Both", "By", "Each", "Every", "Everything", "For", "From", "How", "In",
    "Its", "Of", "One", "Only", "The", "These", "This", "Those", "Until", "What", "Where", "Whether", "Which",
    "While", "Who", "Why", "Within", "Without",
))  # fmt: skip
"""First words of a fragment. Ruff's D401 knows wrong forms of verbs; it lets most of these pass."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(root: Path, folders: tuple[str, ...]) -> Iterator[tuple[str, ast.Module]]:
    """Yield the path and the syntax tree of every module."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            yield path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def duplicate_classes(root: Path = ROOT) -> dict[str, list[str]]:
    """Return classes of the package that share a name, and where they are."""
    places = defaultdict(list)
    for path, tree in modules(root, PACKAGE):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path}:{node.lineno}")
    return {name: where for name, where in sorted(places.items()) if len(where) > 1}


def vague_names(root: Path = ROOT) -> list[str]:
    """List variables, parameters, attributes and functions that have one of the vague names."""
    return [
        f"{path}:{line}: {name}"
        for path, tree in modules(root, NAMED)
        for node in ast.walk(tree)
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
        for path, tree in modules(root, PACKAGE)
        for node in ast.walk(tree)
        if isinstance(node, Function) and not _is_property(node) and (text := ast.get_docstring(node))
        if text.split()[0].rstrip(",.:;") in NO_VERBS or not text[0].isupper()
    ]


def _is_property(function: Function) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in function.decorator_list)


def comments(root: Path = ROOT) -> float:
    """Count comments, and docstrings of constants and fields, for each hundred lines of code."""
    count = lines = 0
    for path, tree in modules(root, PACKAGE):
        text = (root / path).read_text(encoding="utf-8")
        lines += sum(bool(line.strip()) for line in text.splitlines())
        count += sum(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(text).readline))
        count += sum(len(_attribute_docstrings(node)) for node in ast.walk(tree))
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
    return [*twice, *vague_names(root), *fragments(root)]


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
    print(f"{comments(asked.root):6.1f} comments in a hundred lines of code")
    words = sum(len(sentence.split()) for sentence in sentences)
    print(f"{words / len(sentences):6.1f} words in a sentence of the documents")


if __name__ == "__main__":
    main()
