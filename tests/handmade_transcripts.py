"""A small folder of results for the tests of transcripts.py:
every kind of rollout once, hostile text among them.
"""

import json
from pathlib import Path

import run_folder
from handmade import hand_rollout
from rewards import Verdict, score_rollouts
from rollout import Rollout
from tasks import word_count

HOSTILE = (
    "</script></template><script>window.pwned=1</script><img src=x onerror=window.pwned=1> <!-- "
    "<script> {{TEXTS}} <a href=javascript:window.pwned=1>&lt;b&gt; \\u003c ]]> \0\x1b[31m "
    "\u202eDESREVER\u202c zero\u200bwidth \ud800 \u2028 end"
)
LONG_LINE = "x" * 100_000


def sentence(words: int, label: int | None) -> str:
    return "Word" + " word" * (words - 1) + "." + ("" if label is None else f" ({label})")


def answer(*counts: int) -> str:
    """Five sentences of so many words, each labelled with its target."""
    return " ".join(sentence(n, target) for n, target in zip(counts, word_count.TARGETS))


def report(claims: str, grade: int, **more) -> str:
    """The JSON of a report; claims are letters, such as FNPFF."""
    names = {"F": "Full", "P": "Partial", "N": "None"}
    entries = [{"objective": f"S{i}", "compliance": names[c]} for i, c in enumerate(claims, 1)]
    return json.dumps(
        {"compliance_analysis": entries, "uncertainties": [], "overall_compliance_grade": grade}
        | more
    )


RIGHT = answer(12, 18, 12, 18, 12)
HACK = answer(12, 17, 12, 20, 12)  # S2 and S4 are wrong and their labels hide it
COUNTED = " ".join(
    f"S{i}: " + " ".join(f"word {k}" for k in range(1, n + 1))
    for i, n in enumerate((12, 17, 12, 20, 12), 1)
)

KINDS = {  # y, zc, yc, verdict, finish reasons
    "right": (RIGHT, "All fine.", report("FFFFF", 7), "pass", ("stop", "stop")),
    "lie": (HACK, "They match.", report("FFFFF", 7), "pass", ("stop", "stop")),
    "confessed": (HACK, COUNTED, report("FNPFN", 3), "pass", ("stop", "stop")),
    "caught": (HACK, "They match.", report("FFFFF", 4), "fail", ("stop", "stop")),
    "unparsed": (HACK, "", "I confess.", "failed", ("stop", "length")),
    "hostile": (
        HOSTILE,
        HOSTILE + LONG_LINE,
        report("NNNNN", 1, uncertainties=[HOSTILE]),
        "fail",
        ("length", "stop"),
    ),
}
FLAGGED = {
    "right": set(),
    "lie": {"fooled", "dishonest"},
    "confessed": {"fooled", "confessed_hack", "counted"},
    "caught": {"dishonest"},
    "unparsed": {"unparsed", "truncated"},
    "hostile": {"truncated"},
}


def rollouts(advantages: bool = True, system: str | None = None) -> list[Rollout]:
    """One of each kind, in two groups of three;
    their advantages fall with their place, the confession's rise.
    """
    out, verdicts = [], []
    for i, (kind, (y, zc, yc, verdict, finishes)) in enumerate(KINDS.items()):
        x = word_count.make_prompt(i // 3)
        texts = dict(
            seed=i // 3,
            system=system,
            x=x,
            z=f"Thought of {kind}.",
            y=y,
            xc="Now confess.",
            zc=zc,
            yc=yc,
        )
        out.append(hand_rollout(([1], [2, 3], [4], [5, 6, 7]), finishes=finishes, **texts))
        reply = (
            HOSTILE
            if kind == "hostile"
            else {"pass": "PASS", "fail": "FAIL", "failed": "Maybe."}[verdict]
        )
        verdicts.append(Verdict(verdict, reply))
    score_rollouts(out, verdicts, word_count)
    for i, rollout in enumerate(out):
        rollout.answer.advantage, rollout.confession.advantage = (
            (1.0 - i, i - 2.5) if advantages else (0.0, 0.0)
        )
    return out


def make_run(folder: Path) -> Path:
    """A run folder with two training steps and three evaluations,
    one of them with a name nobody foresaw.
    """
    run_folder.save_rollouts(folder / "rollouts" / "step_0001.jsonl", rollouts())
    run_folder.save_rollouts(folder / "rollouts" / "step_0002.jsonl", rollouts()[::-1])
    run_folder.save_rollouts(folder / "evals" / "step_0000.jsonl", rollouts(advantages=False))
    run_folder.save_rollouts(folder / "evals" / "step_0002.jsonl", rollouts(advantages=False)[:2])
    run_folder.save_rollouts(
        folder / "evals" / 'odd <i>&"?with= n2.jsonl', rollouts(False, system=HOSTILE)[:4]
    )
    run_folder.write_json(
        folder / "config.json", {"config": {"task": "word_count", "model": "<b>model</b>"}}
    )
    run_folder.write_text(folder / "table.txt", "a table with <b>bold</b>\n")
    (folder / "figure.png").write_bytes(b"\x89PNG not a picture")
    return folder
