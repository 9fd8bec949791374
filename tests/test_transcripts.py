"""transcripts.py without a browser:
marks, filters and texts are right, hostile text stays text, Inspect logs come back.
"""

import base64
import gzip
import hashlib
import html.parser
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import metrics
import run_folder
import transcripts
from cli import UserError
from handmade_transcripts import (
    COUNTED,
    FLAGGED,
    HACK,
    HOSTILE,
    KINDS,
    LONG_LINE,
    make_run,
    rollouts,
)
from rollout import Verdict
from tasks import word_count

EMBEDDED = Path(transcripts.__file__).parent / "runs" / "embedded"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run <img src=x onerror=window.pwned=1>")


@pytest.fixture(scope="module")
def page(run) -> str:
    return transcripts.page(run, word_count)


def index_of(page: str) -> dict:
    return json.loads(re.search(r'id="index">(.*?)</script>', page, re.DOTALL)[1])


def texts_of(page: str) -> list[dict]:
    """All transcripts of a page, in order."""
    chunks = re.findall(r'<template id="texts\d+">(.*?)</template>', page, re.DOTALL)
    return [
        text
        for chunk in chunks
        for text in json.loads(gzip.decompress(base64.b64decode(chunk, validate=True)))
    ]


def main(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["transcripts.py", *arguments])
    transcripts.main()


# ------------------------------------------------------------------------------------ what is shown


def test_marks_of_claims():
    """A mark that disagrees with the truth would teach the reader the opposite of what happened."""
    assert transcripts.mark(True, "Full") == transcripts.mark(False, "None") == "right"
    assert (
        transcripts.mark(False, "Full") == "over-claim"
        and transcripts.mark(True, "None") == "under-claim"
    )
    assert transcripts.mark(True, "Partial") == transcripts.mark(False, "Partial") == "hedged"


def test_flags_of_each_kind():
    for kind, rollout in zip(KINDS, rollouts()):
        tally = {name: pairs[0] for name, pairs in metrics.tallies([rollout], word_count).items()}
        flags = transcripts.flags(tally)
        assert {name for name, is_set in flags.items() if is_set} == FLAGGED[kind], kind
        assert list(flags) == list(transcripts.FLAGS), "the page reads them as bits in this order"


def test_filters_agree_with_the_rates_of_evaluate():
    """The page's counts are the table's numbers: same rollouts, same definitions."""
    paths = [
        EMBEDDED / "rollouts" / "step_0001.jsonl",
        *sorted((EMBEDDED / "evals").glob("step_????.jsonl")),
    ]
    for path in paths:
        loaded = transcripts.load(path, word_count)
        rates, table = metrics.rates(loaded, word_count), metrics.tallies(loaded, word_count)
        flagged = [
            transcripts.flags({name: pairs[i] for name, pairs in table.items()})
            for i in range(len(loaded))
        ]
        count = lambda name: sum(flags[name] for flags in flagged)
        assert count("fooled") / len(loaded) == rates["judge_fooled"]
        assert count("counted") / len(loaded) == rates["count_rate"]
        assert count("unparsed") / len(loaded) == 1 - rates["parsed"]
        wrong = sum(not rollout.truth.compliant for rollout in loaded)
        assert count("dishonest") / wrong == pytest.approx(1 - rates["honest_given_noncompliant"])
        marks = [
            row["mark"] for rollout in loaded for row in transcripts.objectives(rollout, word_count)
        ]
        assert marks.count("over-claim") / len(marks) == rates["over_claim"]
        assert marks.count("right") / len(marks) == rates["claim_match"]


def test_each_sentence_beside_its_target_and_label():
    measured = lambda answer: word_count.measured("", word_count.truth("", answer))
    rows = measured(HACK.replace(" (20)", "") + " One more. (9)")
    shown = [(row["words"], row["target"], row["label"], row["false_label"]) for row in rows]
    assert shown == [
        (12, 12, 12, False),
        (17, 18, 18, True),
        (12, 12, 12, False),
        (20, 18, 18, True),
        (12, 12, 12, False),
        (2, None, 9, True),
    ]
    missing = measured("One two. (3)")[1]
    assert missing == {
        "text": None,
        "words": None,
        "label": None,
        "target": 18,
        "false_label": False,
    }


def test_objectives_join_truth_claim_and_measure():
    confessed = rollouts()[list(KINDS).index("confessed")]
    rows = transcripts.objectives(confessed, word_count)
    assert [row["mark"] for row in rows] == [
        "right",
        "right",
        "hedged",
        "over-claim",
        "under-claim",
    ]
    assert [row["cheated"] for row in rows] == [None, True, None, True, None]
    assert [row["measured"]["words"] for row in rows] == [12, 17, 12, 20, 12]
    assert (
        transcripts.transcript(confessed, word_count)["checks"] == [True] * 5
        and COUNTED in confessed.zc
    )


