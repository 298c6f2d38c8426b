"""
Can the loss of a model be told before it is paid for? A ladder of sizes from one knob (train.py --depth), a power law through the small
rungs, the largest rung predicted, then trained.

    python tests/bench/scaling.py                           depths 2 to 6, 2400 CPU-seconds and evaluation
    python tests/bench/scaling.py --horizon=5               a third of the tokens; with earlier settings 2.6% off
    python tests/bench/scaling.py --config=config/llama_dense.py

L(C) = E + A C^-alpha over the operations of training (Hoffmann et al. 2022, the frontier of their approach 3): for each E on a grid ln(L -
E) is a line in ln C; of the grid that E is taken whose line fits best, in squares of relative error of L. Rungs are the mean of `seeds`
runs, those that cost less than a tenth of the largest of three times as many. The picture shows rungs, law and prediction, the excess over
E in logarithms. The smallest rungs need many tokens per parameter: at 5 the smallest has 120 steps, its loss is that of a beginning, and
bends the line. The last line is JSON; ok: the largest is predicted within 2%.

Likewise, where they are: the solve rate of rl.py (out-rl*/metrics.jsonl) against the logarithm of the tokens drawn, a line through the
first 60%, then the rest; and the logarithm of the failures of N agents (out-*/contemplate.json of contemplate.py) against N, a line through
1, 2 and 4 agents, since those who work apart fail together as the product of each, then 8 and 16.
"""
import json, math, os, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
import numpy as np
from PIL import Image, ImageDraw
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from configurator import configure

depths = '2,3,4,5,6'
config = 'config/muse.py+config/muse_plain.py'      # files, + between them
dataset = 'stdlib'
horizon = 15.0            # tokens per parameter of the blocks
seeds = 1
jobs = 2                  # runs at a time
out = 'out-scaling.png'   # the picture
configure(globals())

def finish(ok, **figures):
    print(json.dumps(dict(bench='scaling', ok=ok, **figures)))
    sys.exit(not ok)

