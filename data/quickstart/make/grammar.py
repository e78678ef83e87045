"""The grammar of the synthetic notes: templates, people, bystanders, and how a note is put together.

Holds no condition (`conditions.py` and `others.py` do) and no official title. Everything drawn comes
from the one `random.Random` that is passed in, so a seed gives the same notes on every machine.

Template language: `[a|b|c]` takes one alternative (nested if need be), `<3-7>` a whole number,
`<6.5-9.0>` a number with one decimal, `{name}` a slot (`{side}`, `{other}`, `{he}`, `{his}`, `{him}`).
"""

import re
from dataclasses import dataclass, field

CHOICE = re.compile(r"\[([^\[\]]*)\]")
NUMBER = re.compile(r"<(\d+(?:\.\d)?)-(\d+(?:\.\d)?)>")


def expand(template, rng, slots):
    """Draw one text from a template."""
    while True:
        text = CHOICE.sub(lambda m: rng.choice(m.group(1).split("|")), template)
        if text == template:
            break
        template = text

    def number(match):
        lo, hi = match.groups()
        if "." in lo:
            return f"{rng.randint(round(float(lo) * 10), round(float(hi) * 10)) / 10:.1f}"
        return str(rng.randint(int(lo), int(hi)))

    return NUMBER.sub(number, text).format(**slots)


@dataclass(frozen=True)
class Condition:
    """What a note must, may and must not say so that exactly one code follows from it."""

    codes: dict  # side ("right", "left" or "") -> code
    complaint: str  # noun phrase
    tell: list  # Subjective: one sentence from each template, always
    show: list  # Objective: one sentence from each template, always
    lasting: str = "<2-9> days"
    may: list = field(default_factory=list)  # Subjective: sometimes
    age: tuple = (22, 84)
    sex: str = "mf"
    vitals: str = "calm"
    has: str = ""  # symptoms and examined regions that no filler may deny
    bar: str = ""  # bystanders that would change the code ("htn dm ckd ...")
    taboo: str = ""  # words that would name the condition


@dataclass(frozen=True)
class Note:
    """One note, its code, and facts that reading questions can ask for."""

    code: str
    text: str
    facts: dict


