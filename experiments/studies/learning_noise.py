"""How noisy the policy gradient is: how many decisions it takes until it says more than chance.

Runs differ by luck, and five of them tell only large differences apart. The gradient itself can be measured: over
independent rollouts of one fixed policy, what they agree on is signal, the rest is noise [1].

Dimension key: R rollouts, P parameters.

References:
    [1] S. McCandlish, J. Kaplan, D. Amodei, "An empirical model of large-batch training", 2018: the simple noise scale.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3 import PPO
from torch import Tensor

from agents.ppo.critic import BATCH, LEARNING_RATE, PASSES
from agents.ppo.policy import PlacementPolicy

WARM_UP = 4  # rollouts from which critics learn before any counts, the policy's value head among them
NOT_COUNTED = ("value", "log_scale")  # neither says which placement is best: sharpness changes odds, not their order


def noise_scale(model: PPO, rollouts: int) -> float:
    """Decisions after which the gradient's signal equals its noise; infinite if no signal is found.

    Args:
        model: what its policy decides is left as it is; its critic learns, be it the buffer's or the value head.
        rollouts: R, that count.

    Raises:
        ValueError: fewer than two rollouts.
    """
    if rollouts < 2:
        raise ValueError(f"rollouts must be >= 2, got {rollouts}.")
    decisions = model.n_steps * model.n_envs
    _, callback = model._setup_learn(decisions)
    assert model.env is not None
    assert isinstance(model.policy, PlacementPolicy)
    head = [value for name, value in model.policy.scorer.named_parameters() if name.startswith("value")]
    optimizer = torch.optim.Adam(head, lr=LEARNING_RATE)
    found = []
    for number in range(WARM_UP + rollouts):
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        if number >= WARM_UP:
            found.append(_gradient(model).numpy())
        fit_value_head(model, optimizer)  # from every rollout after it was used, as the buffer's critic
    return decisions * noise_over_signal(np.stack(found))


def fit_value_head(model: PPO, optimizer: torch.optim.Optimizer) -> None:
    """Let the policy's value head, whose parameters the optimiser has, learn the returns of the last rollout."""
    policy = model.policy
    for _ in range(PASSES):
        for batch in model.rollout_buffer.get(BATCH):
            values, _, _ = policy.evaluate_actions(batch.observations, batch.actions)
            loss = torch.nn.functional.mse_loss(values.flatten(), batch.returns)
            policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    policy.optimizer.zero_grad()


def noise_over_signal(gradients: npt.NDArray[np.floating]) -> float:
    """Squared length of the noise of a gradient over that of its expectation, from R independent ones (R, P).

    Products of different ones hold no noise in expectation, squares of each hold both.
    """
    products = np.asarray(gradients, np.float64) @ np.asarray(gradients, np.float64).T
    count = len(products)
    total = np.trace(products) / count
    signal = (products.sum() - np.trace(products)) / (count * (count - 1))
    return float((total - signal) / signal) if signal > 0 else np.inf


def _gradient(model: PPO) -> Tensor:
    """Gradient of the policy's loss over the whole rollout, shape (P,)."""
    policy = model.policy
    assert isinstance(policy, PlacementPolicy)
    parameters = [value for name, value in policy.scorer.named_parameters() if not name.startswith(NOT_COUNTED)]
    advantages = torch.from_numpy(np.asarray(model.rollout_buffer.advantages))
    mean, deviation = advantages.mean(), advantages.std() + 1e-8
    policy.optimizer.zero_grad()
    for batch in model.rollout_buffer.get(BATCH):
        _, log_probability, _ = policy.evaluate_actions(batch.observations, batch.actions)
        loss = -(log_probability * (batch.advantages - mean) / deviation).sum() / advantages.numel()
        loss.backward()  # type: ignore[no-untyped-call]
    parts = [torch.zeros_like(value) if value.grad is None else value.grad for value in parameters]
    found = torch.cat([part.flatten() for part in parts]).clone()
    policy.optimizer.zero_grad()
    return found
