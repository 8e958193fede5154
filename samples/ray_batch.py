"""`recycle-onnx batch` on a cluster, through Ray Data: python samples/ray_batch.py BUNDLE PROMPTS.jsonl OUT.jsonl.

Each of the workers loads the bundle once, from a path that all machines have. Needs `recycle-onnx[ray]`.
"""

import dataclasses
import json
import sys
from pathlib import Path

import ray

import recycle_onnx
from recycle_onnx.batch import Request, Worker, read_requests

WORKERS = 2


class RayWorker:
    """A worker that Ray makes in a process of its own; rows are JSON, which all requests have in common."""

    def __init__(self, bundle: str) -> None:
        self.worker = Worker(recycle_onnx.load(bundle, threads=1))

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """The answer to one row, as the line that `batch` would write."""
        return {"answer": self.worker(Request(**json.loads(row["request"]))).line}


if __name__ == "__main__":
    bundle, prompts, output = sys.argv[1:4]
    requests = [{"request": json.dumps(dataclasses.asdict(request))} for request in read_requests(Path(prompts))]
    rows = ray.data.from_items(requests, override_num_blocks=2 * WORKERS)
    answers = rows.map(RayWorker, fn_constructor_args=(str(Path(bundle).resolve()),), concurrency=WORKERS)
    with Path(output).open("w", encoding="utf-8") as file:
        file.writelines(f"{row['answer']}\n" for row in answers.iter_rows())
