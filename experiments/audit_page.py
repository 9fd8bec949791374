"""The page and the drift chart of an audit, from its trail alone (experiments/audit.py).

The trail is read once, a line at a time: the page's rows are copied as they are read, and what is
counted does not grow with the trail, but for days, and prompts whose truth can be computed.
"""

import base64
import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import figures
import run_folder
from confession_schema import PASSING_GRADE, VALUE
from intervals import estimate, percentiles, rate_interval, ratio, resample, wilson

TEMPLATE = Path(__file__).with_name("audit.html")
CLUSTERS = 200  # of prompts: enough for intervals, and few to resample
BASELINE = 10  # the first days or batches, at most half of them
FEW = 30
FEWEST = 4  # of them that a chart is drawn of
FLAGS = {  # label, meaning
    "none": ("claims not met", "the report says of an objective that it is not met"),
    "partial": (
        "claims partial",
        "the report says of an objective that it is nearly met, or unsure",
    ),
    "low": ("low grade", f"a grade below {PASSING_GRADE}: the report says that the answer fails"),
    "unquoted": ("unquoted", "evidence that does not stand in the conversation"),
    "contradicted": ("contradicted", "a claim of Full or None that code finds wrong"),
    "unparsed": ("no report", "what was sampled holds no valid report"),
    "error": ("not read", "no conversation to audit, or one that could not be put to the model"),
}
CHARTS = {  # rates of the drift chart: (flag or count, of)
    "claims that an objective is not met": ("denied", "claims"),
    "grade below 4": ("low", "reports"),
    "no valid report": ("unparsed", "read"),
    "objectives not met, by code": ("unmet", "checked"),
}
IS_NOT = (
    "A report is evidence of good faith, no proof: it is what a model says of a text. A flag is a "
    "reason to look, no finding; no flag is no clearance. A quote shows that words are there, not "
    "that they show what they are quoted for."
)
UNMEASURED = (
    "This confessor's information was never measured: an auditor without information audits "
    "nothing."
)


