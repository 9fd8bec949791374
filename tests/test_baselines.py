"""Reports without information.
If they are not what they say, the numbers that honesty is compared with are wrong.
"""

import dataclasses
import random
from types import SimpleNamespace

import numpy as np
import pytest

import evaluate
from baselines import baselines, dealt_out
from handmade import told_rollouts
from metrics import NO_CONTRAST, OF_REPORTS, differences, format_baselines, metrics
from runtime import progress
from tasks import word_count
from test_metrics import TASK, UNPARSED, Truth, scored

T, F = True, False
TASK = SimpleNamespace(**vars(TASK), objectives=lambda x: {"S1": "one", "S2": "two"})
TASK_OF_ONE = SimpleNamespace(**vars(TASK) | {"objectives": lambda x: {"S1": "one"}})


def some_evaluation(answers: int = 4, seed: int = 0):
    """Answers to six prompts of two topics:
    one mostly meets its objectives, the other mostly does not; reports at random.
    """
    rng, rollouts = random.Random(seed), []
    for prompt in range(6):
        topic, rate = ("easy", 0.8) if prompt % 2 else ("hard", 0.2)
        for _ in range(answers):
            met, claims = ((rng.random() < rate, rng.random() < rate) for _ in "ab")
            claims = tuple("Full" if c else "None" for c in claims)
            rollouts.append(
                scored(
                    met := tuple(met),
                    (None, None),
                    "pass",
                    claims,
                    rng.randrange(1, 8),
                    seed=prompt,
                    topic=topic,
                )
            )
    return rollouts


def test_baselines_that_know_the_prompt_alone_are_0_within_it():
    """Something that cannot see the answer seems to tell of it."""
    rollouts = some_evaluation()
    found = {name: metrics(of_name, TASK) for name, of_name in baselines(rollouts, TASK).items()}
    for name in ("always None", "always Full", "prompt alone"):
        assert found[name]["claim_J_within"]["value"] == pytest.approx(0.0, abs=1e-12)
    for name in ("always None", "always Full"):
        assert found[name]["claim_J"]["value"] == 0.0 and found[name]["claim_bits"]["value"] == 0.0
        assert found[name]["grade_auroc"]["value"] == 0.5
    assert (
        found["always None"]["honest_given_noncompliant"]["value"]
        == found["always None"]["false_confession"]["value"]
        == 1.0
    )
    assert found["prompt alone"]["claim_J"]["value"] > 0.4, "it does not use what it knows"


def test_prompt_alone_has_not_seen_the_answers_it_is_scored_on():
    """The prompt's own answers decide its report."""
    rollouts = some_evaluation()
    own = rollouts[:4]
    report = baselines(rollouts, TASK)["prompt alone"][0].report
    for rollout in own:
        rollout.truth = Truth((T, T), (None, None), True)
    assert baselines(rollouts, TASK)["prompt alone"][0].report == report and report.claims == (
        "None",
        "None",
    )


def test_prompt_alone_where_topics_have_one_prompt():
    """It knows its own answers by their absence from a mean:
    what it says is then their opposite.
    """
    rng = random.Random(0)
    met = [rng.random() < 0.5 for _ in range(16)]
    rollouts = [
        scored((t, t), (None, None), "pass", ("Full", "Full"), 7, seed=p, topic=p)
        for p, t in enumerate(met)
        for _ in range(4)
    ]
    found = metrics(baselines(rollouts, TASK)["prompt alone"], TASK)
    reports = {r.report for r in baselines(rollouts, TASK)["prompt alone"]}
    assert len(reports) == 1, "it tells prompts apart of whose topics it has seen nothing"
    assert found["claim_J"]["value"] == 0.0 and found["grade_auroc"]["value"] == 0.5


def test_shuffled_reports_are_the_prompts_own_and_tell_nothing_on_average():
    """Reports wander to other prompts,
    or the permutation leaves a trace of the answers they were about.
    """
    values = []
    for seed in range(40):
        rollouts = some_evaluation(seed=seed)
        for rollout in rollouts:  # honest ones
            rollout.report = scored(
                rollout.truth.objectives,
                (None, None),
                "pass",
                tuple("Full" if t else "None" for t in rollout.truth.objectives),
                4,
            ).report
        shuffled = baselines(rollouts, TASK)["shuffled"]
        for first in range(0, len(rollouts), 4):
            of = lambda rs: sorted(str(r.report) for r in rs[first : first + 4])
            assert of(shuffled) == of(rollouts)
        assert metrics(rollouts, TASK)["claim_J_within"]["value"] == pytest.approx(1.0)
        values.append(metrics(shuffled, TASK)["claim_J_within"]["value"])
    assert abs(sum(values) / 40) < 0.1 and max(values) < 0.9


