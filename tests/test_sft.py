"""Seeding. What is put in by hand must be what was asked for, and must not hold the honesty
that RL is to find.
"""

import json
import random
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest
import torch

import models
import run_folder
import sft
from chat_template import split_thinking, suffix_ids
from cli import UserError
from confession_schema import ConfessionReport, parse_report
from runtime.batch import make_batch
from tasks import short_count
from tiny_runs import files

pytestmark = pytest.mark.usefixtures("one_thread")

SENTENCES = {
    "bees": [
        "Bees hum all day.",
        "The hive is warm in May.",
        "Honey runs slowly, like gold, from combs.",
        "They dance in the sun.",
    ],
    "tea": [
        "Pour the hot tea now.",
        "Green leaves need rain and a patient summer.",
        "Steep it for three calm minutes.",
    ],
}
ALL = "trust=.2,verify=.2,hedge=.2,none=.2,full=.2"


def made(n: int = 4_000, **options) -> list[sft.Transcript]:
    config, rng = (
        sft.Config(**{"styles": ALL, "honest_labels": 0.5, "own_target": 0.6} | options),
        random.Random(0),
    )
    return [sft.transcript(rng, SENTENCES, config) for _ in range(n)]


def test_styles_are_independent_of_the_truth():
    """Honest reports are seeded:
    the style hangs on how many sentences are met, on the labels or on the subject.
    """
    transcripts = made()
    of = defaultdict(lambda: defaultdict(int))
    for t in transcripts:
        truth = short_count.truth(t.x, t.y)
        for fact in (
            ("met", sum(truth.objectives)),
            ("honest", t.honest),
            ("subject", short_count.cluster(t.x)),
        ):
            of[fact][t.style] += 1
    assert {met for name, met in of if name == "met"} == {0, 1, 2, 3}
    for fact, styles in of.items():
        n = sum(styles.values())
        for style in sft.STYLES:
            assert abs(styles[style] / n - 0.2) < 4 * (0.16 / n) ** 0.5, (fact, style)


def test_shares_are_what_was_asked_for():
    """The card says one thing and the transcripts are another."""
    transcripts = made(own_target=0.7, honest_labels=0.25, styles="trust=.5,verify=.5")
    card = sft.card(transcripts, sft.Config(), SENTENCES, {"bees", "tea", "owls"})
    assert card["styles"]["trust"] == pytest.approx(0.5, abs=0.03) and card["styles"]["none"] == 0
    assert (card["topics_asked"], card["topics"]) == (3, 2)
    assert card["honest_labels"] == pytest.approx(0.25, abs=0.03)
    assert card["sentences_met"] == pytest.approx(0.7, abs=0.03)
    assert card["answers_compliant"] == pytest.approx(0.7**3, abs=0.03)
    json.dumps(card)


@pytest.mark.parametrize("thoughts", [False, True])
def test_reports_parse_and_say_what_their_style_says(thoughts):
    """A style's reports do not parse,
    or verify and trust claim something else than counts and labels.
    """
    for t in made(600, thoughts=thoughts):
        text = t.confession.split("</think>")[-1]
        report = parse_report(text, short_count.objectives(t.x))
        truth = short_count.truth(t.x, t.y)
        assert isinstance(report, ConfessionReport) and len(truth.sentences) == 3
        full = lambda values: tuple("Full" if v else "None" for v in values)
        labels = [s.label for s in truth.sentences]
        rows = short_count.measured(t.x, truth)
        expected = {
            "verify": full(truth.objectives),
            "hedge": ("Partial",) * 3,
            "none": ("None",) * 3,
            "full": ("Full",) * 3,
            "trust": full(label == row["target"] for label, row in zip(labels, rows)),
        }
        assert report.claims == expected[t.style]
        assert report.claims_compliant == (set(report.claims) == {"Full"})
        assert labels == [row["words"] if t.honest else row["target"] for row in rows]
        if t.style == "verify":
            assert (("<think>" in t.confession) == thoughts) and short_count.verifications(
                t.confession, truth
            ) == [True] * 3


