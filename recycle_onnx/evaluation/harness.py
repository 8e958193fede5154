"""lm-evaluation-harness (PyPI `lm-eval`, the extra `eval`) on our models; the one file that knows it.

Its tasks, prompts and metrics; our halves.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.tasks
from datasets import Dataset, disable_progress_bars
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from recycle_onnx.errors import InputError, RecycleError
from recycle_onnx.evaluation.alternating import DECODINGS, Decoding, Verdict, verdict
from recycle_onnx.evaluation.scoring import Scorer
from recycle_onnx.evaluation.task_rows import TASKS, Row
from recycle_onnx.progress import Progress, silent
from recycle_onnx.runtime.config import GREEDY
from recycle_onnx.runtime.model import Model
from recycle_onnx.tokenizer import special_token

Request = tuple[tuple[str, str] | None, list[int], list[int]]
NEW_TOKENS = 256
"""Most tokens of a generation where a task does not say; the harness's own default."""


class RecycleLM(TemplateLM):  # type: ignore[misc]
    """A bundle as the harness's model: `lm_eval.simple_evaluate(model=RecycleLM(model), tasks=[...])`.

    `decoding` says whose likelihoods it gives; it may be changed between evaluations, and what was scored once is
    not scored again. Texts become tokens as in the harness's own Hugging Face model.
    """

    def __init__(self, model: Model, decoding: Decoding = "full", report: Progress = silent, note: str = "") -> None:
        super().__init__()
        self.model, self.decoding = model, decoding
        self.tokenizer = model.tokenizer
        self.max_length = model.bundle.manifest.context_length
        self.report, self.note = report, note
        self._eos = _special_token(model, "eos_token")
        self._bos = _special_token(model, "bos_token")
        self._scorer = Scorer(model)
        self._known: dict[tuple[tuple[int, ...], int], dict[Decoding, Verdict]] = {}

    @property
    def eot_token_id(self) -> int:
        end = min(self.model.stop_ids, default=None) if self._eos is None else self._eos
        if end is None:
            raise InputError(f"{self.model.bundle.folder}: names no token that ends a text; expected an eos_token")
        return end

    @property
    def prefix_token_id(self) -> int:
        return self.eot_token_id if self._bos is None else self._bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None:
            # a prompt that brings its own beginning-of-text token needs no second one
            prefix = self.tokenizer.decode([self.prefix_token_id], skip_special_tokens=False)
            add_special_tokens = not (prefix and string.startswith(prefix))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens).ids)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        totals = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pieces = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(likelihood for likelihood, _ in self._loglikelihood_tokens(pieces)))
        return totals

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[tuple[float, bool]]:
        texts = [self._cut(context, continuation) for _, context, continuation in requests]
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(texts)
        # neighbours share their beginning, which is then read once
        for number, index in enumerate(sorted(range(len(texts)), key=lambda index: texts[index])):
            self.report(number, len(texts), self.note)
            judged = self._judge(*texts[index])[self.decoding]
            answers[index] = (judged.log_probability, judged.greedy)
        return answers

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], int]:
        """Return the text's end that the context holds, and where the continuation starts.

        The last token of the text is not read.
        """
        if not 1 <= len(continuation) <= self.max_length:
            raise InputError(f"a continuation has {len(continuation)} tokens; expected 1 to {self.max_length}")
        ids = (context + continuation)[-(self.max_length + 1) :]
        return ids, len(ids) - len(continuation)

    def _judge(self, ids: list[int], first: int) -> dict[Decoding, Verdict]:
        key = (tuple(ids), first)
        if key not in self._known:
            score = self._scorer.score(ids, first)
            self._known[key] = {decoding: verdict(score, ids[first:], decoding) for decoding in DECODINGS}
        return self._known[key]

    def unnamed(self) -> float:
        """Return the part of the module's tokens so far that its draft vocabulary lacks."""
        tokens = sum(len(ids) - first for ids, first in self._known)
        missing = sum(judged[name].unnamed for judged in self._known.values() for name in DECODINGS)
        return missing / tokens if tokens else 0.0

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        texts = []
        for number, request in enumerate(requests):
            self.report(number, len(requests), self.note)
            context, options = request.args
            options = normalize_gen_kwargs(options, NEW_TOKENS)
            new, until = options["max_gen_toks"], options["until"]
            if new >= self.max_length:
                raise InputError(f"{new} new tokens are asked for; the context holds {self.max_length} in all")
            result = self.model.generate(
                self.tok_encode(context)[new - self.max_length :],
                GREEDY,
                max_new_tokens=new,
                strategy="full" if self.decoding == "full" else "alternate",
                temperature=options.get("temperature", 0.0),
                stop=until,
            )
            # the harness decodes new tokens by themselves, which may cost them a leading space
            texts.append(postprocess_generated_text(self.tokenizer.decode(result.tokens), until, None))
        return texts


def _special_token(model: Model, name: str) -> int | None:
    """Return the id of a token that tokenizer_config.json names."""
    text = special_token(model.bundle.folder / "tokenizer_config.json", name)
    token: int | None = None if text is None else model.tokenizer.token_to_id(text)
    return token


def load_task(name: str, rows: list[Row] | None) -> Any:
    """Load the harness's own task, on these rows or on the data set that it fetches.

    Raises:
        RecycleError: the data set cannot be fetched.
    """
    folder, _, harness_name = TASKS[name].harness.partition("/")
    manager = lm_eval.tasks.TaskManager(
        include_defaults=False, include_path=str(Path(lm_eval.tasks.__file__).parent / folder)
    )
    changes: dict[str, Any] = {"task": harness_name, "num_fewshot": 0, "training_split": None}
    if rows is not None:
        data = Dataset.from_list(rows)
        changes["custom_dataset"] = lambda **_: {"validation": data, "test": data}
    try:
        with _quietly():
            return manager.load([{"group": "recycle-onnx", "task": [changes]}])["tasks"][harness_name]
    except Exception as error:  # whatever the hub's client raises
        if rows is not None:
            raise
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecycleError(
            f"{name}: cannot fetch its data set ({what}); name a folder that has it with --data-folder"
        ) from error


def evaluate(lm: RecycleLM, task: Any, limit: int | None) -> list[dict[str, Any]]:
    """Return the harness's account of every row: its arguments, its target, and each metric under its name."""
    with _quietly():
        name = task.config.task
        run = lm_eval.evaluate(lm=lm, task_dict={"tasks": {name: task}, "groups": {}}, limit=limit, bootstrap_iters=0)
    samples: list[dict[str, Any]] = run["samples"][name]
    return samples


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the harness from talking: what it has to say is in its results."""
    disable_progress_bars()
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
