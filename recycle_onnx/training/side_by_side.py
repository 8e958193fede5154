"""Works that are computed side by side, each by a thread with cores of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item, Event], Result], items: Iterable[Item], count: int) -> Iterator[Result]:
    """Yield the results of `work` on each item, in order; `count` threads share torch's threads among them.

    Small products gain little from several threads, since all wait for the last one. Independent works wait for
    nobody. The event is set when no result is wanted any more, as after Ctrl-C; `work` then ends soon, by an error.
    """
    threads, stopped = torch.get_num_threads(), Event()
    share = max(1, threads // count)
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(share,)) as pool:
        try:
            yield from pool.map(lambda item: work(item, stopped), items)
        finally:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)  # a part of what the threads set counts for the whole process