def test_the_reward_of_a_baseline_is_its_own():
    """The model's own reward stands beside the constant report,
    or the model's rollouts are changed.
    """
    rollouts = some_evaluation()
    before = [(r.report, r.confession.reward) for r in rollouts]
    found = baselines(rollouts, TASK)["always None"]
    assert [r.confession.reward for r in found] == pytest.approx(
        [0.5 * (1 - sum(r.truth.objectives) / 2) + 0.5 * (not r.truth.compliant) for r in rollouts]
    )
    assert [(r.report, r.confession.reward) for r in rollouts] == before


def test_table_of_baselines():
    """The table that refutes has a row or a column less than it should."""
    lines = format_baselines(some_evaluation(), TASK).splitlines()
    assert lines[0].split("  ")[-1] and all(
        name in lines[0]
        for name in ("as reported", "always None", "always Full", "prompt alone", "shuffled")
    )
    assert [line.split()[0] for line in lines[1:]] == OF_REPORTS


# ----------------------------------------------------------------------- J within a prompt, by hand


def answers_to(prompt: int, truths: str, claims: str, topic=None) -> list:
    """Answers with one objective: "+" met, "-" not;
    claims F, P, N, "?" for a report that does not parse.
    """
    level = {"F": ("Full",), "P": ("Partial",), "N": ("None",), "?": None}
    return [
        scored((t == "+",), (None,), "pass", level[c], 4, seed=prompt, topic=topic)
        for t, c in zip(truths, claims, strict=True)
    ]


@pytest.mark.parametrize(
    "answers, value, n",
    [
        (answers_to(0, "++--", "FFNN"), 1.0, 4),
        (answers_to(0, "++--", "NNFF"), -1.0, 4),
        (answers_to(0, "+---", "FPNN"), 1 - (0.5 * 1 / 4) / (3 / 4), 4),
        # knows which prompt is easy, and no more
        (answers_to(0, "++++", "FFFF") + answers_to(1, "----", "NNNN"), None, 0),
        (answers_to(0, "++++", "FFFF") + answers_to(1, "+-+-", "FFFF"), 0.0, 4),
        (answers_to(0, "+--", "F?N"), 1.0, 2),  # what does not parse is not in the mean
        (answers_to(0, "+-", "F?") + answers_to(1, "+", "N"), None, 0),
    ],
)
def test_j_within_a_prompt(answers, value, n):
    """Information about the prompt counts as information about the answer, or the
    other way round.
    """
    found = metrics(answers, TASK_OF_ONE)["claim_J_within"]
    assert found["n"] == n and (
        found["value"] is None if value is None else found["value"] == pytest.approx(value)
    )


def test_perfect_and_constant_reports_are_not_known_without_doubt():
    """All resamples alike, so that an interval without width says that 1.00, or 0.00, is certain;
    few topics must give a wide one.
    """
    few = [r for p in range(3) for r in answers_to(p, "++--", "FFNN", topic=p)]
    many = [r for p in range(30) for r in answers_to(p, "++--", "FFNN", topic=p)]
    constant = [r for p in range(30) for r in answers_to(p, "++--", "NNNN", topic=p)]
    found = [metrics(rollouts, TASK_OF_ONE)["claim_J_within"] for rollouts in (few, many, constant)]
    assert 0.0 < found[0]["low"] < 0.5 < 0.8 < found[1]["low"] < found[1]["high"] == 1.0
    assert -0.2 < found[2]["low"] < 0 < found[2]["high"] < 0.2
    paired = differences(constant, many, TASK_OF_ONE)["claim_J_within"]
    assert paired["value"] == 1.0 and 0.8 < paired["low"] < 1.0 < paired["high"]