# Tag, least age, and what a patient takes or has had. A condition bars the tags that would change its code.
ADULT_HISTORY = [
    ("htn", 38, "takes [lisinopril|amlodipine|losartan|valsartan]"),
    ("dm", 42, "takes metformin [twice a day|with meals]"),
    ("lipid", 42, "takes [atorvastatin|rosuvastatin|simvastatin] at night"),
    ("thyroid", 26, "takes levothyroxine every morning"),
    ("mood", 28, "has taken [sertraline|escitalopram] for years without trouble"),
    ("gerd", 28, "takes [omeprazole|famotidine] when needed"),
    ("lung", 15, "uses an albuterol inhaler now and then"),
    ("urate", 42, "takes allopurinol"),
    ("clot", 55, "takes apixaban"),
    ("pain", 15, "takes [ibuprofen|naproxen] on some days"),
    ("appendix", 26, "had {his} appendix out [as a teenager|in <2012-2021>]"),
    ("hip", 56, "had the {any} hip replaced <2-9> years ago"),
    ("knee", 24, "has an old injury of the {any} knee"),
    ("wrist", 15, "broke the {any} wrist as a child"),
    ("ear", 15, "had tubes in the {any} ear as a child"),
    ("eye", 60, "had a lens replaced in the {any} eye last year"),
    ("hernia", 30, "had a hernia repaired on the {any} [some years|<2-9> years] ago"),
    ("allergy", 15, "gets a rash from [penicillin|sulfa|codeine]"),
    ("family", 15, "[mother|father|an aunt|a brother] had [a stroke|heart trouble|sugar trouble|a kidney transplant]"),
    ("none", 15, "takes no regular medicines"),
]
CHILD_HISTORY = [
    ("none", 0, "takes no medicines"),
    ("vaccines", 0, "vaccines are up to date"),
    ("sibling", 0, "an older [brother|sister] had a cold last week"),
    ("birth", 0, "born at term after an easy pregnancy"),
    ("allergy", 0, "gets hives from [amoxicillin|peanuts|eggs]"),
    ("daycare", 0, "goes to daycare [every day|three days a week]"),
    ("arm", 0, "broke the {any} arm last year"),
]
NOTHING = ("no regular medicines", "no medicines")  # stands alone
ADULT_LIFE = [
    ("work", 18, "works as a [teacher|welder|cook|driver|nurse|clerk|farmer|painter|baker|guard|tailor|mechanic]"),
    ("home", 15, "lives [alone|with {his} partner|with a son|on the third floor|on a farm]"),
    ("smoke", 20, "[never smoked|smokes half a pack a day|quit smoking <3-9> years ago|smokes a pack a day]"),
    ("drink", 20, "[drinks wine on weekends|does not drink|has one beer with dinner]"),
    ("leisure", 15, "[came back from a trip last month|has not travelled|walks the dog every day|sings in a choir]"),
]
CHILD_LIFE = [
    ("home", 0, "lives with both parents"),
    ("play", 0, "[plays and drinks as usual|plays less than usual|sleeps poorly since then]"),
    ("pet", 0, "[a dog|a cat|no pet] at home"),
    ("smoke", 0, "no smokers at home"),
]
SYMPTOMS = [
    "fever", "cough", "chest pain", "vomiting", "rash", "dysuria", "weight loss", "headache",
    "dyspnea", "diarrhea", "numbness", "dizziness", "trauma", "palpitations", "swelling", "blurred vision",
]  # fmt: skip
# Region and what a normal examination of it reads like.
NORMAL = [
    ("lungs", "[lungs clear|breath sounds equal|no wheeze or crackles]"),
    ("heart", "[heart sounds regular|no murmur|regular rhythm without murmur]"),
    ("abdomen", "[abdomen soft|belly soft and not tender]"),
    ("skin", "[no skin changes|skin warm and dry]"),
    ("neck", "[neck supple|no neck nodes]"),
    ("neuro", "[cranial nerves intact|strength full|gait steady]"),
    ("throat", "throat [clear|not red]"),
    ("legs", "[calves soft|no ankle swelling|foot pulses felt]"),
    ("spine", "no tenderness over the spine"),
]
NORMAL_LABS = [
    ("sodium", "sodium <136-144>"),
    ("potassium", "potassium <3.6-4.8>"),
    ("platelets", "platelets <160-380>"),
    ("liver", "ALT <12-38>"),
    ("crp", "CRP under 5"),
    ("tsh", "TSH <0.8-3.6>"),
    ("kidney", "eGFR <68-98>"),
    ("blood", "hemoglobin <13.1-15.4>"),
    ("glucose", "glucose <82-109>"),
    ("urine", "urine dipstick clear"),
]
# temperature, pulse, systolic, diastolic, breaths, saturation
VITALS = {
    "calm": ((36.4, 37.1), (62, 88), (112, 138), (66, 86), (12, 17), (96, 99)),
    "fever": ((38.1, 39.4), (92, 118), (108, 134), (62, 82), (16, 22), (95, 98)),
    "fast": ((36.5, 37.2), (112, 148), (104, 136), (62, 84), (16, 22), (95, 98)),
    "slow": ((35.8, 36.4), (48, 58), (104, 128), (66, 84), (11, 15), (96, 99)),
    "breathless": ((36.4, 37.3), (96, 118), (118, 152), (70, 92), (24, 32), (85, 91)),
    "dry": ((36.6, 37.6), (98, 116), (94, 110), (54, 68), (15, 20), (96, 99)),
    "high": ((36.4, 37.0), (68, 88), (158, 186), (94, 108), (13, 17), (96, 99)),
}


def sentence(text):
    """Capital letter first, full stop last."""
    text = text.strip()
    capital = text if text[1:2].isupper() else text[:1].upper() + text[1:]  # eGFR stays
    return capital + ("" if text.endswith((".", "?")) else ".")


def person(condition, side, rng):
    """Draw the patient: the slots of the templates and the facts behind them."""
    age = rng.randint(*condition.age)
    sex = rng.choice(condition.sex)
    grown = age >= 15
    noun = {"m": ("boy", "man"), "f": ("girl", "woman")}[sex][grown]
    he, his, him = {"m": ("he", "his", "him"), "f": ("she", "her", "her")}[sex]
    return {
        "age": age, "noun": noun, "he": he, "his": his, "him": him, "grown": grown,
        "side": side, "other": {"right": "left", "left": "right"}.get(side, ""),
        "any": rng.choice(["right", "left"]),
    }  # fmt: skip


