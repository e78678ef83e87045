"""cuBLAS and PyTorch's attention at the shapes of benches/kernels, for the same run on the same GPU: `python3 kernels/benches/peers.py`.

Random bf16, median of 10, a rest before each as in `bench.rs`. Prints name, microseconds, TFLOP/s (attention: the causal half, backward as 2.5 forwards).
"""
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

TOKENS = 16_384
MODELS = {  # hidden, inner, query heads, key heads, head size, vocabulary
    "qwen2.5-3b": (2048, 11008, 16, 2, 128, 151_936),
    "llama-3.2-3b": (3072, 8192, 24, 8, 128, 128_256),
    "llama-3.1-8b": (4096, 14336, 32, 8, 128, 128_256),
}


def random(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.5


def median(work, before=None):
    torch.cuda.synchronize()
    time.sleep(0.05)
    times = []
    for i in range(13):
        made = before() if before else None
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work(made) if before else work()
        end.record()
        torch.cuda.synchronize()
        if i > 2:
            times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def line(name, flops, work, before=None):
    try:
        ms = median(work, before)
    except RuntimeError as e:
        print(f"> {name:<58} refused: {str(e).splitlines()[0][:80]}", flush=True)
        return
    print(f"> {name:<58} {ms * 1e3:9.1f} us {flops / ms / 1e9:6.0f} TFLOP/s", flush=True)


def products():
    n = 8192
    x, w, y = random(n, n), random(n, n), random(n, n)
    line("cublas/8192^3", 2 * n**3, lambda: torch.matmul(x, w.t(), out=y))
    for model, (hidden, inner, queries, keys, dim, vocab) in MODELS.items():
        q, k = queries * dim, keys * dim
        for name, inputs, outputs in [("qkv", hidden, q + 2 * k), ("o", q, hidden), ("gate_up", hidden, 2 * inner), ("down", inner, hidden)]:
            x, w, y = random(TOKENS, inputs), random(outputs, inputs), random(TOKENS, outputs)
            flops = 2 * TOKENS * inputs * outputs
            line(f"cublas/{name} forward/{model}", flops, lambda: torch.matmul(x, w.t(), out=y))
            line(f"cublas/{name} dX/{model}", flops, lambda: torch.matmul(y, w, out=x))
        x, w = random(1024, hidden), random(vocab, hidden)
        line(f"cublas/head logits 1024 rows bf16/{model}", 2 * 1024 * hidden * vocab, lambda: torch.matmul(x, w.t()))


def attention():
    for model, (_, _, queries, keys, dim, _) in MODELS.items():
        for length in (512, 2048, 8192):
            rows = TOKENS // length
            q, k, v = (random(rows, heads, length, dim).requires_grad_() for heads in (queries, keys, keys))
            d = random(rows, queries, length, dim)
            flops = 2 * TOKENS * length * queries * dim
            for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
                with sdpa_kernel(backend):
                    ahead = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                    back = lambda o: torch.autograd.grad(o, (q, k, v), d)
                    who = backend.name.lower().removesuffix("_attention")
                    with torch.no_grad():
                        line(f"{who}/forward {rows} x {length}/{model}", flops, ahead)
                    line(f"{who}/backward {rows} x {length}/{model}", 2.5 * flops, back, ahead)


if __name__ == "__main__":
    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__)
    products()
    attention()
