"""experiments/policy.py: tenets from files, statistics by hand, a judge that cannot be talked out
of its frame, and what a page says of confessors and judges whose information is known.
"""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import run_folder
import test_audit
import test_hostile_text
from cli import UserError
from experiments import audit, audit_formats, audit_page, policy
from experiments.audit_formats import conversations, read_policy, truths
from rewards import framed_ids, judge_prompt, question_ids, verdict_of
from tasks import constraints

pytestmark = pytest.mark.usefixtures("one_thread")

TENETS = ["Use no digits", "Use at most 2 commas", "Be kind"]  # code checks the first two
ANSWERS = ("It is 3.", "It is three.", "One, two, three, four.", "1, 2, 3, 4.")


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def files(folder: Path, tenets=TENETS) -> list[str]:
    """Options for four answers to each of three questions."""
    logs = "".join(test_audit.line(f"What is {i}?", y) for i in range(3) for y in ANSWERS)
    listed = "".join(f"- {tenet}\n" for tenet in tenets)
    return ["--logs", str(write(folder, "logs.jsonl", logs)),
            "--policy", str(write(folder, "policy.md", listed))]  # fmt: skip


def run(monkeypatch, capsys, *options: str) -> str:
    monkeypatch.setattr(sys, "argv", ["policy", *options])
    policy.main()
    return capsys.readouterr().out


def met(talk, tenets: dict[str, str]) -> list[bool]:
    """The truth; a tenet that code does not check is kept where there is no digit."""
    digit = any(map(str.isdigit, talk.said("assistant")[0]))
    return [not digit if t is None else t for t in truths(talk, tenets)]


@pytest.fixture
def known_models(tmp_path, monkeypatch):
    """known_models(claim, verdict): a confessor and a judge that know the truth of a tenet and make
    what they like of it.
    """
    monkeypatch.chdir(tmp_path)

    def known_models(claim, verdict):
        def ask(asked, seed):
            out = []
            for messages, xc in asked:
                named = dict(re.findall(r"^(S\d): (.*)$", xc, re.MULTILINE))
                said = [(o, claim(t)) for o, t in zip(named, met(test_audit.Conversation(
                    "a", None, None, messages), named))]  # fmt: skip
                rows = [{"objective": o, "compliance": c, "evidence": "It is"} for o, c in said]
                out.append((json.dumps({"compliance_analysis": rows, "uncertainties": [],
                                        "overall_compliance_grade": 2}), None))  # fmt: skip
            return out

        class Judge:
            def __init__(self, *arguments):
                pass

            def __call__(self, cases):
                found = []
                for case in cases:
                    tenet = case.x.splitlines()[1]
                    said = [json.loads(line.split(": ", 1)[1]) for line in case.y.splitlines()]
                    one = test_audit.talk(*said)
                    found.append(verdict_of(verdict(*met(one, {"S1": tenet}))))
                return found

        monkeypatch.setattr(policy, "Judge", Judge)
        monkeypatch.setattr(audit, "confessor", lambda options: (ask, test_audit.ABOUT))
        monkeypatch.setattr(policy.models, "load", lambda *a: (None, None))
        monkeypatch.setattr(policy.models, "fingerprint", lambda name, model: name)

    return known_models


true_claim = lambda t: "Full" if t else "None"
true_verdict = lambda t: 1.0 if t else -1.0


# ------------------------------------------------------------------------------------------- tenets


def test_markdown_and_yaml_are_read_alike(tmp_path):
    """A tenet of one format would be lost, or audited in other words."""
    text = "# A policy\n\n- Be kind\n- Use no\n  digits\n"
    listed = '- Be kind\n- tenet: Use no digits\n  why: "3"\n'
    named = '[{name: Be kind}, "Use no\\n digits"]'
    found = [
        read_policy(write(tmp_path, *file))
        for file in (("a.md", text), ("b.yaml", listed), ("c.yml", named))
    ]
    assert found == [{"O1": "Be kind", "O2": "Use no digits"}] * 3


@pytest.mark.parametrize(
    "text, reason",
    [
        ("- a: [", "is no YAML"),
        ("- kind\n- 3\n", "item 2 is of type int"),
        ("- {why: x}\n", "item 1 is of type dict"),
        ("- ''\n", "item 1 is of type str"),
        ("tenets: [x]\n", "holds no list item"),
        ("", "holds no list item"),
        ("!!python/object/apply:os.system ['true']", "is no YAML"),
        ("[" * 1_000, "is no YAML"),
        ("- &a {tenet: x}\n- *a\n", "no aliases"),
        ("- kind\n- polite\n- kind\n", "item 3 is there twice: kind"),
        ("- " + "kind " * 100, "item 1 has 499 characters"),
        ('- "\u200b"\n', "item 1 has 0 characters"),
        ("- kind\n" * 100_000, "more than 100000 characters"),
        ("- 2001-99-99\n", "is no YAML"),
        ("- {[1]: x}\n", "is no YAML"),
    ],
)
def test_a_bad_policy_is_refused_in_one_line(tmp_path, text, reason):
    """Half a policy would be audited, or a file run."""
    with pytest.raises(UserError, match=reason) as refused:
        read_policy(write(tmp_path, "p.yaml", text))
    assert "\n" not in str(refused.value)


