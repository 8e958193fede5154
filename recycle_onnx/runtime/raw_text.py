"""What is said once where a chat model is asked to continue a raw text, as it was not trained to."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from tokenizers import Tokenizer

from recycle_onnx.errors import InputError
from recycle_onnx.runtime.chat_template import has_template

logger = logging.getLogger(__name__)


class RawTextNotice:
    """A notice for one model, which is logged at most once, and never of a model without a chat template."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self._folder, self._tokenizer = folder, tokenizer
        self._settled = False

    def consider(self, prompt: str) -> None:
        """Log it if the prompt is a raw text; one with a special token was made by somebody's template."""
        if self._settled:
            return
        self._settled = True
        with suppress(InputError):  # a damaged template is told to whoever uses it
            if has_template(self._folder) and not self._is_rendered(prompt):
                logger.warning(
                    "%s is a chat model, and the prompt is continued as raw text; for an answer use model.chat(…) in "
                    'Python, --chat on the command line, "messages" in a batch',
                    self._folder.resolve().name,
                )

    def _is_rendered(self, prompt: str) -> bool:
        added = self._tokenizer.get_added_tokens_decoder().values()
        return any(token.special and token.content in prompt for token in added)
