"""Models on the Hugging Face hub, through `huggingface_hub` and its cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recycle_onnx.checkpoint.weights import ADAPTER, refuse_adapter
from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.extras import install_command
from recycle_onnx.provenance import write_source
from recycle_onnx.untrusted import copy_file

NEEDED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""All that a base consists of: no other weight formats, no images."""
CARD = "README.md"
"""Fetched too, for the licence that it names."""


def is_hub_id(name: str) -> bool:
    """Tell whether a name that is no path may be `org/name`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is not None and not name.endswith(".gguf")


@dataclass(frozen=True)
class HubModel:
    """A model by its id, at a branch, tag or commit."""

    id: str
    revision: str | None = None

    @property
    def name(self) -> str:
        """The id without its organisation."""
        return self.id.split("/")[1]

    def snapshot(self) -> Path:
        """Return the model's folder in the hub's cache, fetched where it is missing; `HF_HUB_OFFLINE` is respected.

        Raises:
            InputError: no such model or revision, or it has no safetensors.
            RecycleError: no network, and not in the cache.
        """
        return self._snapshot

    @cached_property
    def _snapshot(self) -> Path:
        folder = self.fetch([*NEEDED, CARD, ADAPTER])
        refuse_adapter(folder)
        for needed in ("config.json", "model*.safetensors"):
            if not any(folder.glob(needed)):
                raise InputError(f"{self.id}: has no {needed}; expected a model in Hugging Face layout")
        return folder

    def fetch(self, patterns: list[str]) -> Path:
        """Return the folder in the hub's cache, with the files that match; errors as for `snapshot`."""
        try:
            from huggingface_hub import errors, snapshot_download
        except ModuleNotFoundError as error:
            raise InputError(
                f"{self.id}: no such folder or file; to read it as a hub id: {install_command('hub')}"
            ) from error
        try:
            return Path(snapshot_download(self.id, revision=self.revision, allow_patterns=patterns))
        except errors.GatedRepoError as error:
            raise InputError(
                f"{self.id}: needs its owner's permission; accept its terms on the hub, then `hf auth login`"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise InputError(
                f"{self.id}: neither a folder or file here nor a model on the hub; if it is private: `hf auth login`"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise InputError(
                f"{self.id}: has no revision {self.revision!r}; expected a branch, tag or commit"
            ) from error
        except errors.LocalEntryNotFoundError as error:
            raise RecycleError(
                f"{self.id}: no such folder or file, not in the hub's cache{self._at()}, and the hub cannot be reached "
                "(no network, or HF_HUB_OFFLINE is set); connect, or give a path"
            ) from error
        except errors.HFValidationError as error:
            raise InputError(f"{self.id}: no such folder or file, and not a hub id ({error})") from error
        except Exception as error:  # the HTTP client's kinds differ between versions of huggingface_hub
            raise RecycleError(f"{self.id}: cannot be fetched from the hub ({error})") from error

    def _at(self) -> str:
        return f" at revision {self.revision!r}" if self.revision else ""

    def provenance(self) -> dict[str, Any]:
        """Return id, revision asked for, the commit that it was, and the licence that its card names, if it does."""
        origin = {"kind": "hub", "id": self.id, "revision": self.revision or "main", "commit": self.snapshot().name}
        licence = _licence(self.snapshot() / CARD)
        return origin if licence is None else {**origin, "license": licence}

    def write(self, folder: Path, *, link: bool = False) -> None:
        """Copy the model into `folder`, or link to its weights there."""
        snapshot = self.snapshot()
        for path in [path for pattern in NEEDED for path in snapshot.glob(pattern)]:
            if not (link and path.suffix == ".safetensors" and _linked(path, folder / path.name)):
                copy_file(path, folder / path.name)
        write_source(folder, self.provenance())


def _licence(card: Path) -> str | None:
    """Read the licence in a model card's front matter; None where it has none, or is not YAML."""
    from huggingface_hub import metadata_load

    try:
        licence = (metadata_load(card) or {}).get("license") if card.exists() else None
    except Exception:  # whatever the YAML parser raises: a licence that cannot be read is not known
        return None
    return licence if isinstance(licence, str) else None


def _linked(path: Path, link: Path) -> bool:
    """Make a link; tell whether that was possible, as Windows asks for a privilege."""
    try:
        link.symlink_to(path)
    except OSError:
        return False
    return True