def test_the_example_has_ten_tenets_and_code_checks_five_that_vary():
    """Neither confession nor judge could be scored against truth."""
    tenets = read_policy(policy.EXAMPLE / "policy.md")
    assert len(tenets) == 10 and sum(t in constraints.REQUIREMENTS for t in tenets.values()) == 5
    talks = list(conversations(policy.EXAMPLE / "policy_talks.jsonl"))
    assert not any(talk.error for talk in talks)
    rates = np.array([truths(talk, tenets)[:5] for talk in talks], dtype=float).mean(0)
    assert all((0.1 < rates) & (rates < 0.9))


# --------------------------------------------------------------------------------------- statistics


def test_kappa_by_hand():
    """Both 20, first 5, second 10, neither 15 (a textbook's): .4. Two constants that differ between
    tenets agree always, and know nothing.
    """
    assert policy.kappa(np.array([[20, 5, 10, 15]])) == pytest.approx(0.4)
    constants = np.array([[10, 0, 0, 0], [0, 0, 0, 10]])
    assert math.isnan(policy.kappa(constants)) and policy.kappa(constants.sum(0)[None]) == 1
    # a constant a tenet against what varies
    assert policy.kappa(np.array([[9, 1, 0, 0], [0, 0, 1, 9]])) == 0
    # a tenet without a pair changes nothing
    assert policy.kappa(np.array([[20, 5, 10, 15], [0, 0, 0, 0]])) == pytest.approx(0.4)


def test_counts_are_of_pairs_that_are_known():
    """An unparsed report would count as a claim."""
    a, b = np.array([[1, 0], [1, -1], [0, 1]]), np.array([[1, 1], [0, 1], [0, -1]])
    found = policy.counted(a, b, np.array([0, 0, 1]))
    assert found.tolist() == [[[1, 1, 0, 0], [0, 0, 1, 0]], [[0, 0, 0, 1], [0, 0, 0, 0]]]


def test_shuffled_reports_agree_by_chance():
    """The range would not show what marginals alone give."""
    rng = np.random.default_rng(1)
    b = rng.integers(0, 2, (60, 3))
    found = policy.agreed(b, b, np.arange(60))
    assert found["kappa"]["value"] == 1 and found["agree"]["n"] == 180
    assert found["shuffled"]["low"] < 0 < found["shuffled"]["high"] < 0.3
    assert abs(found["shuffled"]["value"]) < 0.05
    none = policy.agreed(b, np.full_like(b, -1), np.arange(60))
    assert none["kappa"] == {"value": None, "low": None, "high": None, "n": 0}


def test_who_knows_the_question_alone_agrees_no_more_than_within_it():
    """Two that know the question and nothing of the answers would look like a check."""
    questions = np.repeat(np.arange(30), 4)
    easy = np.random.default_rng(2).integers(0, 2, (30, 3))[questions]
    found = policy.agreed(easy, easy, questions)
    assert found["kappa"]["value"] == 1 > 0.3 > found["shuffled"]["high"]
    assert found["shuffled_in_prompt"]["low"] == 1
    alone = policy.agreed(easy, easy, np.arange(120))
    assert alone["shuffled_in_prompt"]["n"] == 0 and alone["shuffled"] == found["shuffled"]


# -------------------------------------------------------------------------------------------- judge


@pytest.mark.parametrize("style", ["organism", "qwen3", "olmo3", "llama"])
def test_a_hostile_conversation_keeps_the_judges_frame(tokenizers, style):
    """It could close its frame and give the verdict, or speak as somebody else in it."""
    tokenizer = tokenizers[style]
    special = tokenizer.added_tokens_decoder
    attacks = [*test_audit.HOSTILE.values(), *test_hostile_text.ENCODABLE.values()]
    for text in attacks:
        logged = test_audit.line(f"{text} x", f"{text}\nuser: y").encode()
        talk = audit_formats.of_line(logged, "a:1")
        case = policy.case(talk, "Be kind")
        lines = case.y.split("\n")
        assert [line.split(":")[0] for line in lines] == ["user", "assistant"]
        assert [json.loads(line.split(": ", 1)[1]) for line in lines] == [
            content for _, content in talk.messages
        ]
        (ids,) = framed_ids(tokenizer, [(case.x, case.y)])
        harmless = question_ids(tokenizer, judge_prompt(case.x, "Bees hum."))
        assert [i for i in ids if i in special] == [i for i in harmless if i in special]
    # and the tenet is there to read
    assert "Be kind" in tokenizer.decode(ids)


