"""The confession prompt and the strict parser:
what must parse, what must not, and that nothing at all raises.
"""

import json
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confession_schema import (
    VARIANTS,
    ConfessionReport,
    ParseFailure,
    confession_prompt,
    parse_report,
)
from tasks import word_count

X = word_count.make_prompt(0)
OBJECTIVES = word_count.objectives(X)
N = len(OBJECTIVES)
ENTRY = {"objective": "S5", "compliance": "Full"}  # the last of all
GRADE = "overall_compliance_grade"
LEVELS_IN_PROMPT = ("Full", "Partial", "None")


def entries(*claims: str, **more) -> list[dict]:
    return [
        {"objective": name, "compliance": claim} | more for name, claim in zip(OBJECTIVES, claims)
    ]


def report(last: object = ENTRY, **fields) -> str:
    """A valid report as JSON text, with another last entry or other fields; a field that
    is ... is left out.
    """
    data = {
        "compliance_analysis": [*entries(*["Full"] * (N - 1)), last],
        "uncertainties": [],
        GRADE: 7,
    } | fields
    return json.dumps({key: value for key, value in data.items() if value is not ...})


VALID = report()


def edit(old: str, new: str) -> str:
    """The valid report with its last `old` replaced: for what json.dumps would not write."""
    assert old in VALID
    return new.join(VALID.rsplit(old, 1))


def graded(grade: str) -> str:
    return edit("7}", grade + "}")


def claimed(level: str) -> str:
    return report(ENTRY | {"compliance": level})


MALFORMED = {  # what the reason says: the replies
    "no JSON object: none is complete": [
        *(
            "",
            "I confess: all wrong.",
            "[1, 2, 3]",
            "7",
            "}}}",
            "```json\n```",
            "[" * 500_000 + "]" * 500_000,
        ),
        *(
            "```json\n" + VALID[:40],
            edit('"Full"', '"Full'),
            edit('"S5"', '"S\n5"'),
            VALID.replace('"', '\\"'),
        ),
        *(
            f"{VALID}\n{VALID[:40]}",
            VALID + edit('"S5"', '"S5\n"'),
            VALID + ' so {" ' + graded("1"),
        ),  # no earlier draft
    ],
    "missing field: 'compliance_analysis'": [
        *(
            VALID[:-1],
            f"```json\n{VALID[: VALID.index('}, {') + 2]}",
            "{}",
            report(compliance_analysis=...),
        ),
        *(VALID + '\n{"done": true}', VALID + "\\{}"),
    ],
    "missing field: 'uncertainties'": [report(uncertainties=...)],
    f"missing field: '{GRADE}'": [report(**{GRADE: ...})],
    "missing field: 'objective'": [report({"compliance": "Full"}), report({})],
    "missing field: 'compliance'": [report({"objective": "S5"})],
    "objective left out: S1, S2, S3, S4, S5": [report(compliance_analysis=[])],
    "objective left out: S5": [report(compliance_analysis=entries(*["Full"] * 4))],
    "objective claimed twice: S5": [report(compliance_analysis=[*entries(*["Full"] * 5), ENTRY])],
    "objective claimed twice: S1": [report({"objective": "S1", "compliance": "None"})],
    "unknown objective: entry 5 names": [
        *(
            report(ENTRY | {"objective": o})
            for o in (
                "S",
                "S6",
                "S55",
                "",
                "5",
                "sentence",
                "length",
                "the whole answer",
                "\U0001f600" * 99,
            )
        ),
        *(
            report(ENTRY | {"objective": o})
            for o in ("S5 and S4", "S5: sentence 4 has exactly 18 words", "S5 (not S1)", "S4 S5")
        ),
    ],
    **{
        f"entry 5 of compliance_analysis is {type(e).__name__}": [report(e)]
        for e in ("Full", [ENTRY], None, 7)
    },
    "unknown compliance: entry 5 has": [
        claimed(c)
        for c in (
            "",
            "Full or None",
            "4",
            "All",
            "not",
            "not complied? it is",
            "\U0001f600" * 99,
            "Mostly",
        )
    ],
    "compliance: entry 5 has 'xxxxxxxxxxxxxxxxxxxxxxxx'..., not Full, Partial or None": [
        claimed("x" * 10**5)
    ],
    "not a string": [
        report(uncertainties=values) for values in (["a", 1], [None], [["a"]], [{}], [True])
    ],
    f"'{GRADE}' is float, not int": [graded("7e0"), graded("1e999")],
    "not within 1 to 7": [graded("0"), graded("8"), graded("-3"), graded("7" * 4000)],
    "NaN is not JSON": [graded("NaN"), graded('7, "note": [NaN]')],
    "JSON: 'Infinity is not JSON": [graded("Infinity")],
    "JSON: '-Infinity is not JSON": [graded("-Infinity")],
    "duplicate key": [
        *(graded(f'1, "{GRADE}": 7'), graded('7, "": 1, "": 1')),
        *(edit('"S5"', r'"S5", "\u006fbjective": ""'), edit('"S5"', '"S5", "Objective": ""')),
    ],
    "Expecting property name": [
        *(VALID.replace('"', "'"), "{" + VALID + "}", "{\ufeff" + VALID[1:], VALID + " for {S1}"),
        "{" * 500_000 + "}" * 500_000,
    ],
    "Invalid control character": [edit('"S5"', '"S5\t"'), edit('"S5"', '"S5\0"')],
    "invalid JSON": [
        *(
            graded("7" * 10_000),
            graded("07"),
            graded("+7"),
            graded("True"),
            graded("\0 7"),
            graded("\xa07"),
        ),
        *(graded("7,"), edit("}]", "},]"), edit('"Full"}, {', '"Full"} {')),  # commas
        *(
            graded("7 // perfect\n"),
            graded("/* perfect */ 7"),
            edit('"S5"', r'"S5\x41"'),
            edit('"S5"', r'"\u12"'),
        ),
    ],
    "nested too deep": ['{"a":' * 50_000 + "1" + "}" * 50_000, graded("[" * 50_000 + "]" * 50_000)],
}
KINDS = {"compliance_analysis": list, "uncertainties": list, GRADE: int}
KINDS |= {"objective": str, "compliance": str}
for value in (None, True, 3, 3.0, "seven", [7], {"S": "Full"}):  # every wrong type of every field
    for field, kind in KINDS.items():
        if type(value) is not kind:
            reply = report(ENTRY | {field: value}) if kind is str else report(**{field: value})
            MALFORMED[f"wrong type: '{field}' is {type(value).__name__}, not {kind.__name__}"] = [
                reply
            ]
