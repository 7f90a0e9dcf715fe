"""Dynamic batching: requests that wait at the same time are computed together.

One idea: one thread computes, because the model's hooks and torch's random numbers belong to the whole process. While
it computes, requests pile up; it then takes the oldest one and all others that can share its batch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)

SMOOTHING = 0.1  # of the mean time of a job


@dataclass(eq=False)
class Job:
    """A request that waits for its turn; `future` gets its records, or the exception.

    Jobs with the same key may share a batch, of at most as many rows as the batcher allows.
    """

    key: Hashable
    num_rows: int
    request: Any
    rows: Sequence[Any]
    future: asyncio.Future[list[dict[str, Any]]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Batcher:
    """Computes jobs in one thread of its own.

    Args:
        compute: Takes jobs of one key and gives the records of each.
        max_rows: Rows of a batch; a job with more is computed alone.
        wait: Seconds to wait for more jobs before a batch that isn't full begins.
    """

    def __init__(self, compute: Callable[[Sequence[Job]], list[list[dict]]], max_rows: int, wait: float) -> None:
        self.compute, self.max_rows, self.wait = compute, max_rows, wait
        self.jobs: deque[Job] = deque()
        self.changed = threading.Condition()
        self.closing = False
        self.seconds_a_job = 0.0  # a mean over recent jobs
        self.on_batch: Callable[[Sequence[Job], float], None] = lambda jobs, seconds: None
        self.thread = threading.Thread(target=self._work, name="model", daemon=True)
        self.thread.start()

    async def run(self, job: Job) -> list[dict[str, Any]]:
        """The records of a job; if the caller is cancelled, a job that still waits is dropped."""
        with self.changed:
            self.jobs.append(job)
            self.changed.notify()
        try:
            return await job.future
        finally:
            if job.future.cancelled():
                with self.changed:
                    if job in self.jobs:
                        self.jobs.remove(job)

    def seconds_to_wait(self) -> float:
        """About how long a new job would wait."""
        return len(self.jobs) * self.seconds_a_job

    def close(self) -> None:
        """Computes what waits, then ends the thread."""
        with self.changed:
            self.closing = True
            self.changed.notify()
        self.thread.join()

    def _work(self) -> None:
        while jobs := self._take():
            started = time.perf_counter()
            results = self._results(jobs)
            seconds = time.perf_counter() - started
            self.seconds_a_job += SMOOTHING * (seconds / len(jobs) - self.seconds_a_job)
            self.on_batch(jobs, seconds)
            with suppress(RuntimeError):  # the event loop has ended, and its clients have gone
                jobs[0].future.get_loop().call_soon_threadsafe(_deliver, jobs, results)

    def _take(self) -> list[Job]:
        """The oldest job and those that can share its batch; none if the batcher closes."""
        with self.changed:
            self.changed.wait_for(lambda: self.jobs or self.closing)
            if not self.jobs:
                return []
            deadline = time.monotonic() + self.wait
            while sum(job.num_rows for job in self._alike()) < self.max_rows and not self.closing:
                if not self.changed.wait(deadline - time.monotonic()) or not self.jobs:
                    break
            batch: list[Job] = []
            num_rows = 0
            for job in self._alike():
                if batch and num_rows + job.num_rows > self.max_rows:
                    break
                batch.append(job)
                num_rows += job.num_rows
            for job in batch:
                self.jobs.remove(job)
        return batch or self._take()

    def _alike(self) -> list[Job]:
        return [job for job in self.jobs if job.key == self.jobs[0].key]

    def _results(self, jobs: Sequence[Job]) -> list[list[dict] | Exception]:
        """The records of each job, or its exception: a job that fails doesn't take others with it."""
        try:
            return [*self.compute(jobs)]
        except Exception as error:
            if len(jobs) == 1:
                return [error]
        return [result for job in jobs for result in self._results([job])]


def _deliver(jobs: Sequence[Job], results: Sequence[list[dict] | Exception]) -> None:
    for job, result in zip(jobs, results, strict=True):
        if job.future.done():  # its client has gone
            continue
        if isinstance(result, Exception):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
