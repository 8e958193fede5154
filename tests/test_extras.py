"""What a plain install can do, and what is said where an extra is missing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from recycle_onnx.extras import EXTRAS, extra_of, install_command, is_installed

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "samples" / "stories"
OF_EXTRAS = sorted({module for modules in EXTRAS.values() for module in modules})


@cache
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def modules(requirements: list[str]) -> Iterator[str]:
    """What requirements bring: names of our packages' modules are those of their distributions."""
    for requirement in requirements:
        own = re.match(r"recycle-onnx\[(.*)\]", requirement)
        if own:
            for extra in own[1].split(","):
                yield from modules(project()["optional-dependencies"][extra])
        else:
            match = re.match(r"[\w.-]+", requirement)
            assert match
            yield match[0].lower().replace("-", "_")


def run_without(missing: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that cannot import some modules."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
        f"from recycle_onnx.cli import main; main({[str(argument) for argument in arguments]!r})"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_holds_the_modules_that_it_is_said_to_bring(extra: str) -> None:
    assert set(EXTRAS[extra]) == set(modules(project()["optional-dependencies"][extra]))


def test_every_package_that_is_imported_comes_with_the_plain_install_or_an_extra() -> None:
    plain = set(modules(project()["dependencies"]))
    for path in (ROOT / "recycle_onnx").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"recycle_onnx"}:
                is_hook = path.parent.name == "__pyinstaller" and top == "PyInstaller"  # which imports the hooks itself
                assert top in plain or extra_of(top) or is_hook, f"{path}: {top}"


def test_every_extra_that_a_text_names_exists() -> None:
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "samples").rglob("*.md")]
    texts += (ROOT / "recycle_onnx").rglob("*.py")
    for path in texts:
        for named in re.findall(r"recycle-onnx\[([\w,]+)\]", path.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= {*project()["optional-dependencies"], "NAME"}, path


def test_a_verbs_own_extra_comes_before_another_with_the_same_module() -> None:
    assert extra_of("safetensors.numpy") == "export"
    assert extra_of("safetensors", "train") == "train"
    assert extra_of("matplotlib", "train") == "plot"
    assert extra_of("numpy", "train") is None


def test_an_extra_is_installed_when_all_of_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_installed("chat")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert not is_installed("export")


@pytest.mark.parametrize(
    ("missing", "extra", "arguments"),
    [
        ("safetensors", "export", ("attach", SAMPLE, "out")),
        ("ml_dtypes", "export", ("export", SAMPLE, "out")),
        ("safetensors", "export", ("inspect", SAMPLE)),
        ("onnx_ir", "export", ("quantize", "bundle", "out")),
        ("torch", "train", ("train", SAMPLE, "--estimate")),
        ("starlette", "serve", ("serve", "bundle")),
    ],
)
def test_one_line_names_the_extra_that_brings_what_is_missing(
    missing: str, extra: str, arguments: tuple[object, ...], tmp_path: Path
) -> None:
    outcome = run_without([missing], *(tmp_path / word if word == "out" else word for word in arguments))
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines() == [
        f"Error: needs {missing}, which is not installed; try: {install_command(extra)}"
    ]


def test_help_marks_the_verbs_whose_extra_is_missing() -> None:
    text = " ".join(run_without(["torch"], "--help").stdout.split())
    assert text.count("is not installed]") == 1
    assert re.search(r"train Train the [^\[]* \[extra 'train' is not installed\]", text)
    assert install_command("NAME") in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "BUNDLE", "Once", "-n", "4", "--json"), ("inspect", "BUNDLE"), ("doctor",),
        ("run", "BUNDLE", "--prompt", "Once", "-n", "4"),
        ("eval", "BUNDLE", "--perplexity", SAMPLE / "tokenizer_config.json"), ("calibrate", "BUNDLE", "--help"),
        ("chat", "BUNDLE", "--help"), ("batch", "--help"), ("bench", "--help"),
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_a_plain_install_runs_bundles(arguments: tuple[object, ...], sample_bundle: Path) -> None:
    outcome = run_without(OF_EXTRAS, *(sample_bundle if word == "BUNDLE" else word for word in arguments))
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout


def test_the_oldest_versions_that_are_tested_are_the_floors() -> None:
    tested = dict(line.split("==") for line in (ROOT / "tests/lowest.txt").read_text().splitlines() if "==" in line)
    wanted = [
        *project()["dependencies"],
        *(line for lines in project()["optional-dependencies"].values() for line in lines),
    ]
    floors = dict(match.groups() for line in wanted if (match := re.match(r"([\w-]+)>=([\d.]+)", line)))
    plain = {re.match(r"[\w-]+", line)[0] for line in project()["dependencies"]}  # type: ignore[index]
    assert plain <= set(tested)
    for name, version in tested.items():
        assert version == floors[name] or version == f"{floors[name]}.0", name


def test_openvinos_environment_has_what_an_install_that_exports_brings() -> None:
    """It cannot install the package, whose onnxruntime would take the place of OpenVINO's."""
    lines = (ROOT / "tests/conformance/requirements-openvino.txt").read_text().splitlines()
    listed = {match[0] for line in lines if (match := re.match(r"[\w-]+", line))}
    wanted = [*project()["dependencies"], *project()["optional-dependencies"]["export"]]
    assert {re.match(r"[\w-]+", line)[0] for line in wanted} - {"onnxruntime"} <= listed  # type: ignore[index]
