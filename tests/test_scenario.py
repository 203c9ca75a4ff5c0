from dataclasses import replace

import numpy as np
import pytest

from envs.reward import RewardWeights
from experiments.scenario import Split, load_scenario, scenario_names
from numa_rl.workloads.catalog import family_names
from numa_rl.workloads.collective import AllReduce
from numa_rl.workloads.llm_serving import LLMServing
from numa_rl.workloads.synthetic import SyntheticStream

TOML = """
description = "A small stream"
machine = "chapter-2-socket"

[workload]
family = "synthetic"
num_tasks = 16
burstiness = 2

[reward]
reference_s = 0.05
alpha = 0.5

[simulation]
window_s = 0.2
"""


def write(tmp_path, text=TOML, name="small.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_file_becomes_a_scenario(tmp_path):
    scenario = load_scenario(write(tmp_path))
    assert (scenario.name, scenario.description, scenario.window_s) == ("small", "A small stream", 0.2)
    assert scenario.topology.num_nodes == 2
    assert scenario.family == SyntheticStream(num_tasks=16, burstiness=2.0)
    assert scenario.reward == RewardWeights(alpha=0.5, reference_s=0.05)


def test_the_project_has_its_scenarios():
    assert {"allreduce-cube", "batch-cube", "llm-r815", "query-cube", "stream-cube", "workflow-cube"} <= set(
        scenario_names()
    )


@pytest.mark.parametrize("name", scenario_names())
def test_shipped_scenarios_load_and_fit_their_machine(name):
    scenario = load_scenario(name)
    workload = scenario.episodes(Split.TRAIN, 8)
    assert scenario.name == name
    # All an episode ever creates would fit, so no placement is doomed from the start.
    largest = [max(row[objects == o].max() for o in np.unique(objects)) for row, objects in _pairs(workload)]
    assert max(largest) < scenario.topology.memory_bytes.min()


@pytest.mark.parametrize("name", scenario_names())
def test_reference_is_the_mean_idle_service_time(name):
    scenario = load_scenario(name)
    machine, workload = scenario.topology, scenario.episodes(Split.TRAIN, 128)
    one_core = machine.outstanding_bytes / machine.latency_s.diagonal()
    bytes_per_s = np.minimum(one_core, machine.bandwidth_bytes_per_s.diagonal()).mean()
    service_s = np.maximum(workload.flops / machine.flops_per_s.mean(), workload.bytes / bytes_per_s)
    idle_s = service_s.mean(dtype=float) + workload.input_bytes.sum(axis=2).mean(dtype=float) / bytes_per_s
    assert scenario.reward.reference_s == pytest.approx(idle_s, rel=0.05)


def test_defaults_of_the_families_are_those_of_the_shipped_scenarios():
    assert load_scenario("allreduce-cube").family == AllReduce()
    assert load_scenario("llm-r815").family == LLMServing()
    assert load_scenario("stream-cube").family == SyntheticStream()


def _pairs(workload):
    return zip(workload.object_bytes, workload.object, strict=True)


def _episodes(workload):
    return {
        arrival.tobytes() + moved.tobytes() for arrival, moved in zip(workload.arrival_s, workload.bytes, strict=True)
    }


def test_no_two_splits_or_seeds_share_an_episode(tmp_path):
    scenario = load_scenario(write(tmp_path))
    pools = [scenario.episodes(split, 64, seed) for split in Split for seed in (0, 1, 2, 3, 4, 2**32, 2**32 + 1)]
    assert len(set().union(*map(_episodes, pools))) == 64 * len(pools)


def test_a_split_replays_and_grows(tmp_path):
    scenario = load_scenario(write(tmp_path))
    one, two, more = (scenario.episodes(Split.TEST, n, seed=5) for n in (4, 4, 9))
    assert _episodes(one) == _episodes(two) < _episodes(more)


@pytest.mark.parametrize(("num_episodes", "seed", "name"), [(0, 0, "num_episodes"), (1, -1, "seed")])
def test_bad_counts_are_refused(tmp_path, num_episodes, seed, name):
    with pytest.raises(ValueError, match=f"{name} must be >= "):
        load_scenario(write(tmp_path)).episodes(Split.TRAIN, num_episodes, seed)


def test_hash_is_of_the_content_alone(tmp_path):
    scenario = load_scenario(write(tmp_path))
    renamed = write(tmp_path, TOML.replace("A small stream", "Another name"), "other.toml")
    assert load_scenario(renamed).content_hash == scenario.content_hash
    assert len(scenario.content_hash) == 64


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("burstiness = 2", "burstiness = 3"),
        ("alpha = 0.5", "alpha = 0.6"),
        ("window_s = 0.2", "window_s = 0.3"),
        ("chapter-2-socket", "chapter-4-socket"),
    ],
)
def test_hash_changes_with_what_counts(tmp_path, old, new):
    scenario, other = load_scenario(write(tmp_path)), load_scenario(write(tmp_path, TOML.replace(old, new)))
    assert scenario.content_hash != other.content_hash


