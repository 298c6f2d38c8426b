"""
Generation against transformers (with its cache) and nanoGPT (which has none): the same sizes, about 10 M parameters, 16 rows, 128 new
tokens each, sampled at temperature 1.

    python tests/bench/generate.py --peer=DIR         DIR: a checkout of nanoGPT; about 3 minutes on 2 cores
    python tests/bench/generate.py --layers=6 --width=384 --heads=6 --kv_heads=6 --hidden=1024

All in one process, in turn; the best of the turns counts for each side, since whatever else the machine does only adds time. transformers
runs the very same weights (a Llama): its greedy tokens are compared with ours, in float32. Ours and transformers run in float32 and, where
oneDNN has it, in bfloat16 (sample.py --dtype); nanoGPT runs in float32, as its sample.py does on a CPU. A peer that is not there is left
out (pip install transformers).

Targets, the first two for the faster type of each side: twice the tokens per second of transformers; a twentieth of nanoGPT's time per
token, whether it draws its samples one by one, as its sample.py does, or all in one batch; a step of 8 rows takes at most 1.3 times that of
1 row (float32).
"""
import copy
import importlib.util
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.codec import Codec
from data.decoder import packs
from data.llama import halves
from model import ModelConfig, Muse
from sample import Engine

peer = ''       # a checkout of nanoGPT; '': left out
layers = 12
width = 256
heads = 4
kv_heads = 1    # nanoGPT has as many as heads
hidden = 832    # units of the MLP (swiglu); nanoGPT: 4 * width
rows = 16
new = 128       # tokens
prompt = 16     # tokens of the prompts
turns = 3
threads = 0     # 0: torch's default
configure(globals())

if threads:
    torch.set_num_threads(threads)
torch.manual_seed(0)
codec = Codec('bytes')
V = codec.n_vocab
ids = torch.randint(97, 123, (max(rows, 8), prompt))
shape = dict(n_layer=layers, n_embd=width, n_head=heads)
model = Muse(ModelConfig(vocab_size=V, n_kv_head=kv_heads, ff=hidden, act='swiglu', qk_norm=False, image=False, audio=False,
                         zero_init=False, **shape)).eval()
millions = lambda m: sum(p.numel() for p in m.parameters()) / 1e6

def ours(n, temperature=1.0, half=False):
    """n rows -> seconds in all, median seconds of a step, ids. No stop token: every row says all its tokens."""
    began, steps = time.perf_counter(), []
    engine = Engine(model, codec, half=half)
    said = [engine.add(codec.encode([('ids', p)]), index=i, max_new=new, temperature=temperature) for i, p in enumerate(ids[:n].tolist())]
    for r in said:
        r.stop = set()
    more = True
    while more:
        t = time.perf_counter()
        more = engine.step()
        steps.append(time.perf_counter() - t)
    return time.perf_counter() - began, median(steps), [r.result['doc']['ids'][prompt:].tolist() for r in said]

def llama():
    """The same weights as a Llama of transformers, or None."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    net = LlamaForCausalLM(LlamaConfig(
        vocab_size=V, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        tie_word_embeddings=False, num_key_value_heads=kv_heads, max_position_embeddings=prompt + new, rms_norm_eps=1e-6,
        bos_token_id=None, eos_token_id=None)).eval()
    kv = kv_heads * width // heads
    with torch.no_grad():
        net.model.embed_tokens.weight.copy_(model.wte)
        net.lm_head.weight.copy_(model.head)
        net.model.norm.weight.copy_(model.norm.gain)
        for theirs, b in zip(net.model.layers, model.blocks.values()):
            for p, x in ((theirs.self_attn.q_proj, halves(b.attn.q, width // heads)),
                         (theirs.self_attn.k_proj, halves(b.attn.kv[:kv], width // heads)),
                         (theirs.self_attn.v_proj, b.attn.kv[kv:]), (theirs.self_attn.o_proj, b.attn.out),
                         (theirs.mlp.gate_proj, b.mlp.up[:hidden]), (theirs.mlp.up_proj, b.mlp.up[hidden:]),
                         (theirs.mlp.down_proj, b.mlp.down), (theirs.input_layernorm, b.norm1.gain),
                         (theirs.post_attention_layernorm, b.norm2.gain)):
                p.weight.copy_(x)
    return net

def transformers(n, sample=True, net=None):
    net = net or llama32
    began, x = time.perf_counter(), ids[:n]
    never = [codec.sp[k] for k in ('img', 'eoi', 'aud', 'eoa', 'pad', 'boi', 'boa')]       # which our grammar would not let it say
    out = net.generate(x, attention_mask=torch.ones_like(x), do_sample=sample, max_new_tokens=new, min_new_tokens=new, pad_token_id=0,
                       **(dict(temperature=1.0, top_k=0) if sample else dict(suppress_tokens=never)))
    return time.perf_counter() - began, out[:, prompt:].tolist()

def gpt():
    """nanoGPT's model of these sizes, or None."""
    path = Path(peer) / 'model.py'
    if not peer:
        return None
    if not path.is_file():
        sys.exit(f'generate.py: peer={peer}: no model.py there: git clone https://github.com/karpathy/nanoGPT, then --peer=nanoGPT')
    spec = importlib.util.spec_from_file_location('nanogpt_model', path)
    sys.modules['nanogpt_model'] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GPT(module.GPTConfig(block_size=prompt + new, vocab_size=V, dropout=0.0, bias=False, **shape)).eval()