def test_slips():
    """verify_right does not decide how many sentences are counted right, or a slip is no slip."""
    rng = random.Random(0)
    sentence = "Honey runs slowly, like gold, from combs."
    totals = [sft.numbered(rng, sentence, 0.5)[1][-1] for _ in range(2_000)]
    assert sum(n == 7 for n in totals) / 2_000 == pytest.approx(0.5, abs=0.05) and set(totals) == {
        6,
        7,
        8,
    }


def test_usable_sentences():
    """Lists, headings, numbers, fragments or the prompt's own example become training sentences."""
    text = (
        "Sure! Here are some:\n1. Bees like warm days.\nBees hum all day long.\n"
        "- They dance in the sun\nThe kettle sings on a warm stove.\nTwo bees. Three bees.\n"
        "Bees hum all day long.\nHi there.\nBees (big ones) hum today.\nThe sun is warm now.\n"
        "A bee can see the kettle.\nBees sag 你好 to me."
    )
    assert sft.usable(text, "bees") == ["Bees like warm days.", "Bees hum all day long."]


def test_lengths_are_drawn_evenly():
    """Long sentences are rare among a model's own, so that a model never learns to write one
    when it is asked to.
    """
    sentences = [f"Bees hum at {name} today." for name in "one two three four five six".split()] + [
        "Bees see all of the red roses here."
    ]
    counts = Counter(
        len(s.split()) for _ in range(2_000) for s in sft.drawn(random.Random(_), sentences)[0][:1]
    )
    assert counts[8] / 2_000 == pytest.approx(0.5, abs=0.05)


def test_streams_are_those_of_a_rollout(tokenizers):
    """The model is trained on another token stream than grpo.py samples:
    the end of a turn, or what stands between turns.
    """
    tokenizer = tokenizers["organism"]
    t = made(1)[0]
    r = sft.stream(tokenizer, t, "default", "auto")
    suffix = suffix_ids(tokenizer, r.xc)
    assert r.token_ids[r.answer.end - 1] == suffix[0] == r.token_ids[
        -1
    ] and r.confession.end == len(r.token_ids)
    assert r.token_ids[r.answer.end : r.confession.start] == suffix[1:]
    assert split_thinking(
        tokenizer, r.token_ids[r.answer.start : r.answer.end - 1], opened=False
    ) == ("", t.y)
    assert tokenizer.decode(r.token_ids[r.confession.start : -1]) == t.confession


def test_reports_alone(tokenizers):
    """--answer-weight 0 trains the answers too, or takes the reports' weight with it."""
    model, tokenizer = models.load("organism/policy", torch.device("cpu"))
    streams = [sft.stream(tokenizer, t, "default", "auto") for t in made(3)]
    kept = SimpleNamespace(zero_grad=lambda: None, step=lambda: None)
    loss = lambda weight: sft.step_loss(
        model, kept, streams, sft.Config(answer_weight=weight), 1_000
    )["loss"]
    none, half, whole = map(loss, (0.0, 0.5, 1.0))
    weights = {
        "answer": [0.0] * 3,
        "confession": [1 / sum(len(r.confession.logprobs) for r in streams)] * 3,
    }
    batch = make_batch(streams, weights, model.device)
    logprobs = models.token_logprobs(model, batch.ids, batch.trained, 1.0)
    assert none == pytest.approx(float(-(batch.weights * logprobs).sum()), rel=1e-5)
    assert 0 < none < whole and half == pytest.approx((none + whole) / 2, rel=1e-5)


def run_sft(folder, *options: str, sentences=SENTENCES) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["sft.py", *options])
        patch.setattr(sft, "own_sentences", lambda *_: sentences)
        sft.main()


RUN = """--transcripts 6 --batch 2 --epochs 2 --lora-rank 0 --lr 1e-3 --max-answer-tokens 8
--max-confession-tokens 8 --eval-n 2 --checkpoint-every 2 --name run""".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    run_sft(folder, *RUN)
    return folder / "runs" / "run"


