"""Texts that wait for the model: a bounded queue, and threads that label together as many as are there."""

import asyncio
import threading
import time
from collections import deque

import numpy as np
from predictor import Predictor

MOST = 64  # texts that a thread takes at a time where batch-mates do not move an answer
BATCH_TOKENS = 512  # of a batch of those: more is more padding, as few texts are sorted by length
LOOK_EVERY = 0.25  # seconds between two looks at which clients still wait


class Full(Exception):
    """The queue has no place for all texts of a request; nothing of it was taken."""


class Late(Exception):
    """The request was not answered in time; what of it still waited was dropped."""


class Gone(Exception):
    """The client has hung up; what of its request still waited was dropped."""


class Failed(Exception):
    """The model raised an error, which is its cause."""


class Job:
    """The texts of a request, and a future of [(probabilities or number, whether nothing was left of the text)]."""

    def __init__(self, texts: list, loop: asyncio.AbstractEventLoop, deadline: float, has_gone):
        """`has_gone` is an async function: has the client hung up?"""
        self.texts, self.deadline, self.has_gone = texts, deadline, has_gone
        self.begun = time.monotonic()
        self.answers: list = [None] * len(texts)
        self.left = len(texts)
        self.future = loop.create_future()

    def end(self, error: Exception) -> None:
        """Answer the request with an error, unless it was answered already."""
        if not self.future.done():
            self.future.set_exception(error)


class Waiting:
    """The queue of texts before a Predictor, for one event loop.

    A text is computed with others only where the manifest says that they do not move its answer; each thread then takes
    its share of what waits, without waiting for more. Else each is taken, and computed, alone.
    """

    def __init__(self, predictor: Predictor, threads: int, places: int, seconds: float):
        """`predictor` computes a batch on one thread; `places`: texts that may wait; `seconds`: a request may take."""
        self.predictor, self.places, self.seconds = predictor, places, seconds
        self.most = MOST if predictor.batch_size > 1 else 1
        predictor.batch_tokens = BATCH_TOKENS
        self.queue: deque = deque()  # (job, which of its texts)
        self.jobs: set[Job] = set()
        self.changed, self.closed = threading.Condition(), False
        self.labelled, self.rate = 0, 0.0  # texts since the last look; a second, of late
        self.loop = asyncio.get_running_loop()
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self.threads:
            thread.start()
        self.watch = self.loop.create_task(self._watch())

    def retry_after(self) -> int:
        """Whole seconds after which the texts that wait now will have been labelled."""
        return 1 + int(min(len(self.queue) / self.rate, 60)) if self.rate else 1

    async def answers(self, texts: list, has_gone) -> list[tuple[np.ndarray, bool]]:
        """What the model says of each text; raises Full, Late, Gone or Failed."""
        if not texts:
            return []
        job = Job(texts, self.loop, time.monotonic() + self.seconds, has_gone)
        with self.changed:
            if len(self.queue) + len(texts) > self.places:
                raise Full
            self.queue.extend((job, place) for place in range(len(texts)))
            self.changed.notify(min(len(texts), len(self.threads)))
        self.jobs.add(job)
        try:
            return await job.future
        finally:
            self.jobs.discard(job)

    def full(self) -> bool:
        return len(self.queue) >= self.places

    def alive(self) -> bool:
        """Whether every thread still works, and late requests are still ended."""
        return not self.watch.done() and all(thread.is_alive() for thread in self.threads)

    async def close(self) -> None:
        """End the threads, when all that waits is labelled."""
        self.watch.cancel()
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        for thread in self.threads:
            await asyncio.to_thread(thread.join)

    def _take(self) -> list:
        """(job, place) of the next texts, [] at the end; waits while there are none."""
        with self.changed:
            while not self.queue and not self.closed:
                self.changed.wait()
            share = -(-len(self.queue) // len(self.threads))
            return [self.queue.popleft() for _ in range(min(self.most, share))]

    def _work(self) -> None:
        while taken := self._take():
            wanted = [(job, place) for job, place in taken if not job.future.done()]
            answers, error = [], None
            try:
                if wanted:
                    answers = list(zip(*self.predictor.answers([job.texts[place] for job, place in wanted]),
                                       strict=True))
            except BaseException as raised:  # a panic of the tokenizer is no Exception
                error = raised
            self.loop.call_soon_threadsafe(self._give, wanted, answers, error)

    def _give(self, wanted: list, answers: list, error: BaseException | None) -> None:
        """On the event loop: hand answers to their jobs."""
        if error is not None:
            for job, _ in wanted:
                failed = Failed()
                failed.__cause__ = error
                job.end(failed)
            return
        for (job, place), answer in zip(wanted, answers, strict=True):
            job.answers[place] = answer
            job.left -= 1
            if not job.left and not job.future.done():
                job.future.set_result(job.answers)
        self.labelled += len(wanted)

    async def _watch(self) -> None:
        """Drop what nobody waits for any more, or has waited for too long; measure the rate."""
        before = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_EVERY)
            now = time.monotonic()
            for job in list(self.jobs):
                if now > job.deadline:
                    job.end(Late())
                elif now - job.begun > LOOK_EVERY and await job.has_gone():
                    job.end(Gone())
            if self.labelled:
                self.rate = 0.8 * self.rate + 0.2 * self.labelled / (now - before)
            self.labelled, before = 0, now