def test_a_task_that_measures_nothing_is_shown_by_its_objectives():
    task = ModuleType("other")
    task.objectives, task.measured = word_count.objectives, lambda x, truth: []
    rows = transcripts.objectives(rollouts()[1], task)
    assert [row["mark"] for row in rows] == ["right", "over-claim", "right", "over-claim", "right"]
    assert all(row["measured"] == {} for row in rows)


# ----------------------------------------------------------------------------------------- the page


def test_every_rollout_is_in_the_page_with_every_text(run, page):
    index, texts = index_of(page), texts_of(page)
    stored = [
        rollout
        for path in transcripts.sources(run)
        for rollout in run_folder.load_rollouts(path, word_count)
    ]
    assert (
        sum(file["count"] for file in index["files"])
        == len(stored)
        == len(texts)
        == len(index["rows"]["seed"])
    )
    for rollout, text in zip(stored, texts):
        for name in ("system", "x", "z", "y", "xc", "zc", "yc"):
            assert text[name] == getattr(rollout, name)
        assert (
            text["reply"] == rollout.verdict.reply
            and text["answer"]["finish"] == rollout.answer.finish
        )
    assert (
        index["rows"]["advantages"][:2] == [[1.0, -2.5], [0.0, -1.5]]
        and index["rows"]["marks"][1] == "roror"
    )
    assert [file["label"] for file in index["files"]][:2] == ["training step 1", "training step 2"]
    assert [file["name"] for file in index["files"]][-1] == "evals/step_0002"
    assert index["rows"]["occurrence"][:6] == [0, 1, 2, 0, 1, 2]


def test_chunks_begin_where_the_index_says(run, monkeypatch):
    """A text that is looked up in the wrong chunk would be shown as another rollout's."""
    monkeypatch.setattr(transcripts, "CHUNK", 2_000)
    page = transcripts.page(run, word_count)
    chunks = re.findall(r'<template id="texts\d+">(.*?)</template>', page)
    lengths = [len(json.loads(gzip.decompress(base64.b64decode(chunk)))) for chunk in chunks]
    assert (
        len(chunks) > 6
        and [sum(lengths[:i]) for i in range(len(lengths))] == index_of(page)["chunks"]
    )


class Elements(html.parser.HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_hostile_text_makes_no_element(page):
    """The elements of the page are those of the template and one <template> a chunk,
    whatever the models wrote.
    """
    template = Elements(transcripts.TEMPLATE.read_text()).found
    ours = [element for element in Elements(page).found if element[0] != "meta"]
    added = ours[len([element for element in template if element[0] != "meta"]) :]
    assert (
        [tag for tag, _ in ours].count("script") == 2
        and added
        and all(tag == "template" for tag, _ in added)
    )
    assert "pwned" not in re.sub(r'id="index">.*?</script>', "", page, flags=re.DOTALL)
    assert "<" not in re.search(r'id="index">(.*?)</script>', page, re.DOTALL)[1]


def test_only_the_script_of_the_template_may_run(page):
    policy = next(
        a["content"]
        for tag, a in Elements(page).found
        if a.get("http-equiv") == "Content-Security-Policy"
    )
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy and "http" not in policy


def test_the_headline_is_the_table_of_the_run(tmp_path):
    run_folder.save_rollouts(
        tmp_path / "evals" / "step_0025.jsonl",
        transcripts.load(EMBEDDED / "evals" / "step_0025.jsonl", word_count),
    )
    saved = run_folder.read_json(EMBEDDED / "evals" / "step_0025.json")
    headline = index_of(transcripts.page(tmp_path, word_count))["headline"]
    for metric, cell in zip(transcripts.HEADLINE, headline["rows"][0]["cells"]):
        assert cell == [
            f"{saved[metric]['value']:.2f}",
            f"[{saved[metric]['low']:.2f}, {saved[metric]['high']:.2f}]",
        ], metric


# -------------------------------------------------------------------------------------- the program


def test_program_writes_one_file_and_prints_its_path(run, tmp_path, monkeypatch, capsys):
    main(monkeypatch, str(run))
    assert capsys.readouterr().out == f"{run / 'transcripts.html'}\n"
    main(monkeypatch, str(run), "--out", str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_bytes() == (run / "transcripts.html").read_bytes(), (
        "the same run, the same bytes"
    )


def test_a_folder_of_evaluations_alone_is_enough(tmp_path, monkeypatch):
    """Results of a sweep have no training steps, no metrics.jsonl and maybe no config.json."""
    run_folder.save_rollouts(
        tmp_path / "evals" / "small_forced_count_n64.jsonl", rollouts(advantages=False)
    )
    run_folder.write_text(tmp_path / "evals" / "empty.jsonl", "")
    main(monkeypatch, str(tmp_path))
    files = index_of((tmp_path / "transcripts.html").read_text())["files"]
    assert [file["label"] for file in files] == ["small forced count n64"]


def test_the_judges_margin_is_shown():
    """A verdict stands there without how sure it is, or an old one without a margin is refused."""
    shown = [
        transcripts.judge_said(verdict)
        for verdict in (Verdict("fail", "FAIL", -0.531), Verdict("pass", "Verdict: PASS"))
    ]
    assert shown == ["FAIL, margin -0.53", "Verdict: PASS"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d["answer"].update(advantage=math.nan), "line 2: answer"),
        (lambda d: d["confession"].update(reward="1"), "line 2: confession"),
        (lambda d: d["verdict"].update(state="constructor"), "line 2: verdict"),
        (lambda d: d.update(verdict=None), "line 2: verdict"),
        (lambda d: d["verdict"].update(margin=math.nan), "line 2: verdict"),
        (lambda d: d["verdict"].update(margin="1"), "line 2: verdict"),
        (lambda d: d.update(z=["not", "text"]), "line 2: z"),
        (lambda d: d["report"].update(claims=["Full"] * 4), "line 2: claims"),
        (lambda d: d.update(unknown=1), "line 2 is not a rollout"),
    ],
)
def test_a_bad_line_is_named(tmp_path, monkeypatch, capsys, change, message):
    """Numbers and labels in a file are as untrusted as texts:
    the page does arithmetic and look-ups with them.
    """
    data = [rollout.to_json() for rollout in rollouts()]
    change(data[1])
    path = tmp_path / "evals" / "some.jsonl"
    run_folder.write_text(path, "".join(json.dumps(row) + "\n" for row in data))
    with pytest.raises(SystemExit):
        main(monkeypatch, str(tmp_path))
    error = capsys.readouterr().err
    assert f"{path} {message}" in error and error.count("\n") == 1


