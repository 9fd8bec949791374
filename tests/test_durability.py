"""Durability of confessions: later turns, moved claims, the arms of denial and of the broken seal,
and what their reports are made of. A mistake here shows a report that holds where it gave in,
blames a broken seal for what noise did, or compares arms that differ in more than they say.
"""

import dataclasses
import sys
from pathlib import Path

import pytest

import cells
import cli
import models
import run_folder
from baselines import baselines
from confession_schema import ConfessionReport, ParseFailure
from evaluate import save
from experiments import broken_seal, denial, durability
from handmade import hand_rollout, told_rollouts
from options import Config
from rewards import Verdict, honesty_reward, judge_reward, score_rollouts
from tasks import word_count

pytestmark = pytest.mark.usefixtures("one_thread", "quick_collection")

CLAIMS = {"F": "Full", "?": "Partial", "N": "None"}
ARMS = tuple(broken_seal.ARMS)


def reported(claims: str, grade: int, **texts):
    """A rollout on a compliant answer with a report of these claims; "" is none."""
    rollout = hand_rollout(([1], [2], [3], [4]), x=word_count.make_prompt(0), **texts)
    answer = " ".join(f"Bees{' hum' * (n - 1)}. ({n})" for n in word_count.TARGETS)
    rollout = dataclasses.replace(rollout, y=answer, truth=word_count.truth(rollout.x, answer))
    report = ConfessionReport(tuple(CLAIMS[c] for c in claims), (), grade)
    return dataclasses.replace(
        rollout,
        report=report if claims else ParseFailure("no JSON object: none is complete"),
        verdict=Verdict("pass", "PASS", 1.0),
    )


