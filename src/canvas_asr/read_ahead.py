"""An iterator that runs on in a thread of its own, beside the model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """Runs a generator in a thread that keeps a bounded number of its items ready.

    ::

        with ReadAhead(blocks(), 16) as items:
            for item in items: ...

    The items come in order; an exception of the generator is raised behind the last of them.
    """

    def __init__(
        self, items: Generator[T, None, None], n_ahead: int, on_ready: Callable[[], None] | None = None
    ) -> None:
        """Start the thread.

        Args:
            items: What is run; it is closed in the thread.
            n_ahead: Most items that are ready and not taken.
            on_ready: Called in the thread after every item, and at the end; it must return at once.
        """
        self._items = items
        self._n_ahead = n_ahead
        self._on_ready = on_ready
        self._changed = threading.Condition()
        self._ready: deque[T] = deque()
        self._error: Exception | None = None
        self._has_ended = False  # no further item will come
        self._is_closed = False
        # A reader that waits for its source does not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="canvas-asr-reader", daemon=True)
        self._thread.start()

    def __enter__(self) -> ReadAhead[T]:
        """Give the reader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no thread behind."""
        self.close()

    def __iter__(self) -> ReadAhead[T]:
        """Give the reader itself."""
        return self

    def __next__(self) -> T:
        """Wait for the next item.

        Raises:
            Exception: What the generator raised, behind its last item.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._has_ended)
            if self._ready:
                self._changed.notify_all()
                return self._ready.popleft()
            if self._error is not None:
                raise self._error
        raise StopIteration

    @property
    def is_ready(self) -> bool:
        """Whether ``next`` would not wait."""
        with self._changed:
            return bool(self._ready) or self._has_ended

    def close(self, *, wait: bool = True) -> None:
        """End the thread as soon as its generator comes back.

        Args:
            wait: Whether to wait for that, or only say so.
        """
        with self._changed:
            self._is_closed = True
            self._ready.clear()
            self._changed.notify_all()
        if wait:
            self._thread.join()

    def _run(self) -> None:
        try:
            for item in self._items:
                with self._changed:
                    if self._is_closed:
                        break
                    self._ready.append(item)
                    self._changed.notify_all()
                if self._on_ready is not None:
                    self._on_ready()
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed or len(self._ready) < self._n_ahead)
                    if self._is_closed:
                        break
        except Exception as error:
            self._error = error
        finally:
            self._items.close()
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()
            if self._on_ready is not None:
                self._on_ready()
