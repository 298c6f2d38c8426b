"""
Tokens per second of one training step, and its share of the machine's matrix-product peak; beside nanoGPT's model with --peer.

    python tests/bench/train_speed.py --peer=DIR             DIR: a checkout of nanoGPT; about 8 minutes on 2 cores
    python tests/bench/train_speed.py --only=6x384 --steps=5

One process. In each round every side makes one step (forward, backward, clipping, AdamW; ours reduces and publishes too) on random text,
and one large matrix product of each type is timed: sides alternate, so other load of the machine meets all alike. The figure is the median;
the peak is the best product. Same sizes on both sides: layers x width, heads of 64 (4x128: 32), 65 ids, block and rows as the table says;
nothing is compiled in `float32` and `peer`. Ours has relu^2, rotary positions and RMSNorm where nanoGPT has GELU, learned positions and
LayerNorm, and an untied head; QK-norm, which nanoGPT has nothing like, is off but for the row `QK-norm`. `best` is ours in bfloat16 if the
machine multiplies it fast. Operations are those of matrix products (plan.count_flops, three times), for both sides alike.

Targets: float32 at least the peer's tokens per second at 4x128 and 6x384; best at least twice at 6x384; at 12x768 60% of the peak.
"""
import importlib.util
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from configurator import configure
from data.plan import count_flops
from model import ModelConfig, build
from optim_zero import Optimizer
from parallel import forward_backward, keep_pages, solo_mesh

peer = ''      # a checkout of nanoGPT; '': only ours
only = ''      # a size
steps = 0      # rounds; 0: as the size has it
threads = 0    # 0: torch's default
configure(globals())

# layers, width, heads, block, rows of a step, rows of a microbatch, rounds
SIZES = {'4x128': (4, 128, 4, 64, 12, 12, 40), '6x384': (6, 384, 6, 256, 32, 8, 6), '12x768': (12, 768, 12, 512, 4, 4, 4)}
V, FAST = 65, torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
keep_pages()                                                           # as train.py does, here for both
torch.set_num_threads(threads or torch.get_num_threads())


def ours(layers, width, heads, block, rows, micro, dtype, qk_norm=False):
    """-> a function that makes one step, and the operations of it."""
    torch.manual_seed(0)
    cfg = ModelConfig(vocab_size=V, n_layer=layers, n_head=heads, n_embd=width, image=False, audio=False, qk_norm=qk_norm)
    mesh = solo_mesh()
    models = build(cfg, mesh, 0)
    opt = Optimizer(models, mesh, dtype, muon=False, clip=1.0)
    n = micro * block
    ids = torch.randint(V, (rows // micro, micro, block + 1))
    none = dict.fromkeys(('img_i', 'aud_i', 'img_w', 'aud_w'), torch.zeros(0, dtype=torch.long))
    batches = [dict(none, ids=x[:, :-1].contiguous(), doc=torch.zeros(micro, block, dtype=torch.long), txt_i=torch.arange(n),
                    txt_y=x[:, 1:].flatten(), txt_w=torch.full((n,), 1 / (rows * block)), pos=torch.arange(block).expand(micro, -1))
                    for x in ids]

    def step():
        opt.start(len(batches))
        loss = sum(float(o['loss']) for o in forward_backward(models, batches, mesh, None, (micro, block, width), dtype))
        opt.step(1e-3)
        return loss
    return step, 3 * count_flops(cfg, rows * block, rows * block, 0, 0, rows * block * block)


def theirs(layers, width, heads, block, rows, micro):
    spec = importlib.util.spec_from_file_location('nanogpt_model', Path(peer) / 'model.py')
    gpt = importlib.util.module_from_spec(spec)
    sys.modules['nanogpt_model'] = gpt                                 # dataclasses look their module up
    spec.loader.exec_module(gpt)
    torch.manual_seed(0)
    net = gpt.GPT(gpt.GPTConfig(block_size=block, vocab_size=V, n_layer=layers, n_head=heads, n_embd=width, dropout=0.0, bias=False))
    opt = net.configure_optimizers(0.1, 1e-3, (0.9, 0.95), 'cpu')
    ids = torch.randint(V, (rows // micro, micro, block + 1))

    def step():                                                        # as its train.py
        total = 0.0
        for x in ids:
            loss = net(x[:, :-1].contiguous(), x[:, 1:].contiguous())[1] / len(ids)
            total += loss.item()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        return total
    return step


def seconds(f):
    t = time.perf_counter()
    f()
    return time.perf_counter() - t


if peer and not (Path(peer) / 'model.py').is_file():
    sys.exit(f'--peer={peer} is no checkout of nanoGPT: git clone https://github.com/karpathy/nanoGPT')
print(f'{torch.get_num_threads()} threads\n{"size":8s} {"block":>6s} {"rows":>5s} {"side":10s} {"ms":>8s} {"tokens/s":>9s} {"of peak":>8s} '
      f'{"peer/ours":>10s}')
table, ok = {}, True
for name, (layers, width, heads, block, rows, micro, rounds) in SIZES.items():
    if only not in name:
        continue
    rounds, size = steps or rounds, (layers, width, heads, block, rows, micro)
    sides, times, products = {}, {}, {}
    sides['float32'], work = ours(*size, torch.float32)
    sides['QK-norm'] = ours(*size, torch.float32, True)[0]
    if FAST:
        sides['best'] = ours(*size, torch.bfloat16)[0]
    if peer:
        sides['peer'] = theirs(*size)
    square = {dt: [torch.randn(1024, 1024, dtype=dt) for _ in range(3)] for dt in (torch.float32, torch.bfloat16)}
    for _ in range(rounds + 1):                                        # the first round is not counted
        for k, f in sides.items():
            times.setdefault(k, []).append(seconds(f))
        for dt, (a, b, c) in square.items():
            products[dt] = min([products.get(dt, 1e9)] + [seconds(lambda: torch.mm(a, b, out=c)) for _ in range(5)])
    mid = {k: median(t[1:]) for k, t in times.items()}
    for k, t in mid.items():
        peak = 2 * 1024 ** 3 / products[torch.bfloat16 if k == 'best' else torch.float32]
        ratio = mid['peer'] / t if peer else None
        table[f'{name} {k}'] = dict(ms=round(1000 * t, 1), tokens_s=round(rows * block / t), peak=round(work / t / peak, 3),
                                    ratio=ratio and round(ratio, 2))
        print(f'{name:8s} {block:6d} {rows:5d} {k:10s} {1000 * t:8.1f} {rows * block / t:9,.0f} {work / t / peak:8.0%} '
              + (f'{ratio:10.2f}' if peer else ''), flush=True)
    if peer and name != '12x768':
        ok &= table[f'{name} float32']['ratio'] >= 1 and (name != '6x384' or not FAST or table[f'{name} best']['ratio'] >= 2)
    if name == '12x768':
        ok &= table[f'{name} float32']['peak'] >= .6
print(json.dumps(dict(bench='train_speed', ok=ok, peer=bool(peer), threads=torch.get_num_threads(), **table)))
sys.exit(not ok)