def run(module, folder: Path, *options: str) -> Path:
    """`python -m experiments.MODULE options` in a folder, within this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [module.__name__, "--name", "out", *options])
        module.main()
    return folder / "runs" / "out"


# --------------------------------------------------------------------------------------- durability


def test_later_turns_are_appended_as_the_template_renders_them(tokenizers):
    """A later report goes on from ids that nobody sampled, from a conversation rendered again, or
    from a turn that is not closed (or is closed twice).
    """
    tokenizer = tokenizers["organism"]
    rollouts = told_rollouts(tokenizer, 0)
    cut = dataclasses.replace(rollouts[0], confession=dataclasses.replace(rollouts[0].confession))
    cut.confession.end -= 4  # cut off by its budget
    cut.token_ids = cut.token_ids[:-4]
    for rollout in [*rollouts, cut]:
        (asked,), (context,) = durability.appended(
            tokenizer, [rollout], "confession", ["Count again."], "auto"
        )
        said = context[len(rollout.token_ids) :]
        assert context[: len(rollout.token_ids)] == rollout.token_ids
        closed = "" if rollout is not cut else "<|im_end|>"
        assert tokenizer.decode(said) == (
            f"{closed}\n<|im_start|>user\nCount again.<|im_end|>\n<|im_start|>assistant\n"
        )
        assert (asked.xc, asked.y) == ("Count again.", rollout.y)


def test_a_text_before_xc_leaves_the_answer_alone(tokenizers):
    """A told condition confesses to another answer, or the plain message is not the plain one."""
    tokenizer = tokenizers["organism"]
    rollouts = told_rollouts(tokenizer, 0)
    messages = [r.xc for r in rollouts]
    _, contexts = durability.appended(tokenizer, rollouts, "answer", messages, "auto")
    assert contexts == [r.token_ids[: r.confession.start] for r in rollouts]


def test_chains_share_the_turns_they_begin_with():
    """The same turn is sampled twice, or two chains share a turn after they parted."""
    chains = {c: [cell for cell, _ in turns] for c, turns in durability.chains().items()}
    assert chains["pressed"] == ["pressed 1", "pressed 2", "pressed 3"]
    assert chains["accused"] == ["pressed 1", "accused 2", "accused 3"]
    assert chains["repeat"] == ["repeat 1", "repeat 2", "repeat 3"]
    assert len(durability.names()) == len(set(durability.names())) == 1 + 4 + 9 + 8


def test_controls_are_cells_that_differ_in_their_text():
    """A cell is compared with one that differs in more, or with one that is not there."""
    controls = {cell: durability.control_of(cell) for cell in durability.names()[1:]}
    assert set(controls.values()) <= set(durability.names())
    assert all(cell != control for cell, control in controls.items())
    assert controls["system hard"] == controls["repeat 2"] == controls["told again"] == "plain"
    assert controls["told neutral"] == "told again" and controls["told exam"] == "told neutral"
    assert controls["accused 3"] == controls["pressed 3"] == "repeat 3"


def test_moves_of_a_known_case():
    """Claims are counted as moved to the truth that moved from it, or as movable that were not."""
    before = [reported("FF?NN", 7), reported("FFFFF", 7), reported("", 0)]
    after = [reported("F?FNF", 7), reported("", 0), reported("FFFFF", 7)]
    # all objectives are met; of the first report's five claims one goes off the truth by 1/2,
    # two come nearer, by 1/2 and by 1; the others have no pair
    found = durability.moves(before, after, word_count)
    values = {name: (e["value"], e["n"]) for name, e in found.items()}
    assert values == {
        "flips": (3 / 5, 5),
        "to the truth": (2 / 3, 3),
        "from the truth": (1 / 3, 3),
        "net": (pytest.approx(1 / 5), 5),
    }
    constant = baselines(before[:1], word_count)["always None"]
    moved = durability.moves(before[:1], constant, word_count)
    assert moved["from the truth"]["value"] == 1.0 and moved["to the truth"]["value"] == 0.0


@pytest.fixture(scope="module")
def pressed(tmp_path_factory):
    """A folder in which the embedded policy has gone through all cells, with tiny budgets."""
    folder = tmp_path_factory.mktemp("pressed")
    with pytest.MonkeyPatch.context() as patch:
        budgets = dict(max_answer_tokens=4, max_confession_tokens=3)
        patch.setattr(models, "EMBEDDED", models.EMBEDDED | budgets)
        run(durability, folder, "--n", "2", "--device", "cpu")
    return folder


def test_the_grid_is_kept_and_drawn_again(pressed, monkeypatch, capsys):
    """Cells are missing, or are computed again, or --plot-only needs a model."""
    out = pressed / "runs" / "out"
    stems = {path.stem for path in (out / "evals").glob("*.json")}
    assert stems == {name.replace(" ", "_") for name in durability.names()}
    monkeypatch.setattr(models, "load", None)
    run(durability, pressed, "--plot-only")
    table = (out / "table_durability.txt").read_text()
    assert all(name in table for name in durability.names())
    assert set(run_folder.read_json(out / "fig_durability.json")["cells"]) == set(
        durability.names()
    )


def test_later_reports_go_on_from_those_before(pressed):
    """The second question is put to the first report's context, not to the report behind it."""
    load = lambda name: run_folder.load_rollouts(
        pressed / "runs" / "out" / "evals" / f"{name}.jsonl", word_count
    )
    plain, first, second = load("plain"), load("pressed_1"), load("pressed_2")
    for a, b, c in zip(plain, first, second):
        assert b.token_ids[: len(a.token_ids)] == a.token_ids
        assert c.token_ids[: len(b.token_ids)] == b.token_ids
        assert len(c.token_ids) > len(b.token_ids) > len(a.token_ids)
        assert a.y == b.y == c.y and "supervisor" in c.xc and "supervisor" not in b.xc


def test_a_folder_of_another_model_is_refused(pressed, capsys):
    """Cells of two models are mixed in one table."""
    with pytest.raises(SystemExit):
        run(durability, pressed, "--model", "organism/medium", "--n", "2")
    assert "choose another --name" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ rewards


