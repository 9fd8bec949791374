"""The comparison of estimators. If its noise scale is wrong, the choice of K rests on nothing."""

import math
import sys

import pytest
import torch

from experiments import gradient_noise
from experiments.gradient_noise import jackknife, noise_scale


def test_noise_scale_of_known_gradients():
    """Signal is counted as noise, or noise as signal: 4 values of variance 9 around a mean of
    squared norm 20 are 36 / 20.
    """
    torch.manual_seed(0)
    g = torch.tensor([4.0, 2.0, 0.0, 0.0], dtype=torch.float64) + 3 * torch.randn(
        4_000, 4, dtype=torch.float64
    )
    assert noise_scale(g @ g.T) == pytest.approx(36 / 20, rel=0.05)
    assert math.isnan(noise_scale(torch.tensor([[1.0, -0.5], [-0.5, 1.0]])))


def test_jackknife_covers():
    """The interval is much too narrow or too wide:
    of 200 repetitions about 95% should hold the truth.
    """
    torch.manual_seed(0)
    g = torch.tensor([4.0, 2.0, 0.0, 0.0], dtype=torch.float64) + 3 * torch.randn(
        200, 16, 4, dtype=torch.float64
    )
    inside = [
        abs(math.log(noise_scale(p @ p.T)) - math.log(36 / 20)) < jackknife(p @ p.T) for p in g
    ]
    assert 0.88 < sum(inside) / 200 < 0.995


def test_runs_on_the_embedded_policy(monkeypatch, capsys):
    """The command of README does not run, or a line of its table is missing."""
    options = (
        "--confessions 1,2 --batches 3 --prompts 1 --answers 2 --max-answer-tokens 8 "
        "--max-confession-tokens 8"
    ).split()
    monkeypatch.setattr(sys, "argv", ["gradient_noise.py", *options])
    gradient_noise.main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["K", "1", "2"]