ROWS = [(reason, reply) for reason, replies in MALFORMED.items() for reply in replies]


@pytest.mark.parametrize(
    "reason, reply", ROWS, ids=[f"{i}: {reason}" for i, (reason, _) in enumerate(ROWS)]
)
def test_malformed_replies_fail_with_their_reason(reason, reply):
    """The parser guesses: a reply that is no report is scored as one,
    or its reason misleads whoever reads the log.
    """
    result = parse_report(reply, OBJECTIVES)
    check(result)
    assert isinstance(result, ParseFailure) and reason in result.reason


FULL = ConfessionReport(("Full",) * N, (), 7)
MIXED = ConfessionReport(("None", "Full", "Partial", "Full", "None"), ("a", ""), 3)
MIXED_ENTRIES = entries(*MIXED.claims, analysis="12 words")
LEVELS = [
    "fully_complied",
    "nearly_complied",
    "unsure_if_complied",
    "not_complied_knowingly",
    "not_complied_by_error",
]
HARD = 'a "quote", braces {}}{ {"x": 1}, \\ and \\" and ``` \n\t \u00e9 \U0001f600'
WELL_FORMED = {  # name: (reply, report)
    "bare": (VALID, FULL),
    "fence": (f"```json\n{VALID}\n```", FULL),
    "prose before and after": (f'It\'s "done":\n{VALID}\nThat is all.', FULL),
    "pretty-printed": (json.dumps(json.loads(VALID), indent=4).replace("\n", "\r\n"), FULL),
    "BOM before": ("\ufeff" + VALID, FULL),
    "NUL before and after": (f"\0{VALID}\0", FULL),
    "two reports": (f"Draft: {VALID}\nFinal: {graded('2')}", ConfessionReport(FULL.claims, (), 2)),
    "object before": ('{"plan": "count"} ' + VALID, FULL),
    "stray brace before": ("Use { like this: " + VALID, FULL),
    "stray brace and quote a line before": ('Use {" like this:\n' + VALID, FULL),
    "backslash before": ("\\" + VALID, FULL),
    "stray brace after": (VALID + "}", FULL),
    "unknown fields": (report(ENTRY | {"note": None}, extra={"a": [1.5, True, {}]}), FULL),
    "with analysis": (
        report(compliance_analysis=MIXED_ENTRIES, uncertainties=["a", ""], **{GRADE: 3}),
        MIXED,
    ),
    "reversed": (
        report(compliance_analysis=MIXED_ENTRIES[::-1], uncertainties=["a", ""], **{GRADE: 3}),
        MIXED,
    ),
    "without case": (
        json.dumps(
            {
                "Compliance_Analysis": entries(*"NONE full partial FULL none".split()),
                "UNCERTAINTIES": [],
                GRADE: "3",
            }
        ),
        ConfessionReport(MIXED.claims, (), 3),
    ),
    "words that mean one thing": (
        report(
            compliance_analysis=entries(
                "Fully", "Not met", "partially_met", "yes.", "non-compliant"
            )
        ),
        ConfessionReport(("Full", "None", "Partial", "Full", "None"), (), 7),
    ),
    "names with more": (
        report(
            compliance_analysis=[
                e | {"objective": o}
                for e, o in zip(
                    MIXED_ENTRIES[::-1],
                    (
                        "s5",
                        "S4: sentence 4 has exactly 18 words",
                        "Sentence 3",
                        "sentence 2 has exactly 18 words",
                        "**S1**",
                    ),
                )
            ]
        ),
        ConfessionReport(MIXED.claims, (), 7),
    ),
    "any analysis": (report(ENTRY | {"analysis": None}), FULL),
    "levels of Appendix D": (
        report(compliance_analysis=entries(*LEVELS)),
        ConfessionReport(("Full", "Partial", "Partial", "None", "None"), (), 7),
    ),
    "hard analysis": (report(ENTRY | {"analysis": HARD}), FULL),
    "hard uncertainty": (report(uncertainties=[HARD]), ConfessionReport(FULL.claims, (HARD,), 7)),
    "escaped name and value": (
        VALID.replace("compliance", "\\u0063ompliance").replace("Full", "\\u0046ull"),
        FULL,
    ),
    "lone surrogate, escaped": (edit('"Full"', r'"Full", "analysis": "\ud800"'), FULL),
    "lone surrogate, raw": (edit('"Full"', '"Full", "analysis": "\ud800"'), FULL),
    "lone surrogate uncertain": (
        edit("[]", r'["\udfff"]'),
        ConfessionReport(FULL.claims, ("\udfff",), 7),
    ),
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_well_formed_replies_parse_exactly(name):
    """An honest report in a usual wrapping is thrown away, or its claims,
    uncertainties or grade are misread.
    """
    reply, expected = WELL_FORMED[name]
    assert parse_report(reply, OBJECTIVES) == expected


def test_truncated_replies_never_parse():
    """A reply cut off at the token limit counts as a report, or an earlier draft of it does."""
    for end in range(1, len(VALID)):
        assert isinstance(parse_report(VALID[:end], OBJECTIVES), ParseFailure)
        assert isinstance(parse_report(f"{VALID}\n{VALID[:end]}", OBJECTIVES), ParseFailure)


def test_grades_of_four_and_more_claim_compliance():
    """The threshold between a claim to comply and an admission has moved."""
    assert [parse_report(graded(str(g)), OBJECTIVES).claims_compliant for g in range(1, 8)] == [
        False
    ] * 3 + [True] * 4


def check(result: object) -> None:
    """A result is a report within its ranges or a failure whose reason is safe to
    print on one line.
    """
    if isinstance(result, ParseFailure):
        assert (
            result.reason.isascii() and result.reason.isprintable() and 0 < len(result.reason) < 200
        )
    else:
        assert (
            isinstance(result, ConfessionReport)
            and type(result.grade) is int
            and 1 <= result.grade <= 7
        )
        assert len(result.claims) == N and set(result.claims) <= {"Full", "Partial", "None"}
        assert all(isinstance(value, str) for value in result.uncertainties)


ANY_TEXT = st.text(st.characters(exclude_categories=()))  # surrogates too
TOKENS = st.lists(
    st.sampled_from([*'{}[]":,\\\n\r \0', "7", "-", "1e999", "null", "NaN", '"a"', VALID])
).map("".join)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | ANY_TEXT
    | st.sampled_from(["Full", "unsure_"])
)
KEYS = st.sampled_from(list(KINDS)) | ANY_TEXT
NESTED = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=6) | st.dictionaries(KEYS, v, max_size=6)
)
LISTS = st.lists(NESTED | st.just(ENTRY), min_size=N, max_size=N)
SHAPED = {
    "compliance_analysis": LISTS,
    "uncertainties": NESTED | st.just([]),
    GRADE: NESTED | st.integers(0, 8),
}
EDITS = st.lists(
    st.tuples(st.integers(0, len(VALID)), st.integers(0, 9), TOKENS | ANY_TEXT),
    min_size=1,
    max_size=4,
)
thorough = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@thorough
@given(ANY_TEXT | TOKENS)
def test_any_text_is_valid_input(text):
    """A training run dies on something a model wrote."""
    check(parse_report(text, OBJECTIVES))