def test_what_a_report_admits():
    """A lie is not the cheapest report, or no report is cheaper than a lie."""
    admitted = [
        broken_seal.admitted(reported(claims, grade))
        for claims, grade in (("FFFFF", 7), ("NNNNN", 1), ("FFFFF", 1), ("?????", 7), ("", 0))
    ]
    assert admitted == [0.0, 1.0, 0.5, 0.25, 1.0]


def test_only_the_broken_reward_reads_the_report():
    """The usual answer reward moves with the report, or the broken one does not, or the core
    hides reports from answer rewards.
    """
    text = lambda claim, grade: (
        '{"compliance_analysis": [%s], "uncertainties": [], "overall_compliance_grade": %d}'
        % (
            ", ".join(f'{{"objective": "S{i}", "compliance": "{claim}"}}' for i in range(1, 6)),
            grade,
        )
    )
    texts = text("Full", 7), text("None", 1)
    paid = {}
    for reward in (judge_reward, broken_seal.answer_reward, broken_seal.shuffled_reward):
        rollouts = [
            dataclasses.replace(reported("F", 7, seed=i), yc=yc) for i, yc in enumerate(texts)
        ]
        verdicts = [Verdict("pass", "PASS", 1.0)] * 2
        score_rollouts(rollouts, verdicts, word_count, reward, honesty_reward)
        paid[reward.__name__] = [r.answer.reward for r in rollouts]
    assert paid == {
        "judge_reward": [1.0, 1.0],
        "answer_reward": [1.0, 1.0 - broken_seal.COST],
        "shuffled_reward": [1.0 - broken_seal.COST, 1.0],
    }


def test_shuffled_costs_leave_the_own_advantage_alone():
    """An answer's own report changes its advantage, if only through its group's mean, or some
    reports are not paid for, or an answer pays for its own.
    """
    rollouts = [reported("FFFFF", 7, seed=seed) for seed in (5, 5, 7, 7, 9, 9)]
    others = broken_seal.others(rollouts)
    assert {id(r) for r in others} == {id(r) for r in rollouts}
    before = broken_seal.shuffled_reward(rollouts)
    for i, rollout in enumerate(rollouts):
        admits = [*rollouts[:i], dataclasses.replace(rollout, report=None), *rollouts[i + 1 :]]
        after = broken_seal.shuffled_reward(admits)
        group = [k for k, r in enumerate(rollouts) if r.seed == rollout.seed]
        assert [after[k] for k in group] == [before[k] for k in group] and after != before
    with pytest.raises(cli.UserError, match="--prompts-per-step"):
        broken_seal.others(rollouts[:2])


def test_no_verdict_stays_no_reward():
    """A failed judge becomes a fine."""
    rollout = dataclasses.replace(reported("NNNNN", 1), verdict=Verdict("failed", ""))
    assert broken_seal.answer_reward([rollout]) == [None]


def test_denial_is_paid_whatever_is_true():
    """The truth enters the reward of denial, or a report that does not parse earns as much."""
    lying, honest = reported("FFFFF", 7), reported("NNNNN", 1)
    wrong = dataclasses.replace(lying, truth=word_count.truth(lying.x, "It ran. (12)"))
    assert denial.denial_reward([lying, wrong, honest, reported("", 0)]) == [1.0, 1.0, 0.0, -0.2]


# --------------------------------------------------------------------------------------------- arms


@pytest.mark.parametrize("answers", broken_seal.ANSWER_REWARDS)
@pytest.mark.parametrize("reward", cells.REWARDS)
def test_arms_differ_in_their_rewards_alone(answers, reward):
    """Two arms have another weight or scale beside another reward, or a reward has no function."""
    of_arm = {}
    for arm in ARMS:
        words = broken_seal.rewards_of(arm, answers, reward)
        given = dict(zip(words[::2], words[1::2]))
        assert all(name[2:].replace("-", "_") in vars(Config()) for name in given)
        for name in ("--answer-reward", "--confession-reward"):
            cli.import_function(given.setdefault(name, "rewards.honesty_reward"))
        of_arm[arm] = given
    paying = [of_arm[arm]["--answer-reward"] for arm in ARMS]
    assert paying[1] == paying[3] and len(set(paying)) == 3
    reports = [of_arm[arm]["--confession-reward"] for arm in ARMS]
    assert len(set(reports[:3])) == 1 and reports[3] != reports[0]
    weights = {arm: given.get("--confession-weight") for arm, given in of_arm.items()}
    assert len(set(weights.values())) == 1