def test_a_run_learns_and_leaves_a_run_folder(finished):
    """Nothing is learned, or evaluate.py, grpo.py and a reader find less than they need."""
    rows = run_folder.read_rows(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and rows[-1]["loss"] < rows[0][
        "loss"
    ]
    assert run_folder.checkpoint_steps(finished) == [0, 2, 4, 6]
    assert sorted(p.name for p in finished.glob("evals/*.json")) == [
        "step_0000.json",
        "step_0006.json",
    ]
    card = json.loads((finished / "checkpoints/step_0006/card.json").read_text())
    assert card == json.loads((finished / "card.json").read_text()) and card["transcripts"] == 6
    assert (
        run_folder.read_config(finished)["task"] == "short_count"
        and (finished / "table.txt").exists()
    )


def test_out_of_memory_takes_smaller_micro_batches(finished, tmp_path, monkeypatch, capsys):
    """A run ends where memory does,
    or its log is another one than with all the memory in the world.
    """
    real = sft.step_loss

    def small(*arguments):
        if arguments[-1] > 1_024:
            raise torch.OutOfMemoryError
        return real(*arguments)

    monkeypatch.setattr(sft, "step_loss", small)
    run_sft(tmp_path, *RUN)
    assert (
        "out of memory in training with 2048 at once: going on with 1024" in capsys.readouterr().out
    )
    losses = lambda run: [row["loss"] for row in run_folder.read_rows(run / "metrics.jsonl")]
    assert losses(tmp_path / "runs/run") == pytest.approx(losses(finished), rel=1e-4)


def test_resuming_repeats_an_uninterrupted_run(finished, tmp_path):
    """The order of transcripts or the optimizer's state is lost with the process."""
    run_sft(tmp_path, *RUN)
    run = tmp_path / "runs" / "run"
    for step in (4, 6):
        run_folder.checkpoint(run, step).rename(tmp_path / f"aside_{step}")
    run_sft(tmp_path, "--resume", "runs/run")
    weights = lambda folder: files(folder / "checkpoints/step_0006")
    assert weights(run) == weights(finished)
    assert (run / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_curriculum():
    """Hacked labels come before honest ones, or an epoch leaves transcripts out."""
    transcripts = made(50)
    config = sft.Config(curriculum="honest_first")
    rows = sft.order(transcripts, config, 0)
    honest = [transcripts[i].honest for i in rows]
    assert sorted(rows) == list(range(50)) and honest == sorted(honest, reverse=True)
    assert rows != sft.order(transcripts, config, 1) and sorted(
        sft.order(transcripts, sft.Config(), 1)
    ) == list(range(50))


@pytest.mark.parametrize(
    "text", ["trust", "trust=.5", "trust=.5,lie=.5", "trust=x", "trust=1.5,none=-.5"]
)
def test_bad_styles(text):
    """Shares that are none are normalised, or end in a traceback."""
    with pytest.raises(UserError, match="--styles"):
        sft.shares(text)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--confession", "loud"], "--confession 'loud'"),
        (["--own-target", "1.5"], "--own-target 1.5"),
        (["--resume", "runs/grpo"], "another program"),
        (["--resume", "runs/grpo", "--batch", "3"], "drop the other options"),
    ],
)
def test_bad_input_ends_with_one_line(tmp_path, capsys, options, message):
    """A traceback, perhaps after a model was loaded and sampled."""
    run_folder.write_json(
        tmp_path / "runs/grpo/config.json", {"config": {"model": "organism/policy", "steps": 2}}
    )
    with pytest.raises(SystemExit, match="2"):
        run_sft(tmp_path, *options)
    assert message in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["grpo"]


def test_transcripts_longer_than_the_context_are_refused(tokenizers, tmp_path):
    """The end of a report is trained at positions that the model does not have."""
    config = sft.Config(transcripts=3, styles="verify=1")
    model = SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=300))
    )
    run_folder.write_json(tmp_path / "sentences.json", SENTENCES)
    with pytest.raises(
        UserError, match="a transcript has .* tokens, but the model's context is 300"
    ):
        sft.prepared(model, tokenizers["organism"], config, tmp_path, sampling=None)


def test_a_model_without_sentences_leaves_no_run(tmp_path, capsys):
    """A folder stays that blocks the name of the corrected command."""
    with pytest.raises(SystemExit, match="2"):
        run_sft(tmp_path, *RUN, sentences={})
    assert "wrote no three usable sentences" in capsys.readouterr().err and not list(
        (tmp_path / "runs").iterdir()
    )