def opening(condition, rng, slots):
    """The first sentence: who comes with what since when."""
    complaint = expand(condition.complaint, rng, slots)
    lasting = expand(condition.lasting, rng, slots)
    form = rng.choice([
        "{age}-year-old {noun} with {complaint} for {lasting}",
        "{age}-year-old {noun}, {lasting} of {complaint}",
        "{noun} of {age} comes in because of {complaint}, now for {lasting}",
        "{noun}, {age}, seen for {complaint} over the last {lasting}",
        "the patient is a {age}-year-old {noun} who reports {complaint} for {lasting}",
        "reason for visit: {complaint}. {Noun}, {age} years, {lasting}",
    ])  # fmt: skip
    return form.format(complaint=complaint, lasting=lasting, Noun=slots["noun"].capitalize(), **slots)


def background(condition, rng, slots):
    """Bystanders: history, medicines and life that do not change the code."""
    pool, life = (ADULT_HISTORY, ADULT_LIFE) if slots["grown"] else (CHILD_HISTORY, CHILD_LIFE)
    barred = condition.bar.split()

    def allowed(items):
        return [text for tag, least, text in items if tag not in barred and slots["age"] >= least]

    parts = rng.sample(allowed(pool), rng.choice([1, 1, 2]))
    if len(parts) > 1 and any(part.endswith(NOTHING) for part in parts):
        parts = parts[:1]
    parts += rng.sample(allowed(life), rng.choice([0, 1, 1]))
    return [expand(part, rng, slots) for part in parts]


def denial(condition, rng):
    """A sentence of symptoms that are absent."""
    pool = [s for s in SYMPTOMS if s not in condition.has]
    absent = rng.sample(pool, rng.choice([2, 2, 3]))
    listed = ", ".join(absent[:-1]) + " or " + absent[-1]
    return rng.choice(["no {}", "denies {}", "has not had {}"]).format(listed)


def vital_signs(condition, grown, rng):
    """The line of vital signs, with temperature and pulse as facts. Children's pressure is not taken."""
    (t0, t1), *ranges = VITALS[condition.vitals]
    temperature = f"{rng.randint(round(t0 * 10), round(t1 * 10)) / 10:.1f}"
    pulse, high, low, breaths, oxygen = (rng.randint(*r) for r in ranges)
    adult = [
        "T {t}, pulse {p}, BP {h}/{l}, SpO2 {o}%",
        "BP {h}/{l}, HR {p}, RR {b}, temp {t}",
        "pulse {p}, pressure {h}/{l}, temperature {t}, saturation {o}%",
        "temp {t}, HR {p}, BP {h}/{l}",
    ]
    child = ["T {t}, pulse {p}, SpO2 {o}%", "HR {p}, RR {b}, temp {t}"]
    form = rng.choice(adult if grown else child)
    return form.format(t=temperature, p=pulse, h=high, l=low, b=breaths, o=oxygen), temperature, str(pulse)


def compose(condition, side, rng):
    """Write one note (Subjective and Objective, no assessment) of a condition."""
    slots = person(condition, side, rng)
    told = [expand(t, rng, slots) for t in condition.tell]
    told += [expand(t, rng, slots) for t in condition.may if rng.random() < 0.5]
    filler = background(condition, rng, slots)
    rng.shuffle(told)
    if rng.random() < 0.7:
        filler.append(denial(condition, rng))
    rng.shuffle(filler)
    # Bystanders stand before or after the story, never in a fixed place.
    body = told + filler if rng.random() < 0.6 else filler + told

    seen = [expand(t, rng, slots) for t in condition.show]
    normal = [text for region, text in NORMAL if region not in condition.has]
    labs = [text for lab, text in NORMAL_LABS if lab not in condition.has]
    seen += [expand(t, rng, slots) for t in rng.sample(normal, rng.choice([1, 2]))]
    if slots["grown"]:
        seen += [expand(t, rng, slots) for t in rng.sample(labs, rng.choice([0, 1, 2]))]
    rng.shuffle(seen)
    vitals, temperature, pulse = vital_signs(condition, slots["grown"], rng)

    subjective = " ".join(sentence(s) for s in [opening(condition, rng, slots)] + body)
    objective = " ".join(sentence(s) for s in [vitals] + seen)
    facts = {
        "age": str(slots["age"]), "sex": slots["noun"], "side": side,
        "temperature": temperature, "pulse": pulse, "told": told, "seen": seen,
    }  # fmt: skip
    return Note(condition.codes[side], f"Subjective: {subjective}\nObjective: {objective}", facts)
