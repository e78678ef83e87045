#!/usr/bin/env python3
"""Train the byte-level BPE tokenizer that both quickstart models share, and write its folder.

    python3 tokenizer.py --out FOLDER

Needs the `tokenizers` package. Text is split as Qwen2 splits it, except that a digit keeps the space before it: every figure
of a code and of a laboratory value is a token of its own.
"""

import argparse
import json
from pathlib import Path

from corpus import Corpus
from generate import TABLE

VOCABULARY = 2048
DOCUMENTS = 40_000
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train(table):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    corpus = Corpus(table, "tokenizer")
    pieces = ("".join(text for text, _ in corpus.document()) for _ in range(DOCUMENTS))

    def plain():
        for piece in pieces:
            for special in SPECIALS:
                piece = piece.replace(special, "\n")
            yield piece

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(plain(), trainer)
    return tokenizer


def config(context):
    """tokenizer_config.json, as Qwen2.5 writes it."""
    added = {
        str(i): {"content": s, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        for i, s in enumerate(SPECIALS)
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": None,
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": context,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def write(tokenizer, folder, context):
    """tokenizer.json and tokenizer_config.json of one model."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config(context), indent=2) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--icd10", type=Path, default=TABLE)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write(train(args.icd10), args.out, 1024)


if __name__ == "__main__":
    main()