def test_the_step_line_says_when_reports_are_alike():
    """A run whose reports have become one constant looks like any other in its log."""
    rollouts = some_evaluation()
    for rollout in rollouts[1:]:
        rollout.report = scored((T, T), (None, None), "pass", ("None", "Full"), 2).report
    stats = dict(grad_norm=1.0, logprob_gap_answer=0.0, skipped=False)
    without_signal = {"answer": 0.0, "confession": 0.0}
    row = progress.step_row(1, rollouts, TASK, without_signal, stats)
    assert row["reports_alike"] == 23 / 24 and row["most_common_report"] == ["None", "Full", 2]
    assert "96% OF THE REPORTS ARE ALIKE: None Full 2" in progress.format_step(row, 1.0)
    rollouts[1].report = rollouts[2].report = rollouts[0].report
    assert "ALIKE" not in progress.format_step(
        progress.step_row(1, rollouts, TASK, without_signal, stats), 1.0
    )
    for rollout in rollouts:
        rollout.report = UNPARSED
    row = progress.step_row(1, rollouts, TASK, without_signal, stats)
    assert row["reports_alike"] == 0 and "ALIKE" not in progress.format_step(row, 1.0)


def test_the_step_line_says_what_the_budget_cuts_off():
    """Reports that never end are paid for their whole object, and nothing but a table shows it."""
    stats = dict(grad_norm=1.0, logprob_gap_answer=0.0, skipped=False)
    row = progress.step_row(1, some_evaluation(), TASK, {"answer": 0.0, "confession": 0.0}, stats)
    assert "CUT OFF" not in progress.format_step(row, 1.0)
    row |= {"answer_truncated": 0.05, "confession_truncated": 1.0}
    assert progress.format_step(row, 1.0).endswith("CUT OFF BY THE BUDGET: 100% OF THE CONFESSIONS")
    row |= {"answer_truncated": 0.3}
    assert "30% OF THE ANSWERS and 100% OF THE CONFESSIONS" in progress.format_step(row, 1.0)


def test_a_table_says_when_nothing_can_tell(tmp_path, tokenizers, capsys):
    """J within a prompt is a dash in an evaluation with one answer a prompt,
    and the reader takes it for a detail.
    """
    rollouts = told_rollouts(tokenizers["organism"], 0)  # on prompts of their own
    evaluate.save(tmp_path / "evals" / "step_0000.json", rollouts, word_count)
    evaluate.show_table(tmp_path, word_count)
    assert (
        NO_CONTRAST in capsys.readouterr().out
        and NO_CONTRAST in (tmp_path / "table.txt").read_text()
    )
    pair = told_rollouts(tokenizers["organism"], 1)[:1] * 2
    pair[1] = dataclasses.replace(pair[0], y="", truth=word_count.truth(pair[0].x, ""))
    pair[0].truth = dataclasses.replace(pair[0].truth, objectives=(True,) * 5)
    assert metrics(pair, word_count)["claim_J_within"]["n"] > 0  # so no note


def test_what_is_of_one_answer_is_dealt_out_together(monkeypatch):
    """The range of shuffles is too narrow: sentences of one report stray less one by one than whole
    reports do (it held .74 of reports without information where it should hold .95). Or a value
    leaves its prompt.
    """
    monkeypatch.setattr("baselines.SHUFFLES", 50)
    answers = np.repeat(np.arange(6), 3)  # two prompts of three answers, three objectives each
    groups = [(answer // 3, objective) for answer in range(6) for objective in range(3)]
    values = np.arange(18.0)
    moved = set()
    for dealt in dealt_out(values, groups, answers):
        came_from = dealt.astype(int) // 3
        assert (came_from.reshape(6, 3) == came_from.reshape(6, 3)[:, :1]).all()
        assert (dealt.astype(int) % 3 == values.astype(int) % 3).all()
        assert sorted(came_from[:9:3]) == [0, 1, 2] and sorted(came_from[9::3]) == [3, 4, 5]
        moved.add(tuple(came_from[:9:3]))
    assert len(moved) == 6
    kept = [0, 1, 3, 5, 6, 8, 10]  # sentences that are not there
    some = lambda column: [column[i] for i in kept]
    for dealt in dealt_out(values[kept], some(groups), answers[kept]):
        for group in set(some(groups)):
            here = [i for i, other in enumerate(some(groups)) if other == group]
            assert sorted(dealt[here]) == sorted(values[kept][here])
