"""
Tokens per second of a training step on one GPU, and its share of the GPU's matrix-product peak; beside nanoGPT's model with --peer.

    python tests/bench/gpu.py --peer=DIR        DIR: a checkout of nanoGPT; about 4 minutes on an H100
    python tests/bench/gpu.py --only=12x768

A step: forward, backward, clipping, AdamW, on random text that is on the GPU already; rows are one document each. eager, compile, graph as
--compile and --graph of train.py make it; fp8: rowwise, compiled. The peer as its train.py runs on CUDA: bfloat16 by autocast, fused AdamW,
torch.compile of the whole model. Same sizes on both sides, as in tests/bench/train_speed.py. One side after the other; figures are
medians, the peak is the best of some large products in bfloat16. Operations: those of matrix products (plan.count_flops, three times), as
if attention were not causal; for fp8, too, so that a share may be more than 1.
"""
import importlib.util
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import parallel
from configurator import configure
from data.graph import graphed, graphed_update
from data.plan import count_flops, product_peak
from model import ModelConfig, build
from optim_zero import Optimizer
from parallel import forward_backward, solo_mesh, start_world

peer = ''      # a checkout of nanoGPT; '': only ours
only = ''      # a size
rounds = 10
configure(globals())

# layers, width, heads, vocabulary, block, rows of a microbatch, microbatches of a step
SIZES = {'6x384': (6, 384, 6, 65, 256, 64, 1), '12x768': (12, 768, 12, 50304, 1024, 12, 4), '4x2048': (4, 2048, 16, 50304, 2048, 8, 2)}
plain_loss = parallel._fused_loss


def text(V, block, rows, micros):
    gen = torch.Generator().manual_seed(0)
    return [torch.randint(V, (rows, block + 1), generator=gen).to(device) for _ in range(micros)]


def config(layers, width, heads, V, *_):
    return ModelConfig(vocab_size=V, n_layer=layers, n_head=heads, n_embd=width, image=False, audio=False)


def ours(layers, width, heads, V, block, rows, micros, compile=False, graph=False, fp8=''):
    cfg = config(layers, width, heads, V)
    mesh, n = replace(solo_mesh(), fp8=fp8, compiled=compile), rows * block
    models = [m.to(device) for m in build(cfg, mesh, 0)]
    opt = Optimizer(models, mesh, torch.bfloat16, muon=False, clip=1.0)
    none = {k: torch.zeros(0, dtype=torch.long, device=device) for k in ('img_i', 'aud_i', 'img_w', 'aud_w')}
    at = torch.arange(block, device=device).expand(rows, -1).contiguous()
    batches = [dict(none, ids=x[:, :-1].contiguous(), txt_i=torch.arange(n, device=device), txt_y=x[:, 1:].flatten(), pos=at, mask=None,
                    txt_w=torch.full((n,), 1 / (n * micros), device=device)) for x in text(V, block, rows, micros)]
    for b in models[0].blocks.values() if compile else ():
        b.compile(dynamic=False)
    parallel._fused_loss = torch.compile(plain_loss)
    run = graphed(models[0]) if graph else None
    if graph:
        opt.update = graphed_update(opt)

    def step():
        opt.start(len(batches))
        [run(b) for b in batches] if graph else forward_backward(models, batches, mesh)
        opt.step(1e-3)
    return step


def theirs(layers, width, heads, V, block, rows, micros):
    spec = importlib.util.spec_from_file_location('nanogpt_model', Path(peer) / 'model.py')
    gpt = importlib.util.module_from_spec(spec)
    sys.modules['nanogpt_model'] = gpt                                 # dataclasses look their module up
    spec.loader.exec_module(gpt)
    net = gpt.GPT(gpt.GPTConfig(block_size=block, vocab_size=V, n_layer=layers, n_head=heads, n_embd=width, dropout=0.0, bias=False))
    opt = net.to(device).configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cuda')
    net, batches = torch.compile(net), [(x[:, :-1].contiguous(), x[:, 1:].contiguous()) for x in text(V, block, rows, micros)]

    def step():                                                        # as its train.py
        for x, y in batches:
            with torch.amp.autocast('cuda', torch.bfloat16):
                loss = net(x, y)[1] / micros
            loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
    return step


def seconds(f):
    torch.cuda.synchronize()
    t = time.perf_counter()
    f()
    torch.cuda.synchronize()
    return time.perf_counter() - t


if not torch.cuda.is_available():
    sys.exit('tests/bench/gpu.py: there is no GPU here')
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True         # as nanoGPT has it; ours are bfloat16 products
device = start_world('cuda')[2]
peak = product_peak(torch.bfloat16, device)
print(f'{torch.cuda.get_device_name()}, torch {torch.__version__}: {peak / 1e12:.0f} Tflop/s in bfloat16 at most')
print(f'{"size":8s} {"side":14s} {"ms":>8s} {"tokens/s":>10s} {"of peak":>8s} {"GB":>6s} {"to peer":>8s}')
table = {}
for name, size in SIZES.items():
    if only not in name:
        continue
    tokens, mid = size[4] * size[5] * size[6], {}
    work = 3 * count_flops(config(*size), tokens, tokens, 0, 0, tokens * size[4])
    kinds = dict(peer=None, eager={}, compile=dict(compile=True), graph=dict(graph=True), both=dict(compile=True, graph=True),
                 fp8=dict(fp8='rowwise', compile=True), fp8graph=dict(fp8='rowwise', compile=True, graph=True))
    for kind, switches in kinds.items():
        if kind == 'peer' and not peer:
            continue
        torch.cuda.reset_peak_memory_stats()
        try:
            step = theirs(*size) if kind == 'peer' else ours(*size, **switches)
            times = [seconds(step) for _ in range(4 + rounds)][4:]
        except Exception as e:
            print(f'{name:8s} {kind:14s} {type(e).__name__}: {str(e)[:300]}', flush=True)
            continue
        t = mid[kind] = median(times)
        gb = torch.cuda.max_memory_allocated() / 1e9
        table[f'{name} {kind}'] = dict(ms=round(1000 * t, 2), tokens_s=round(tokens / t), peak=round(work / t / peak, 3), gb=round(gb, 1),
                                       ratio=round(mid['peer'] / t, 2) if 'peer' in mid else None)
        print(f'{name:8s} {kind:14s} {1000 * t:8.2f} {tokens / t:10,.0f} {work / t / peak:8.1%} {gb:6.1f} '
              + (f'{mid["peer"] / t:8.2f}' if 'peer' in mid else ''), flush=True)
        del step
        torch.compiler.reset()
        torch.cuda.empty_cache()
print(json.dumps(dict(bench='gpu', gpu=torch.cuda.get_device_name(), **table)))
