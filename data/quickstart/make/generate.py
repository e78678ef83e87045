#!/usr/bin/env python3
"""Write data/quickstart/notes.csv: 600 synthetic notes over 40 ICD-10-CM codes.

    python3 generate.py [--out ../notes.csv] [--per-code 15] [--seed 2026]

Standard library only; the same seed gives the same bytes. Refuses to write a note that names its
condition, is shorter or longer than agreed, or nearly repeats another one.
"""

import argparse
import csv
import gzip
import random
import re
import sys
from pathlib import Path

from conditions import TARGETS
from grammar import compose

HERE = Path(__file__).resolve().parent
TABLE = HERE.parents[1] / "icd10cm" / "icd10cm.txt.gz"
WORDS = range(60, 111)  # words of one note
NEAR = 0.8  # Jaccard similarity of 5-word shingles from which two notes count as equal


def read_table(path):
    """Official titles of the billable codes, in the order of the table (its layout: data/icd10cm/README.md)."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        next(lines)  # the release
        rows, title = [], b""
        for line in lines:
            if line == "\n":
                break
            depth, code, shared, rest = line.rstrip("\n").split("\t")
            title = title[: int(shared)] + rest.encode()
            rows.append((int(depth), code, title.decode()))
    followers = [row[0] for row in rows[1:]] + [0]
    # A code is billable if nothing stands below it; blocks (`A00-A09`) never are.
    return {code: name for (depth, code, name), after in zip(rows, followers) if after <= depth and "-" not in code}


def shingles(text, n=5):
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def similar(a, b):
    return len(a & b) / max(1, len(a | b))


def names_itself(condition, code, title, text):
    """Whether a note says its code, its title, or a word that its condition forbids."""
    low = text.lower()
    named = [code.lower(), title.lower()] + condition.taboo.split()
    return next((word for word in named if word in low), None)


def draw_notes(per_code, seed, titles):
    """`per_code` notes of every code, in code order within each condition."""
    kept = []  # (note, title, shingles)
    for condition in TARGETS:
        for side, code in condition.codes.items():
            # One generator a code: another condition's text never moves these notes.
            rng = random.Random(f"{seed}/{code}")
            found = 0
            for _ in range(per_code * 200):
                if found == per_code:
                    break
                note = compose(condition, side, rng)
                if len(note.text.split()) not in WORDS or names_itself(condition, code, titles[code], note.text):
                    continue
                marks = shingles(note.text)
                if any(similar(marks, other) >= NEAR for _, _, other in kept):
                    continue
                kept.append((note, titles[code], marks))
                found += 1
            if found < per_code:
                sys.exit(f"generate.py: {code}: only {found} of {per_code} notes pass the checks; loosen its templates")
    return [(note, title) for note, title, _ in kept]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--icd10", type=Path, default=TABLE, help="the engine's code table")
    parser.add_argument("--out", type=Path, default=HERE.parent / "notes.csv")
    parser.add_argument("--per-code", type=int, default=15)
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args()

    titles = read_table(args.icd10)
    unknown = [code for c in TARGETS for code in c.codes.values() if code not in titles]
    if unknown:
        sys.exit(f"generate.py: not billable in {args.icd10}: {', '.join(unknown)}")
    notes = draw_notes(args.per_code, args.seed, titles)
    random.Random(args.seed).shuffle(notes)
    with open(args.out, "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["note", "icd10", "title"])
        writer.writerows((note.text, note.code, title) for note, title in notes)
    print(f"{len(notes)} notes over {len({n.code for n, _ in notes})} codes in {args.out}")


if __name__ == "__main__":
    main()
