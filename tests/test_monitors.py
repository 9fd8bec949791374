"""Five watchers of the same answers. A mistake here finds in a model what it does not know, or
calls a confession silent where the watcher was looked at in the wrong place.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import baselines
import models
import run_folder
from chat_template import prompt_ids, suffix_ids
from confession_schema import confession_prompt
from evaluate import save
from experiments import claim_tokens, monitors, probes, watchers
from handmade import hand_rollout, told_rollouts
from rewards import Verdict, score_rollouts
from tasks import word_count

pytestmark = pytest.mark.usefixtures("one_thread", "quick_collection")

POLICY = "organism/policy"
TOPICS = [f"topic {i // 20}" for i in range(320)]


@pytest.fixture(scope="module")
def policy():
    return models.load(POLICY, torch.device("cpu"), "float32")


def planted(strength: float, seed: int = 0) -> tuple[torch.Tensor, probes.Cases]:
    """(features (n, 3 layers, 8), cases): the second layer holds the truth along one direction."""
    rng = np.random.default_rng(seed)
    hits = rng.random(len(TOPICS)) < 0.4
    features = rng.normal(size=(len(TOPICS), 3, 8))
    direction = rng.normal(size=8)
    features[:, 1] += strength * hits[:, None] * direction / np.linalg.norm(direction)
    groups = [(topic, i % 20 // 5) for i, topic in enumerate(TOPICS)]
    of = probes.Cases(hits, TOPICS, groups, np.arange(len(hits)), probes.folds_of(TOPICS))
    return torch.from_numpy(features), of


# ------------------------------------------------------------------------------------------- probes


def test_the_probe_finds_a_planted_direction_and_its_layer():
    """What a model represents is missed, or read from another layer."""
    features, of = planted(4.0)
    told, layers = probes.probe(features, probes.with_shuffles(of.hits), of.folds)
    assert set(layers) == {1}
    shuffled = probes.of_shuffles([column.numpy() for column in told.T[1:]], of)
    for kind, area in (("pooled", probes.pooled), ("within", probes.within)):
        found = area(told[:, 0].numpy(), of)["value"]
        assert shuffled[kind]["value"] == pytest.approx(0.5, abs=0.06)
        assert found > 0.95 and found > shuffled[kind]["high"]


def test_a_probe_without_information_is_no_better_than_its_shuffles():
    """A probe is scored on what it was trained on: it would find anything in noise."""
    features, of = planted(0.0)
    told, _ = probes.probe(features, probes.with_shuffles(of.hits), of.folds)
    assert probes.pooled(told[:, 0].numpy(), of)["value"] == pytest.approx(0.5, abs=0.1)


def test_the_scored_fold_takes_no_part_in_its_probe():
    """Labels leak: the fold's own truth changes its scores, or the layer that they come from."""
    features, of = planted(1.0)
    changed = torch.from_numpy(of.hits.astype(float))[:, None]
    told, layers = probes.probe(features, changed, of.folds)
    own = torch.from_numpy(of.folds == 2)
    changed = torch.where(own[:, None], 1 - changed, changed)
    again, others = probes.probe(features, changed, of.folds)
    assert torch.equal(told[own], again[own]) and not torch.equal(told[~own], again[~own])
    assert layers[2] == others[2]


def test_the_probe_is_that_of_its_normal_equations():
    """The sums over folds are added up wrongly: a fold or a mean is missing."""
    features, of = planted(1.0)
    labels = torch.from_numpy(of.hits.astype(float))[:, None]
    told, _ = probes.probe(features[:, 1:2], labels, of.folds)
    fitted = of.folds != 0
    x, y = features[fitted, 1].numpy(), labels[fitted, 0].numpy()
    z = (x - x.mean(0)) / x.std(0)
    for penalty in probes.PENALTIES:
        weights = np.linalg.solve(
            z.T @ z / len(z) + penalty * np.eye(8), z.T @ (y - y.mean()) / len(z)
        )
        expected = y.mean() + (features[~fitted, 1].numpy() - x.mean(0)) / x.std(0) @ weights
        if np.allclose(told[~fitted, 0].numpy(), expected):
            return
    pytest.fail("no penalty gives these scores")


