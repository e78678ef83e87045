#!/usr/bin/env python3
"""Transformers + PEFT on the CPU in f32, on the same token ids that the engine gets.

    python3 cpu_smollm2.py rows     --model DIR --out rows.json [--count 64]
    python3 cpu_smollm2.py train    --model DIR --rows rows.json [--batch 8] [--steps 8] [--head full|targets]
    python3 cpu_smollm2.py generate --model DIR --rows rows.json [--batch 1] [--prompt 256] [--new 64]

`rows` writes quickstart notes through the model's chat template: `[{"ids": [...], "target_start": n}, ..]`, where
the ids from `target_start` on are the answer. `train` and `generate` are one measurement each, in the process that you start, so
that its peak memory is its own; they print one JSON line. Threads: all cores, unless OMP_NUM_THREADS says otherwise.

Training: rank 16, alpha 32, dropout 0 on all seven linears, AdamW, clip 1.0, loss on the answer only. `--head full` is what
`model(labels=..)` does (logits at every position); `--head targets` computes them only where there is loss, as the engine does.
Not measured: loading, tokenization, the Trainer.
"""

import argparse
import csv
import json
import os
import platform
import resource
import statistics
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = "You are a medical coder. Answer with one ICD-10-CM code and nothing else."
TASK = "Assign the ICD-10-CM code of the main diagnosis."
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IGNORE = -100


def write_rows(args):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    rows = []
    with open(args.notes, encoding="utf-8", newline="") as f:
        for note in list(csv.DictReader(f))[: args.count]:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{TASK}\n\n{note['note']}"}]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
            answer = tokenizer(note["icd10"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
            rows.append({"ids": prompt + answer, "target_start": len(prompt)})
    args.out.write_text(json.dumps(rows), encoding="utf-8")
    print(json.dumps({"rows": len(rows), "tokens": sum(len(r["ids"]) for r in rows), "out": str(args.out)}))


def load(folder):
    import torch
    import transformers

    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def batches(rows, size):
    """Right-padded batches in the order of the file: ids, mask, labels, and how many ids are real."""
    import torch

    for at in range(0, len(rows) - size + 1, size):
        part = rows[at : at + size]
        width = max(len(r["ids"]) for r in part)
        ids = torch.zeros(size, width, dtype=torch.long)
        mask = torch.zeros(size, width, dtype=torch.long)
        labels = torch.full((size, width), IGNORE)
        for i, row in enumerate(part):
            n, start = len(row["ids"]), row["target_start"]
            ids[i, :n] = torch.tensor(row["ids"])
            mask[i, :n] = 1
            labels[i, start:n] = ids[i, start:n]
        yield ids, mask, labels, int(mask.sum())


def answer_loss(model, ids, mask, labels, head):
    """Mean loss over the answer's tokens."""
    import torch

    if head == "full":
        return model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
    decoder = model.base_model.model
    hidden = decoder.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:] != IGNORE
    return torch.nn.functional.cross_entropy(decoder.lm_head(hidden[wanted]), labels[:, 1:][wanted])


def train(args):
    import peft
    import torch

    config = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=LINEARS)
    model = peft.get_peft_model(load(args.model), config)
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-4, weight_decay=0.01)
    rows = json.loads(args.rows.read_text(encoding="utf-8"))
    times, rates, losses, since = [], [], [], None
    while len(times) < args.warm + args.steps:
        for ids, mask, labels, real in batches(rows, args.batch):
            if len(times) == args.warm:
                since = busy_seconds()
            start = time.perf_counter()
            loss = answer_loss(model, ids, mask, labels, args.head)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            times.append(time.perf_counter() - start)
            rates.append(real / times[-1])
            losses.append(round(loss.item(), 4))
            if len(times) == args.warm + args.steps:
                break
    report(
        args,
        since,
        head=args.head,
        step_s=statistics.median(times[args.warm :]),
        tokens_a_second=statistics.median(rates[args.warm :]),
        losses=losses,
    )


def generate(args):
    import torch
    import transformers

    model = load(args.model).eval()
    stream = [i for row in json.loads(args.rows.read_text(encoding="utf-8")) for i in row["ids"]]
    if len(stream) < args.batch * args.prompt:
        raise SystemExit(f"{args.rows}: {len(stream)} ids, {args.batch * args.prompt} are needed; write more rows")
    ids = torch.tensor(stream[: args.batch * args.prompt]).reshape(args.batch, args.prompt)

    def token_times():
        """Seconds from the start to each new token."""
        start, seen = time.perf_counter(), []

        def clock(tokens, scores):
            seen.append(time.perf_counter() - start)
            return torch.zeros(tokens.shape[0], dtype=torch.bool)

        with torch.inference_mode():
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=args.new,
                min_new_tokens=args.new, stopping_criteria=transformers.StoppingCriteriaList([clock]),
            )  # fmt: skip
        return seen

    token_times()
    since = busy_seconds()
    runs = [token_times() for _ in range(args.steps)]
    report(
        args,
        since,
        prompt=args.prompt,
        new=args.new,
        prefill_tokens_a_second=args.batch * args.prompt / statistics.median(run[0] for run in runs),
        decode_tokens_a_second=args.batch / statistics.median(b - a for run in runs for a, b in zip(run, run[1:])),
    )


def busy_seconds():
    """Wall clock, CPU seconds of the whole machine, CPU seconds of this process (Linux)."""
    with open("/proc/stat", encoding="ascii") as stat:
        ticks = [int(t) for t in stat.readline().split()[1:9]]
    machine = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and iowait
    own = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), machine, own.ru_utime + own.ru_stime


def report(args, since, **measured):
    """One JSON line with what was run, where, the peak memory of this process, and what others took of the machine."""
    import torch
    import transformers

    wall, machine, own = (b - a for a, b in zip(since, busy_seconds()))
    others = max(0.0, machine - own) / (wall * os.cpu_count())
    rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in measured.items()}
    print(json.dumps({
        "run": args.command, "model": Path(args.model).name, "batch": args.batch, "dtype": "f32", **rounded,
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "threads": torch.get_num_threads(), "machine": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "others_share": round(others, 3), "torch": torch.__version__, "transformers": transformers.__version__,
    }))  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in (("rows", write_rows), ("train", train), ("generate", generate)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("--model", type=Path, required=True)
        if name == "rows":
            command.add_argument("--notes", type=Path, default=ROOT / "data/quickstart/notes.csv")
            command.add_argument("--count", type=int, default=64)
            command.add_argument("--out", type=Path, required=True)
            continue
        command.add_argument("--rows", type=Path, required=True)
        command.add_argument("--batch", type=int, default=8 if name == "train" else 1)
        command.add_argument("--steps", type=int, default=8 if name == "train" else 3, help="timed; the median counts")
    commands.choices["train"].add_argument("--warm", type=int, default=2, help="untimed steps before")
    commands.choices["train"].add_argument("--head", choices=["full", "targets"], default="full")
    commands.choices["generate"].add_argument("--prompt", type=int, default=256)
    commands.choices["generate"].add_argument("--new", type=int, default=64)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
