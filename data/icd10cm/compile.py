#!/usr/bin/env python3
"""Compiles the ICD-10-CM table into data/icd10cm/icd10cm.txt.gz, which the engine embeds.

    python3 data/icd10cm/compile.py FOLDER

FOLDER holds icd10cm.tsv.gz (code, parent, billable, description, kind; parents before children) and
icd10cm-retired.tsv (code, last_fiscal_year, now, description). The output is described in README.md
beside this file. It refuses a table whose tree cannot be rebuilt from the order of its rows.
"""
import gzip
import sys
from pathlib import Path

RELEASE = "ICD-10-CM fiscal year 2026, release of April 1, 2026"


def rows(text):
    """Rows of a tab-separated table without its header."""
    return [line.split("\t") for line in text.split("\n")[1:] if line]


def shared_bytes(a, b):
    """Bytes that two titles have in common from the left, ending between characters."""
    n = 0
    for x, y in zip(a, b):
        if x != y:
            break
        n += len(x.encode())
    return n


def tree_lines(table):
    """`depth code shared rest`: rest follows the first `shared` bytes of the previous title."""
    parents = {row[1] for row in table}
    path, previous, lines = [], "", []
    for code, parent, billable, title, kind in table:
        while path and path[-1] != parent:
            path.pop()
        if parent and not path:
            sys.exit(f"{code}: its parent {parent} is not on the path above it; sort the table as a tree")
        if (billable == "1") != (code not in parents and kind not in ("chapter", "block")):
            sys.exit(f"{code}: billable is {billable}, but a code is billable exactly if it has no child")
        shared = shared_bytes(previous, title)
        lines.append(f"{len(path)}\t{code}\t{shared}\t{title.encode()[shared:].decode()}")
        path.append(code)
        previous = title
    return lines


def main(folder):
    table = rows(gzip.open(folder / "icd10cm.tsv.gz", "rt", encoding="utf-8", newline="\n").read())
    retired = rows((folder / "icd10cm-retired.tsv").read_text(encoding="utf-8"))
    lines = [RELEASE, *tree_lines(table), ""]
    lines += [f"{code}\t{year}\t{title}" for code, year, _, title in sorted(retired)]
    target = Path(__file__).parent / "icd10cm.txt.gz"
    # No time stamp and no file name in the header: the same table gives the same bytes.
    with open(target, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(("\n".join(lines) + "\n").encode())
    print(f"{target}: {len(table)} rows, {len(retired)} retired codes, {target.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
