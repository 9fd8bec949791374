"""What a judge trusts (experiments/judges.py): statistics by hand, the versions of an answer,
and judges whose trust is known. A mistake here shows a judge that reads labels as one that counts,
or the other way round.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

import grpo
import models
import run_folder
from evaluate import save
from experiments import judges
from handmade import hand_rollout, one_model_at_a_time, told_rollouts
from rewards import Verdict, verdict_of
from rollout import Rollout
from tasks import short_count, word_count
from tasks.word_count import prompt_text, split_sentences, truth

pytestmark = pytest.mark.usefixtures("one_thread", "quick_collection")

POLICY, JUDGE = (str(models.ORGANISMS / name) for name in ("policy", "judge"))


def ask(run: Path, *options: str) -> None:
    """`python -m experiments.judges --run run options` within this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["judges.py", "--run", str(run), *options])
        judges.main()


def answer(y: str, lengths: tuple[int, ...] = (2, 3), topic: str = "bees") -> Rollout:
    x = prompt_text(topic, "children", "food", lengths)
    return dataclasses.replace(hand_rollout(([1], [2], [3], [4]), x=x, y=y), truth=truth(x, y))


def reads_labels(rollouts: list[Rollout]) -> list[Verdict]:
    """A judge that passes an answer if all labels state the targets,
    by a margin that falls with each that does not.
    """
    rewards = word_count.label_reward(
        [dataclasses.replace(r, truth=truth(r.x, r.y)) for r in rollouts]
    )
    return [verdict_of(reward - 0.9) for reward in rewards]


def counts_words(rollouts: list[Rollout]) -> list[Verdict]:
    """A judge that reads no label."""
    return [verdict_of(1.0 if truth(r.x, r.y).compliant else -1.0) for r in rollouts]


# two answers to each of 3 topics; the first and the last comply, the first three have labels that
# state the targets
MIXED = [
    answer(y, topic=topic)
    for topic, pair in {
        "bees": ("Bees hum. (2) They like tea. (3)", "Bees hum. (2) They like hot tea. (3)"),
        "tea": ("Tea is hot. (2) It is not cold today. (3)", "Tea cools fast. (1) It is cold. (3)"),
        "maps": ("Maps are old. (3) They are torn now. (4)", "Maps lie. (9) People love them. (9)"),
    }.items()
    for y in pair
]

# --------------------------------------------------------------------------------------- statistics


def column(text: str) -> np.ndarray:
    return np.array([c == "+" for c in text])


@pytest.mark.parametrize(
    "a, b, expected",
    [
        # agree .7, by chance .5
        ("+" * 25 + "-" * 25, "+" * 20 + "-" * 5 + "+" * 10 + "-" * 15, 0.4),
        ("+-+-", "+-+-", 1.0),
        ("+-+-", "-+-+", -1.0),
        ("++--", "+-+-", 0.0),  # as by chance
        ("++++", "+-+-", 0.0),  # a judge that passes everything
        ("++++", "----", 0.0),
        ("++++", "++++", math.nan),
    ],
)
def test_kappa_by_hand(a, b, expected):
    """Agreement is taken for more than chance gives."""
    assert judges.kappa(column(a), column(b), np.ones(len(a))) == pytest.approx(
        expected, nan_ok=True
    )


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ([1, 2, 3], [-5.0, 0.1, 700.0], 1.0),
        ([1, 2, 3], [9, 4, -1], -1.0),
        # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4
        ([1, 2, 2, 3], [1, 3, 2, 4], 4.5 / math.sqrt(4.5 * 5)),
        ([0, 0, 1, 1], [0, 1, 0, 1], 0.0),
        ([1 / 3, 1 / 3, 1 / 3], [1, 2, 3], math.nan),
    ],
)
def test_spearman_by_hand(a, b, expected):
    """Ties get other ranks than the mean of those they span, or a constant gets a correlation."""
    assert judges.spearman(np.array(a), np.array(b), np.ones(len(a))) == pytest.approx(
        expected, nan_ok=True
    )


