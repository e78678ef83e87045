#!/usr/bin/env python3
"""Measure what the quickstart notes give away: look-ups, near-duplicates, bags of words.

    python3 baselines.py [--notes ../notes.csv]

Standard library only. Prints the Markdown table that data/quickstart/README.md quotes.
"""

import argparse
import csv
import math
import random
import re
import statistics
from collections import Counter, defaultdict
from pathlib import Path

from generate import HERE, TABLE, read_table, shingles, similar

STOP = set("a an and any by due for in not of on or other the to unspecified with without".split())


def words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def split(rows, seed, share=0.7):
    """Per code: the first `share` of a shuffled list trains, the rest tests."""
    rng, by_code = random.Random(seed), defaultdict(list)
    for text, code, _ in rows:
        by_code[code].append(text)
    train, test = [], []
    for code, texts in by_code.items():
        rng.shuffle(texts)
        cut = round(share * len(texts))
        train += [(t, code) for t in texts[:cut]]
        test += [(t, code) for t in texts[cut:]]
    return train, test


def title_lookup(rows, titles):
    """Predict the code whose whole title stands in the note (the longest one); share right, share answered."""
    low = sorted(((t.lower(), c) for c, t in titles.items()), key=lambda p: -len(p[0]))
    right = answered = 0
    for text, code, _ in rows:
        text = text.lower()
        found = next((c for t, c in low if t in text), None)
        answered += found is not None
        right += found == code
    return right / len(rows), answered / len(rows)


def overlap_lookup(rows):
    """Predict the code (of those in the notes) with the largest share of its title's words in the note."""
    titles = {code: set(words(title)) - STOP for _, code, title in rows}
    right = 0
    for text, code, _ in rows:
        seen = set(words(text))
        right += code == max(sorted(titles), key=lambda c: len(titles[c] & seen) / len(titles[c]))
    return right / len(rows)


def naive_bayes(train, test, features):
    """Multinomial naive Bayes with add-0.1 smoothing."""
    counts, docs = defaultdict(Counter), Counter()
    for text, code in train:
        counts[code].update(features(text))
        docs[code] += 1
    vocabulary = {f for c in counts.values() for f in c}
    totals = {c: sum(counts[c].values()) + 0.1 * len(vocabulary) for c in counts}
    right = 0
    for text, code in test:
        seen = [f for f in features(text) if f in vocabulary]

        def score(c):
            return math.log(docs[c]) + sum(math.log((counts[c][f] + 0.1) / totals[c]) for f in seen)

        right += max(sorted(counts), key=score) == code
    return right / len(test)


def softmax_regression(train, test, features, epochs=40, rate=0.5):
    """Logistic regression over sets of features, plain stochastic gradient descent."""
    codes = sorted({c for _, c in train})
    weight = defaultdict(lambda: [0.0] * len(codes))
    rng, data = random.Random(0), [(sorted(set(features(t))), codes.index(c)) for t, c in train]

    def probabilities(seen):
        z = [sum(weight[f][k] for f in seen if f in weight) for k in range(len(codes))]
        top = max(z)
        e = [math.exp(v - top) for v in z]
        return [v / sum(e) for v in e]

    for _ in range(epochs):
        rng.shuffle(data)
        for seen, gold in data:
            p = probabilities(seen)
            p[gold] -= 1.0
            step = [rate * v / math.sqrt(len(seen)) for v in p]
            for f in seen:
                weight[f] = [w - s for w, s in zip(weight[f], step)]
    right = 0
    for text, code in test:
        p = probabilities(sorted(set(features(text))))
        right += codes[p.index(max(p))] == code
    return right / len(test)


def pairs(text):
    w = words(text)
    return w + [f"{a} {b}" for a, b in zip(w, w[1:])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--icd10", type=Path, default=TABLE)
    parser.add_argument("--notes", type=Path, default=HERE.parent / "notes.csv")
    args = parser.parse_args()
    with open(args.notes, encoding="utf-8", newline="") as f:
        rows = [(r["note"], r["icd10"], r["title"]) for r in csv.DictReader(f)]
    titles = read_table(args.icd10)

    def share(test):
        return sum(map(test, rows)) / len(rows)

    marks = [shingles(r[0]) for r in rows]
    nearest = max(similar(a, b) for i, a in enumerate(marks) for b in marks[:i])
    lengths = [len(r[0].split()) for r in rows]
    right, answered = title_lookup(rows, titles)
    seeds = range(3)

    def mean(model, features):
        return statistics.mean(model(*split(rows, s), features) for s in seeds)

    table = [
        ("rows, codes, first letters of codes", f"{len(rows)}, {len({r[1] for r in rows})}, {len({r[1][0] for r in rows})}"),
        ("words a note: least, median, most", f"{min(lengths)}, {statistics.median(lengths):.0f}, {max(lengths)}"),
        ("code stands in the note", f"{share(lambda r: r[1].lower() in r[0].lower() or r[1].replace('.', '').lower() in r[0].lower()):.1%}"),
        ("official title stands in the note", f"{share(lambda r: r[2].lower() in r[0].lower()):.1%}"),
        ("all content words of the title stand in the note", f"{share(lambda r: set(words(r[2])) - STOP <= set(words(r[0]))):.1%}"),
        ("title look-up over all billable codes: right (answered)", f"{right:.1%} ({answered:.1%})"),
        ("look-up by overlap of title words, 40 codes", f"{overlap_lookup(rows):.1%}"),
        ("majority code", f"{max(Counter(r[1] for r in rows).values()) / len(rows):.1%}"),
        ("largest 5-word-shingle Jaccard of two notes", f"{nearest:.2f}"),
        ("naive Bayes, single words", f"{mean(naive_bayes, words):.1%}"),
        ("naive Bayes, words and pairs", f"{mean(naive_bayes, pairs):.1%}"),
        ("softmax regression, single words", f"{mean(softmax_regression, words):.1%}"),
    ]
    for name, value in table:
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
