"""A thread that saves what idle caches have read: no answer waits for a disk."""

from __future__ import annotations

import logging
import threading
import time

from recycle_onnx.errors import RecycleError
from recycle_onnx.runtime.decoding.decoder import Decoder
from recycle_onnx.serve.prompt_files import PromptFiles, Unsaved

logger = logging.getLogger(__name__)


class PromptSaver:
    """Decoders that nobody uses, and a thread that saves what they have read, a block at a time.

    Only the copy of a block is made under the lock, in some milliseconds: whoever wants a decoder back waits no longer.
    What is not saved by then is saved when the decoder is idle again.
    """

    def __init__(self, files: PromptFiles, most: int) -> None:
        """Start no thread yet. At most `most` decoders wait, so that a slow disk does not fill the memory."""
        self.files = files
        self._most = most
        self._waiting: list[Decoder] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._failing = False  # since the latest write: what lasts is told once

    def offer(self, decoder: Decoder) -> None:
        """Save what a decoder has read, until it is withdrawn."""
        with self._changed:
            if self._closing:
                return
            self._waiting = [*self._waiting, decoder][-self._most :]
            if self._thread is None:
                # A daemon, so that a program that never closes its server can end all the same.
                self._thread = threading.Thread(target=self._run, name="recycle-onnx-prompts", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def withdraw(self, decoder: Decoder) -> None:
        """Leave a decoder alone from now on: another text may be read into it."""
        with self._changed:
            if decoder in self._waiting:
                self._waiting.remove(decoder)
                self._changed.notify_all()

    def close(self, seconds: float) -> None:
        """Save what still waits, as far as so many seconds allow; a block that is being written is finished."""
        end = time.monotonic() + seconds
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting, seconds)
            self._waiting.clear()
        if self._thread is not None:
            self._thread.join(max(1.0, end - time.monotonic()))

    def _run(self) -> None:
        self.files.sweep()
        while self._save_next():
            pass

    def _save_next(self) -> bool:
        """Wait for something to save, and save a block of it; tell whether there may be more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return False
            decoder = self._waiting[0]
            unsaved = self._copy(decoder)
        if unsaved is None or not self._write(unsaved):
            self.withdraw(decoder)
        return True

    def _copy(self, decoder: Decoder) -> Unsaved | None:
        try:
            with decoder.exclusive.use():
                return self.files.unsaved(decoder)
        except RecycleError:  # the model was closed
            return None

    def _write(self, unsaved: Unsaved) -> bool:
        """Write a block; where that fails, speed is lost and nothing else."""
        try:
            written = self.files.write(unsaved)
        except RecycleError as error:
            if not self._failing:
                logger.warning("a prompt is not kept for later: %s", error)
            written = False
            self._failing = True
        else:
            self._failing = False
        return written
