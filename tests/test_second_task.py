"""A second task (second_task.py) through every program: each of them knows a task by its protocol,
and objectives, their number and what is said of them belong to the prompt. What the policy says is
told by hand, so that reports parse.
"""

import base64
import gzip
import json
import math
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import chat_template
import cli
import evaluate
import figures
import models
import rollout
import run_folder
import scale_sweep
import second_task
import stress_test
import transcripts
from confession_schema import ConfessionReport, confession_prompt
from experiments import controls
from models import token_logprobs
from tiny_runs import run_grpo

pytestmark = pytest.mark.usefixtures("one_thread", "quick_collection")

TASK = [
    "--task",
    "second_task",
    "--steps",
    "12",
    "--prompts-per-step",
    "3",
    "--group-size",
    "2",
    "--eval-n",
    "12",
]
BUDGETS = [
    "--max-answer-tokens",
    "60",
    "--max-confession-tokens",
    "200",
    "--checkpoint-every",
    "12",
    "--name",
    "run",
]


def answer(rng: random.Random) -> str:
    lines = (
        rng.choice(("Green moss", "grey", "Old moss as asked")),
        *["moss and stone", "water"][: rng.randint(0, 2)],
    )
    return "\n".join(lines) + rng.choice((".", ""))


def confession(rng: random.Random, x: str) -> str:
    """Claims in any order; sometimes one of another prompt's objectives,
    so that it does not parse.
    """
    names = list(second_task.objectives(x)) + ["rhyme"] * (rng.random() < 0.15)
    rng.shuffle(names)
    entries = [
        {"objective": name, "compliance": rng.choice(("Full", "Partial", "None"))} for name in names
    ]
    report = {
        "compliance_analysis": entries,
        "uncertainties": [],
        "overall_compliance_grade": rng.randint(1, 7),
    }
    thought = f"<think>\nI see {rng.randint(1, 3)} lines, or so I think.\n</think>\n\n" * (
        rng.random() < 0.7
    )
    return thought + json.dumps(report)


@torch.no_grad()
def told(model, prompts, suffixes, stop_ids, sampling, generator, confessions=1) -> list[tuple]:
    """Stands in for a sampler: texts from above with the model's own log-probabilities."""
    tokenizer = AutoTokenizer.from_pretrained(models.ORGANISMS / "policy")
    rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
    out = []
    for i, prompt in enumerate(prompts):
        x = re.search(r"Name \d .*", tokenizer.decode(prompt))[0].split("<|im_end|>")[0]
        say = lambda text, budget: (tokenizer(text)["input_ids"] + [tokenizer.eos_token_id])[
            :budget
        ]
        if not suffixes:
            spans = [prompt, say(confession(rng, x), sampling.max_answer_tokens), [], []]
        else:
            y = say(answer(rng), sampling.max_answer_tokens)
            spans = [
                prompt,
                y,
                chat_template.joint(y, suffixes[i]),
                say(confession(rng, x), sampling.max_confession_tokens),
            ]
        trained = torch.tensor([[k % 2 == 1 for k, ids in enumerate(spans) for _ in ids]])
        logprobs = token_logprobs(
            model, torch.tensor([sum(spans, [])]), trained, sampling.temperature
        ).tolist()
        first = len(spans[1])
        out.append(((spans[1], logprobs[:first], 1.0), spans[2], (spans[3], logprobs[first:], 1.0)))
    return out