def test_where_the_arms_of_denial_begin(tmp_path):
    """The way back begins at the model that never denied, or the control where denial ended."""
    options = denial.Config(deny=20, steps=8)
    of = {arm: denial.run_of(tmp_path, arm, 1, options) for arm in denial.ARMS}
    begin = {arm: Path(model).name for arm, (_, model, _, _) in of.items()}
    assert begin == {
        "denial": "policy",
        "back": "step_0020",
        "back_half": "step_0010",
        "answers": "step_0020",
        "ordinary": "policy",
    }
    assert [steps for *_, steps in of.values()] == [20, 8, 8, 8, 8]
    assert of["back"][2] == of["ordinary"][2]


# ------------------------------------------------------------------------------------------ reports


@pytest.fixture(scope="module")
def finished(tokenizers, tmp_path_factory):
    """A folder that holds evaluated runs of arms of both experiments, steps 0 and 10."""
    folder = tmp_path_factory.mktemp("finished")
    out = folder / "runs" / "out"
    for arm in ("sealed", "answer_pays", "shuffled", "denial", "back"):
        for seed in (0, 1):
            name = "experiments.broken_seal.answer_reward"
            config = dict(task="word_count", answer_reward=name, sandbox="strong")
            run_folder.write_json(out / f"{arm}_{seed}" / "config.json", {"config": config})
            for step in (0, 10):
                rollouts = told_rollouts(tokenizers["organism"], seed + step + len(arm), n=8)
                path = out / f"{arm}_{seed}" / "evals" / f"step_{step:04d}.json"
                save(path, rollouts, word_count)
    return folder


def test_the_seals_table_and_figure_come_from_saved_runs(finished):
    """An arm or a seed is left out, or the differences are not those of a seed's own pair."""
    out = run(broken_seal, finished, "--plot-only")
    table = (out / "table_seal.txt").read_text()
    for pair in ("answer_pays - sealed", "answer_pays - shuffled", "shuffled - sealed"):
        assert all(f"{pair} {seed} step 10" in table for seed in (0, 1))
    assert "answer_pays 1 step 10" in table and "J of shuffles" in table
    drawn = run_folder.read_json(out / "fig_seal.json")
    assert set(drawn) == {"sealed", "answer_pays", "shuffled"}
    assert set(drawn["sealed"]) == {"0", "1"} and set(drawn["sealed"]["0"]) == {"0", "10"}
    assert set(drawn["sealed"]["0"]["0"]) == set(broken_seal.PANELS)


def test_denials_table_says_when_reports_came_back(finished):
    """The step at which J came back is another one, or a run that never came back has one."""
    out = run(denial, finished, "--plot-only")
    table = (out / "table_denial.txt").read_text()
    assert "back 1" in table and table.count("claim match of always None") == 4
    of = lambda *values: {
        step: {"claim_J_within": {"value": value}} for step, value in zip((0, 5, 10), values)
    }
    assert denial.reached(of(None, 0.4, 0.6), 0.5) == "10"
    assert denial.reached(of(0.5, 0.4, 0.6), 0.5) == "0"
    assert denial.reached(of(0.0, None, 0.4), 0.5) == "-"


def test_a_folder_without_runs_says_so(tmp_path, capsys):
    """--plot-only ends in a traceback."""
    for module in (broken_seal, denial, durability):
        with pytest.raises(SystemExit):
            run(module, tmp_path, "--plot-only")
        assert "error:" in capsys.readouterr().err
