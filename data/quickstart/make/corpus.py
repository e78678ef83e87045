"""The pretraining text: documents drawn without end from the grammar and the ICD-10-CM table.

Five kinds: the coding task on codes that the quickstart does not use, reading questions about such
notes, the code table as text and as questions, whole records with an assessment, and short
descriptions of conditions. No document holds a note of a quickstart condition, and none of those 40 codes
is the answer to a note; their official titles stand in the table, as any other code's. Sibling conditions in
`others.py` share templates with them, so many single sentences do occur here.

A document is a list of `(text, weight)`: the weight counts the loss on that piece.
"""

import random

from generate import read_table
from grammar import compose, sentence
from others import HAND, families

SYSTEM = "You are a medical coder. Answer with one ICD-10-CM code and nothing else."
TASK = "Assign the ICD-10-CM code of the main diagnosis."
READER = "You are a medical coder."
ANSWER_WEIGHT = 4.0


def chat(system, user, answer):
    """One exchange in ChatML, exactly as the chat template in the tokenizer folder renders it."""
    ask = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
    return [(ask, 1.0), (f"{answer}<|im_end|>", ANSWER_WEIGHT), ("\n", 1.0)]


class Corpus:
    """Draws documents; the same seed gives the same ones."""

    def __init__(self, table, seed):
        self.titles = read_table(table)
        self.codes = list(self.titles)
        self.families = families(self.titles)
        self.rng = random.Random(f"corpus/{seed}")

    def note(self):
        condition = self.rng.choice(HAND if self.rng.random() < 0.65 else self.families)
        side = self.rng.choice(list(condition.codes))
        return condition, compose(condition, side, self.rng)

    def document(self):
        """The next document."""
        kinds = [self.coding, self.reading, self.table, self.record, self.description]
        return self.rng.choices(kinds, weights=[30, 25, 20, 10, 15])[0]()

    def coding(self):
        _, note = self.note()
        return chat(SYSTEM, f"{TASK}\n\n{note.text}", note.code)

    def reading(self):
        _, note = self.note()
        facts, title = note.facts, self.titles[note.code]
        questions = [
            ("Name the main diagnosis.", title),
            ("Name the main diagnosis.", title),
            ("How old is the patient?", facts["age"]),
            ("Who is the patient?", facts["sex"]),
            ("What is the temperature?", facts["temperature"]),
            ("What is the pulse?", facts["pulse"]),
            ("Which side is affected?", facts["side"] or "no side"),
            ("What did the patient tell?", "\n".join(map(sentence, facts["told"]))),
            ("What was found?", "\n".join(map(sentence, facts["seen"][:2]))),
        ]
        question, answer = self.rng.choice(questions)
        return chat(READER, f"{question}\n\n{note.text}", answer)

    def table(self):
        start = self.rng.randrange(len(self.codes))
        code = self.codes[start]
        title = self.titles[code]
        form = self.rng.randrange(4)
        if form == 0:
            return chat(READER, f"What does the ICD-10-CM code {code} stand for?", title)
        if form == 1:
            return chat(SYSTEM, f"Which ICD-10-CM code stands for: {title}?", code)
        if form == 2:
            return chat(READER, f"In which category does {code} lie?", code[:3])
        return [("\n".join(f"{c}: {self.titles[c]}" for c in self.codes[start : start + 4]) + "\n", 1.0)]

    def record(self):
        _, note = self.note()
        title = self.titles[note.code]
        tail = self.rng.choice([f"{title} ({note.code})", title, f"{note.code} {title}"])
        return [(f"{note.text}\nAssessment: ", 1.0), (f"{tail}\n", ANSWER_WEIGHT)]

    def description(self):
        """What patients with a condition tell and what is found, a few sentences from a note."""
        _, note = self.note()
        told, seen = note.facts["told"], note.facts["seen"]
        self.rng.shuffle(seen)
        parts = self.rng.choice([told + seen[:2], seen[:3], told])
        text = " ".join(map(sentence, parts))
        title = self.titles[note.code]
        return [(f"{title}. {text}\n" if self.rng.random() < 0.5 else f"{text} This is {title}.\n", 1.0)]