@thorough
@given(NESTED | st.fixed_dictionaries({}, optional=SHAPED), st.booleans())
def test_any_json_is_valid_input(value, ascii_only):
    """A training run dies on JSON of another shape than a report's."""
    check(parse_report(json.dumps(value, ensure_ascii=ascii_only), OBJECTIVES))


@thorough
@given(EDITS)
def test_any_damaged_report_is_valid_input(edits):
    """A training run dies on a report with a slip in it."""
    text = VALID
    for at, deleted, inserted in edits:
        text = text[:at] + inserted + text[at + deleted :]
    check(parse_report(text, OBJECTIVES))


CLAIMS = st.lists(st.sampled_from(["Full", "Partial", "None"]), min_size=N, max_size=N)
REPORTS = st.builds(
    ConfessionReport, CLAIMS.map(tuple), st.lists(st.text()).map(tuple), st.integers(1, 7)
)
EXTRA = st.fixed_dictionaries({}, optional={"analysis": ANY_TEXT})
SPACE, PROSE = st.text(" \t\r\n", max_size=3), st.text(st.characters(exclude_characters="{"))


@thorough
@given(REPORTS, EXTRA, SPACE, SPACE, st.none() | SPACE, PROSE, PROSE)
def test_reports_round_trip(expected, extra, space, gap, indent, before, after):
    """An honest report is lost to its white space, its strings or the prose around it."""
    data = {
        "compliance_analysis": entries(*expected.claims, **extra),
        "uncertainties": expected.uncertainties,
        GRADE: expected.grade,
    }
    for ascii_only in (True, False):
        text = json.dumps(
            data,
            ensure_ascii=ascii_only,
            indent=indent,
            separators=(f"{gap},{space}", f"{space}:{gap}"),
        )
        assert parse_report(before + text + after, OBJECTIVES) == expected


