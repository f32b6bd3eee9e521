"""Runs the batch engine in a thread, and passes its output to coroutines."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from minimind.errors import ConfigError
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.prompt_reader import PromptReader
from minimind.inference.request import Delta, GenerationRequest
from minimind.serving.api_errors import ApiError

logger = logging.getLogger(__name__)
T = TypeVar("T")


class EngineThread:
    """Steps the engine in a thread while it has work. All methods are called from one event
    loop."""

    def __init__(self, engine: BatchEngine, max_open: int) -> None:
        """Starts the thread. `max_open` is the most generations that may run or wait."""
        self.engine = engine
        self.max_open = max_open
        self.has_failed = False
        """True after an unexpected error, when the engine's state is not known."""
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, Answer] = {}
        self._readings: deque[tuple[Callable[[PromptReader], Any], asyncio.Future[Any]]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[GenerationRequest], timeout_s: float) -> Answer:
        """Submits one request for each choice, and gives the Answer to read their output from; the
        caller closes it. Raises ApiError where too many generations are open, ConfigError for a
        request that cannot be served."""
        self._check_running()
        if len(requests) > self.max_open:
            raise ApiError(
                400,
                f"{len(requests)} generations are asked for at once, {self.max_open} are the most: "
                "send fewer prompts or a smaller n",
            )
        if len(self._open) + len(requests) > self.max_open:
            raise ApiError(
                429,
                f"{len(self._open)} generations run or wait, {self.max_open} are the most: "
                "try again in a moment",
                code="overloaded",
                headers={"Retry-After": "1"},
            )
        answer = Answer(self, self._loop.time() + timeout_s, timeout_s)
        try:
            for index, request in enumerate(requests):
                request_id = self.engine.submit(request)
                answer.open_choices[request_id] = index
                self._open[request_id] = answer
        except BaseException:
            answer.close()
            raise
        finally:
            self._wake.set()
        return answer

    async def read(self, reading: Callable[[PromptReader], T]) -> T:
        """Runs `reading` between two steps of the engine, and gives its result. Raises ApiError."""
        self._check_running()
        found: asyncio.Future[T] = self._loop.create_future()
        self._readings.append((reading, found))
        self._wake.set()
        return await found

    def _check_running(self) -> None:
        if self.has_failed or self._closing:
            raise ApiError(503, "the model has stopped; its server must be started again")

    def cancel(self, request_id: int) -> None:
        self.engine.cancel(request_id)
        self._wake.set()

    def fail_all(self, error: ApiError) -> None:
        """Ends every open answer with `error`."""
        for answer in set(self._open.values()):
            answer.put(error)

    async def close(self) -> None:
        """Ends the thread after its current step."""
        self._closing = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait()
            self._wake.clear()
            while (self._readings or self.engine.has_work) and not self._closing:
                if self._readings:
                    self._read(*self._readings.popleft())
                if not self.engine.has_work:
                    continue
                try:
                    deltas = self.engine.step()
                except Exception:
                    logger.exception("the engine failed; the server must be started again")
                    self._hand_over(self._stop_after_failure)
                    return
                if deltas:
                    self._hand_over(self._deliver, deltas)

    def _read(self, reading: Callable[[PromptReader], Any], found: asyncio.Future[Any]) -> None:
        if found.cancelled():
            return
        result, error = None, None
        try:
            result = reading(self.engine.reader)
        except ConfigError as problem:
            error = ApiError(400, str(problem))
        except Exception:
            # Most often there is too little memory. Whatever it is, the thread goes on for other
            # requests.
            logger.exception("a text could not be read")
            error = ApiError(500, "the text could not be read; the log says why")
        self._hand_over(_settle, found, result, error)

    def _hand_over(self, function, *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _deliver(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            answer = self._open.get(delta.request_id)
            if answer is None:
                continue
            if delta.finish_reason is not None:
                del self._open[delta.request_id]
            answer.put(delta)

    def _stop_after_failure(self) -> None:
        self.has_failed = True
        error = ApiError(500, "the model failed; the server's log says how")
        for _, found in self._readings:
            _settle(found, None, error)
        self.fail_all(error)
        self._open.clear()


def _settle(found: asyncio.Future[Any], result: Any, error: ApiError | None) -> None:
    if found.done():  # the client has gone
        return
    if error is None:
        found.set_result(result)
    else:
        found.set_exception(error)


class Answer:
    """Collects the output of all choices of an API call as it arrives."""

    def __init__(self, thread: EngineThread, deadline: float, timeout_s: float) -> None:
        self.open_choices: dict[int, int] = {}
        """The index of each choice that has not ended, by the id of its request."""
        self._thread = thread
        self._deadline, self._timeout_s = deadline, timeout_s
        self._queue: asyncio.Queue[Delta | ApiError] = asyncio.Queue()

    def put(self, item: Delta | ApiError) -> None:
        self._queue.put_nowait(item)

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """Yields (index of the choice, delta) until every choice has ended. Raises ApiError where
        the generation fails or takes too long."""
        while self.open_choices:
            try:
                async with asyncio.timeout_at(self._deadline):
                    item = await self._queue.get()
            except TimeoutError:
                message = f"the answer took longer than {self._timeout_s:g} s; ask for fewer tokens"
                raise ApiError(504, message, code="timeout") from None
            if isinstance(item, ApiError):
                raise item
            index = self.open_choices[item.request_id]
            if item.finish_reason is not None:
                del self.open_choices[item.request_id]
            if item.finish_reason in ("error", "cancelled"):
                raise ApiError(500, "the generation failed; the server's log says how")
            yield index, item

    def close(self) -> None:
        """Cancels the choices that have not ended; the engine's next step frees their slots."""
        for request_id in self.open_choices:
            self._thread.cancel(request_id)
        self.open_choices.clear()
