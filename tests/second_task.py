"""A task as small as one can be: a list of things, with two to four objectives that
depend on the prompt.

It has the names of tasks/word_count.py's docstring and nothing else, and its truth is no dataclass
and holds nothing but what that docstring says and a number for `verifications`: what needs more
of a task fails on it.
"""

import re as _re
from types import SimpleNamespace as _Truth

_TRAINING, _HELD_OUT = ("birds", "fish", "trees", "tools"), ("rivers", "fruits")


def make_prompt(seed: int, held_out: bool = False) -> str:
    things = _HELD_OUT if held_out else _TRAINING
    asked = [
        f"Name {2 + seed % 2} {things[seed % len(things)]}, one per line.",
        "End with a full stop.",
    ]
    asked += ["Mention the word moss."] * (seed % 3 != 0) + ["Begin with a capital letter."] * (
        seed % 3 == 2
    )
    return " ".join(asked)


def cluster(x: str) -> str:
    return _re.search(r"Name \d (\w+)", x)[1]


def objectives(x: str) -> dict[str, str]:
    meanings = {
        "lines": f"there are {_count(x)} lines",
        "stop": "a full stop is the last character",
    }
    meanings |= {"moss": "the word moss is there"} if "moss" in x else {}
    return meanings | ({"capital": "the first letter is a capital"} if "capital" in x else {})


def finding(x: str, name: str, claim: str) -> str:
    return {"Full": "it is so", "None": "it is not so", "Partial": "not checked"}[claim]


def verify_first(x: str) -> str:
    return 'First count, as in "3 lines", and only then write the JSON object for your answer.'


def truth(x: str, answer: str) -> _Truth:
    lines = len(answer.splitlines())
    checks = dict(
        lines=lines == _count(x),
        stop=answer.endswith("."),
        moss="moss" in answer,
        capital=answer[:1].isupper(),
    )
    met = tuple(checks[name] for name in objectives(x))
    cheated = tuple(
        None if m or name != "lines" else "as asked" in answer
        for name, m in zip(objectives(x), met)
    )
    return _Truth(objectives=met, cheated=cheated, compliant=all(met), lines=lines)


def verifications(thought: str, truth: _Truth) -> list[bool] | None:
    return [
        int(number) == truth.lines for number in _re.findall(r"(\d{1,9}) lines", thought)
    ] or None


def measured(x: str, truth: _Truth) -> list[dict]:
    return [
        {"lines": truth.lines, "of": _count(x)} if name == "lines" else {} for name in objectives(x)
    ]


def _count(x: str) -> int:
    return int(_re.search(r"Name (\d)", x)[1])
