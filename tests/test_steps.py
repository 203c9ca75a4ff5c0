"""Steps of sends on shared links: by hand, and added up send by send."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import machines, seeds, toy_machine

from numa_rl.communication.steps import shared_step_s
from numa_rl.communication.transfers import resource_s_per_byte, stream_resources


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_a_step_ends_with_the_last_send_and_a_step_without_sends_at_once():
    # Nodes 0 - 1 - 2 in a line, links of 50 bytes a second. In step 0 node 0 reads 100 bytes of node 2's and 50 of
    # node 1's, which share the link 1 -> 0: 3 s for both. In step 2 node 1 reads 100 of its own in 1 s.
    taken = shared_step_s(
        toy_machine(3),
        4,
        step=ints(0, 0, 2),
        source=ints(2, 1, 1),
        target=ints(0, 0, 1),
        num_bytes=np.array([100.0, 50.0, 100.0]),
        startup_s=np.array([0.5, 4.0, 0.25]),
    )
    np.testing.assert_allclose(taken, [3.0 + 4.0, 0.0, 1.0 + 0.25, 0.0])


def test_no_send_takes_no_time():
    none = np.zeros(0)
    assert shared_step_s(toy_machine(2), 2, ints(), ints(), ints(), none, none).tolist() == [0.0, 0.0]


@settings(deadline=None)
@given(machines(), seeds, st.integers(1, 12))
def test_steps_are_what_their_sends_add_up_to(machine, seed, num_sends):
    rng = np.random.default_rng(seed)
    step = rng.integers(0, 3, num_sends)
    source, target = rng.integers(0, machine.num_nodes, (2, num_sends))
    num_bytes, startup_s = rng.uniform(0.0, 1e9, num_sends), rng.uniform(0.0, 0.1, num_sends)
    s_per_byte = resource_s_per_byte(machine)
    expected = np.zeros(3)
    for own in range(num_sends):
        passed = stream_resources(machine, source[own], target[own])
        busy_s = dict.fromkeys(passed.tolist(), 0.0)
        for other in np.flatnonzero(step == step[own]):
            for resource in stream_resources(machine, source[other], target[other]).tolist():
                if resource in busy_s:
                    busy_s[resource] += num_bytes[other] * s_per_byte[resource]
        expected[step[own]] = max(expected[step[own]], max(busy_s.values()) + startup_s[own])
    np.testing.assert_allclose(shared_step_s(machine, 3, step, source, target, num_bytes, startup_s), expected)
