"""Calls the functions of a FunctionPool, inside its worker process."""

from __future__ import annotations

import functools
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal

from minimind.errors import ConfigError, MiniMindError
from minimind.runtime.named_function import NamedFunction

READY = b""
"""The first message that the worker sends."""
_LOOK_AT_PARENT_S = 1.0

FailureKind = Literal["raised", "slow", "died", "unpicklable"]
"""Why a call has no result."""


def serve(descriptor: int, parent: int, is_unpacked: bool, most_s: int) -> None:
    """Answers lists of calls until the parent closes the connection or ends. A call is a pickled
    `(NamedFunction, pickled argument)`; without an argument, it checks that the function can be
    called. Each call gets one message back: a pickled pair of None and the value, or of the kind of
    failure and a text. The parent limits the time of calls; if the parent has gone, a call still
    ends after `most_s`."""
    os.set_inheritable(descriptor, False)
    # A launcher that ends a run signals all its processes, but the parent decides what to stop. A
    # handler, unlike SIG_IGN, is not inherited by programs that a function starts.
    signal.signal(signal.SIGINT, _ignore)
    signal.signal(signal.SIGTERM, _ignore)
    # The functions' prints must not mix with the program's output, which another program may read.
    sys.stdout = sys.stderr
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    connection = Connection(descriptor)
    # An installed program has its script's folder on the path, not the working directory.
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.insert(0, os.getcwd())
    worker, functions = os.getpid(), {}
    try:
        connection.send_bytes(READY)
        while True:
            for function, argument in pickle.loads(connection.recv_bytes()):
                # The system ends the process then. The thread above cannot, while a function (such
                # as a catastrophic regular expression) holds the interpreter's lock.
                signal.alarm(most_s)
                result = _answer(functions, function, argument, is_unpacked)
                if os.getpid() != worker:
                    os._exit(0)  # the function forked, and this is the other process
                connection.send_bytes(result)
            signal.alarm(0)
    except (EOFError, OSError):
        _end()


def _answer(
    functions: dict[str, Callable[..., Any]],
    named: NamedFunction,
    argument: bytes | None,
    is_unpacked: bool,
) -> bytes:
    loaded = functions.get(named.text)
    try:
        if loaded is None:
            loaded = functions[named.text] = named.load()
        if argument is None:
            return _pickled(None, named.check_arguments(loaded, 0 if is_unpacked else 1))
    except ConfigError as error:
        return _pickled("raised", str(error))
    except BaseException as error:
        return _pickled("raised", f"importing {named.place} raised {_describe(error, named.place)}")
    try:
        value = pickle.loads(argument)
    except Exception as error:
        text = "what it is called with cannot be read in a worker process"
        return _pickled("unpicklable", f"{text}: {_describe(error, None)}")
    try:
        result = loaded(**value) if is_unpacked else loaded(value)
    except BaseException as error:
        return _pickled("raised", _describe(error, _file_of(loaded)))
    try:
        return _pickled(None, result)
    except Exception as error:
        kind, reason = type(result).__name__, _describe(error, None)
        text = f"what it returned, of type {kind}, cannot be sent: {reason}"
        return _pickled("unpicklable", text)


def _pickled(kind: FailureKind | None, value: Any) -> bytes:
    return pickle.dumps((kind, value), pickle.HIGHEST_PROTOCOL)


def _describe(error: BaseException, file: str | None) -> str:
    """Describes an error by its type, its message, and the last line of `file` in its traceback; a
    MiniMindError by its message alone."""
    try:
        message = str(error)
    except Exception:
        message = ""
    if isinstance(error, MiniMindError):
        return message  # The message is complete without type and line.
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.line]
    own = [frame for frame in frames if frame.filename == file]
    if isinstance(error, SyntaxError) or file is None or not (own or frames):
        return text
    frame = (own or frames)[-1]
    return f"{text} ({os.path.basename(frame.filename)}:{frame.lineno}: {frame.line})"


def _file_of(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None)
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    return str(code.co_filename if code else getattr(module, "__file__", ""))


def _end_with_parent(parent: int) -> None:
    """Ends the worker after its parent was killed, even if a function is still running or a process
    forked by the parent still holds the connection."""
    while os.getppid() == parent:
        time.sleep(_LOOK_AT_PARENT_S)
    _end()


def _end() -> None:
    """Ends this process and all that its functions started; it leads their process group."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(0)


def _ignore(*_: object) -> None:
    pass
