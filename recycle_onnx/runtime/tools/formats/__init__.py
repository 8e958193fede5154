"""The formats of calls, each a file of data; which one a model writes shows in its chat template."""

from __future__ import annotations

from recycle_onnx.runtime.tools.call_format import CallFormat
from recycle_onnx.runtime.tools.formats.generic import GENERIC
from recycle_onnx.runtime.tools.formats.marked_list import MARKED_LIST, MARKED_LIST_SPACED
from recycle_onnx.runtime.tools.formats.marked_name import MARKED_NAME
from recycle_onnx.runtime.tools.formats.named_parameters import NAMED_PARAMETERS
from recycle_onnx.runtime.tools.formats.tagged import TAGGED
from recycle_onnx.runtime.tools.formats.tagged_pairs import TAGGED_PAIRS, TAGGED_PAIRS_CLOSE
from recycle_onnx.runtime.tools.formats.tagged_parameters import TAGGED_PARAMETERS

FORMATS = (
    TAGGED_PARAMETERS, TAGGED_PAIRS_CLOSE, TAGGED_PAIRS, TAGGED, MARKED_NAME, MARKED_LIST_SPACED, MARKED_LIST,
    NAMED_PARAMETERS,
)  # fmt: skip
"""In the order in which a template is asked for their signs."""


def format_of(template: str) -> CallFormat:
    """Return the format that a chat template, in jinja, shows its model; the generic one where it shows none."""
    plain = template.replace("\\", "")  # quotes within quotes are escaped
    return next((one for one in FORMATS if all(sign in plain for sign in one.signs)), GENERIC)
