"""Write the table of settings in docs/generation.md from their declarations.

python docs/make_settings.py
"""

from __future__ import annotations

from pathlib import Path

from recycle_onnx.declaration import Setting, declared
from recycle_onnx.kinds import Number
from recycle_onnx.runtime.config import GenerationConfig

PAGE = Path(__file__).parent / "generation.md"
BEGIN, END = "<!-- settings: made by docs/make_settings.py -->\n", "<!-- end of settings -->\n"
COLUMNS = ("setting", "default", "values", "what it does", "name from", "server")


def render(page: str) -> str:
    """Return the page with the table of today in it."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    rows += [_row(name, about) for name, about in declared(GenerationConfig).items()]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _row(name: str, about: Setting) -> tuple[str, ...]:
    kind = about.kind
    default = about.unset or (f"{about.default:g}" if isinstance(kind, Number) else "none")
    served = "yes" if about.served else ""
    return f"`{name}`", default, kind.expected, about.help, about.origin, served


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
