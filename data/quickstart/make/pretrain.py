#!/usr/bin/env python3
"""Pretrain the two quickstart models on generated text and write them as Hugging Face folders.

    python3 pretrain.py --out .. [--model small] [--minutes 5] [--tokens 80e6]

Needs torch, transformers, tokenizers, safetensors; a GPU makes it minutes. The text is drawn by
`corpus.py` in parallel processes from fixed seeds. The learning rate follows the clock, so the
weights depend on the machine; the text and the tokenizer do not.
"""

import argparse
import copy
import json
import math
import multiprocessing
import os
import time
from pathlib import Path

import numpy
import torch
import transformers
from safetensors.torch import save_file

import tokenizer as words
from corpus import Corpus
from generate import HERE, TABLE

ROW = 384  # tokens of one training row; whole documents only
CONTEXT = 1024
BATCH = 256  # rows

COMMON = {
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": words.VOCABULARY,
}
CONFIGS = {
    "small": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        **COMMON,
    },
    "large": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "head_dim": 32,
        "hidden_size": 256,
        "intermediate_size": 448,
        "mlp_bias": False,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        **COMMON,
        "rope_scaling": {
            "factor": 4.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 256,
            "rope_type": "llama3",
        },
    },
}
PEAK_RATE = {"small": 4e-3, "large": 2e-3}


def draw_rows(job):
    """Rows of whole documents: token ids and loss weights, each [rows, ROW]."""
    table, tokenizer_json, seed, tokens = job
    from tokenizers import Tokenizer

    encoder, corpus = Tokenizer.from_str(tokenizer_json), Corpus(table, seed)
    rows, weights, ids, ws, drawn = [], [], [], [], 0
    while drawn < tokens:
        pieces = corpus.document()
        doc, weight = [], []
        for text, w in pieces:
            part = encoder.encode(text).ids
            doc += part
            weight += [w] * len(part)
        doc.append(0)
        weight.append(1.0)
        drawn += len(doc)
        if len(doc) > ROW:
            continue
        if len(ids) + len(doc) > ROW:
            rows.append(ids + [0] * (ROW - len(ids)))
            weights.append(ws + [0.0] * (ROW - len(ws)))
            ids, ws = [], []
        ids, ws = ids + doc, ws + weight
    return numpy.array(rows, dtype=numpy.uint16), numpy.array(weights, dtype=numpy.float16)


def draw_corpus(table, tokenizer_json, tokens):
    """All rows, drawn by one process a core."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    jobs = [(table, tokenizer_json, seed, tokens / 64) for seed in range(64)]
    with multiprocessing.get_context("fork").Pool() as pool:  # before CUDA wakes up
        parts = pool.map(draw_rows, jobs, chunksize=1)
    return tuple(torch.from_numpy(numpy.concatenate(p).astype(t)) for p, t in zip(zip(*parts), ("int32", "float32")))


def pretrain(name, ids, weights, minutes, device, batch):
    """Train from random weights until the time is up; returns the model and a record of the run."""
    torch.manual_seed(2026)
    config = transformers.AutoConfig.for_model(**copy.deepcopy(CONFIGS[name]))  # it writes into nested settings
    config._attn_implementation = "sdpa"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=device == "cuda")
    ids, weights = ids.to(device), weights.to(device)
    order, at, step, start = None, 0, 0, time.time()
    log = []
    while (progress := (time.time() - start) / (60 * minutes)) < 1:
        if order is None or at + batch > len(order):
            order, at = torch.randperm(len(ids), device=device), 0
        pick = order[at : at + batch]
        at += batch
        x = ids[pick].long()
        # What follows each token, and the weight of saying it; the last column has no follower.
        target, w = x.roll(-1, 1).flatten(), weights[pick].roll(-1, 1)
        w[:, -1] = 0
        w = w.flatten()
        rate = PEAK_RATE[name] * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            logits = model(input_ids=x, use_cache=False).logits.flatten(0, 1)
            losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        loss = (losses * w).sum() / w.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 200 == 0:
            answer = w > 1
            log.append({"step": step, "loss": round(loss.item(), 4), "answers": round(losses[answer].mean().item(), 4)})
            print(name, f"{progress:.0%}", log[-1], flush=True)
        step += 1
    record = {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": step,
        "rows_a_step": batch,
        "tokens_seen": step * batch * ROW,
        "tokens_drawn": ids.numel(),
        "minutes": minutes,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "final": log[-1],
    }
    return model, record


@torch.no_grad()
def known_codes(model, table, encoder, device, notes=1000):
    """Share of fresh notes of pretraining conditions whose whole code is the most probable answer."""
    corpus, right = Corpus(table, "check"), 0
    for _ in range(notes):
        (ask, _), (answer, _), _ = corpus.coding()
        ask, answer = encoder.encode(ask).ids, encoder.encode(answer).ids
        logits = model(input_ids=torch.tensor([ask + answer], device=device)).logits[0]
        right += logits[len(ask) - 1 : -1].argmax(-1).tolist() == answer
    return right / notes


def write(name, model, folder, encoder):
    """A Hugging Face folder with bf16 weights."""
    words.write(encoder, folder, CONTEXT)
    tensors = {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    if CONFIGS[name]["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    generation = {"do_sample": False, "eos_token_id": [2, 0], "pad_token_id": 0}
    for file, content in (("config.json", CONFIGS[name]), ("generation_config.json", generation)):
        (folder / file).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--icd10", type=Path, default=TABLE)
    parser.add_argument("--out", type=Path, default=HERE.parent)
    parser.add_argument("--model", choices=[*CONFIGS, "both"], default="both")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--tokens", type=float, default=80e6, help="size of the drawn text")
    parser.add_argument("--batch", type=int, default=BATCH)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    encoder = words.train(args.icd10)
    ids, weights = draw_corpus(args.icd10, encoder.to_str(), args.tokens)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{ids.numel() / 1e6:.1f} M tokens in rows of {ROW}, {(weights == 0).float().mean():.1%} padding", flush=True)
    for name in CONFIGS if args.model == "both" else [args.model]:
        model, record = pretrain(name, ids, weights, args.minutes, device, args.batch)
        record["right_on_known_codes"] = known_codes(model, args.icd10, encoder, device)
        write(name, model, args.out / name, encoder)
        (args.out / name / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
