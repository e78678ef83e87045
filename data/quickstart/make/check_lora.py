#!/usr/bin/env python3
"""Fine-tune the small model with PEFT and score both models: what the engine should about reach.

    python3 check_lora.py [--seeds 3] [--rank 16] [--rate 4e-3] [--epochs 5] [--batch 16]

Needs torch, transformers, peft. Same prompt, same loss (answer tokens only, averaged over the batch's
answer tokens), cosine after a linear warm-up, clip 1.0, greedy decoding; 70/15/15 within each code.
"""

import argparse
import csv
import json
import math
import random
import time
from collections import defaultdict
from pathlib import Path

import peft
import torch
import transformers

from corpus import SYSTEM, TASK
from generate import HERE

IGNORE = -100


def split(rows, seed):
    """70 % train, the rest in turn validation and test, within each code."""
    rng, by_code = random.Random(seed), defaultdict(list)
    for row in rows:
        by_code[row["icd10"]].append(row)
    train, rest = [], []
    for code in sorted(by_code):
        group = by_code[code]
        rng.shuffle(group)
        cut = round(0.7 * len(group))
        train += group[:cut]
        rest += group[cut:]
    return train, rest[::2], rest[1::2]


def prompt_ids(tokenizer, note):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{TASK}\n\n{note}"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def pad(sequences, value, left=False):
    width = max(map(len, sequences))
    return torch.tensor([[value] * (width - len(s)) + s if left else s + [value] * (width - len(s)) for s in sequences])


def accuracy(model, tokenizer, rows, device, batch=45):
    """Share of rows whose greedy answer is the code (and its category)."""
    exact = category = 0
    answers = []
    model.eval()
    for i in range(0, len(rows), batch):
        prompts = [prompt_ids(tokenizer, r["note"]) for r in rows[i : i + batch]]
        ids = pad(prompts, 0, left=True).to(device)
        mask = pad([[1] * len(p) for p in prompts], 0, left=True).to(device)
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
        answers += [a.strip() for a in tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)]
    for row, answer in zip(rows, answers):
        exact += answer == row["icd10"]
        category += answer[:3] == row["icd10"][:3]
    return exact / len(rows), category / len(rows), answers


def fine_tune(folder, tokenizer, train, device, args, seed):
    torch.manual_seed(seed)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = peft.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, lora_dropout=0.0, target_modules=targets)
    model = peft.get_peft_model(base, lora)
    model.train()
    examples = []
    for row in train:
        prompt = prompt_ids(tokenizer, row["note"])
        answer = tokenizer(f"{row['icd10']}<|im_end|>", add_special_tokens=False)["input_ids"]
        examples.append((prompt + answer, [IGNORE] * len(prompt) + answer))
    steps = math.ceil(len(examples) / args.batch) * args.epochs
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.rate, weight_decay=0.01)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, args.warmup, steps)
    rng, start, losses = random.Random(seed), time.time(), []
    for _ in range(args.epochs):
        rng.shuffle(examples)
        for i in range(0, len(examples), args.batch):
            part = examples[i : i + args.batch]
            ids, labels = pad([e[0] for e in part], 0).to(device), pad([e[1] for e in part], IGNORE).to(device)
            mask = pad([[1] * len(e[0]) for e in part], 0).to(device)
            # The head only where the loss is, as the engine does it.
            hidden = model.base_model.model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            gold = labels[:, 1:]
            logits = model.base_model.model.lm_head(hidden[:, :-1][gold != IGNORE])
            loss = torch.nn.functional.cross_entropy(logits, gold[gold != IGNORE])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
    tail = losses[-max(1, steps // args.epochs) :]
    return model, time.time() - start, sum(tail) / len(tail)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HERE.parent, help="holds small/, large/ and notes.csv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--zero-shot", action="store_true", help="score the untuned models, too")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with open(args.folder / "notes.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.folder / "small")
    for seed in range(args.seeds):
        train, _, test = split(rows, seed)
        result = {"seed": seed, "train": len(train), "test": len(test)}
        if args.zero_shot:
            for name in ("small", "large"):
                model = transformers.AutoModelForCausalLM.from_pretrained(args.folder / name, dtype=torch.float32).to(device)
                exact, category, answers = accuracy(model, tokenizer, test, device)
                result[name] = {"exact": round(exact, 3), "category": round(category, 3), "sample": answers[:4]}
        model, seconds, loss = fine_tune(args.folder / "small", tokenizer, train, device, args, seed)
        exact, category, _ = accuracy(model, tokenizer, test, device)
        result["tuned"] = {"exact": round(exact, 3), "category": round(category, 3)}
        print(json.dumps(result | {"train_loss": round(loss, 4), "seconds": round(seconds, 1)}), flush=True)


if __name__ == "__main__":
    main()
