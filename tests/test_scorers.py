"""What a policy may be made of: its configuration, and the networks with one piece left out or replaced."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_policy import SMALL, make_policy, random_groups, randomised, relabelled, row_of, scores

from agents.ppo.config import ENCODERS, HEADS, HIDEABLE, PolicyConfig
from agents.ppo.scorer import CLOSED, PairScorer
from agents.ppo.scorers import MOST_NODES, AttentionScorer, BilinearHeads, FlatScorer, IndependentHeads, make_scorer
from agents.rules.greedy import PricedGreedy
from envs.observation import ObservationLayout

SWITCHES = (
    {"prior": False},
    {"blind_to": ("estimate",)},
    {"blind_to": ("communication", "congestion", "latency")},
    {"encoder": "flat"},
    {"heads": "independent"},
    {"heads": "bilinear"},
    {"encoder": "attention"},
    {"encoder": "flat", "prior": False, "blind_to": ("task",)},
)


def invented(num_nodes: int, rows: int = 64, seed: int = 0) -> np.ndarray:
    """Observations that no machine ever showed."""
    return row_of(random_groups(np.random.default_rng(seed), rows, num_nodes))


# The switches.


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_every_network_learns_what_it_is_taught(changes):
    policy, rows = make_policy(4, replace(SMALL, **changes)), torch.from_numpy(invented(4))
    with torch.no_grad():
        before, _ = policy.scorer(rows)
        wanted = before.topk(2, dim=1).indices[:, 1]  # the second-best, which is open
    wanted = torch.where(before.gather(1, wanted[:, None])[:, 0] > CLOSED / 2, wanted, before.argmax(1))
    optimizer, losses = torch.optim.Adam(policy.parameters(), lr=0.02), []
    for _ in range(40):
        losses.append(torch.nn.functional.cross_entropy(policy.scorer(rows)[0], wanted))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1].item() < 0.8 * losses[0].item()


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_every_network_keeps_what_is_closed_closed(changes):
    groups = random_groups(np.random.default_rng(3), 32, 4)
    logits, _ = scores(randomised(make_policy(4, replace(SMALL, **changes)).scorer), row_of(groups))
    is_open = groups["task_mask"][:, :, None] * groups["data_mask"][:, None, :] > 0
    assert (logits[~is_open] == CLOSED).all()
    assert (logits[is_open] > CLOSED / 2).all()


@pytest.mark.parametrize(
    ("encoder", "heads"),
    [*((encoder, "joint") for encoder in ENCODERS), *(("equivariant", heads) for heads in HEADS[1:])],
)
def test_without_a_prior_all_open_placements_start_equal(encoder, heads):
    logits, _ = scores(make_policy(4, replace(SMALL, prior=False, encoder=encoder, heads=heads)).scorer, invented(4))
    assert set(logits.ravel()) == {0.0, np.float32(CLOSED)}


@pytest.mark.parametrize("encoder", ["flat", "attention"])
def test_another_encoder_has_no_other_heads(encoder):
    with pytest.raises(ValueError, match=rf"heads must be joint where the encoder is {encoder}, got 'independent'"):
        PolicyConfig(encoder=encoder, heads="independent")


@pytest.mark.parametrize("changes", [{"encoder": "flat"}, {"encoder": "attention"}, {"heads": "bilinear"}], ids=str)
def test_other_networks_start_as_the_rule_too(changes):
    rows = invented(4)
    other, usual = (make_policy(4, replace(SMALL, **each)) for each in (changes, {}))
    np.testing.assert_array_equal(scores(other.scorer, rows)[0], scores(usual.scorer, rows)[0])
    rule, _ = PricedGreedy().predict(rows)
    assert (other.predict(rows, deterministic=True)[0] == rule).all(axis=1).mean() > 0.95


@pytest.mark.parametrize("changes", SWITCHES, ids=str)
def test_scaled_to_nothing_every_network_is_its_prior(changes):
    scorer = randomised(make_policy(4, replace(SMALL, **changes)).scorer)
    with torch.no_grad():
        for tensor in scorer.learned():
            tensor.zero_()
        prior = make_policy(4, replace(SMALL, **changes)).scorer
        prior.log_scale.copy_(scorer.log_scale)
    np.testing.assert_allclose(scores(scorer, invented(4))[0], scores(prior, invented(4))[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{"encoder": "attention"}, {"heads": "bilinear"}], ids=str)
def test_what_is_added_knows_nodes_by_what_they_are_and_ignores_padding(changes):
    order, config = np.array([2, 0, 3, 1]), replace(SMALL, **changes)
    groups = random_groups(np.random.default_rng(1), 16, 4, all_open=True)
    scorer = randomised(make_policy(4, config).scorer)
    logits, values = scores(scorer, row_of(groups))
    renamed, _ = scores(scorer, row_of(relabelled(groups, order)))
    np.testing.assert_allclose(renamed, logits[:, order][:, :, order], rtol=1e-3, atol=1e-3)
    wide = {
        name: np.pad(each, [(0, 0)] + [(0, 0 if name == "task" else 2)] * (each.ndim - 1))
        for name, each in groups.items()
    }
    padded, wide_values = scores(scorer, row_of(wide))
    np.testing.assert_allclose(padded[:, :4, :4], logits, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(wide_values, values, rtol=1e-3, atol=1e-3)


def test_attention_sees_what_lies_between_nodes():
    groups = random_groups(np.random.default_rng(1), 16, 4, all_open=True)
    scorer = randomised(make_policy(4, replace(SMALL, encoder="attention")).scorer)
    before, _ = scores(scorer, row_of(groups))
    torch.nn.init.zeros_(scorer.edge.weight)
    assert np.abs(scores(scorer, row_of(groups))[0] - before).max() > 1e-3


@pytest.mark.parametrize("group", HIDEABLE)
def test_what_a_network_is_blind_to_changes_nothing(group):
    rows, layout = invented(3, 16), ObservationLayout(3)
    changed = rows.copy()
    layout.split(changed)[group][:] += 1.0
    seeing, blind = (randomised(make_policy(3, replace(SMALL, blind_to=hidden)).scorer) for hidden in ((), (group,)))
    for one, two in zip(scores(blind, rows), scores(blind, changed), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(scores(seeing, rows)[0], scores(seeing, changed)[0])


def test_heads_apart_prefer_no_pair_as_such():
    rows = row_of(random_groups(np.random.default_rng(0), 16, 4, all_open=True))

    def interaction(heads: str) -> float:
        """How far logits are from a sum of what task node and data node say: the mixed differences."""
        logits, _ = scores(randomised(make_policy(4, replace(SMALL, heads=heads)).scorer), rows)
        return float(np.abs(logits[:, 1:, 1:] - logits[:, :1, 1:] - logits[:, 1:, :1] + logits[:, :1, :1]).max())

    assert interaction("independent") < 1e-3
    assert interaction("joint") > 0.1


def test_a_flat_network_knows_nodes_by_number():
    groups = random_groups(np.random.default_rng(0), 16, 4, all_open=True)
    order = np.array([1, 0, 3, 2])
    for encoder, same in (("flat", False), ("equivariant", True)):
        scorer = randomised(make_policy(4, replace(SMALL, encoder=encoder)).scorer)
        logits, _ = scores(scorer, row_of(groups))
        renamed, _ = scores(scorer, row_of(relabelled(groups, order)))
        assert np.allclose(renamed, logits[:, order][:, :, order], rtol=1e-3, atol=1e-3) is same


def test_a_flat_network_knows_machines_up_to_a_size():
    scorer = make_policy(2, replace(SMALL, encoder="flat")).scorer
    assert np.isfinite(scores(scorer, invented(MOST_NODES, 2))[0]).all()
    with pytest.raises(ValueError, match=rf"knows machines of up to {MOST_NODES} nodes, got {MOST_NODES + 1}"):
        scores(scorer, invented(MOST_NODES + 1, 2))


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, PairScorer),
        ({"encoder": "flat"}, FlatScorer),
        ({"encoder": "attention"}, AttentionScorer),
        ({"heads": "bilinear"}, BilinearHeads),
        ({"heads": "independent"}, IndependentHeads),
    ],
)
def test_a_configuration_names_its_network(changes, kind):
    assert type(make_scorer(replace(SMALL, **changes))) is kind


# What a configuration refuses.


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"blind_to": ("nodes",)}, r"policy: blind_to must be among memory, .*bandwidth, got 'nodes'"),
        ({"blind_to": ("queue", "")}, r"policy: blind_to must be among .* got ''"),
        ({"encoder": "round"}, r"policy: encoder must be one of equivariant, attention, flat, got 'round'"),
        ({"heads": "both"}, r"policy: heads must be one of joint, bilinear, independent, got 'both'"),
    ],
)
def test_a_switch_that_does_not_exist_is_named(changes, rule):
    with pytest.raises(ValueError, match=rule):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("node_width", 0),
        ("node_width", 4097),
        ("pair_width", -1),
        ("congestion_price", -0.1),
        ("crowding_price", float("nan")),
        ("crowding_price", float("inf")),
        ("migration_share", 1.1),
        ("migration_share", -0.1),
        ("alpha", -1.0),
        ("prior_scale", 0.0),
        ("prior_scale", float("nan")),
    ],
)
def test_a_configuration_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=rf"policy: {name} must be in .*, got {value}"):
        PolicyConfig(**{name: value})
    with pytest.raises(ValueError, match=rf"policy: {name} must be in .*, got {value}"):
        make_policy(2, {name: value})


def test_a_configuration_may_come_as_its_fields():
    assert make_policy(2, {"node_width": 3}).config == PolicyConfig(node_width=3)
    assert make_policy(2, None).config == PolicyConfig()