def test_features_that_do_not_vary_are_no_error():
    """A constant column ends the program in a factorisation, as a target that never changes."""
    features, of = planted(4.0)
    features[:, :, 0] = 12.3456789
    labels = torch.from_numpy(of.hits.astype(float))[:, None]
    told, _ = probes.probe(features, labels, of.folds)
    assert told.isfinite().all() and probes.pooled(told[:, 0].numpy(), of)["value"] > 0.9


# -------------------------------------------------------------------------------------------- AUROC


def test_auroc_within_a_group_by_hand():
    """Cases of different prompts are compared, so that knowing the prompt passes for knowledge."""
    hits = np.array([True, False, False, True, False])
    of = probes.Cases(hits, list("aaabb"), list("xxxyy"), np.arange(5), np.zeros(5))
    found = probes.within(np.array([0.1, 0.0, 0.1, 0.9, 0.95]), of)
    assert found["value"] == pytest.approx(1.5 / 3) and found["n"] == 3
    prompt_alone = probes.within(np.array([0.0, 0.0, 0.0, 1.0, 1.0]), of)
    assert prompt_alone["value"] == 0.5 and prompt_alone["low"] is None


def test_differences_of_equal_watchers_hold_zero():
    """Paired intervals are of something else than the difference, or exclude what is true."""
    _, of = planted(0.0)
    rng = np.random.default_rng(1)
    noisy = lambda: of.hits + rng.normal(size=len(of.hits))
    one, other, better = noisy(), noisy(), of.hits + 0.2 * rng.normal(size=len(of.hits))
    for less in (probes.less_within, probes.less_pooled):
        same = less(one, 3 * one + 1, of)
        assert same["value"] == 0 and same["low"] is None  # no resample differs
        alike = less(one, other, of)
        assert alike["low"] < 0 < alike["high"] and alike["value"] != 0
        gain = less(better, one, of)
        assert 0 < gain["low"] < gain["value"] < gain["high"]
        assert less(one, better, of)["value"] == pytest.approx(-gain["value"])


def test_what_a_watcher_adds():
    """A copy is said to add something, or independent knowledge nothing."""
    _, of = planted(0.0)
    rng = np.random.default_rng(2)
    one, other = (of.hits + rng.normal(size=len(of.hits)) for _ in range(2))
    join = lambda *columns: probes.combined(np.stack(columns, axis=1), of.hits, of.folds)
    assert abs(probes.less_pooled(join(one, one), join(one), of)["value"]) < 0.01
    assert probes.less_pooled(join(one, other), join(one), of)["low"] > 0.02


# -------------------------------------------------------------------------------- places and passes


def rollout_of(tokenizer, y: str, yc: str, z: str = "", seed: int = 0):
    x = word_count.make_prompt(seed, held_out=True)
    xc = confession_prompt(word_count, x)
    end = [tokenizer.eos_token_id]
    ids = lambda text: tokenizer(text)["input_ids"] + end
    thought = f"<think>\n{z}\n</think>\n\n" if z else ""
    blocks = prompt_ids(tokenizer, x), ids(thought + y), suffix_ids(tokenizer, xc)[1:], ids(yc)
    made = hand_rollout(blocks, x=x, y=y, z=z, xc=xc, yc=yc, seed=seed)
    score_rollouts([made], [Verdict("failed", "")], word_count)
    return made