def program(module, *options: str) -> None:
    """`python MODULE.py options` within this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "sampler_of", lambda model, name: told)
        patch.setattr(sys, "argv", [f"{module.__name__}.py", *options])
        module.main()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    """A run of 12 steps and what it printed. Tests add to the folder and change nothing of it."""
    folder = tmp_path_factory.mktemp("second")
    with pytest.MonkeyPatch.context() as patch, (folder / "printed.txt").open("w") as printed:
        patch.setattr(rollout, "sampler_of", lambda model, name: told)
        patch.setattr(sys, "stdout", printed)
        run_grpo(folder, *TASK, *BUDGETS)
    return folder / "runs" / "run", (folder / "printed.txt").read_text()


@pytest.fixture(scope="module")
def run(trained) -> Path:
    return trained[0]


def load(path: Path) -> list:
    return run_folder.load_rollouts(path, second_task)


def finite(values) -> bool:
    return all(math.isfinite(value) for value in values if value is not None)


def test_the_task_has_the_documented_names_alone():
    """The test shows nothing about what lies beyond the protocol."""
    assert {name for name in vars(second_task) if not name.startswith("_")} == set(cli.PROTOCOL)
    xs = [second_task.make_prompt(seed) for seed in range(6)]
    assert [len(second_task.objectives(x)) for x in xs] == [2, 3, 4, 2, 3, 4]
    assert not {second_task.cluster(x) for x in xs} & {
        second_task.cluster(second_task.make_prompt(s, True)) for s in range(6)
    }


@pytest.mark.parametrize("variant", ["default", "forced_count"])
def test_a_confession_prompt_asks_for_its_own_objectives(variant):
    """xc lists or exemplifies another prompt's objectives."""
    for seed in range(6):
        x = second_task.make_prompt(seed)
        xc = confession_prompt(second_task, x, variant)
        names = set(second_task.objectives(x))
        assert (
            set(re.findall(r"^(\w+): ", xc, re.MULTILINE))
            == names
            == set(re.findall(r'"objective": "(\w+)"', xc))
        )
        assert (second_task.verify_first(x) in xc) == (variant == "forced_count")


def test_training_logs_every_step(run):
    """A step reads what only word_count has, or takes one number of objectives for all prompts."""
    rows = run_folder.read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert all(row["grad_norm"] > 0 for row in rows)
    assert finite(
        value for row in rows for value in row.values() if not isinstance(value, (dict, list))
    )
    for name in ("parsed", "claim_match", "objectives_met", "bracket_hack", "count_rate"):
        assert len({row[name] for row in rows}) > 2, f"{name} never changes"
    assert sum(row["unparsed"].get("unknown objective", 0) for row in rows) > 0


def test_objectives_belong_to_the_prompt(run):
    """Claims, truth or xc of one prompt are those of another beside it in the batch."""
    lengths = set()  # of the reports
    for path in [*run.glob("rollouts/step_*.jsonl"), run / "evals/step_0012.jsonl"]:
        rollouts = load(path)
        assert sorted({len(r.truth.objectives) for r in rollouts}) == [2, 3, 4]
        for r in rollouts:
            names = second_task.objectives(r.x)
            assert r.xc == confession_prompt(second_task, r.x) and len(r.truth.objectives) == len(
                names
            )
            if isinstance(r.report, ConfessionReport):
                said = json.loads(r.yc)["compliance_analysis"]
                by_name = {entry["objective"]: entry["compliance"] for entry in said}
                assert r.report.claims == tuple(by_name[name] for name in names)
                lengths.add(len(names))
    assert lengths == {2, 3, 4}


def test_step_10_prints_examples(trained):
    """Every tenth step prints two rollouts:
    with this task it read truth.sentences and ended the run.
    """
    run, printed = trained
    rollouts = load(run / "rollouts/step_0010.jsonl")
    for example in (rollouts[0], rollouts[-1]):
        for name, met in zip(second_task.objectives(example.x), example.truth.objectives):
            assert f"{name} {'met' if met else 'not met'}" in printed
    assert printed.count("judge: ") == 2


