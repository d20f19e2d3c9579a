"""Bounded samples of a stream of rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


class Sample:
    """A uniform sample without replacement of all rows offered, in memory that does not grow with them.

    Every row draws a number, and the rows with the smallest numbers stay. The same stream in the same
    pieces gives the same sample.

    Args:
        size: Rows kept at most.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._random = np.random.default_rng(0)
        self._drawn = np.empty(0)
        self._rows: pa.Table | None = None

    def offer(self, rows: pa.Table) -> None:
        """Show it some rows."""
        drawn = self._random.random(rows.num_rows)
        if self._rows is not None:
            if len(self._drawn) == self._size:  # most rows of a long stream end here
                better = drawn < self._drawn.max()
                drawn, rows = drawn[better], rows.filter(pa.array(better))
            drawn, rows = np.concatenate([self._drawn, drawn]), pa.concat_tables([self._rows, rows])
        if len(drawn) > self._size:
            kept = np.sort(np.argpartition(drawn, self._size)[: self._size])
            drawn, rows = drawn[kept], rows.take(pa.array(kept))
        self._drawn, self._rows = drawn, rows

    @property
    def rows(self) -> pa.Table | None:
        """What stayed, in the order in which it came; None if nothing was offered."""
        return self._rows