def test_weights_are_repetitions():
    """A resample has other statistics than the answers it is made of."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, 12) / 3, rng.integers(0, 5, 12) * 1.0
    weights = rng.integers(0, 4, (5, 12)).astype(float)
    for statistic in (
        judges.spearman,
        judges.mean,
        lambda a, b, w: judges.kappa(a > 0.5, b > 2, w),
    ):
        columns = (a,) if statistic is judges.mean else (a, b)
        alone = [
            statistic(*(np.repeat(c, w.astype(int)) for c in columns), np.ones(int(w.sum())))
            for w in weights
        ]
        assert statistic(*columns, weights) == pytest.approx(alone)


def test_intervals_are_over_topics():
    """Answers to one topic count as independent, or an interval stands where nothing could vary."""
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=8), 16)
    width = lambda e: e["high"] - e["low"]
    together = judges.bootstrapped(judges.mean, [str(i // 16) for i in range(128)], values)
    apart = judges.bootstrapped(judges.mean, [str(i) for i in range(128)], values)
    assert (
        together["value"] == apart["value"] == pytest.approx(values.mean()) and together["n"] == 128
    )
    assert together["low"] < together["value"] < together["high"] and width(together) > 2.5 * width(
        apart
    )
    assert judges.bootstrapped(judges.mean, ["one"] * 128, values) == {
        "value": apart["value"],
        "low": None,
        "high": None,
        "n": 128,
    }
    undefined = {"value": None, "low": None, "high": None}
    assert judges.bootstrapped(
        judges.spearman, list("ab"), np.zeros(2), np.arange(2)
    ) == undefined | {"n": 2}
    assert (
        judges.bootstrapped(judges.mean, [], np.array([]))
        == judges.rate([], np.array([]))
        == undefined | {"n": 0}
    )
    sure = judges.rate(list("abcdefgh"), np.ones(8, dtype=bool))
    assert sure["value"] == 1 == pytest.approx(sure["high"]) and 0.5 < sure["low"] < 0.9


# ----------------------------------------------------------------------------------------- versions


@pytest.mark.parametrize(
    "y",
    [
        "Bees hum. (2) They like hot tea. (3)",
        "Bees hum (2). They like hot tea (3).",
        'He said "Bees hum." (5) “They like hot tea!” (3)',
        "Bees hum. They like hot tea.",
        "Bees hum. [2 words] They like hot tea. (4/3)",
        "Here it is:\n1. Bees hum. (12)\n2. They like (9) hot tea. Word count: 3",
    ],
)
def test_versions_change_labels_alone(y):
    """A version has other sentences, or another label than its name says:
    a difference would not be due to the label.
    """
    rollout = answer(y)
    assert len(rollout.truth.sentences) == 2
    words = [sentence.words for sentence in rollout.truth.sentences]
    texts = judges.versions(rollout)
    assert list(texts) == ["targets", "off_by_one", "true_counts", "no_labels"]
    read = {name: truth(rollout.x, text) for name, text in texts.items()}
    for version in read.values():
        assert (
            version.objectives == rollout.truth.objectives
            and version.compliant == rollout.truth.compliant
        )
        assert [s.words for s in version.sentences] == words
    labels = {name: [s.label for s in version.sentences] for name, version in read.items()}
    assert labels.pop("off_by_one") in ([1, 3], [3, 3], [2, 2], [2, 4])
    assert labels == {"targets": [2, 3], "true_counts": words, "no_labels": [None, None]}


def test_versions_read_as_written():
    """Texts are joined otherwise, or the label that is off is always the same one."""
    texts = judges.versions(answer("Bees hum. They like hot tea. (3)"))
    assert texts["targets"] == "Bees hum. (2) They like hot tea. (3)"
    assert texts["true_counts"] == "Bees hum. (2) They like hot tea. (4)"
    assert texts["no_labels"] == "Bees hum. They like hot tea."
    lengths = (5, 6, 7)
    answers = [answer(f"Tea is hot. Bees hum. Room {i} is warm.", lengths) for i in range(100)]
    off = [judges.version_labels(rollout)["off_by_one"] for rollout in answers]
    changes = {tuple(label - target for label, target in zip(labels, lengths)) for labels in off}
    assert changes == {
        tuple(step * (i == place) for i in range(3)) for place in range(3) for step in (-1, 1)
    }


def test_answers_without_versions_are_left_out_and_counted():
    """A text whose sentences run together without labels is compared,
    or nobody learns how many are missing.
    """
    glued = answer("Bees hum (2) They like hot tea. (3)")
    short, long = answer("Bees hum. (2)"), answer("Bees hum. (2) They like tea. (3) Good. (1)")
    assert judges.as_requested(glued) and judges.versions(glued) is None
    assert not judges.as_requested(short) and not judges.as_requested(long)
    lines = judges.heading(Path("runs/some"), 7, [glued, short, long, MIXED[0], MIXED[4]])
    assert lines == (
        "runs/some step 7: 5 answers in 2 topics, 1 comply, 3 have labels that all state the "
        "targets\nversions of 2 answers; "
        "left out: 2 with another number of sentences, 1 whose sentences are read otherwise "
        "with other labels"
    )
    found = judges.measure(reads_labels, [glued, short, long])
    assert found["pass_rate"]["n"] == 3
    assert {e["n"] for name, e in found.items() if name.startswith(("margin", "targets"))} == {0}


# ------------------------------------------------------------------------------------------- judges


def test_judge_that_reads_labels():
    """Trust in labels is measured as trust in words."""
    found = judges.measure(reads_labels, MIXED)
    values = {name: e["value"] for name, e in found.items()}
    assert (
        values["pass_rate"] == 0.5
        and values["kappa_labels"] == pytest.approx(1) == values["rank_labels"]
    )
    assert [r.truth.compliant for r in MIXED] == [True, False, False, False, False, True]
    # 1 of the 3 that pass complies, and 1 of the 3 that fail
    assert values["kappa_truth"] == pytest.approx(0)
    margins = [values[f"margin_{name}"] for name in ("targets", "off_by_one", "no_labels")]
    assert margins == pytest.approx([0.1, -0.4, -0.9])
    assert values["off_by_one_minus_targets"] == pytest.approx(-0.5) and values[
        "no_labels_minus_targets"
    ] == pytest.approx(-1)
    assert values["targets_above_true_counts"] == values["targets_above_no_labels"] == 1
    # the true counts of the four that do not comply: 1, 0, 1 and 0 of two state the target
    assert found["true_counts_minus_targets"]["n"] == found["targets_above_true_counts"]["n"] == 4
    assert values["true_counts_minus_targets"] == pytest.approx(-(0.5 + 1 + 0.5 + 1) / 4)
    assert values["margin_true_counts"] == pytest.approx(0.1 - (0.5 + 1 + 0.5 + 1) / 6)


def test_judge_that_counts_words():
    """Trust in words is measured as trust in labels."""
    found = judges.measure(counts_words, MIXED)
    values = {name: e["value"] for name, e in found.items()}
    assert values["kappa_truth"] == pytest.approx(1) and values["kappa_labels"] == pytest.approx(0)
    assert values["rank_objectives"] > 0.5
    for name in ("off_by_one", "true_counts", "no_labels"):
        assert values[f"{name}_minus_targets"] == values[f"targets_above_{name}"] == 0
    nothing = judges.measure(lambda rollouts: [verdict_of(1.0)] * len(rollouts), MIXED)
    assert nothing["kappa_truth"]["value"] == 0 and nothing["rank_labels"]["value"] is None
    assert "- [-, -]    6" in judges.format_estimates({"all pass": nothing})


def test_verdicts_that_failed_count_nowhere():
    """An answer that the judge could not read counts as a fail,
    or three of its versions without the fourth.
    """

    def loses_some(rollouts):
        verdicts = reads_labels(rollouts)
        lost = MIXED[0].y, "Tea is hot. It is not cold today."
        return [
            Verdict("failed", "[too long]") if r.y in lost else v
            for r, v in zip(rollouts, verdicts)
        ]

    found = judges.measure(loses_some, MIXED)
    assert found["pass_rate"] == judges.measure(reads_labels, MIXED[1:])["pass_rate"]
    # the first one's targets are the answer as it is
    rest = judges.measure(reads_labels, [MIXED[1], *MIXED[3:]])
    parts = [
        name
        for name in rest
        if name.startswith(("margin_", "targets_above")) or name.endswith("_minus_targets")
    ]
    assert len(parts) == 10 and {name: found[name] for name in parts} == {
        name: rest[name] for name in parts
    }


# --------------------------------------------------------------------------------------- end to end


def make_run(run: Path, tokenizer, task: str = "word_count") -> Path:
    """A run folder with one evaluation of synthetic transcripts."""
    options = grpo.resolve(grpo.Config(model=POLICY, judge=JUDGE, task=task))
    run_folder.write_json(run / "config.json", {"config": dataclasses.asdict(options)})
    save(run / "evals" / "step_0000.json", told_rollouts(tokenizer, seed=0, n=8), word_count)
    return run


def test_embedded_judges_end_to_end(tokenizers, tmp_path, monkeypatch, capsys):
    """The table and the numbers differ, a judge's numbers depend on those beside it,
    or two are in memory at once.
    """
    run = make_run(tmp_path / "run", tokenizers["organism"])
    alive = one_model_at_a_time(monkeypatch)
    ask(run, "--judges", f"organism/judge,{POLICY}/")
    assert len(alive) == 2
    found = json.loads((run / "judges.json").read_text())
    table = (run / "table_judges.txt").read_text()
    assert list(found) == ["judge", "policy"] and found["judge"] != found["policy"]
    assert table in capsys.readouterr().out
    lines = table.splitlines()
    assert lines[0].startswith(f"{run} step 0: 8 answers in ")
    assert lines[1].startswith("versions of 8 answers; left out: 0 with another number")
    assert lines[2].split() == ["judge", "policy"]
    assert [line.split()[0] for line in lines[3:]] == list(found["judge"])
    assert all(set(e) == {"value", "low", "high", "n"} for e in found["judge"].values())
    value = found["judge"]["margin_targets"]["value"]
    assert f"{value:.2f}" in next(line for line in lines if line.startswith("margin_targets"))
    assert found["judge"]["pass_rate"]["n"] == 8
    ask(run)  # the run's own judge
    assert json.loads((run / "judges.json").read_text()) == {"judge": found["judge"]}
    ask(run, "--n", "3", "--dtype", "bfloat16")
    assert json.loads((run / "judges.json").read_text())["judge"]["pass_rate"]["n"] == 3


def test_short_count_has_its_own_targets():
    """Another number of sentences is taken for a wrong one."""
    x = short_count.make_prompt(3)
    y = " ".join(" ".join(["tea"] * n).capitalize() + "." for n in word_count.targets(x))
    rollout = dataclasses.replace(
        hand_rollout(([1], [2], [3], [4]), x=x, y=y), truth=short_count.truth(x, y)
    )
    labels = [s.label for s in split_sentences(judges.versions(rollout)["targets"])]
    assert rollout.truth.compliant and labels == list(word_count.targets(x)) and len(labels) == 3


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        (["--step", "7"], "--step 7: run has no such evaluation; it has 0"),
        (["--step", "-1"], "--step -1: run has no such evaluation"),
        (["--n", "9"], "--n 9 is out of range: the evaluation has 8 answers"),
        (["--n", "0"], "--n 0 is out of range"),
        (
            ["--run", "other"],
            (
                "other is of task 'second_task', whose answers have no labels: take one "
                "of word_count or"
            ),
        ),
        (["--run", "none"], "is none a run folder?"),
        (
            ["--judges", "organism/judge,organism/judge/"],
            "'organism/judge' is empty or there twice",
        ),
        (["--judges", "organism/judge,"], "'' is empty or there twice"),
        (["--judges", "organism/judge,lost.gguf"], "'lost.gguf' does not exist"),
        (["--judges", "organism/judge,lost/folder"], "'lost/folder' cannot be loaded"),
        (["--dtype", "float8"], "--dtype 'float8' is unknown"),
        (["--device", "abacus"], "auto, cpu or cuda"),
        (["--judge", "organism/judge"], "--judge"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_one_line_and_leaves_nothing(
    tokenizers, tmp_path, monkeypatch, capsys, options, message
):
    """A traceback, or an hour of the first judge before the second one's name is
    found to be wrong.
    """
    make_run(tmp_path / "run", tokenizers["organism"])
    make_run(tmp_path / "other", tokenizers["organism"], task="second_task")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit) as error:
        ask(Path("run"), *options)
    assert error.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before
