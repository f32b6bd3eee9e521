"""Reads tensors of a file that a library maps into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

FileT = TypeVar("FileT")
_OPEN_BYTES = 64 << 20


class MappedFile(Generic[FileT]):
    """Reads tensors one at a time. The pages that were read stay in memory as long as the file is
    mapped, so the file is opened again after some 64 MiB."""

    def __init__(self, open_file: Callable[[], FileT]) -> None:
        self._open = open_file
        self._file: FileT | None = None
        self._num_bytes = 0

    def file(self) -> FileT:
        """Gives the library's own object for the file. Raises what opening it raises."""
        if self._num_bytes > _OPEN_BYTES:
            self._file = None  # before it is mapped a second time
        if self._file is None:
            self._file, self._num_bytes = self._open(), 0
        return self._file

    def read(self, take: Callable[[FileT], Tensor]) -> Tensor:
        """Gives the tensor that `take` takes from the file."""
        tensor = take(self.file())
        self._num_bytes += tensor.nbytes
        return tensor
