"""The controls that hold answers still: which answers are confessed to, by whom, from what context;
what is kept and drawn. A mistake here shows a change of the confessions that is one of the
answers, or hides it.
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import cells
import evaluate
import grpo
import models
import run_folder
from chat_template import prompt_ids, suffix_ids, transcript_ids
from confession_schema import (
    REPORT_START,
    ConfessionReport,
    ParseFailure,
    confession_prompt,
)
from evaluate import save, stored
from experiments import controls
from handmade import hand_rollout, one_model_at_a_time, published, told_rollouts
from metrics import metrics
from rollout import Rollout, Sampling, Verdict
from tasks import word_count

pytestmark = pytest.mark.usefixtures("one_thread", "quick_collection")

# the checkpoints of steps 0 and 2
POLICY, MEDIUM = (str(models.ORGANISMS / name) for name in ("policy", "medium"))
CELLS = {
    *(f"frozen_run_step_0000_by_{by}" for by in ("0000", "0002")),
    *("fresh_step_0000_by_0000", "fresh_step_0002_by_0000", "fresh_step_0002_by_0002"),
    *(f"cap_{cap:04d}_step_{step}" for cap in controls.CAPS for step in ("0000", "0002")),
    *(f"asked_{variant}_step_{step}" for variant in controls.ASKED for step in ("0000", "0002")),
}
TEXT, THOUGHT = (f"shown sibling: scored on the {part}" for part in ("text", "thought"))


def control(run: Path, *options: str) -> None:
    """`python -m experiments.controls --run run options` within this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["controls.py", "--run", str(run), *options])
        controls.main()


def make_run(run: Path, temperature: float = 1.0) -> Path:
    """A run folder with two checkpoints that are different models, and a short token budget."""
    options = grpo.resolve(
        grpo.Config(model=POLICY, judge=MEDIUM, max_answer_tokens=16, max_confession_tokens=8)
    )
    run_folder.write_json(
        run / "config.json", {"config": dataclasses.asdict(options) | {"temperature": temperature}}
    )
    for step, model in ((0, POLICY), (2, MEDIUM)):
        shutil.copytree(model, run_folder.checkpoint(run, step))
    return run


def evaluation(run: Path, step: int) -> Path:
    return run / "evals" / f"step_{step:04d}.json"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizers) -> Path:
    """A run whose evaluations are synthetic transcripts: their reports parse, their thoughts are
    long and short. One answer was given under a system prompt. Tests only read it.
    """
    run = make_run(tmp_path_factory.mktemp("trained") / "run")
    for step in (0, 2):
        rollouts = told_rollouts(tokenizers["organism"], seed=step)
        told, system = rollouts[1], "This is test 4711."
        extra = prompt_ids(tokenizers["organism"], told.x, system)
        shift = len(extra) - told.answer.start
        told.system, told.token_ids = system, extra + told.token_ids[told.answer.start :]
        for span in told.spans.values():
            span.start, span.end = span.start + shift, span.end + shift
        save(evaluation(run, step), rollouts, word_count)
    return run


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory) -> Path:
    """The same with all controls; no prompt has two answers, so swapped does not apply.
    Tests only read it.
    """
    run = shutil.copytree(trained, tmp_path_factory.mktemp("finished") / "run")
    control(run)
    return run