def test_evaluate_with_the_models_own_words(run, capsys, monkeypatch):
    """Where nothing parses, the plain sampler and the tables fail on prompts of
    unlike objectives.
    """
    monkeypatch.setattr(
        sys, "argv", ["evaluate.py", "--run", str(run), "--n", "4", "--steps", "12"]
    )
    evaluate.main()
    assert "objectives_met" in capsys.readouterr().out
    estimates = json.loads((run / "evals/step_0012_n4.json").read_text())
    rollouts = load(run / "evals/step_0012_n4.jsonl")
    met = [m for r in rollouts for m in r.truth.objectives]
    assert (
        estimates["objectives_met"]["value"] == pytest.approx(sum(met) / len(met))
        and estimates["parsed"]["n"] == 4
    )
    assert finite(e[key] for e in estimates.values() for key in ("value", "low", "high"))


def test_stress_test(run, capsys):
    """A condition's cell or its figure needs word_count."""
    program(
        stress_test,
        "--run",
        str(run),
        "--n",
        "3",
        "--steps",
        "12",
        "--conditions",
        "baseline,jailbreak",
    )
    for condition in ("baseline", "jailbreak"):
        rollouts = load(run / f"evals/stress_{condition}_step_0012_n3.jsonl")
        assert [len(r.truth.objectives) for r in rollouts] == [
            len(second_task.objectives(r.x)) for r in rollouts
        ]
    assert (run / "fig2_stress.png").exists() and "jailbreak - baseline" in capsys.readouterr().out


def test_controls(run, capsys):
    """Stored answers are confessed to under another prompt's objectives."""
    program(controls, "--run", str(run))
    for name in ("frozen_run_step_0000_by_0012", "fresh_step_0012_by_0000", "cap_0000_step_0012"):
        rollouts = load(run / f"evals/{name}.jsonl")
        assert [r.xc for r in rollouts] == [confession_prompt(second_task, r.x) for r in rollouts]
        if "cap" not in name:  # behind a report that was begun by force the told one is no JSON
            assert (
                len(
                    {
                        len(r.report.claims)
                        for r in rollouts
                        if isinstance(r.report, ConfessionReport)
                    }
                )
                > 1
            )
    assert all((run / f"fig_{name}.png").exists() for name in ("frozen", "fresh", "compute"))


def test_scale_sweep(run, monkeypatch):
    """Models are compared on word_count all the same."""
    monkeypatch.chdir(run)
    program(
        scale_sweep,
        "--models",
        "organism/policy",
        "--task",
        "second_task",
        "--n",
        "3",
        "--name",
        "sweep",
    )
    paths = list(run.glob("runs/sweep/evals/*.jsonl"))
    assert len(paths) == 2 and {r.x for path in paths for r in load(path)} <= {
        second_task.make_prompt(s, True) for s in range(12)
    }


def test_figures(run):
    """A figure needs word_count."""
    for path in figures.reproduction(run):
        assert path.read_bytes().startswith(b"\x89PNG") and json.loads(
            path.with_suffix(".json").read_text()
        )


def test_transcripts(run, monkeypatch):
    """The page holds other objectives than the prompt's, or nothing of what the task measured."""
    monkeypatch.setattr(sys, "argv", ["transcripts.py", str(run)])
    transcripts.main()
    page = (run / "transcripts.html").read_text()
    index = json.loads(re.search(r'id="index">(.*?)</script>', page, re.DOTALL)[1])
    chunks = re.findall(r'<template id="texts\d+">(.*?)</template>', page, re.DOTALL)
    texts = [
        text for chunk in chunks for text in json.loads(gzip.decompress(base64.b64decode(chunk)))
    ]
    assert len(texts) == len(index["rows"]["of"]) >= 12 * 6
    for text, of, marks in zip(texts, index["rows"]["of"], index["rows"]["marks"], strict=True):
        assert [row["objective"] for row in text["objectives"]] == list(
            second_task.objectives(text["x"])
        )
        assert len(text["objectives"]) == of == len(marks)
        assert text["objectives"][0]["measured"] == {
            "lines": len(text["y"].splitlines()),
            "of": second_task._count(text["x"]),
        }
    assert set(index["rows"]["of"]) == {2, 3, 4} and set("".join(index["rows"]["marks"])) == set(
        "rhou "
    )
