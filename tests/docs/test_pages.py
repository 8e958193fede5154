"""The documents: links lead somewhere, lists are whole, and the site builds."""

from __future__ import annotations

import importlib.util
import re
import runpy
import subprocess
import sys
import tomllib
import unicodedata
from pathlib import Path

import pytest

from recycle_onnx.cli.app import VERBS
from recycle_onnx.runtime.config import GenerationConfig

ROOT = Path(__file__).parents[2]
FORGE = "https://github.com/recycle-onnx/recycle-onnx/"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
SCREEN = 70
"""Lines that the README may have."""
EXTRAS_OF_DEVELOPERS = {"test", "clients", "frozen", "dev", "reference"}


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """A page without its code, in which brackets are no links."""
    return re.sub(r"^```.*?^```|`[^`\n]*`", "code", read(page), flags=re.DOTALL | re.MULTILINE)


def links(page: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: str) -> set[str]:
    """What a forge makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", read(page), flags=re.DOTALL | re.MULTILINE), re.M)
    kept = (unicodedata.normalize("NFC", heading).lower().strip() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in kept}


def broken(page: str, link: str) -> bool:
    """Whether a link to a part of this repository leads nowhere."""
    name, _, anchor = link.partition("#")
    if name.startswith(FORGE) and "/main/" in name:
        target = ROOT / name.split("/main/", 1)[1]
    elif re.match("[a-z]+:", name):
        return False
    else:
        target = (ROOT / page).parent / name if name else ROOT / page
    if not target.exists():
        return True
    return bool(anchor) and anchor not in anchors(target.resolve().relative_to(ROOT).as_posix())


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    assert [link for link in links(page) if broken(page, link)] == []


def test_a_link_to_nowhere_is_seen() -> None:
    assert broken("README.md", f"{FORGE}blob/main/docs/none.md")
    assert broken("docs/chat.md", "none.md")
    assert broken("docs/chat.md", "strategies.md#none")
    assert not broken("docs/chat.md", "strategies.md#what-exact-means")


def test_the_readme_is_one_screen_with_links_that_work_on_pypi() -> None:
    assert len(read("README.md").splitlines()) <= SCREEN
    assert all(link.startswith("https://") for link in links("README.md"))


def test_the_readme_has_the_commands_of_a_clone() -> None:
    makefile = read("Makefile")
    for target in re.findall(r"^    make (\w+)", read("README.md"), re.MULTILINE):
        assert re.search(f"^{target}:", makefile, re.MULTILINE), target
    assert "    make demo" in read("README.md")
    assert "    make test" in read("README.md")


def test_every_command_is_listed() -> None:
    listed = re.findall(r"^\| `([a-z]+) ", read("docs/commands.md"), re.MULTILINE)
    assert set(listed) == set(VERBS)


def test_the_table_of_settings_is_made_from_their_declarations() -> None:
    render = runpy.run_path(str(ROOT / "docs" / "make_settings.py"))["render"]
    assert read("docs/generation.md") == render(read("docs/generation.md")), "run docs/make_settings.py"
    for name in GenerationConfig.__dataclass_fields__:
        assert re.search(rf"^\| `{name}` \|", read("docs/generation.md"), re.MULTILINE), name


def test_every_extra_is_listed() -> None:
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    for extra in extras.keys() - EXTRAS_OF_DEVELOPERS:
        assert re.search(rf"^\| .*`{extra}`.* \| ", read("docs/install.md"), re.MULTILINE), extra


def test_contributing_names_files_commands_and_rooms_that_exist() -> None:
    text = read("CONTRIBUTING.md")
    for name in re.findall(r"`((?:recycle_onnx|docs|tests)/[\w./]*)`", text):
        assert (ROOT / name.replace("NAME", "export")).exists(), name
    for target in re.findall(r"`make ([\w-]+)`", text):
        assert re.search(f"^{target}:", read("Makefile"), re.MULTILINE), target
    package = ROOT / "recycle_onnx"
    for room in (path.name for path in package.iterdir() if (path / "__init__.py").exists()):
        assert f"      {room}/ " in text, room


def test_the_workflows_run_targets_of_the_makefile() -> None:
    files = [path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    targets = {target for text in files for target in re.findall(r"run: make ([\w-]+)", text)}
    assert targets >= {"test", "test-reference", "lint", "docs", "dist"}
    for target in targets:
        assert re.search(f"^{target}:", read("Makefile"), re.MULTILINE), target


@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="mkdocs-material (extra docs) is not here")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "samples/gui.py" in (tmp_path / "chat" / "index.html").read_text(encoding="utf-8")