def test_sentences_end_with_their_labels(tokenizers):
    """The probe reads the next sentence, or one that is not there, or the stop token."""
    tokenizer = tokenizers["organism"]
    y = "Bees hum (2). The  bees\nhum softly. (12) Bees rest."
    for z in ("", "Two sentences about bees."):
        made = rollout_of(tokenizer, y, "", z)
        assert {j: y[:end] for j, end in watchers.sentence_ends(made).items()} == {
            0: "Bees hum (2).",
            1: "Bees hum (2). The  bees\nhum softly. (12)",
            2: y,
        }
        for at, end in zip(watchers.probed_positions(tokenizer, made), (13, 40, len(y), len(y))):
            begun = tokenizer.decode(made.token_ids[made.answer.start : at + 1])
            assert begun.endswith(tokenizer.decode(made.token_ids[at]))
            assert begun.split("</think>")[-1].strip() == y[:end]


REPORT = json.dumps(
    {
        "compliance_analysis": [
            {"objective": f"S{i}", "analysis": 'a "compliance": "None" quoted', "compliance": claim}
            for i, claim in zip((2, 1, 3, 4, 5), ("None", "Full", "Partial", "Full", "None"))
        ],
        "uncertainties": [],
        "overall_compliance_grade": 3,
    },
    indent=1,
)


def test_claims_are_found_by_their_objective():
    """A margin is that of another sentence, or of what an analysis quotes."""
    names = word_count.objectives(word_count.make_prompt(0))
    text = f"A draft: {REPORT.replace('None', 'Full')}\n{REPORT} So."
    places = claim_tokens.claim_places(text, names)
    assert [text[slice(*place)] for place in places] == "Full None Partial Full None 3".split()
    assert places[0][0] > len(text) / 2  # in the last object
    assert claim_tokens.claim_places(REPORT.replace('"S3"', '"S2"'), names) is None
    assert claim_tokens.claim_places("no report", names) is None


def test_margins_are_those_of_the_whole_stream(policy, tokenizers):
    """The margin is read at another token, or depends on the batch; a report that does not parse
    gets an opinion.
    """
    model, tokenizer = policy
    compact = json.dumps(json.loads(REPORT), separators=(",", ":"))
    several = [rollout_of(tokenizer, "Bees hum. (2)", yc) for yc in (compact, "no", REPORT)]
    found = np.array(claim_tokens.claim_margins(model, tokenizer, several, word_count, 3))
    assert found.shape == (3, 6) and np.isnan(found[1]).all() and np.isfinite(found[[0, 2]]).all()
    alone = claim_tokens.claim_margins(model, tokenizer, several[:1], word_count, 1)
    assert alone[0] == pytest.approx(found[0], abs=1e-3)

    span, names = several[0].confession, word_count.objectives(several[0].x)
    text = tokenizer.decode(several[0].token_ids[span.start : span.end])
    start, _ = claim_tokens.claim_places(text, names)[0]
    context = several[0].token_ids[: span.start] + tokenizer(text[:start])["input_ids"]
    with torch.inference_mode():
        logp = model(torch.tensor([context])).logits[0, -1].log_softmax(-1)
    full, none = (tokenizer(word)["input_ids"][0] for word in ("Full", "None"))
    assert found[0, 0] == pytest.approx(float(logp[full] - logp[none]), abs=1e-3)


def test_states_do_not_depend_on_the_batch(policy):
    """Padding changes what the probe reads."""
    model, _ = policy
    streams, positions = [list(range(5, 60)), list(range(9, 20))], [[3, 54], [10]]
    found = claim_tokens.states(model, streams, positions, True, 2)
    assert [h.shape for h in found] == [(2, 5, 64), (1, 5, 64)]
    for ids, at, h in zip(streams, positions, found):
        with torch.inference_mode():
            alone = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for layer, own in enumerate(alone):
            assert torch.allclose(own[0, at], h[:, layer], atol=1e-4)


# ------------------------------------------------------------------------------------- the program