@torch.no_grad()
def nanogpt(n, batch):
    """Seconds for n rows: all at once; else one by one, of which 2 are run."""
    began = time.perf_counter()
    for i in range(1 if batch else 2):
        nano.generate(ids[:n] if batch else ids[i:i + 1], new)
    return (time.perf_counter() - began) * (1 if batch else n / 2)

llama32, nano = llama(), gpt()
half = packs(torch.bfloat16)
llama16 = copy.deepcopy(llama32).bfloat16() if llama32 and half else None
sizes = {k: round(millions(m), 1) for k, m in (('ours', model), ('transformers', llama32), ('nanoGPT', nano)) if m is not None}
print(f'{layers} layers, width {width}, {heads} heads ({kv_heads} kv), {torch.get_num_threads()} threads; million parameters: {sizes}')
ours(rows), half and ours(rows, half=True), llama32 and transformers(rows)                                # once to warm up
same = sum(a == b for a, b in zip(ours(rows, 0)[2], transformers(rows, False)[1])) if llama32 else None
seconds, step = {}, {1: [], 8: []}
for _ in range(turns):
    for name, run in (('ours', lambda: ours(rows)[0]), ('ours, bfloat16', half and (lambda: ours(rows, half=True)[0])),
                      ('transformers', llama32 and (lambda: transformers(rows)[0])),
                      ('transformers, bfloat16', llama16 and (lambda: transformers(rows, net=llama16)[0])),
                      ('nanoGPT, one by one', nano and (lambda: nanogpt(rows, False))),
                      ('nanoGPT, one batch', nano and (lambda: nanogpt(rows, True)))):
        if run:
            seconds.setdefault(name, []).append(run())
    for _ in range(3):
        for n in step:
            step[n].append(ours(n)[1])
best = {k: min(v) for k, v in seconds.items()}
fastest = lambda name: min((v for k, v in best.items() if k.startswith(name)), default=None)
print(f'\n{rows} rows x {new} tokens          seconds   tokens/s   ms/token of a row   ours is   in bfloat16   spread')
for k, s in best.items():
    more = f'{s / best["ours, bfloat16"]:12.1f}x' if half else f'{"-":>13}'
    print(f'{k:26s} {s:9.2f} {rows * new / s:10.0f} {1e3 * s / new:19.2f} {s / best["ours"]:8.1f}x {more} {max(seconds[k]) / s:8.2f}')
ratio = min(step[8]) / min(step[1])
print(f'\na step of 1 row {1e3 * min(step[1]):.2f} ms, of 8 rows {1e3 * min(step[8]):.2f} ms: {ratio:.2f} times')
if llama32:
    print(f'greedy tokens equal those of transformers in {same} of {rows} rows')
over = {k: fastest(k) and round(fastest(k) / fastest('ours'), 2) for k in ('transformers', 'nanoGPT')}
ok = ratio <= 1.3 and (not llama32 or over['transformers'] >= 2 and same >= 0.75 * rows) and (not nano or over['nanoGPT'] >= 20)
print(json.dumps(dict(bench='generate', ok=ok, step_8_over_1=round(ratio, 3), tokens_per_s=round(rows * new / fastest('ours')),
                      same_rows=same, over_transformers=over['transformers'], over_nanogpt=over['nanoGPT'],
                      over_transformers_float32=llama32 and round(best['transformers'] / best['ours'], 2),
                      left_out=[k for k, m in (('transformers', llama32), ('nanoGPT', nano)) if m is None])))
sys.exit(not ok)