def results(run: Path) -> dict[str, bytes]:
    """Everything of a run but models and pictures."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.suffix != ".png" and "checkpoints" not in path.parts
    }


def cell(run: Path, name: str) -> list[Rollout]:
    return stored(run / "evals" / f"{name}.json", word_count)


def no_model(*_):
    raise AssertionError("a model was loaded")


def watch(patch: pytest.MonkeyPatch, interrupt_at: int | None = None) -> list[str]:
    """Names of the cells that are computed from now on; Ctrl-C in place of keeping one of them."""
    names = []

    def recorded(path, *args):
        if len(names) == interrupt_at:
            raise KeyboardInterrupt
        names.append(path.stem)
        return save(path, *args)

    patch.setattr(cells, "save", recorded)
    return names


@pytest.fixture(scope="module")
def paired(tmp_path_factory, tokenizers) -> Path:
    """A run whose evaluations have two synthetic answers to each prompt, with thoughts that differ.
    Tests only read it.
    """
    run = make_run(tmp_path_factory.mktemp("paired") / "run")
    for step in (0, 2):
        sides = (told_rollouts(tokenizers["organism"], seed, n=3) for seed in (step, step + 7))
        save(
            evaluation(run, step), [rollout for pair in zip(*sides) for rollout in pair], word_count
        )
    return run


def about_the_answer(rollout: Rollout) -> dict:
    """What a control may not change. (The reward is computed again.)"""
    names = ("seed", "system", "x", "z", "y", "verdict", "truth")
    return {name: getattr(rollout, name) for name in names} | {
        "answer": dataclasses.replace(rollout.answer, reward=None)
    }


def report_on(truth) -> ConfessionReport:
    """A perfect one."""
    return ConfessionReport(
        tuple("Full" if met else "None" for met in truth.objectives),
        (),
        7 if truth.compliant else 1,
    )


# ------------------------------------------------------------------------------------- the controls


def test_every_cell_table_and_figure_is_left(finished, trained):
    """A cell is lost, a figure is drawn without the numbers beside it,
    or the run's own files were touched.
    """
    made = {f"evals/{name}.{kind}" for name in CELLS for kind in ("json", "jsonl")}
    made |= {
        f"{kind}_{name}"
        for name in ("frozen", "fresh", "compute", "asked")
        for kind in ("table", "fig")
    }
    new = results(finished).keys() - results(trained).keys()
    assert {
        name.removesuffix(".txt").replace(".json", "") if "/" not in name else name for name in new
    } == made
    assert {path.stem for path in finished.glob("*.png")} == {
        "fig_frozen",
        "fig_fresh",
        "fig_compute",
        "fig_asked",
    }
    assert results(trained).items() <= results(finished).items()


def test_answers_stay_what_they_were(finished):
    """A control changes or mixes up the answers that it says it holds still, or loses
    their verdicts.
    """
    own = {step: stored(evaluation(finished, step), word_count) for step in (0, 2)}
    assert all(a.y != b.y for a, b in zip(own[0], own[2]))
    for name in CELLS:
        source = own[0 if "frozen" in name or "step_0000" in name else 2]
        assert [about_the_answer(r) for r in cell(finished, name)] == [
            about_the_answer(r) for r in source
        ], name
        if not name.startswith("asked"):
            assert [r.xc for r in cell(finished, name)] == [r.xc for r in source], name


def test_frozen_confessions_go_on_from_the_stored_tokens(finished):
    """The frozen answers are confessed without their thoughts, under another prompt,
    or by one checkpoint only.
    """
    own = stored(evaluation(finished, 0), word_count)
    by = [cell(finished, f"frozen_run_step_0000_by_000{step}") for step in (0, 2)]
    for rollouts in by:
        for new, old in zip(rollouts, own):
            assert new.confession.start == old.confession.start
            assert new.token_ids[: new.confession.start] == old.token_ids[: old.confession.start]
    assert all(a.confession.entropy != b.confession.entropy for a, b in zip(*by))  # two models


def test_frozen_answers_of_a_greedy_checkpoint_get_its_own_confessions(tmp_path):
    """Confessing to stored answers is not what the checkpoint does on-policy: without chance
    the two are the same.
    """
    run = make_run(tmp_path / "run", temperature=0.0)
    sampling = Sampling.of(run_folder.read_config(run))
    for step, model in ((0, POLICY), (2, MEDIUM)):
        rollouts = evaluate.evaluate(
            *models.load(model, torch.device("cpu")), None, word_count, sampling, 3
        )
        save(evaluation(run, step), rollouts, word_count)
    control(run, "--controls", "frozen")
    control(run, "--controls", "frozen", "--frozen", f"{run}@2")
    for step, other in ((0, 2), (2, 0)):
        own = stored(evaluation(run, step), word_count)
        same = cell(run, f"frozen_run_step_000{step}_by_000{step}")
        assert [r.token_ids for r in same] == [r.token_ids for r in own]
        assert [(r.zc, r.yc, r.report, r.confession.reward) for r in same] == [
            (r.zc, r.yc, r.report, r.confession.reward) for r in own
        ]
        assert [r.token_ids for r in cell(run, f"frozen_run_step_000{step}_by_000{other}")] != [
            r.token_ids for r in own
        ]


def test_fresh_conversation_holds_neither_thought_nor_system_prompt(finished, tokenizers):
    """The confession of a fresh conversation could live on what only the first one held."""
    tokenizer = tokenizers["organism"]
    for name in CELLS:
        for rollout in cell(finished, name) if "fresh" in name else ():
            context = rollout.token_ids[: rollout.confession.start]
            assert context == transcript_ids(tokenizer, rollout.x, rollout.y, rollout.xc)
            text = tokenizer.decode(context)
            assert (
                rollout.z and rollout.z not in text and "<think>" not in text and "4711" not in text
            )
            assert text.count(rollout.x) == text.count(rollout.y) == text.count(rollout.xc) == 1
    assert any(r.system and "4711" in r.system for r in cell(finished, "fresh_step_0002_by_0002"))
    by = [cell(finished, f"fresh_step_0002_by_000{step}") for step in (0, 2)]
    assert all(a.confession.entropy != b.confession.entropy for a, b in zip(*by))  # two models


@pytest.mark.parametrize("cap", controls.CAPS)
@pytest.mark.parametrize("step", [0, 2])
def test_thoughts_are_cut_to_the_cap_and_short_ones_stay(finished, tokenizers, step, cap):
    """A longer thought than the axis says reaches the report, or a confession that was within
    the cap is sampled anew.
    """
    tokenizer = tokenizers["organism"]
    ids_of = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    end, written = (
        tokenizer.convert_tokens_to_ids("</think>"),
        ids_of(f"\n</think>\n\n{REPORT_START}"),
    )
    own, capped = (
        stored(evaluation(finished, step), word_count),
        cell(finished, f"cap_{cap:04d}_step_000{step}"),
    )
    cuts = 0
    for new, old in zip(capped, own, strict=True):
        span = old.token_ids[old.confession.start : old.confession.end]
        thought = span[1 : span.index(end) if end in span else None] if old.zc else []
        if len(thought) <= cap:
            assert new == old
            continue
        cuts += 1
        begun = span[: 1 + cap] + written
        assert (
            new.token_ids[: new.confession.start] == old.token_ids[: old.confession.start] + begun
        )
        assert new.zc == tokenizer.decode(thought[:cap]).strip() and new.yc.startswith(REPORT_START)
        assert new.confession.end - new.confession.start <= 8
    assert cuts == {0: 4, 32: 1, 64: 1, 128: 1, 256: 0}[cap], "the test shows something else"


def test_figures_show_the_metrics_of_the_cells(finished):
    """A line of a figure is of other cells than its name says."""
    own = {"0": "step_0000", "2": "step_0002"}
    by_cap = lambda step: (
        {str(cap): f"cap_{cap:04d}_{step}" for cap in controls.CAPS} | {"none": step}
    )
    expected = {
        "frozen": {
            "frozen answers": {s: f"frozen_run_step_0000_by_000{s}" for s in own},
            "on-policy": own,
        },
        "fresh": {
            "fresh, same model": {s: f"fresh_{own[s]}_by_000{s}" for s in own},
            "fresh, untrained": {s: f"fresh_{own[s]}_by_0000" for s in own},
            "on-policy": own,
        },
        "compute": {f"step {s}": by_cap(own[s]) for s in own},
        "asked": {
            f"step {s}": {variant: f"asked_{variant}_{own[s]}" for variant in controls.ASKED}
            for s in own
        },
    }
    for name, lines in expected.items():
        numbers = json.loads((finished / f"fig_{name}.json").read_text())
        assert numbers["n"] == 5
        assert {line: list(places) for line, places in numbers["ours"].items()} == {
            k: list(v) for k, v in lines.items()
        }
        for line, places in lines.items():
            for place, saved in places.items():
                of_cell = json.loads((finished / f"evals/{saved}.json").read_text())
                assert of_cell == metrics(cell(finished, saved), word_count)
                shown = numbers["ours"][line][place]
                assert {"claim_match", "honest_given_noncompliant", "J"} <= shown.keys()
                assert shown == {metric: of_cell[metric] for metric in shown}


@pytest.mark.parametrize("variant", controls.ASKED)
@pytest.mark.parametrize("step", [0, 2])
def test_asked_changes_the_confession_prompt_alone(finished, tokenizers, step, variant):
    """The answer is another one under the other prompt, its closing token is fed twice,
    or xc is not what it says.
    """
    own, again = (
        stored(evaluation(finished, step), word_count),
        cell(finished, f"asked_{variant}_step_000{step}"),
    )
    for new, old in zip(again, own, strict=True):
        assert new.xc == confession_prompt(word_count, old.x, variant)
        assert (new.answer.start, new.answer.end) == (old.answer.start, old.answer.end)
        answered = old.token_ids[: old.answer.end]
        assert answered[-1] == suffix_ids(tokenizers["organism"], "x")[0]
        context = new.token_ids[: new.confession.start]
        assert context == answered + suffix_ids(tokenizers["organism"], new.xc)[1:]
        assert (context == old.token_ids[: old.confession.start]) == (variant == "default")
        assert new.confession.end == len(new.token_ids) <= new.confession.start + 8


def test_asked_closes_an_answer_that_was_cut_off(trained, tokenizers, tmp_path):
    """A truncated answer runs on into the confession prompt."""
    run = shutil.copytree(trained, tmp_path / "run")
    rollouts = stored(evaluation(run, 2), word_count)
    for r in rollouts:
        r.token_ids = r.token_ids[: r.answer.end - 1] + suffix_ids(tokenizers["organism"], r.xc)
        r.answer.end, r.answer.finish, r.confession.start = (
            r.answer.end - 1,
            "length",
            len(r.token_ids),
        )
        r.token_ids, r.confession.end = r.token_ids + [5], r.confession.start + 1
    save(evaluation(run, 2), rollouts, word_count)
    control(run, "--controls", "asked", "--steps", "2")
    for new, old in zip(cell(run, "asked_default_step_0002"), rollouts, strict=True):
        assert new.token_ids[: new.confession.start] == old.token_ids[: old.confession.start]


def test_table_of_asked_sets_the_last_checkpoints_variants_beside_default(finished):
    """Its differences are between checkpoints, or those of another variant."""
    head = (finished / "table_asked.txt").read_text().splitlines()[1]
    columns = [f"step 2 {variant}" for variant in controls.ASKED] + [
        "forced_count - default",
        "reviewed - default",
    ]
    assert head.split() == " ".join(columns).split()


def answers_by_hand(
    *truths: tuple[bool, ...], x: str = word_count.make_prompt(0), **fields
) -> list[Rollout]:
    """An answer to x for each truth, with a perfect report."""
    out = []
    for i, met in enumerate(truths):
        truth = SimpleNamespace(
            objectives=met, cheated=(None,) * len(met), compliant=all(met), sentences=()
        )
        texts = dict(x=x, z=f"thought {i}", y=f"answer {i}", yc=f"report {i}") | fields
        rollout = hand_rollout([[1], [2] * (i + 1), [3], [4] * (i + 2)], **texts)
        rollout.truth, rollout.report, rollout.verdict = (
            truth,
            report_on(truth),
            Verdict("pass", f"reply {i}"),
        )
        out.append(rollout)
    return out


def test_a_siblings_truth_by_hand():
    """The report stays with its own answer's truth,
    or brings its own answer's length and verdict along.
    """
    first, second = answers_by_hand((True, True, False), (False, True, False))
    moved = controls.about(first, second)
    assert (moved.report, moved.yc, moved.confession.end) == (
        first.report,
        first.yc,
        first.confession.end,
    )
    assert (moved.truth, moved.y, moved.z, moved.verdict) == (
        second.truth,
        second.y,
        second.z,
        second.verdict,
    )
    assert moved.answer == second.answer and moved.answer is not second.answer
    assert (
        moved.confession.reward == pytest.approx(0.5 * 2 / 3 + 0.5)
        and first.confession.reward is None
    )
    first.report = ParseFailure("no JSON object")
    assert controls.about(first, second).confession.reward == -0.2


def test_perfect_reports_are_the_opposite_of_true_on_a_single_sibling():
    """What is scored is not the sibling, or a constant report seems to know something of it."""
    rollouts = answers_by_hand((True, True, False), (False, True, True))
    moved = [controls.about(*pair) for pair in controls.siblings(rollouts)]
    value = lambda rollouts: metrics(rollouts, word_count)["claim_J_within"]["value"]
    assert value(rollouts) == 1 and value(moved) == -1
    for claim in ("Full", "Partial", "None"):
        constant = [
            dataclasses.replace(r, report=ConfessionReport((claim,) * 3, (), 4)) for r in rollouts
        ]
        assert value([controls.about(*pair) for pair in controls.siblings(constant)]) == 0


def test_true_reports_have_a_third_of_their_value_on_three_siblings_with_the_sign_turned():
    """The baseline that the docstring gives,
    -1/(n-1) on average over the orders of n answers, is another one.
    """
    one, beside, apart = (
        (True, False, False, False),
        (True, True, False, False),
        (True, False, True, False),
    )
    values = []
    # two of four stand beside each other on a circle twice as often as apart
    for order in (one, beside, beside, apart):
        moved = [
            controls.about(*pair)
            for pair in controls.siblings(answers_by_hand(*((met,) for met in order)))
        ]
        values.append(metrics(moved, word_count)["claim_J_within"]["value"])
    assert values[0] == pytest.approx(-1 / 3) and sum(values[1:]) / 3 == pytest.approx(-1 / 3)


def test_siblings_are_the_next_answers_to_the_same_prompt():
    """An answer is its own sibling or another prompt's, system prompts are mixed, or a cut off
    thought counts as an answer.
    """
    three, other = answers_by_hand(*[(True,)] * 3), word_count.make_prompt(1)
    single = answers_by_hand((True,), x=other)
    told = answers_by_hand(*[(True,)] * 2, system="This is a test.")
    unfinished, empty = (
        answers_by_hand((False,), y="")[0],
        answers_by_hand((False,), y="", z="", x=other)[0],
    )
    mixed = [three[0], single[0], told[0], three[1], unfinished, told[1], three[2]]
    expected = [
        (three[0], three[1]),
        (three[1], three[2]),
        (three[2], three[0]),
        (told[0], told[1]),
        (told[1], told[0]),
    ]
    assert [tuple(map(id, pair)) for pair in controls.siblings(mixed)] == [
        tuple(map(id, pair)) for pair in expected
    ]
    assert controls.siblings(single) == controls.siblings([]) == []
    # an answer without thought and text is one
    assert len(controls.siblings([*single, empty])) == 2


def test_shown_siblings_stand_behind_the_thought_of_the_answer(
    paired, tokenizers, tmp_path, monkeypatch
):
    """The context holds the sibling's own thought or the answer's own text,
    or the cell tells of another stream.
    """
    run, tokenizer = shutil.copytree(paired, tmp_path / "run"), tokenizers["organism"]
    control(run, "--controls", "swapped")
    assert results(paired).items() <= results(run).items()
    for step in (0, 2):
        own, shown = stored(evaluation(run, step), word_count), cell(run, f"swapped_step_000{step}")
        assert len(shown) == 6
        for i, new in enumerate(shown):
            answer, sibling = own[i], own[i ^ 1]
            assert (new.z, new.y, new.xc, new.x) == (
                answer.z,
                sibling.y,
                sibling.xc,
                answer.x,
            ) and new.z != sibling.z
            assert new.truth == sibling.truth and new.verdict == sibling.verdict
            context = new.token_ids[: new.confession.start]
            ids = (
                prompt_ids(tokenizer, new.x)
                + tokenizer(f"<think>\n{answer.z}\n</think>\n\n{sibling.y}")["input_ids"]
            )
            assert context == ids + suffix_ids(tokenizer, new.xc)
            assert new.confession.end == len(new.token_ids) <= new.confession.start + 8
    monkeypatch.setattr(models, "load", no_model)
    before = results(run)
    control(run, "--controls", "swapped")
    control(run, "--controls", "swapped", "--plot-only")
    assert results(run) == before


@pytest.mark.parametrize("source", ["thought", "text"])
def test_what_is_shown_is_scored_on_the_text_and_on_the_thought(
    paired, tokenizers, tmp_path, monkeypatch, source
):
    """The two scores are exchanged or of other answers:
    a model that confesses its thought seems to confess the text.
    """
    run = shutil.copytree(paired, tmp_path / "run")
    answers = {r.z: r for step in (0, 2) for r in stored(evaluation(run, step), word_count)}
    assert len(answers) == 12

    def confess(model, tokenizer, rollouts, *_):
        truths = [answers[r.z].truth if source == "thought" else r.truth for r in rollouts]
        return [
            dataclasses.replace(r, report=report_on(truth)) for r, truth in zip(rollouts, truths)
        ]

    monkeypatch.setattr(models, "load", lambda *_: (None, tokenizers["organism"]))
    monkeypatch.setattr(controls, "confess_again", confess)
    control(run, "--controls", "swapped")
    numbers = json.loads((run / "fig_swapped.json").read_text())["ours"]
    assert list(numbers) == ["own answer", "its sibling", TEXT, THOUGHT]
    assert all(list(places) == ["0", "2"] for places in numbers.values())
    right, wrong = (THOUGHT, TEXT) if source == "thought" else (TEXT, THOUGHT)
    for step in ("0", "2"):
        match = {line: places[step]["claim_match"]["value"] for line, places in numbers.items()}
        assert match[right] == 1 and match[wrong] < 1
        assert (
            numbers[right][step]["claim_J_within"]["value"] == 1
            and numbers[wrong][step]["claim_J_within"]["value"] == -1
        )
        own = stored(evaluation(run, int(step)), word_count)
        moved = [controls.about(own[i], own[i ^ 1]) for i in range(6)]
        for line, rollouts in (("own answer", own), ("its sibling", moved)):
            of_line = metrics(rollouts, word_count)
            assert numbers[line][step] == {
                metric: of_line[metric] for metric in numbers[line][step]
            }
    head = (run / "table_swapped.txt").read_text().splitlines()[1]
    assert "its sibling - own answer" in head and "shown sibling: thought - text" in head


@pytest.mark.parametrize("z", ["", "Five sentences."], ids=["no thoughts", "equal thoughts"])
def test_siblings_are_not_shown_where_thoughts_do_not_differ(
    paired, tmp_path, monkeypatch, capsys, z
):
    """A model confesses to an answer's own context,
    and that is taken for what a thought remembers of another one.
    """
    run = shutil.copytree(paired, tmp_path / "run")
    for step in (0, 2):
        rollouts = stored(evaluation(run, step), word_count)
        save(evaluation(run, step), [dataclasses.replace(r, z=z) for r in rollouts], word_count)
    monkeypatch.setattr(models, "load", no_model)
    control(run, "--controls", "swapped")
    reason = f"no two answers of {run} to a prompt differ in their thoughts"
    assert f"showing siblings does not apply: {reason}" in capsys.readouterr().out.splitlines()
    assert not list(run.glob("evals/swapped*"))
    assert list(json.loads((run / "fig_swapped.json").read_text())["ours"]) == [
        "own answer",
        "its sibling",
    ]


def test_a_single_answer_to_each_prompt_has_no_sibling(trained, tmp_path, monkeypatch, capsys):
    """Answers to different prompts are exchanged,
    or the program ends over a run of single answers.
    """
    run = shutil.copytree(trained, tmp_path / "run")
    monkeypatch.setattr(models, "load", no_model)
    control(run, "--controls", "swapped")
    assert (
        f"swapped does not apply: no prompt of {run} has two answers with a text"
        in capsys.readouterr().out.splitlines()
    )
    assert results(run) == results(trained)


# ------------------------------------------------------------------------------------- what is kept


def test_saved_cells_are_not_computed_again(finished, tmp_path, monkeypatch):
    """Minutes are lost at every redraw, or a result changes without a reason."""
    run = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(models, "load", no_model)
    control(run)
    assert results(run) == results(finished)


@pytest.mark.parametrize("part", ["y", "z"])
def test_cells_of_other_answers_are_computed_again(
    finished, tokenizers, tmp_path, monkeypatch, part
):
    """Confessions to former answers are shown beside new ones;
    or all is thrown away when one evaluation changes.
    """
    run = shutil.copytree(finished, tmp_path / "run")
    rollouts = stored(evaluation(run, 2), word_count)
    setattr(rollouts[2], part, getattr(rollouts[2], part) + " More.")
    save(evaluation(run, 2), rollouts, word_count)
    names = watch(monkeypatch)
    chosen = {"y": "frozen,fresh,compute,asked", "z": "fresh"}[part]
    control(run, "--controls", chosen)
    changed = {name for name in CELLS if "step_0002" in name and (part == "y" or "fresh" in name)}
    assert set(names) == changed and len(names) == len(changed)


def test_interrupted_run_goes_on_where_it_stopped(finished, trained, tmp_path, monkeypatch):
    """Finished cells are lost or repeated, or a resumed run gives other numbers."""
    run = shutil.copytree(trained, tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        before = watch(patch, interrupt_at=3)
        control(run, "--controls", "frozen,fresh")
    assert stop.value.code == 130 and len(before) == 3
    after = watch(monkeypatch)
    control(run, "--controls", "frozen,fresh")
    others = ("cap", "compute", "asked")
    assert {*before, *after} == {name for name in CELLS if not name.startswith(others)} and len(
        after
    ) == 2
    expected = {
        name: text
        for name, text in results(finished).items()
        if not any(other in name for other in others)
    }
    assert results(run) == expected


def test_plot_only_needs_neither_model_nor_checkpoint(finished, tmp_path, monkeypatch):
    """Figures could not be drawn again from a published run, whose checkpoints are left out."""
    run = published(finished, tmp_path, "fig_*", "table_*")
    monkeypatch.setattr(models, "load", no_model)
    control(run, "--plot-only")
    assert results(run) == results(finished)


def test_frozen_answers_of_another_run(finished, trained, tokenizers, tmp_path):
    """--frozen takes the run's own answers all the same,
    or overwrites the cells of the run's own.
    """
    run, other = shutil.copytree(finished, tmp_path / "run"), tmp_path / "other"
    shutil.copytree(trained, other)
    save(evaluation(other, 2), told_rollouts(tokenizers["organism"], 7, n=2), word_count)
    control(run, "--controls", "frozen", "--frozen", f"{other}@2")
    source = stored(evaluation(other, 2), word_count)
    for step in (0, 2):
        rollouts = cell(run, f"frozen_other_step_0002_by_000{step}")
        assert [about_the_answer(r) for r in rollouts] == [about_the_answer(r) for r in source]
    kept = {f"evals/{name}.jsonl" for name in CELLS}
    assert {name: results(run)[name] for name in kept} == {
        name: results(finished)[name] for name in kept
    }
    assert json.loads((run / "fig_frozen.json").read_text())["ours"]["frozen answers"]["2"] == {
        metric: metrics(rollouts, word_count)[metric]
        for metric in (
            "claim_J_within",
            "claim_match",
            "honest_given_noncompliant",
            "J",
            "grade_auroc",
            "parsed",
        )
    }


def test_some_controls_and_steps(trained, tmp_path):
    """--controls or --steps computes more than was asked for."""
    run = shutil.copytree(trained, tmp_path / "run")
    control(run, "--controls", "fresh,frozen", "--steps", "2")
    made = {path.stem for path in run.glob("evals/*.jsonl")} - {"step_0000", "step_0002"}
    assert made == {"fresh_step_0002_by_0002", "frozen_run_step_0002_by_0002"}
    assert {path.stem for path in run.glob("table_*")} == {"table_fresh", "table_frozen"}


def test_compute_does_not_apply_without_thoughts(trained, tmp_path, capsys):
    """A model without thoughts gets a table and a figure of thoughts cut short,
    or the other controls end with it.
    """
    run = shutil.copytree(trained, tmp_path / "run")
    for step in (0, 2):
        rollouts = stored(evaluation(run, step), word_count)
        save(evaluation(run, step), [dataclasses.replace(r, zc="") for r in rollouts], word_count)
    control(run, "--controls", "compute,frozen", "--steps", "2")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("compute")]
    assert lines == [
        f"compute does not apply: no confession of {run} has a thought that could be cut short"
    ]
    assert {path.stem for path in run.glob("table_*")} == {"table_frozen"} and not list(
        run.glob("evals/cap*")
    )


def test_one_checkpoint_is_in_memory_at_a_time(trained, tmp_path, monkeypatch):
    """Two large models do not fit the GPU where one does."""
    run = shutil.copytree(trained, tmp_path / "run")
    alive = one_model_at_a_time(monkeypatch)
    control(run, "--controls", "frozen")
    assert len(alive) == 2


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--controls", "frozen,cold"],
            "--controls 'cold' is unknown: choose from frozen, fresh, compute",
        ),
        (["--controls", "fresh,"], "--controls ''"),
        (["--steps", "0,2", "--frozen", "run"], "--frozen 'run' is not RUN@STEP"),
        (["--steps", "0,2", "--frozen", "@2"], "--frozen '@2' is not RUN@STEP"),
        (["--steps", "0,2", "--frozen", "run@"], "--frozen 'run@' is not RUN@STEP"),
        (["--steps", "0,2", "--frozen", "run@²"], "--frozen 'run@²' is not RUN@STEP"),
        (["--steps", "0,2", "--frozen", "none@0"], "is none a run folder?"),
        (["--steps", "0,2", "--frozen", "run@7"], "run has no evaluation of step 7"),
        # without its rollouts
        (["--steps", "0,2", "--frozen", "run@4"], "run has no evaluation of step 4"),
        (["--steps", "0,2", "--frozen", "foreign@0"], "its answers are token ids of someone/else"),
        (["--steps", "0,1"], "--steps '1' is no checkpoint"),
        (["--steps", "4"], "run has no evaluation of step 4 (evals/step_0004.json and .jsonl)"),
        (["--run", "none"], "is none a run folder?"),
        (["--run", "foreign"], "foreign has no checkpoint with its evaluation"),
        (["--run", "empty", "--plot-only"], "empty has no checkpoint with its evaluation"),
        (["--steps", "0", "--device", "abacus"], "auto, cpu or cuda"),
        (["--control", "fresh"], "--control"),
        (["--steps", "0,2", "--plot-only"], "frozen_run_step_0000_by_0000.json is missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_one_line_and_leaves_nothing(
    trained, tmp_path, monkeypatch, capsys, options, message
):
    """A traceback, a wait before a mistake is found, or a figure of half a control."""
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(POLICY, run_folder.checkpoint(run, 4))
    shutil.copy(evaluation(run, 0), evaluation(run, 4))  # without its rollouts
    config = json.loads((run / "config.json").read_text())
    run_folder.write_json(tmp_path / "empty" / "config.json", config)
    config["config"]["model"] = "someone/else"
    run_folder.write_json(tmp_path / "foreign" / "config.json", config)
    shutil.copytree(run / "evals", tmp_path / "foreign" / "evals")
    before = results(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load", no_model)
    with pytest.raises(SystemExit) as error:
        control(Path("run"), *options)
    assert error.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert message in line
    assert results(tmp_path) == before