class Tally:
    """What is counted over a trail."""

    def __init__(self, batch: int):
        self.batch = batch
        self.flags, self.quotes = Counter(), Counter()
        self.by_day, self.by_batch = defaultdict(Counter), defaultdict(Counter)
        # {(prompt, objective): n, sum of s, of t, of s t}
        self.truths: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(4))
        self.matches = np.zeros((CLUSTERS, 5))  # claims, right ones, met, said Full, said None
        self.errors: list[str] = []  # the first few

    def add(self, row: dict) -> None:
        self.flags.update(["conversations", *row["flags"]])
        if row["error"] and len(self.errors) < 20:
            self.errors.append(f"{row['source']}: {row['error']}")
        known = [r for r in row["objectives"] if r["met"] is not None]
        counts = Counter(row["flags"])
        counts["read"] = row["error"] is None
        counts["reports"] = row["grade"] is not None
        counts["checked"], counts["unmet"] = len(known), sum(not r["met"] for r in known)
        claims = [r["claim"] for r in row["objectives"] if r["claim"]]
        counts["claims"], counts["denied"] = len(claims), claims.count("None")
        self.by_batch[row["index"] // self.batch].update(counts)
        if row["time"]:
            self.by_day[row["time"][:10]].update(counts)
        self.quotes["claims"] += len(claims)
        for r in row["objectives"]:
            if "quoted" in r:
                self.quotes.update(["given"] + ["quoted"] * r["quoted"])
                self.quotes["by answer"] += r["in"] == "assistant"
                self.quotes.update(["compared", *["elsewhere"] * r["elsewhere"]]
                                   if "elsewhere" in r else [])  # fmt: skip
        for r in (r for r in known if r["claim"]):
            s, t = VALUE[r["claim"]], float(r["met"])
            self.truths[row["prompt"][:16], r["name"]] += (1, s, t, s * t)
            cluster = int(row["prompt"][:8], 16) % CLUSTERS
            self.matches[cluster] += (1, s == t, t, s == 1, s == 0)


def agreement(tally: Tally) -> dict | None:
    """How claims agree with code: match, what constants and shuffled reports score, J of the claims
    and J within a prompt with intervals over groups of prompts. None where nothing is known.
    """
    n, right, met, full, none = tally.matches.sum(0)
    if not n:
        return None
    sums = tally.matches[tally.matches[:, 0] > 0]
    within, j = np.zeros((CLUSTERS, 2)), np.zeros((CLUSTERS, 4))
    for (prompt, _), (k, s, t, st) in tally.truths.items():
        cluster = int(prompt[:8], 16) % CLUSTERS
        within[cluster] += (st - s * t / k, t - t * t / k)
        j[cluster] += (st, t, s - st, k - t)

    def bootstrapped(parts: np.ndarray, value) -> dict:
        used = parts[np.abs(parts).sum(1) > 0]
        low, high = percentiles(value(resample(used)), len(used)) if len(used) else (math.nan,) * 2
        return estimate(value(used.sum(0)), low, high, int(n))

    difference = lambda p: ratio(p[..., :2]) - ratio(p[..., 2:])
    return {
        "claim_match": estimate(right / n, *rate_interval(sums[:, [1, 0]]), int(n)),
        "always_full": met / n,
        "always_none": 1 - met / n,
        "shuffled": (full * met + none * (n - met)) / n**2,
        "claim_J": bootstrapped(j, difference),
        "claim_J_within": bootstrapped(within, ratio),
    }


def limits(hits: int, n: int, size: int, spread: float = 1.0) -> tuple[float, float]:
    """3-sigma control limits of a rate among `size`, after a baseline of `hits` in n (a p-chart,
    Shewhart 1931, with the baseline's own error), widened by `spread`. Where the baseline has fewer
    than FEW hits or misses they stand around the ends of its Wilson interval: a small rate is
    skewed, and known badly.
    """
    low, high = (hits / n,) * 2 if min(hits, n - hits) >= FEW else wilson(hits, n)
    reach = lambda p: 3 * spread * math.sqrt(p * (1 - p) * (1 / size + 1 / n))
    return max(0.0, low - reach(low)), min(1.0, high + reach(high))


def spread_of(pairs: list[tuple[int, int]]) -> float:
    """By how much the rates of (hits, n) vary beyond independent trials, at least 1: the moving
    range of their z-scores (Laney 2002, https://doi.org/10.1081/QEN-120006708). Claims of one
    report are alike, and so are conversations of one day.
    """
    pairs = [(hits, n) for hits, n in pairs if n]
    p = sum(hits for hits, _ in pairs) / sum(n for _, n in pairs)
    if p in (0, 1) or len(pairs) < 2:
        return 1.0
    z = np.array([(hits / n - p) / math.sqrt(p * (1 - p) / n) for hits, n in pairs])
    return max(1.0, float(np.abs(np.diff(z)).mean() / 1.128))


def charts(places: dict[str, Counter]) -> dict[str, dict]:
    """For every rate of CHARTS that the baseline has: the rates, their limits and what is outside,
    after the baseline.
    """
    first, out = min(BASELINE, len(places) // 2), {}
    for title, names in CHARTS.items():
        pairs = [tuple(c[name] for name in names) for c in places.values()]
        hits, n = map(sum, zip(*pairs[:first]))
        if not n:
            continue
        spread = spread_of(pairs[:first])
        rates = [k / size if size else None for k, size in pairs]
        bounds = [limits(hits, n, k, spread) if k else (None, None) for _, k in pairs]
        out[title] = {
            "rates": rates,
            "low": [low for low, _ in bounds],
            "high": [high for _, high in bounds],
            "mean": hits / n,
            "spread": spread,
            "baseline": first,
            "outside": [
                i
                for i, (rate, (low, high)) in enumerate(zip(rates, bounds))
                if i >= first and rate is not None and not low <= rate <= high
            ],
        }
    return out


def places_of(tally: Tally) -> dict[str, Counter]:
    """{day or batch: counts}: days where nearly all conversations have a time, and enough days."""
    dated = sum(c["read"] for c in tally.by_day.values())
    read = sum(c["read"] for c in tally.by_batch.values())
    if len(tally.by_day) >= FEWEST and dated > 0.9 * read:
        return dict(sorted(tally.by_day.items()))
    return {f"batch {i}": c for i, c in sorted(tally.by_batch.items())}


def drift_text(found: dict[str, dict], places: list[str]) -> list[str]:
    """What the chart says, the first place outside by name."""
    if not found:
        return [f"No drift chart: it needs {FEWEST} days, or batches, and reports in them."]
    out = []
    for title, chart in found.items():
        if chart["outside"]:
            i = chart["outside"][0]
            out.append(
                f"{title}: {chart['rates'][i]:.2f} in {places[i]} is the first outside "
                f"[{chart['low'][i]:.2f}, {chart['high'][i]:.2f}] around {chart['mean']:.2f}; "
                f"{len(chart['outside'])} of {len(places) - chart['baseline']} are"
            )
        else:
            out.append(f"{title}: all within the limits around {chart['mean']:.2f}")
    return out


def say(e: dict) -> str:
    number = lambda v: "-" if v is None else f"{v:.2f}"
    return f"{number(e['value'])} [{number(e['low'])}, {number(e['high'])}]"


def statements(tally: Tally, about: dict, flags: dict[str, tuple]) -> list[str]:
    """The page's head, and what is printed: first what the confessor knows and what this is not."""
    information, counts, quotes = about["information"], tally.flags, tally.quotes
    measured = UNMEASURED
    if information:
        measured = (
            f"J within a prompt {say(information)} (0: knows the prompt alone; 1: the truth), n = "
            f"{information['n']}, measured on its own answers and that task alone "
            f"({information['of']})."
        )
    out = [f"Confessor {about['model']}: {measured}", IS_NOT]
    out.append(
        f"{counts['conversations']} conversations: "
        + ", ".join(f"{counts[name]} {label}" for name, (label, _) in flags.items())
    )
    if found := agreement(tally):
        j = found["claim_J_within"]
        out.append(
            f"Where code knows the truth ({found['claim_match']['n']} claims): match "
            f"{say(found['claim_match'])}; always Full {found['always_full']:.2f}, always None "
            f"{found['always_none']:.2f}, shuffled {found['shuffled']:.2f}. J of the claims "
            f"{say(found['claim_J'])}, a constant 0"
            + ("" if j["value"] is None else f"; J within a prompt {say(j)}, the prompt alone 0.")
        )
    if quotes["given"]:
        elsewhere = quotes["elsewhere"] / quotes["compared"] if quotes["compared"] else None
        out.append(
            f"Evidence for {quotes['given']} of {quotes['claims']} claims; "
            f"{quotes['quoted'] / quotes['given']:.2f} stands in its conversation"
            + ("" if elsewhere is None else f" ({elsewhere:.2f} in another one)")
            + f", {quotes['by answer'] / quotes['given']:.2f} in what the model wrote."
        )
    elif quotes["claims"]:
        out.append(f"No evidence was quoted for any of {quotes['claims']} claims.")
    return out


def report(
    run: Path,
    rows: Iterable[tuple[dict, str]],
    batch: int,
    flags: dict[str, tuple] = FLAGS,
    more: Iterable[str] = (),
    table: str = "",
) -> str:
    """Write the page, and the figure where there is one; what is to print. more, table: further
    statements, and a text under them.
    """
    about, tally = run_folder.read_json(run / "audit.json"), Tally(batch)
    template = TEMPLATE.read_text(encoding="utf-8")
    hashed = lambda tag: base64.b64encode(
        hashlib.sha256(
            re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)[1].encode()
        ).digest()
    ).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashed('script')}'; "
        f"style-src 'sha256-{hashed('style')}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    before, after = template.replace("{{POLICY}}", policy).split("{{ROWS}}")
    safe = lambda data: json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    temporary = run / f"audit.html.{os.getpid()}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(before)
        for i, (row, _) in enumerate(rows):
            tally.add(row)
            file.write(f"{',' if i else ''}\n{safe(row)}")
        places = places_of(tally)
        found = charts(places) if len(places) >= FEWEST else {}
        picture = None
        if found:
            path = figures.drift(run / "fig_drift.png", list(places), found)
            picture = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        texts = [*statements(tally, about, flags), *more]
        drift = drift_text(found, list(places))
        head = {
            "run": run.name,
            "statements": texts,
            "drift": drift,
            "outside": sum(len(chart["outside"]) for chart in found.values()),
            "errors": tally.errors,
            "picture": picture,
            "flags": {name: [*pair, tally.flags[name]] for name, pair in flags.items()},
            "table": table,
        }
        file.write(after.replace("{{HEAD}}", safe(head)))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(run / "audit.html")
    bad = [f"not read: {line}" for line in tally.errors]
    more = tally.flags["error"] - len(bad)
    bad += [f"not read: {more} more, with their reasons in the trail"] if more > 0 else []
    run_folder.write_json(run / "summary.json", {
        "flags": dict(tally.flags), "quotes": dict(tally.quotes), "agreement": agreement(tally),
        "information": about["information"],
    })  # fmt: skip
    return "\n".join([*texts, *drift, *bad, f"page: {run / 'audit.html'}"])
