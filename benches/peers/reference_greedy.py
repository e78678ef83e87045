#!/usr/bin/env python3
"""Write what Transformers says greedily, in f32 on the CPU: tests/fixtures/smollm2_greedy.json.

    python3 reference_greedy.py --model DIR [--out ../../tests/fixtures/smollm2_greedy.json] [--new 32]

Each case holds the exact input ids, the new ids (with the end token, if it came), their text without special tokens, and the
least gap between the best and the second logit: where it is tiny, another order of sums may well choose the other token.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
NOTE = (
    "Subjective: 61-year-old man with burning feet for 9 months. On metformin for 12 years. Worse at night in bed.\n"
    "Objective: Monofilament not felt at 7 of 10 points on both soles. Ankle jerks absent, A1c 7.9."
)
CASES = [
    ("plain_story", "The doctor looked at the chart and"),
    ("plain_list", "The four chambers of the heart are"),
    ("plain_unicode", "Größe und Gewicht: 1,82 m, 84 kg. Übersetzt heißt das"),
    ("chat_short", [{"role": "user", "content": "What is the capital of France?"}]),
    ("chat_sum", [{"role": "user", "content": "What is 17 plus 25? Answer with the number only."}]),
    (
        "chat_coding",
        [
            {"role": "system", "content": "You are a medical coder. Answer with one ICD-10-CM code and nothing else."},
            {"role": "user", "content": f"Assign the ICD-10-CM code of the main diagnosis.\n\n{NOTE}"},
        ],
    ),
    (
        "chat_turns",
        [
            {"role": "user", "content": "Name a fruit."},
            {"role": "assistant", "content": "Apple."},
            {"role": "user", "content": "Name another one, and say what color it is."},
        ],
    ),
]


def answer(model, tokenizer, name, prompt, new):
    """One case of the fixture."""
    if isinstance(prompt, str):
        text = prompt
    else:
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    said = out.sequences[0, ids.shape[1] :]
    top = torch.stack([step[0].topk(2).values for step in out.logits])
    return {
        "name": name,
        "prompt" if isinstance(prompt, str) else "messages": prompt,
        "input_ids": ids[0].tolist(),
        "new_ids": said.tolist(),
        "text": tokenizer.decode(said, skip_special_tokens=True),
        "least_gap": round((top[:, 0] - top[:, 1]).min().item(), 4),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "tests/fixtures/smollm2_greedy.json")
    parser.add_argument("--new", type=int, default=32)
    args = parser.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    fixture = {
        "model": "SmolLM2-135M-Instruct as tools/make_smollm2.py writes it (bf16 weights, computed in f32)",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "max_new": args.new,
        "cases": [answer(model, tokenizer, name, prompt, args.new) for name, prompt in CASES],
    }
    text = json.dumps(fixture, indent=1, ensure_ascii=False)
    args.out.write_text(text + "\n", encoding="utf-8")
    for case in fixture["cases"]:
        print(case["name"], len(case["input_ids"]), case["least_gap"], repr(case["text"]))


if __name__ == "__main__":
    main()
