import json
from pathlib import Path

import numpy as np
import pytest

from numa_rl.workloads.llm_serving import (
    MOONCAKE_CONTEXT_SIGMA,
    MOONCAKE_GENERATED_SIGMA,
    MOONCAKE_MEDIAN_CONTEXT_TOKENS,
    MOONCAKE_MEDIAN_GENERATED_TOKENS,
)

REAL = Path(__file__).parents[2] / "shared/data/traces/mooncake_conversation_trace.jsonl"

FITS = {
    "input_length": (MOONCAKE_MEDIAN_CONTEXT_TOKENS, MOONCAKE_CONTEXT_SIGMA),
    "output_length": (MOONCAKE_MEDIAN_GENERATED_TOKENS, MOONCAKE_GENERATED_SIGMA),
}


@pytest.mark.parametrize("field", FITS)
def test_lengths_are_the_maximum_likelihood_lognormal_of_the_mooncake_trace(field):
    if not REAL.exists():
        pytest.skip(f"the Mooncake conversation trace is not beside the checkout ({REAL.name})")
    requests = [json.loads(line) for line in REAL.read_text(encoding="utf-8").splitlines()]
    logarithm = np.log([request[field] for request in requests if request[field] > 0])
    median, sigma = FITS[field]
    assert np.exp(logarithm.mean()) == pytest.approx(median, rel=0.005)
    assert logarithm.std() == pytest.approx(sigma, rel=0.005)
