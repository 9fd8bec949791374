"""Whole runs of grpo.py that take a second, and what is compared of the folders that they leave:
what the tests of run folders, of the command line and of crashes share.
"""

import json
import signal
import sys
from pathlib import Path

import pytest

import grpo
import models

POLICY = str(models.ORGANISMS / "policy")
TINY = """--steps 2 --prompts-per-step 1 --group-size 2 --max-answer-tokens 8
--max-confession-tokens 8 --eval-n 2 --checkpoint-every 1""".split()
REWARD = [
    "--answer-reward",
    "tiny_runs.some_reward",
    "--confession-reward",
    "tiny_runs.some_reward",
]
# none of these answers finishes, and some are alike at 2
REWARD += ["--truncated-reward", "judge", "--temperature", "3"]
RUN = ["--model", POLICY, *TINY, *REWARD, "--name", "run"]


def some_reward(rollouts) -> list[float]:
    """A reward that differs within a group, so that every step changes the weights."""
    return [sum(rollout.token_ids) % 1_009 / 1_009 for rollout in rollouts]


def run_grpo(folder: Path, *options: str) -> None:
    """`python grpo.py options` in a folder, within this process."""
    handler = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["grpo.py", *options])
        try:
            grpo.main()
        finally:
            signal.signal(signal.SIGINT, handler)


def files(folder: Path) -> dict[str, bytes]:
    """All but TensorBoard's, which are there if it is installed, under names that hold the time."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "events"
    }


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def redrawn(name: str) -> bool:
    """Whether a file may differ between two runs of the same steps:
    it holds times, or a figure's compressed bytes.
    """
    return name in ("timing.jsonl", "lock") or name.endswith(".png")
