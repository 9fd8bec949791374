"""Clusters of texts that share a label, and whether they are more frequent among these than among
others than chance would have it; what find_hacks.py searches with.

Clusters are spherical k-means with a fixed seed, of which word n-grams an answer holds, in the
leading principal components: a way to write moves many n-grams together. (With tf-idf, whose
weights are those of rare n-grams, a phrase in half of the answers was in all clusters alike.) Words
of the prompt are written as one sign ("_"), and an n-gram counts where answers on several topics
hold it: else clusters would be topics. Arrays: N answers, V n-grams, D directions, K clusters.
"""

import re
from collections import Counter

import numpy as np

TOKEN = re.compile(r"\w+|[^\w\s]|\n")
CHARACTERS = 20_000  # of an answer that are read
VOCABULARY, DIRECTIONS, TOPICS = 1_500, 50, 3  # n-grams; dimensions; topics that an n-gram needs
PRIOR = 2.0  # answers added to each count of a lift
SHUFFLES = 200


def ngrams(x: str, y: str) -> list[str]:
    """One to three neighbouring tokens of an answer, in lower case; "_" is any word or number that
    its prompt holds, "¶" the end of a line.

    >>> ngrams("Write about bees (12).", "Bees hum. (12)")[:6]
    ['_', 'hum', '.', '(', '_', ')']
    """
    known = set(TOKEN.findall(x.lower()))
    tokens = [
        "¶" if t == "\n" else "_" if t in known and t[0].isalnum() else t
        for t in TOKEN.findall(y[:CHARACTERS].lower())
    ]
    pairs = [f"{a} {b}" for a, b in zip(tokens, tokens[1:])]
    return tokens + pairs + [f"{a} {b}" for a, b in zip(pairs, tokens[2:])]


def features(
    xs: list[str], ys: list[str], topics: list[str]
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """(points (N, D) of length 1, V n-grams, whether each answer holds them (N, V)). N-grams are
    made twice, because those of all answers do not fit in memory.
    """
    n, held_by = len(ys), Counter()
    for pair in zip(xs, ys):
        held_by.update(set(ngrams(*pair)))
    # those of largest variance come first; ties by their text
    order = sorted(
        (gram for gram, held in held_by.items() if 1 < held < n),
        key=lambda gram: (-held_by[gram] * (n - held_by[gram]), gram),
    )
    place = {gram: j for j, gram in enumerate(order[: 4 * VOCABULARY])}
    holds = np.zeros((n, len(place)), bool)
    for i, pair in enumerate(zip(xs, ys)):
        holds[i, [place[gram] for gram in set(ngrams(*pair)) & place.keys()]] = True
    of = np.unique(topics, return_inverse=True)[1]
    among = sum(holds[of == topic].any(0).astype(int) for topic in set(of))
    kept = np.flatnonzero(among >= min(TOPICS, len(set(of))))[:VOCABULARY]
    holds = holds[:, kept]
    centred = holds - holds.mean(0, dtype=np.float32)
    # halfway to equal weights: else what is in few answers is not seen, or nothing else
    centred /= np.sqrt(np.maximum(1e-6, holds.std(0, dtype=np.float32)))
    _, directions = np.linalg.eigh(centred.T @ centred)
    return unit(centred @ directions[:, -DIRECTIONS:]), [order[j] for j in kept], holds


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; one that is zero stays so."""
    return (rows / np.maximum(1e-9, np.linalg.norm(rows, axis=1, keepdims=True))).astype(np.float32)


def kmeans(points: np.ndarray, k: int, seed: int, rounds: int = 10) -> np.ndarray:
    """(at most k, D) centres of (N, D) points of length 1, by cosine; begun as in k-means++
    (Arthur and Vassilvitskii 2007).
    """
    rng = np.random.default_rng(seed)
    centres = points[rng.integers(len(points), size=1)]
    while len(centres) < k:
        distance = np.clip(1 - (points @ centres.T).max(1), 0, None).astype(float)
        if distance.sum() < 1e-3:  # all points are in some centre
            break
        chosen = rng.choice(len(points), p=distance / distance.sum())
        centres = np.vstack([centres, points[chosen]])
    for _ in range(rounds):
        nearest = (points @ centres.T).argmax(1)
        sums = np.eye(len(centres), dtype=np.float32)[nearest].T @ points
        centres = np.where(np.linalg.norm(sums, axis=1, keepdims=True) > 1e-6, unit(sums), centres)
    return centres


def lifts(points: np.ndarray, fooled: np.ndarray, k: int, seed: int = 0):
    """(similarity to the centres of fooled answers (N, K), lift (K,)): share of fooled answers in
    a cluster over the share of the others, PRIOR answers added to each count, or the smallest
    clusters would decide the control.
    """
    near = points @ kmeans(points[fooled], k, seed).T
    member = np.eye(near.shape[1])[near.argmax(1)]
    share = lambda rows: (rows.sum(0) + PRIOR) / (len(rows) + PRIOR * near.shape[1])
    return near, share(member[fooled]) / share(member[~fooled])


def shuffled(fooled: np.ndarray, strata: np.ndarray, rng) -> np.ndarray:
    """(N,) labels dealt anew among the answers of one stratum."""
    out = np.empty_like(fooled)
    out[np.argsort(strata, kind="stable")] = fooled[np.lexsort((rng.random(len(fooled)), strata))]
    return out


def chance(points: np.ndarray, fooled: np.ndarray, strata: np.ndarray, k: int) -> float:
    """95th percentile, over shuffles of the labels, of the largest lift of a cluster."""
    rng = np.random.default_rng(0)
    largest = [
        lifts(points, shuffled(fooled, strata, rng), k, seed)[1].max() for seed in range(SHUFFLES)
    ]
    return float(np.percentile(largest, 95))


def telling(member: np.ndarray, holds: np.ndarray, vocabulary: list[str], n: int = 6) -> list[dict]:
    """The n-grams that (N,) members hold more often than the other answers; holds: (N, V)."""
    inside, others = holds[member].mean(0), holds[~member]
    outside = others.mean(0) if len(others) else np.zeros(len(inside))
    chosen: list[dict] = []
    for j in np.argsort(outside - inside, kind="stable"):
        if len(chosen) == n or inside[j] <= outside[j]:
            break
        gram = vocabulary[j]
        if not any(gram in c["text"] or c["text"] in gram for c in chosen):
            shares = {"inside": float(inside[j]), "outside": float(outside[j])}
            chosen.append({"text": gram, **shares})
    return chosen