def _trace(path, tokens):
    rows = "".join(f"2023-11-16 10:00:{second:02},{tokens},5\n" for second in range(20))
    path.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")


def test_a_trace_is_found_beside_the_scenario_and_hashed_by_contents(tmp_path):
    text = TOML.replace('family = "synthetic"', 'family = "llm-serving"\ntrace = "t.csv"\nwarm_up_requests = 2')
    hashes = []
    for folder, tokens in (("a", 100), ("b", 100), ("c", 101)):
        (tmp_path / folder).mkdir()
        _trace(tmp_path / folder / "t.csv", tokens)
        scenario = load_scenario(write(tmp_path / folder, text))
        assert scenario.episodes(Split.TRAIN, 2).num_tasks == 16
        hashes.append(scenario.content_hash)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('machine = "chapter-2-socket"', "", "scenario: missing key 'machine'"),
        ('machine = "chapter-2-socket"', "machine = 2", "scenario: machine must be of type string, got 2"),
        ("chapter-2-socket", "chapter-3-socket", "machine: machine must be one of chapter-2-socket"),
        ("machine =", "engine =", "unknown key 'engine'; known: description, machine, workload, reward, simulation"),
        (
            'family = "synthetic"',
            "",
            f"[workload]: family must be one of {', '.join(family_names())}, got None",
        ),
        ('"synthetic"', '"batch"', "[workload]: unknown workload family 'batch'; known: synthetic, llm-serving"),
        ("burstiness = 2", "burstyness = 2", "[workload]: synthetic: unknown key 'burstyness'; known: num_tasks,"),
        ("burstiness = 2", "burstiness = 0.5", "[workload]: synthetic: burstiness must be >= 1, got 0.5"),
        ("num_tasks = 16", 'num_tasks = "16"', "[workload]: synthetic: num_tasks must be of type integer, got '16'"),
        ("reference_s = 0.05", "", "[reward]: missing key 'reference_s'"),
        ("reference_s = 0.05", "reference_s = 0", "[reward]: reference_s must be > 0, got 0."),
        ("alpha = 0.5", "alpha = -1.0", "[reward]: alpha must be finite and >= 0, got -1.0"),
        ("alpha = 0.5", "gamma = 1.0", "[reward]: unknown key 'gamma'; known: alpha, beta, reference_s"),
        ("window_s = 0.2", "window_s = 0.0", "[simulation]: window_s must be finite and > 0, got 0.0"),
        ("window_s = 0.2", "tau_s = 0.2", "[simulation]: unknown key 'tau_s'; known: window_s"),
        ("window_s = 0.2", "window_s = ", "not valid TOML: Invalid value (at line 15"),
        ("[simulation]", "[simulations]", "scenario: unknown key 'simulations'"),
    ],
)
def test_errors_name_file_key_rule_and_value(tmp_path, old, new, message):
    assert old in TOML
    path = write(tmp_path, TOML.replace(old, new))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below, unescaped
        load_scenario(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_an_unknown_scenario_lists_the_known():
    with pytest.raises(
        ValueError, match=r"scenario must be one of allreduce-cube, batch-cube, case-200t, .*TOML file, got 'nowhere'"
    ):
        load_scenario("nowhere")


def test_a_scenario_must_be_text(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"bad\.toml: must be UTF-8 text"):
        load_scenario(path)


def test_a_machine_file_is_found_beside_the_scenario(tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    path = write(tmp_path, TOML.replace("chapter-2-socket", "mine.json"))
    with pytest.raises(ValueError, match=r"small\.toml: machine: .*mine\.json"):  # found, and refused for its content
        load_scenario(path)


def test_window_is_checked_by_the_scenario_itself(tmp_path):
    with pytest.raises(ValueError, match="window_s must be finite and > 0, got inf"):
        replace(load_scenario(write(tmp_path)), window_s=float("inf"))
