"""Rows of a simulator's state as bytes, so that one short kernel copies a row whatever a state is made of.

Dimension key: B rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from numa_rl.compilation import compiled
from numa_rl.simulator.state import State

Bytes = npt.NDArray[np.uint8]


def row_bytes(state: State) -> tuple[Bytes, ...]:
    """Every array of a state as its rows' bytes, shape (B, bytes of a row): views, not copies."""
    return tuple(array.reshape(len(array), -1).view(np.uint8) for array in state)


@compiled
def copy_row(source, i, target, j):
    """Make row j of the target what row i of the source is; both as `row_bytes`."""
    for k in range(len(source)):
        row, copy = source[k][i], target[k][j]
        for c in range(len(row)):
            copy[c] = row[c]