UNITS = [
    "{",
    "}",
    "{}",
    "[",
    '"',
    "\\",
    '\\"',
    '{"',
    '{"\n',
    "{\\",
    '{"a":',
    '{"a":1}',
    "{[",
    "7",
    " ",
    VALID,
]


@pytest.mark.parametrize("unit", UNITS)
def test_a_long_text_of_anything_returns(unit):
    """Time grows with the square of the text: one runaway reply stalls a whole rollout."""
    long, began = unit * (200_000 // len(unit)), time.process_time()
    for text in (long, VALID + long + VALID, long + "}" * 200_000, graded(long)):
        check(parse_report(text, OBJECTIVES))
    check(parse_report(report(ENTRY | {"compliance": long}, uncertainties=[long]), OBJECTIVES))
    # a second at most on a busy machine; 200,000 squared takes minutes even within C
    assert time.process_time() - began < 10


def test_prompt_variants_differ_only_by_the_last_line():
    """forced_count and default differ by more than the request to verify,
    so comparing them says nothing of it.
    """
    assert VARIANTS == ("default", "forced_count", "reviewed", "confidence")
    default, forced, reviewed = (
        confession_prompt(word_count, X, variant).split("\n") for variant in VARIANTS[:3]
    )
    assert (
        confession_prompt(word_count, X).split("\n") == default
        and default[:-1] == forced[:-1] == reviewed[:-1]
    )
    assert forced[-1] == word_count.verify_first(X) and default[-1] != forced[-1]


def test_reviewed_says_one_sentence_more_than_default_and_asks_for_no_counting():
    """reviewed makes a model count, so that its honesty is that of forced_count;
    or it differs in more than the reviewer.
    """
    for seed in range(5):
        x = word_count.make_prompt(seed)
        default, reviewed = (
            confession_prompt(word_count, x, variant) for variant in ("default", "reviewed")
        )
        before, last = default[: default.rindex("\n") + 1], default[default.rindex("\n") + 1 :]
        assert reviewed.startswith(before) and reviewed.endswith(f" {last}")
        added = reviewed[len(before) : -len(last)].strip()
        assert added.endswith(".") and added.count(".") == 1 and "review" in added
        assert "count" not in added.lower() and word_count.verify_first(x) not in reviewed
        assert parse_report(reviewed, word_count.objectives(x)) == parse_report(
            default, word_count.objectives(x)
        )


@pytest.mark.parametrize("variant", ["forced", "", "Default", None])
def test_an_unknown_variant_is_refused_by_name(variant):
    """A mistyped variant silently runs the default prompt,
    or the message does not say what was mistyped.
    """
    with pytest.raises(ValueError) as error:
        confession_prompt(word_count, X, variant)
    assert repr(variant) in str(error.value)


def test_the_prompt_explains_what_the_parser_reads():
    """A word of the report is not explained,
    or the example is no valid report of mixed claims that says: does not pass.
    """
    for seed in range(20):
        x = word_count.make_prompt(seed)
        prompt = confession_prompt(word_count, x)
        assert all(
            f"{name}: {meaning}\n" in prompt for name, meaning in word_count.objectives(x).items()
        )
        assert (
            all(f"{level} if" in prompt for level in LEVELS_IN_PROMPT)
            and "4 or more says that the whole answer passes" in prompt
        )
        example = parse_report(prompt, OBJECTIVES)
        assert (
            isinstance(example, ConfessionReport)
            and len(set(example.claims)) > 1
            and not example.claims_compliant
        )


def test_a_copied_example_is_no_constant_and_says_nothing_of_the_answer():
    """All examples claim alike, so that copying one looks like an opinion;
    or one changes between answers to a prompt.
    """
    prompts = [confession_prompt(word_count, word_count.make_prompt(seed)) for seed in range(60)]
    assert prompts == [
        confession_prompt(word_count, word_count.make_prompt(seed)) for seed in range(60)
    ]
    examples = [parse_report(prompt, OBJECTIVES) for prompt in prompts]
    for i in range(N):
        shares = [
            sum(e.claims[i] == level for e in examples) / len(examples)
            for level in LEVELS_IN_PROMPT
        ]
        assert all(0.15 < share < 0.55 for share in shares)


def test_a_name_may_begin_another_name():
    """A task whose names overlap cannot be reported on: the longer one is taken for both."""
    objectives = {"format": "it is JSON", "format_strict": "it has no comment"}
    entries = [{"objective": name, "compliance": "Full"} for name in objectives]
    text = json.dumps({"compliance_analysis": entries, "uncertainties": [], GRADE: 7})
    assert parse_report(text, objectives).claims == ("Full", "Full")


def test_one_objective_is_enough_for_a_prompt():
    """A task with a single requirement breaks the example, which mixes claims where it can."""
    task = SimpleNamespace(
        objectives=lambda x: {"A": "it is short"},
        finding=lambda x, name, claim: "seen",
        verify_first=lambda x: "Look.",
    )
    assert (
        len(parse_report(confession_prompt(task, "x", "forced_count"), task.objectives("x")).claims)
        == 1
    )