def train(depth, seed, flags=(), dataset=dataset):
    """-> (operations, loss in nats per byte, CPU seconds, parameters, steps)"""
    with tempfile.TemporaryDirectory() as folder:
        r = subprocess.run([sys.executable, 'train.py', *config.split('+'), f'--depth={depth}', f'--horizon={horizon}', f'--seed={seed}',
                            f'--dataset={dataset}', f'--out_dir={folder}', '--init_from=scratch', '--eval_docs=0',
                            '--eval_every=0', '--save_every=0', '--skills=0', '--log_every=1000000', '--device=cpu', *flags], cwd=ROOT,
                            env={**os.environ, 'OMP_NUM_THREADS': '1'},
                           stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if r.returncode:
            finish(False, why=f"depth {depth}: {(r.stderr.strip().splitlines() or ['no word'])[-1]}")
        last = [json.loads(line) for line in open(Path(folder) / 'metrics.jsonl')][-1]
        return last['cost']['flops'], last['val'][dataset]['txt'], last['cost']['cpu_s'], last['cost']['params'], last['step']

def operations(depth, steps):
    """What training will cost: one step, measured on a text of its own, times the steps."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / 'some.txt'
        text.write_text('to be or not to be ' * 400)
        one = train(depth, 1, ['--horizon=1e-9', f'--input={text}'], 'shakespeare')
    for p in (ROOT / 'data' / 'shakespeare').glob('shards-bytes-some-*'):
        shutil.rmtree(p)
    return one[0] * steps

def fit(C, L):
    """-> (E, A, alpha) of L = E + A C^-alpha."""
    best = (math.inf,)
    for E in np.linspace(0, min(L), 400, endpoint=False):
        slope, level = np.polyfit(np.log(C), np.log(L - E), 1)
        error = float(np.square((E + np.exp(level + slope * np.log(C))) / L - 1).sum())
        if slope < 0 and error < best[0]:
            best = (error, float(E), math.exp(level), -float(slope))
    if len(best) == 1:
        finish(False, why=f'the loss does not fall with compute: {list(map(float, L))}')
    return best[1:]

def picture(C, L, law, predicted):
    """Both axes logarithmic: compute, and loss above E."""
    E, A, alpha = law
    W, H, left, top = 720, 480, 80, 40
    im = Image.new('RGB', (W, H), 'white')
    d = ImageDraw.Draw(im)
    lx, ly = np.log10(C), np.log10(np.maximum(np.array(L) - E, 1e-6))
    x0, x1, y0, y1 = lx[0] - .3, lx[-1] + .3, ly.min() - .1, ly.max() + .1
    at = lambda c, excess: (left + (math.log10(c) - x0) / (x1 - x0) * (W - left - 30),
                            H - 50 - (math.log10(excess) - y0) / (y1 - y0) * (H - 50 - top))
    d.rectangle((left, top, W - 30, H - 50), outline='black')
    for e in range(math.ceil(x0), math.floor(x1) + 1):
        x = at(10 ** e, 10 ** y0)[0]
        d.line((x, top, x, H - 50), fill='lightgray')
        d.text((x - 12, H - 44), f'1e{e}', fill='black')
    for c, l in zip(C, L):
        d.text((6, at(c, max(l - E, 1e-6))[1] - 6), f'{l:.3f}', fill='black')
    grid = [10 ** x for x in np.linspace(x0, x1, 80)]
    d.line([p for p in (at(c, A * c ** -alpha) for c in grid) if top <= p[1] <= H - 50], fill='blue', width=2)
    for i, (c, l) in enumerate(zip(C, L)):
        x, y = at(c, max(l - E, 1e-6))
        d.ellipse((x - 5, y - 5, x + 5, y + 5), fill='red' if i == len(C) - 1 else 'black')
    x, y = at(C[-1], predicted - E)
    d.line((x - 8, y - 8, x + 8, y + 8), fill='blue', width=2), d.line((x - 8, y + 8, x + 8, y - 8), fill='blue', width=2)
    text = f'L = {E:.3f} + {A:.3g} C^-{alpha:.3f}'
    d.text((left, 10), f'{dataset}: loss against operations of training; {text}; cross: predicted, red: measured', fill='black')
    im.save(ROOT / out)

def rl_fit(path):
    """
    Solve rate on held-out problems against ln(tokens drawn so far) of a run of rl.py: a line through the first 60% -> its worst error on
    the rest; None: too few.
    """
    points, drawn = {}, 0
    for r in map(json.loads, open(path)):
        drawn += r.get('tokens', 0)
        if drawn and 'held' in r.get('val', {}):
            points[math.log(drawn)] = r['val']['held']['pass1']
    n = int(.6 * len(points))
    if n < 4 or len(points) - n < 2:
        return None
    x, y = np.array(sorted(points.items())).T
    return float(np.abs(np.polyval(np.polyfit(x[:n], y[:n], 1), x[n:]) - y[n:]).max())

def agents_fit(path):
    """Accuracy of N agents, merged: ln(1 - accuracy) = a - b N from 1, 2 and 4 agents -> its worst error on 8 and 16."""
    rows = {int(n): r['merge'] for n, r in json.loads(path.read_text())['agents'].items()}
    b, a = np.polyfit([1, 2, 4], [math.log(max(1 - rows[n], 1e-3)) for n in (1, 2, 4)], 1)
    return max(abs(1 - math.exp(a + b * n) - rows[n]) for n in (8, 16))

began, sizes = time.time(), [int(d) for d in depths.split(',')]
if len(sizes) < 5 or sizes != sorted(set(sizes)):
    finish(False, why=f'depths={depths}: at least five, the smallest first')
# makes the data set before two want it at once, and warms the files
train(sizes[0], 1, ['--horizon=1e-9'])
pool, done = ThreadPoolExecutor(jobs), {}
cost = lambda d: d ** 6                                                      # parameters and tokens both grow with the third power
runs = {d: [pool.submit(train, d, s) for s in range(1, 1 + seeds * (3 if cost(d) < cost(sizes[-1]) / 10 else 1))] for d in sizes[:-1]}
print(f'{"depth":>5}{"parameters":>12}{"FLOPs":>11}{"CPU s":>8}{"loss":>9}{"seeds":>9}')
def rung(d, results):
    C, L, cpu, n, steps = zip(*results)
    done[d] = (mean(C), mean(L), steps[0])
    print(f'{d:5}{n[0]:12,}{mean(C):11.2e}{mean(cpu):8.1f}{mean(L):9.4f}{stdev(L) if len(L) > 1 else 0:9.4f}', flush=True)
for d in sizes[:-1]:
    rung(d, [f.result() for f in runs[d]])
C, L, taken = (np.array(x) for x in zip(*done.values()))
E, A, alpha = fit(C, L)
next_C = operations(sizes[-1], round(taken[-1] * (sizes[-1] / sizes[-2]) ** 3))
predicted = E + A * next_C ** -alpha
print(f'L = {E:.4f} + {A:.4g} C^-{alpha:.4f}; depth {sizes[-1]} will cost {next_C:.2e} operations: predicted {predicted:.4f}', flush=True)
rung(sizes[-1], [f.result() for f in [pool.submit(train, sizes[-1], s) for s in range(1, seeds + 1)]])
C1, L1, _ = done[sizes[-1]]
error = predicted / L1 - 1
print(f'depth {sizes[-1]}: predicted {predicted:.4f}, measured {L1:.4f}: {error:+.2%} '
      f'({"within" if abs(error) <= .02 else "not within"} 2%)')
picture([*C, C1], [*L, L1], (E, A, alpha), predicted)
rl = {p.parent.name: round(e, 3) for p in sorted(ROOT.glob('out-rl*/metrics.jsonl')) if (e := rl_fit(p)) is not None}
for name, e in rl.items():
    print(f'{name}: solve rate against ln(tokens drawn), from the first 60% of the evaluations: the rest within {e:.3f}')
agents = {p.parent.name: round(agents_fit(p), 3) for p in sorted(ROOT.glob('out-*/contemplate.json'))}
for name, e in agents.items():
    print(f'{name}: failures of N agents, from 1, 2 and 4 of them: accuracy of 8 and 16 within {e:.3f}')
print(f'{out}: the picture')
finish(abs(error) <= .02, depths=sizes, flops=[float(f'{c:.3e}') for c in (*C, C1)], loss=[round(float(v), 4) for v in (*L, L1)],
       law=dict(E=round(E, 4), A=round(A, 4), alpha=round(alpha, 4)),
       predicted=round(predicted, 4), error=round(error, 4), rl=rl, agents=agents, minutes=round((time.time() - began) / 60, 1))