def run(folder: Path, *options: str) -> Path:
    """`python -m experiments.monitors options` in a folder, within this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["monitors.py", "--name", "out", *options])
        patch.setattr(baselines, "SHUFFLES", 20)
        patch.setattr(models, "EMBEDDED", models.EMBEDDED | dict(max_confession_tokens=8))
        monitors.main()
    return folder / "runs" / "out"


SIDES = ["--model", POLICY, "--before", "first.json", "--after", "second.json"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tokenizers) -> Path:
    """The folder of a finished run, on answers with and without thoughts. Tests only read it."""
    folder = tmp_path_factory.mktemp("monitors")
    answers = [told_rollouts(tokenizers["organism"], seed, n=6) for seed in (0, 1)]
    without = [
        rollout_of(tokenizers["organism"], r.y, r.yc, seed=i // 2) for i, r in enumerate(answers[1])
    ]
    save(folder / "first.json", answers[0], word_count)
    save(folder / "second.json", without, word_count)
    run(folder, *SIDES)
    return folder


def test_absent_watchers_are_said_to_be_absent(finished):
    """A watcher that there is not stands in the table with a number."""
    out = finished / "runs" / "out"
    found = json.loads((out / "fig_monitors.json").read_text())
    before, after = (side["sentences, within"] for side in found.values())
    assert "thought: base" in before and not any("thought" in name for name in after)
    assert "confession: margin" in before and "confession: margin" not in after
    table = (out / "table.txt").read_text()
    assert table.count("thought: absent, no answer has one") == 1
    assert table.count("which did not write them: the confession has no margin") == 1
    assert not (out / "scores" / "after_thought_base.json").exists()


@pytest.mark.parametrize(
    "given, wanted",
    [
        (dict(model="a", trained="b"), {"before": "b", "after": "a"}),
        (dict(model="a"), {"before": "a"}),
        (dict(), {"before": POLICY, "after": POLICY}),
    ],
)
def test_the_fresh_confessor_is_the_other_model(given, wanted):
    """A fresh confessor wrote the answer: without a thought it has its own report's context."""
    sides = monitors.sides_of(monitors.Config(**given))
    assert {side.name: side.fresh for side in sides} == wanted


def test_saved_scores_are_not_computed_again(finished, monkeypatch):
    """Minutes are lost at every redraw, or a result changes without a reason."""
    out = finished / "runs" / "out"
    kept = {path: path.read_bytes() for path in out.rglob("*.json*")}
    assert {path.stem for path in (out / "scores").iterdir()} == {
        f"{side}_{name}"
        for side in ("before", "after")
        for name in ("fresh", "probe", "output_base")
    } | {"before_margin", "before_thought_base"}

    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "load", load)
    run(finished, *SIDES)
    run(finished, "--plot-only")
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.parametrize(
    "options, message",
    [
        (["--trained", POLICY], "--trained needs --model"),
        (
            ["--name", "new", "--model", POLICY, "--before", "none.json"],
            "none.json and its .jsonl do not exist",
        ),
        ([*SIDES, "--monitors", "A"], "--monitors 'A': give NAME=MODEL"),
        ([*SIDES, "--answers", "4"], "runs/out is of other models, answers or sizes"),
        ([*SIDES, "--task", "code"], "--task 'code' is unknown"),
    ],
)
def test_bad_input_ends_with_one_line(finished, capsys, options, message):
    """A traceback, or a wait before a mistake is found."""
    with pytest.raises(SystemExit) as error:
        run(finished, *options)
    assert error.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert message in line


def test_scores_of_other_answers_are_not_taken(finished, tokenizers, tmp_path):
    """A table of former answers' scores beside new answers' truth."""
    path = finished / "runs" / "out" / "scores" / "before_fresh.json"
    rollouts = told_rollouts(tokenizers["organism"], 0, n=6)
    assert monitors.read_scores(path, rollouts) == run_folder.read_json(path)
    rollouts[3].y += " More."
    assert monitors.read_scores(path, rollouts) is None
