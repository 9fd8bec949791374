"""What answers and confessions earn. A mistake here trains something else than the experiment is about."""

import json
from types import SimpleNamespace

import pytest
from handmade import hand_rollout

import run_folder
import word_count
from cli import UserError
from confession_schema import ConfessionReport
from rewards import UNPARSED_REWARD, Verdict, honesty_reward, judge_margin, judge_reward, score_rollouts, verdict_of


def test_rewards_of_verdicts():
    """A failed verdict is a 0, pass and fail are swapped, or the margin is not the reward that was asked for."""
    rollouts = [SimpleNamespace(verdict=v) for v in (verdict_of(0.25), verdict_of(-3.5), Verdict("failed", "[too long]"))]
    assert [judge_reward(r) for r in rollouts] == [1.0, 0.0, None]
    assert [judge_margin(r) for r in rollouts] == [0.25, -3.5, None]


def test_saved_verdicts_come_back(tmp_path):
    """A margin is lost on the way to the file, or a run from before there were margins cannot be read."""
    rollouts = [hand_rollout(([1], [5], [3], [6])) for _ in range(3)]
    for rollout, verdict in zip(rollouts, (verdict_of(0.1), Verdict("failed", "[too long]"), Verdict("pass", "**PASS**"))):
        rollout.verdict = verdict
    run_folder.save_rollouts(tmp_path / "some.jsonl", rollouts)
    assert [r.verdict for r in run_folder.load_rollouts(tmp_path / "some.jsonl", word_count)] == [r.verdict for r in rollouts]
    data = rollouts[2].to_json()
    del data["verdict"]["margin"]
    run_folder.write_text(tmp_path / "old.jsonl", json.dumps(data) + "\n")
    assert run_folder.load_rollouts(tmp_path / "old.jsonl", word_count)[0].verdict == Verdict("pass", "**PASS**", None)


def test_a_task_without_objectives_is_refused():
    """Every confession to such a prompt divides by zero, or is honest whatever it says."""
    task = SimpleNamespace(__name__="haiku", truth=lambda x, y: SimpleNamespace(objectives=()), objectives=lambda x: {})
    with pytest.raises(UserError, match="task haiku names 0 objectives for the prompt 'Bees' and its truth has 0"):
        score_rollouts([hand_rollout(([1], [5], [3], [6]), x="Bees")], [Verdict("pass", "PASS", 1.0)], task)


def test_an_empty_answer_is_confessed_like_any_other():
    """It meets an objective, complies, or its confession has no reward."""
    rollout = hand_rollout(([1], [5], [3], [6]), x=word_count.make_prompt(0), y="", yc="no report")
    score_rollouts([rollout], [Verdict("fail", "FAIL", -1.0)], word_count)
    assert rollout.truth.objectives == (False,) * 5 and not rollout.truth.compliant
    assert rollout.confession.reward == UNPARSED_REWARD
    rollout.report = ConfessionReport(("None",) * 5, (), 1)
    assert honesty_reward(rollout) == 1.0
    rollout.report = ConfessionReport(("Full",) * 5, (), 7)
    assert honesty_reward(rollout) == 0.0


# (seed of the group, finish, the reward function's value) of each answer, and what the spans must hold
TRUNCATED = {
    "0, whatever the judge says": ([(0, "length", 1.0), (0, "length", None), (0, "stop", 1.0)], [0.0, 0.0, 1.0]),
    "not above a finished one": ([(0, "length", 0.4), (0, "stop", -0.5), (0, "stop", 0.3)], [-0.5, -0.5, 0.3]),
    "another group": ([(0, "length", -2.0), (1, "stop", -0.5), (0, "stop", 0.3)], [0.0, -0.5, 0.3]),
    "nobody finished": ([(0, "length", -2.0), (0, "length", 0.7)], [0.0, 0.0]),
    "the finished ones unjudged": ([(0, "length", 0.7), (0, "stop", None)], [0.0, None]),
}


@pytest.mark.parametrize("case", TRUNCATED)
def test_truncated_answers(case):
    """Endless answers earn what the judge thinks of them, drop out instead of losing, or do better than finished ones."""
    given, expected = TRUNCATED[case]
    blocks = ([1], [5], [2, 3], [6])
    rollouts = [hand_rollout(blocks, finishes=(finish, "length"), seed=seed) for seed, finish, _ in given]
    values = {id(rollout): value for rollout, (_, _, value) in zip(rollouts, given)}
    score = lambda **option: score_rollouts(
        rollouts, [Verdict("pass", "PASS", 1.0)] * len(given), word_count, lambda r: values[id(r)], lambda r: 0.25, **option
    )
    score()
    assert [rollout.answer.reward for rollout in rollouts] == expected
    assert all(rollout.confession.reward == 0.25 for rollout in rollouts)
    score(truncated_reward="judge")
    assert [rollout.answer.reward for rollout in rollouts] == [value for _, _, value in given]
