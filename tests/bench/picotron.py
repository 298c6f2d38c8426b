"""
Steps per second of our train.py and of picotron's, one parallelism at a time: dp2, tp2, pp2 (1F1B) and cp2.

    python tests/bench/picotron.py --peer=DIR                 about 4 minutes on 2 cores
    python tests/bench/picotron.py --peer=DIR --layouts=tp2   one of them; steps and turns are keys too

Two processes of one thread on Gloo, float32, a Llama of 0.82 M parameters: 4 layers of width 128, 4 heads, 2 kv heads,
RMSNorm, rotary positions, SwiGLU of 320, 512 ids, untied head; a step is 8 rows of 256 positions, for pp2 in 4
microbatches, for dp2 4 rows on each rank. Both run their own train.py under torchrun on the same text, in turn (ours,
peer, ours, peer). A run's figure is the median over the steps after the first 10 of what the script itself reports per
step; the better of its runs counts for each side, since whatever else the machine does only adds time; `spread` is
worst run / best run. The target: the peer takes at least 1.5 times as long, in every layout.

What the two do not share; where it matters it is left in the peer's favour:
  - Ours takes the global gradient norm and clips, keeps a document mask, logs to a file, reduces the sums of the log, and
    is timed from one log line to the next, so waiting for data and printing count. picotron has no norm, no clipping and
    no documents (attention is only causal), and its own timer leaves out its printing.
  - AdamW on both sides. picotron asks for the fused kernel, but its test for the device never grants it: it gets
    PyTorch's loop over parameters. Ours is one fused call for neighbours in a flat buffer.
  - picotron's cp2 never sums the gradients over cp: its train.py wraps the model for data parallelism only if dp > 1, so
    each rank trains a model of its own. That is less work than training needs; `cp2 as is` is this. Row `cp2` has that one
    condition corrected (dp_world_size -> cp_dp_world_size). Both rows must reach the target.
  - picotron's rows are dealt out by the same DataLoader, but ready-made, in place of a data set of the Hub.
The peer runs in a temporary copy of DIR, which stays as it is. There its Hub libraries (transformers, datasets,
huggingface_hub, safetensors, wandb) and flash_attn, which model.py imports even where it is off, are stand-ins (PEER
below), so it needs torch and numpy only; its checkpoint of initial weights, overwritten at once by its own random ones,
is zeros; torch.cuda.synchronize, called after every message, does nothing; device='cuda' in get_num_params becomes cpu;
and DTYPE=float32, or its rotary tables would be bfloat16.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from configurator import configure

peer = ''      # a checkout of picotron; '': only ours is measured
python = ''    # the interpreter that runs the peer, with torch and numpy; '': this one
layouts = ''   # some of dp2,tp2,pp2,cp2; '': all
compile = True # ours with --compile=true: torch.compile of the blocks, which needs a C++ compiler
steps = 60     # of each run
turns = 2      # runs of each
target = 1.5   # peer's time / ours, at least
configure(globals())

SKIP = 10      # first steps, slow for reasons of their own
LIMIT = 1200   # seconds for one run: it may be paused from outside
GET = 'git clone https://github.com/huggingface/picotron, then --peer=picotron'
MODEL = dict(vocab_size=512, hidden_size=128, intermediate_size=320, num_hidden_layers=4, num_attention_heads=4,
             num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=10000.0)
BLOCK, ROWS = 256, 8
# layout -> rows of a microbatch on one rank, microbatches, what is to be replaced in the peer: (file, old, new)
SYNC = ('train.py', 'if pgm.process_group_manager.dp_world_size > 1:', 'if pgm.process_group_manager.cp_dp_world_size > 1:')
LAYOUTS = {'dp2': (4, 1, []), 'tp2': (8, 1, []), 'pp2': (2, 4, []), 'cp2': (8, 1, [SYNC])}
CUDA = ('picotron/utils.py', "device='cuda'", "device='cpu'")

# The script that torchrun starts for the peer, in its copy: stand-ins for what its train.py imports, then train.py itself.
PEER = '''
import json, runpy, sys, types
import numpy as np
import torch

model = json.load(open('toy.json'))
tokens = np.frombuffer(open('toy.txt', 'rb').read(), np.uint8).astype(np.int64)

class Rows:                                   # what datasets.load_dataset(...).map(...) would give
    column_names, block = ['text'], model.pop('block')
    def map(self, *args, **kw): return self
    def __len__(self): return 1 << 20
    def __getitem__(self, i):
        at = i * self.block % (len(tokens) - self.block)
        return {'input_ids': tokens[at:at + self.block + 1]}

class safe_open:                              # a checkpoint of zeros, shapes by name
    def __init__(self, *args, **kw): pass
    def __enter__(self): return self
    def __exit__(self, *args): pass
    def keys(self): return []
    def get_tensor(self, name):
        C, F, kv = model['hidden_size'], model['intermediate_size'], model['num_key_value_heads'] * model['hidden_size'] //
        model['num_attention_heads'] return torch.zeros({'embed_tokens': (model['vocab_size'], C), 'q_proj': (C, C), 'k_proj': (kv, C),
        'v_proj': (kv, C), 'o_proj': (C, C),
                            'gate_proj': (F, C), 'up_proj': (F, C), 'down_proj': (C, F)}.get(name.split('.')[-2], (C,)))

def stand_in(name, **members):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members)

none = lambda *args, **kw: None
stand_in('datasets', load_dataset=lambda *args, **kw: Rows(), Features=none, Sequence=none, Value=none)
stand_in('transformers', AutoConfig=types.SimpleNamespace(from_pretrained=lambda name: types.SimpleNamespace(**model)),
         AutoTokenizer=types.SimpleNamespace(from_pretrained=none))
stand_in('safetensors', safe_open=safe_open)
stand_in('huggingface_hub')
stand_in('wandb')
for name, member in (('', ''), ('.flash_attn_interface', 'flash_attn_func'), ('.layers', ''), ('.layers.rotary', 'apply_rotary_emb'),
                     ('.ops', ''), ('.ops.triton', ''), ('.ops.triton.layer_norm', 'layer_norm_fn')):
    stand_in('flash_attn' + name, **{member: none} if member else {})
torch.cuda.synchronize = none
runpy.run_path('train.py', run_name='__main__')
'''

def finish(ok, **figures):
    """The last line, and the exit status that goes with it. ok None: there was nothing to compare with."""
    print(json.dumps(dict(bench='picotron', ok=ok, target=target, **figures)))
    sys.exit(ok is False)

def launch(name, interpreter, cmd, cwd, world=2):
    """cmd on `world` processes -> their output; if it fails, the end of its output and the verdict."""
    cmd = [interpreter, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={world}', *map(str, cmd)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'DTYPE': 'float32', 'PYTHONWARNINGS': 'ignore'}
    run = subprocess.Popen(cmd, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        out, why = run.communicate(timeout=LIMIT)[0], f'ended with status {run.returncode}'
    except subprocess.TimeoutExpired:
        run.terminate()                          # torchrun takes its workers with it
        out, why = run.communicate()[0], f'was not done after {LIMIT} s'
    except BaseException:
        run.terminate()
        run.communicate()
        raise
    if run.returncode:
        print(out[-3000:])
        finish(False, why=f'{name} {why}, see above')
    return out

def ours(layout, tmp, world=2, steps=steps):
    """-> [(step, loss, ms)]"""
    rows, micros, _ = LAYOUTS[layout]
    out = Path(tempfile.mkdtemp(dir=tmp))
    flags = dict(dict(dp=1, tp=1, pp=1, cp=1), **{layout[:2]: world}, pp_schedule='1f1b', micro_rows=rows, block_size=BLOCK,
                 tokens_per_step=ROWS * BLOCK,
                 n_layer=MODEL['num_hidden_layers'], n_embd=MODEL['hidden_size'], ff=MODEL['intermediate_size'],
                 n_head=MODEL['num_attention_heads'],
                 n_kv_head=MODEL['num_key_value_heads'], rope_base=MODEL['rope_theta'], n_loc=MODEL['vocab_size'] - 288, act='swiglu',
                 qk_norm=False, token_shift=False,
                 zero_init=False, softcap=0, z_loss=0, image=False, audio=False, muon=False, dtype='float32', device='cpu',
                 dataset='shakespeare',
                 tokenizer='bytes', input=tmp / f'{STEM}.txt', max_steps=steps, lr=1e-3, warmup=0, embed_lr=1, weight_decay=0.01,
                 log_every=1, save_every=0,
                 eval_docs=1, skills=0, init_from='scratch', out_dir=out, compile=compile)
    flags = [f'--{k}={v}' for k, v in flags.items()]
    log = launch(f'ours, {layout},', sys.executable, ['train.py', *flags], ROOT, world)
    sizes.add(int(re.search(r'model: ([\d,]+) parameters', log)[1].replace(',', '')))
    return [(r['step'], r['loss'], r['ms']) for r in map(json.loads, open(out / 'metrics.jsonl')) if 'ms' in r]

def theirs(layout, tmp, as_is=False):
    """-> [(step, loss, ms)]"""
    rows, micros, patches = LAYOUTS[layout]
    copy = Path(tempfile.mkdtemp(dir=tmp))
    shutil.copytree(peer, copy, ignore=shutil.ignore_patterns('.git', 'assets'), dirs_exist_ok=True)
    for file, old, new in [CUDA, *([] if as_is else patches)]:
        text = (copy / file).read_text()
        if old not in text:
            finish(False, why=f'--peer={peer} is another version: {old!r} is not in {file}')
        (copy / file).write_text(text.replace(old, new))
    (copy / 'peer.py').write_text(PEER)
    (copy / 'toy.json').write_text(json.dumps(dict(MODEL, block=BLOCK)))
    shutil.copy(tmp / f'{STEM}.txt', copy / 'toy.txt')
    (copy / 'hf_model' / 'toy').mkdir(parents=True)
    (copy / 'hf_model' / 'toy' / 'config.json').write_text('{}')               # so that it does not download one
    (copy / 'config.json').write_text(json.dumps(dict(
        distributed=dict(dict(dp_size=1, tp_size=1, pp_size=1, cp_size=1), **{f'{layout[:2]}_size': 2}, pp_engine='1f1b', backend='gloo',
                         use_cpu=True),
        model=dict(name='toy', use_fused_adam=True),
        training=dict(seed=1, learning_rate=1e-3, total_train_steps=steps, seq_length=BLOCK, micro_batch_size=rows,
                      gradient_accumulation_steps=micros, max_tokens=None),
        dataset=dict(name='toy', num_workers=0, num_proc=1), checkpoint=dict(save_dir='ckpt', save_frequency=10 * steps, load_path=''),
        logging=dict(use_wandb=False), environment=dict(OMP_NUM_THREADS='1', TOKENIZERS_PARALLELISM='false', FLASH_ATTEN='0',
                                                        HF_TOKEN=''))))
    log = launch(f'peer, {layout},', python or sys.executable, ['peer.py', '--config=config.json'], copy)
    found = re.findall(r'Step: (\d+) .*?Loss: *([\d.]+) .*?Tokens/s: *([\d.]+)([KM]?) ', log)
    return [(int(i), float(loss), 1000 * ROWS * BLOCK / (float(rate) * {'': 1, 'K': 1e3, 'M': 1e6}[unit])) for i, loss, rate, unit in found]

def figures(runs):
    """-> (ms per step of the best run, worst / best run, mean training loss of the last 10 steps over all runs)"""
    ms = [median(ms for step, _, ms in log if step > SKIP) for log in runs]
    last = [loss for log in runs for _, loss, _ in log[-10:]]
    return min(ms), max(ms) / min(ms), sum(last) / len(last)

if steps <= SKIP:
    finish(False, why=f'--steps={steps}: the first {SKIP} steps are left out, take more')
chosen = [x for x in LAYOUTS if not layouts or x in layouts.split(',')]
if set(layouts.split(',')) - set(LAYOUTS) - {''}:
    finish(False, why=f'--layouts={layouts}: take some of dp2,tp2,pp2,cp2')
if peer and not (Path(peer) / 'picotron' / 'process_group_manager.py').is_file():
    finish(False, why=f'--peer={peer} is no checkout of picotron: {GET}')

STEM, sizes, results = f'bench_picotron_{os.getpid()}', set(), {}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))    # so that what was made is taken away
try:
    with tempfile.TemporaryDirectory() as tmp:
        tmp, rng = Path(tmp), np.random.default_rng(0)
        words = [bytes(rng.integers(97, 123, n).tolist()).decode() for n in rng.integers(1, 9, 300)]
        (tmp / f'{STEM}.txt').write_text(' '.join(words[i] for i in (rng.random(40000) ** 3 * 300).astype(int)))
        ours('dp2', tmp, world=1, steps=1)      # makes the shards of the text
        for layout in chosen:
            runs = {'ours': [], 'peer': [], 'as is': []}
            for turn in range(turns):
                for name, log in runs.items():
                    if name == 'ours' or peer and (name == 'peer' or LAYOUTS[layout][2]):
                        log.append(ours(layout, tmp) if name == 'ours' else theirs(layout, tmp, name == 'as is'))
                        print(f'{layout}, {name}, run {turn + 1}: {figures(log[-1:])[0]:.1f} ms per step', flush=True)
            results[layout] = [figures(runs[name]) for name in ('ours', 'peer') if runs[name]]
            if runs['as is']:
                results[f'{layout} as is'] = [figures(runs['ours']), figures(runs['as is'])]
finally:
    for shards in (ROOT / 'data' / 'shakespeare').glob(f'shards-*-{STEM}-*'):      # of our text, made by train.py
        shutil.rmtree(shards, ignore_errors=True)

print(f'\n{"":12}{"ours, ms":>10}{"peer, ms":>10}{"peer/ours":>11}{"loss":>8}{"peer":>8}   '
      f'{max(sizes):,} parameters, loss: last 10 of {steps} steps')
for layout, ((ms, _, loss), *rest) in results.items():
    line = f'{layout:12}{ms:10.1f}'
    for peer_ms, _, peer_loss in rest:
        line += f'{peer_ms:10.1f}{peer_ms / ms:11.2f}{loss:8.3f}{peer_loss:8.3f}'
    print(line if rest else f'{line}{"-":>10}{"-":>11}{loss:8.3f}{"-":>8}')
spread = max(s for r in results.values() for _, s, _ in r)
table = {k: dict(zip(('ms', 'peer_ms'), (round(ms, 2) for ms, *_ in r))) for k, r in results.items()}
if not peer:
    print(f'\nTo compare with picotron: {GET}')
    finish(None, steps=steps, layouts=table, why='no --peer')
for row in table.values():
    row['ratio'] = round(row['peer_ms'] / row['ms'], 3)
print('\nThe machine was busy: runs of one script differ, repeat this when it is idle.\n' if spread > 1.15 else '')
finish(all(r['ratio'] >= target for r in table.values()), steps=steps, cpus=os.cpu_count(), params=max(sizes), spread=round(spread, 2),
       layouts=table)
