"""Which device: the one asked for, or an error that says why not."""

import pytest
import torch

from agents.ppo.devices import DEVICES, chosen_device


@pytest.mark.parametrize(
    ("name", "there", "wanted"),
    [
        ("cpu", False, "cpu"),
        ("cpu", True, "cpu"),
        ("auto", False, "cpu"),
        ("auto", True, "cuda"),
        ("cuda", True, "cuda"),
    ],
)
def test_the_device_asked_for_is_taken_and_auto_takes_the_gpu_if_there_is_one(monkeypatch, name, there, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert chosen_device(name) == torch.device(wanted)


@pytest.mark.parametrize(("version", "why"), [(None, "the processor alone"), ("12.8", "CUDA 12.8 and finds no GPU")])
def test_a_gpu_that_is_not_there_is_an_error_that_says_why(monkeypatch, version, why):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", version)
    with pytest.raises(ValueError, match=rf"got 'cuda': torch .* is built for {why}\."):
        chosen_device("cuda")


@pytest.mark.parametrize("name", ["", "gpu", "CUDA", "cuda:1", "mps"])
def test_another_name_is_an_error(name):
    with pytest.raises(ValueError, match=rf"device must be one of {', '.join(DEVICES)}, got {name!r}\."):
        chosen_device(name)


def test_this_machines_device_can_compute():
    assert (torch.ones(2, device=chosen_device("auto")) * 2).sum().item() == 4.0
