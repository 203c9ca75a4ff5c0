"""Reader of the Mooncake traces: when requests came, how long they were, and which blocks of KV cache they can share.

A trace is JSONL, an object a line, as published with [1]: `timestamp` in milliseconds, `input_length` and
`output_length` in tokens, and `hash_ids`, a number for each block of 512 tokens of the input (the last block may be
part of one). A block's hash covers everything before it as well, so equal numbers are equal prefixes, and all
requests together form a tree: a block always follows the same block.

References:
    [1] R. Qin et al., "Mooncake: trading more storage for less computation, a KVCache-centric architecture for serving
        LLM chatbot", FAST 2025; kvcache-ai/Mooncake, FAST25-release/traces (Apache-2.0).
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from numa_rl.wording import quoted
from numa_rl.workloads.azure import MAX_TOKENS
from numa_rl.workloads.text_lines import text_lines

TIMESTAMP, INPUT, OUTPUT, BLOCKS = KEYS = ("timestamp", "input_length", "output_length", "hash_ids")
BLOCK_TOKENS = 512
MAX_MILLISECONDS = 10**12  # thirty years: a later request is an error in the file
MAX_BLOCK = 2**62
NO_BLOCK = -1


@dataclass(frozen=True, eq=False)
class MooncakeTrace:
    """The requests of a trace, in order of arrival.

    Attributes:
        arrival_s: time since the first request, shape (R,).
        input_tokens: length of the prompt, shape (R,).
        output_tokens: length of the answer, shape (R,).
        blocks: numbers of all requests' blocks, request after request, shape (B,).
        first_block: where each request's blocks begin in `blocks`, and where the last one's end, shape (R + 1,).
    """

    arrival_s: npt.NDArray[np.float64]
    input_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]
    first_block: npt.NDArray[np.int64]

    @property
    def num_requests(self) -> int:
        """Number of requests R."""
        return len(self.arrival_s)


def read_mooncake_trace(path: str | Path) -> MooncakeTrace:
    """Read a trace, a line at a time.

    Raises:
        ValueError: there is no such file, it is not a trace, or a line breaks a rule; the message names file, line,
            key, rule and value.
    """
    arrival_ms, inputs, outputs, blocks, first_block = array("d"), array("q"), array("q"), array("q"), array("q", [0])
    before: dict[int, int] = {}  # the block that each block follows
    for where, line in text_lines(path, "trace"):
        request = _request(line, where)
        milliseconds = _milliseconds(request[TIMESTAMP], where)
        if arrival_ms and milliseconds < arrival_ms[-1]:
            got = request[TIMESTAMP]
            raise ValueError(f"{where}: {TIMESTAMP} must not be earlier than on the line before, got {got}.")
        tokens = _whole(request[INPUT], INPUT, 1, MAX_TOKENS, where)
        outputs.append(_whole(request[OUTPUT], OUTPUT, 0, MAX_TOKENS, where))
        ids = _blocks(request[BLOCKS], tokens, where)
        _follow(ids, before, where)
        arrival_ms.append(milliseconds)
        inputs.append(tokens)
        blocks.extend(ids)
        first_block.append(len(blocks))
    if not arrival_ms:
        raise ValueError(f"{path}: trace must have at least one request, got none.")
    arrival_s = (np.array(arrival_ms) - arrival_ms[0]) / 1e3
    return MooncakeTrace(arrival_s, np.array(inputs), np.array(outputs), np.array(blocks), np.array(first_block))


def _request(line: str, where: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: a line must be a JSON object, got {quoted(line)}.") from error
    if not isinstance(request, dict):
        raise ValueError(f"{where}: a line must be a JSON object, got {quoted(line)}.")
    for key in KEYS:
        if key not in request:
            raise ValueError(f"{where}: missing key {key}, got {quoted(', '.join(request))}.")
    return request


def _milliseconds(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= MAX_MILLISECONDS:
        raise ValueError(f"{where}: {TIMESTAMP} must be a number in 0..{MAX_MILLISECONDS}, got {quoted(str(value))}.")
    return float(value)


def _whole(value: Any, key: str, least: int, most: int, where: str) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{where}: {key} must be a whole number in {least}..{most}, got {quoted(str(value))}.")
    return value


def _blocks(value: Any, tokens: int, where: str) -> list[int]:
    """The numbers of a request's blocks, as many as its tokens fill or begin."""
    if not isinstance(value, list):
        raise ValueError(f"{where}: {BLOCKS} must be a list of whole numbers, got {quoted(str(value))}.")
    wanted = -(-tokens // BLOCK_TOKENS)
    if len(value) != wanted:
        raise ValueError(
            f"{where}: {BLOCKS} must be {wanted} numbers, one for each {BLOCK_TOKENS} of {tokens} tokens, got "
            f"{len(value)}."
        )
    return [_whole(block, BLOCKS, 0, MAX_BLOCK, where) for block in value]


def _follow(blocks: list[int], before: dict[int, int], where: str) -> None:
    """Check that each block follows the block it always follows, and remember those seen for the first time."""
    previous = NO_BLOCK
    for block in blocks:
        known = before.setdefault(block, previous)
        if known != previous:
            follows = [f"block {other}" if other != NO_BLOCK else "nothing" for other in (known, previous)]
            raise ValueError(
                f"{where}: {BLOCKS} must form a tree: block {block} follows {follows[0]} elsewhere, got {follows[1]}."
            )
        previous = block