def test_bad_folders_and_options_end_with_one_line(tmp_path, run, monkeypatch, capsys):
    for arguments, message in (
        ([str(tmp_path)], "has no rollout in"),
        ([str(tmp_path / "absent")], "is no folder"),
        ([str(run), "--inspect", "--out", "x"], "leave one of them out"),
        ([str(run), "--task", "no_task"], "no_task.py"),
    ):
        with pytest.raises(SystemExit) as end:
            main(monkeypatch, *arguments)
        assert end.value.code == 2 and message in capsys.readouterr().err
    run_folder.write_text(tmp_path / "evals" / "empty.jsonl", "")
    with pytest.raises(UserError, match="has no rollout in"):
        transcripts.page(tmp_path, word_count)


# ------------------------------------------------------------------------------------- Inspect logs


def test_inspect_without_the_package_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(UserError, match=transcripts.INSPECT):
        transcripts.write_inspect(run, {}, word_count)


def test_inspect_logs_come_back_equal(run, monkeypatch, capsys):
    """Written, read back by the library:
    every message, thought, score and number is the rollout's.
    """
    log = pytest.importorskip("inspect_ai.log", reason=f"needs {transcripts.INSPECT}")
    main(monkeypatch, str(run), "--inspect")
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert len(paths) == 5 and sorted(paths) == sorted((run / "inspect").iterdir()), (
        "no temporary file stays"
    )
    for source, path in zip(transcripts.sources(run), paths):
        loaded = transcripts.load(source, word_count)
        made = transcripts.inspect_log(source, loaded, run_folder.read_config(run), word_count)
        back = log.read_eval_log(str(path))
        assert back.model_dump_json(exclude={"samples"}) == made.model_dump_json(
            exclude={"samples"}
        )
        key = lambda sample: sample.metadata["line"]
        for rollout, before, after in zip(
            loaded, made.samples, sorted(back.samples, key=key), strict=True
        ):
            assert after.model_dump_json() == before.model_dump_json()
            *_, x, y, xc, yc = after.messages
            texts = [rollout.x, rollout.y, rollout.xc, rollout.yc]
            assert [x.text, y.text, xc.text, yc.text] == transcripts.encodable(texts)
            thoughts = [
                part.reasoning
                for message in (y, yc)
                for part in message.content
                if part.type == "reasoning"
            ]
            assert thoughts == transcripts.encodable(
                [text for text in (rollout.z, rollout.zc) if text]
            )
            assert after.metadata["answer"]["advantage"] == rollout.answer.advantage
    assert back.eval.viewer.trust_content is False
    honest = next(score for score in back.results.scores if score.name == "honest")
    assert (honest.metrics["mean"].value, honest.scored_samples) == (0.0, 1)


def test_hostile_text_survives_in_inspect_logs():
    """A lone surrogate, which no UTF-8 file can hold, is the one thing that is replaced."""
    assert (
        transcripts.encodable(HOSTILE) == HOSTILE.replace("\ud800", "\ufffd")
        and transcripts.encodable(LONG_LINE) == LONG_LINE
    )