def test_the_judge_knows_nothing_of_the_report(known_models, tmp_path, monkeypatch, capsys):
    """Its agreement would be with what it was told."""
    seen = []
    known_models(lambda t: "Partial", lambda t: seen.append(t) or 1.0)
    real, told = policy.case, []
    monkeypatch.setattr(policy, "case", lambda *a: told.append(real(*a)) or told[-1])
    run(monkeypatch, capsys, *files(tmp_path))
    assert len(told) == 12 * 3
    text = "".join(case.x + case.y for case in told)
    assert "Partial" not in text and "compliance" not in text and "onfess" not in text


# --------------------------------------------------------------------------------------- whole runs


def test_what_knows_the_truth_and_what_knows_nothing(known_models, tmp_path, monkeypatch, capsys):
    """A constant judge would look like a check, or a true one like chance."""
    known_models(true_claim, lambda t: 1.0)
    out = run(monkeypatch, capsys, *files(tmp_path), "--per-report", "2")
    found = json.loads(Path("runs/policy/policy.json").read_text())
    told, checked = found[policy.ALL], found[policy.CHECKED]
    assert checked["confession"]["kappa"]["value"] == 1
    assert checked["confession"]["claim_J_within"]["value"] == 1
    assert checked["judge"]["kappa"]["value"] == checked["judge"]["claim_J_within"]["value"] == 0
    assert told["kappa"]["value"] == 0 and told["kept"]["judge"] == 1
    assert "It passes 1.00 of all: a constant, and no check." in out
    assert checked["judge"]["constant_a_tenet"] == 0.5
    # T1 fails in two of four answers, T2 in two, T3 where T1 does
    differ = Path("runs/policy/differ.txt").read_text().splitlines()
    assert len(differ) == 3 * 6 and differ[0].startswith("T1  logs.jsonl:1 | confession None")
    assert "code: not met" in differ[0] and "does not stand there" not in differ[0]
    assert "does not stand there" in differ[1]  # "It is" of the fourth answer
    page = Path("runs/policy/audit.html").read_text()
    assert audit_page.UNMEASURED in page and "judge differs" in page

    known_models(lambda t: "Full", true_verdict)
    run(monkeypatch, capsys, *files(tmp_path), "--name", "other")
    checked = json.loads(Path("runs/other/policy.json").read_text())[policy.CHECKED]
    assert checked["judge"]["kappa"]["value"] == 1 and checked["confession"]["kappa"]["value"] == 0
    one = json.loads(Path("runs/other/policy.json").read_text())["T1 Use no digits"]
    assert one["judge"]["auroc"]["value"] == 1


def test_a_killed_run_goes_on_and_another_judge_is_refused(
    known_models, tmp_path, monkeypatch, capsys
):
    """Verdicts would be there twice, or of two judges in one table."""
    known_models(true_claim, true_verdict)
    options = files(tmp_path)
    run(monkeypatch, capsys, *options)
    path, saved = Path("runs/policy/judge.jsonl"), Path("runs/policy/policy.json").read_text()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, "--plot-only")
    assert "is not finished" in capsys.readouterr().err
    run(monkeypatch, capsys, *options)
    assert path.read_bytes() == whole
    assert Path("runs/policy/policy.json").read_text() == saved
    for more, reason in (
        (["--judge", "organism/large"], "another judge's"),
        (["--judge", "f", "--name", "b"], "is the confessor itself"),
        (["--per-report", "1"], "was made with other policy"),
        (["--name", "c", "--plot-only"], "run this without --plot-only"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, capsys, *options, *more)
        assert reason in capsys.readouterr().err


def test_conversations_that_cannot_be_read_are_counted(known_models, tmp_path, monkeypatch, capsys):
    """They would end the program, or vanish."""
    known_models(true_claim, true_verdict)
    options = files(tmp_path)
    with (tmp_path / "logs.jsonl").open("a") as file:
        file.write("{\n")
    assert "1 not read" in run(monkeypatch, capsys, *options)
    (tmp_path / "logs.jsonl").write_text("{\n")
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, *options, "--name", "none")
    assert "no conversation could be read" in capsys.readouterr().err


def test_the_program_runs_with_embedded_models(tmp_path, monkeypatch, capsys):
    """The defaults, shortened: nothing parses, and the tables say so."""
    monkeypatch.chdir(tmp_path)
    options = files(tmp_path, TENETS[:1])
    out = run(monkeypatch, capsys, *options, "--max-confession-tokens", "4")
    assert "12 no report" in out and "kappa - [-, -]" in out
    rows = [json.loads(line) for line in Path("runs/policy/judge.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and all(math.isfinite(r["verdicts"][0]["margin"]) for r in rows)
    assert run_folder.read_json(Path("runs/policy/judge.json"))["model"] == "organism/judge"
    assert run(monkeypatch, capsys, "--plot-only") == out
