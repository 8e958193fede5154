"""`recycle-onnx batch` on a cluster, through Ray Data: python samples/ray_batch.py BUNDLE PROMPTS.jsonl OUT.jsonl.

Each of the workers loads the bundle once, from a path that all machines have. Needs `recycle-onnx[ray]`.
"""

import sys
from pathlib import Path
from typing import Any

import ray

import recycle_onnx
from recycle_onnx.batch import Worker, parse_request, read_requests

WORKERS = 2


class RayWorker:
    """A worker that Ray makes in a process of its own; rows are the lines of the file, and their numbers."""

    def __init__(self, bundle: str) -> None:
        self.worker = Worker(recycle_onnx.load(bundle, threads=1))

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        """Answer one row, as the line that `batch` would write."""
        return {"answer": self.worker(parse_request(row["line"], row["number"])).line}


if __name__ == "__main__":
    bundle, prompts, output = sys.argv[1:4]
    read_requests(Path(prompts))  # a file that is no such file is refused before anything starts
    lines = enumerate(Path(prompts).read_text(encoding="utf-8").split("\n"), start=1)
    requests = [{"line": line, "number": number} for number, line in lines if line.strip()]
    rows = ray.data.from_items(requests, override_num_blocks=2 * WORKERS)
    answers = rows.map(RayWorker, fn_constructor_args=(str(Path(bundle).resolve()),), concurrency=WORKERS)
    with Path(output).open("w", encoding="utf-8") as file:
        file.writelines(f"{row['answer']}\n" for row in answers.iter_rows())
