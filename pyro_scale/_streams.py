"""Standard output that cannot end the work: a closed pipe, a terminal that is gone, latin-1."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["tolerant_output"]

logger = logging.getLogger(__name__)


class _Tolerant:
    """A text stream whose writes never fail; all else is that of the stream that it wraps.

    Characters that the stream's encoding lacks are written as ``?``. If the stream cannot be
    written to any more, further text is dropped. Each is said once.
    """

    def __init__(self, stream: Any, name: str, *, to_end: bool) -> None:
        self._stream, self._name, self._to_end = stream, name, to_end
        self._replaces = self._is_gone = False

    def write(self, text: str) -> int:
        if self._is_gone:
            return len(text)
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "replace").decode(encoding))
            if not self._replaces:
                self._replaces = True
                logger.warning(
                    "%s is in %s: characters that it lacks are shown as ?.",
                    self._name,
                    encoding,
                )
        except BlockingIOError:  # nobody has read for a while; this text is lost
            pass
        except (OSError, ValueError) as error:
            self._leave(error)
        return len(text)

    def flush(self) -> None:
        if self._is_gone:
            return
        try:
            self._stream.flush()
        except BlockingIOError:
            pass
        except (OSError, ValueError) as error:
            self._leave(error)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def _leave(self, error: Exception) -> None:
        """Drop further text and, if the process ends here, that which Python flushes at its end."""
        self._is_gone = True
        if self._to_end:
            with suppress(OSError, ValueError):  # it has no file, or is closed in Python
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
        if sys.stderr is not None and sys.stderr is not self:  # the log may be this stream
            line = f"{self._name} cannot be written to any more ({error}); work goes on."
            sys.stderr.write(f"pyro_scale: {line}\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def tolerant_output(*, to_end: bool = False) -> Iterator[None]:
    """Let writes to standard output and standard error never fail inside the block.

    Parameters
    ----------
    to_end
        Whether the process ends with the block. Then a stream that fails is left for good, so that
        Python does not fail when it writes the buffered text at its end. Otherwise the stream is
        the caller's own again after the block.

    Examples
    --------
    >>> import io
    >>> from contextlib import redirect_stdout
    >>> output = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    >>> with redirect_stdout(output), tolerant_output():
    ...     _ = sys.stdout.write("5 µs • ok")
    >>> output.buffer.getvalue().decode("latin-1")
    '5 µs ? ok'
    """
    before = sys.stdout, sys.stderr
    for name, words in (("stdout", "standard output"), ("stderr", "standard error")):
        stream = getattr(sys, name)
        if stream is None:  # Python was started without it
            nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # closed below
            setattr(sys, name, _Tolerant(nowhere, words, to_end=to_end))
        elif not isinstance(stream, _Tolerant):
            setattr(sys, name, _Tolerant(stream, words, to_end=to_end))
    try:
        yield
    finally:
        for name, stream in zip(("stdout", "stderr"), before, strict=True):
            if isinstance(getattr(sys, name), _Tolerant):
                if stream is None:
                    getattr(sys, name).close()
                setattr(sys, name, stream)
