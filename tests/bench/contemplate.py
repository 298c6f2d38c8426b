"""
Many agents beside one, at equal latency: accuracy against sequential decode steps on held-out problems of `twice`, for N = 1, 2, 4, 8, 16.

    python tests/bench/contemplate.py                               trains the model of config/sft_twice.py first, if out_dir has none
    python tests/bench/contemplate.py --out_dir=out-sft-twice --problems=400

Latency of N agents: the longest agent's steps, one for reading the reports, the orchestrator's. The one alone gets at least as many steps
for each problem as N agents took for any, and is trained for any number. Problems are the same for all (paired); intervals: bootstrap over
problems, 95%. Beside it what else could be made of the same reports: the majority, the majority of those that their authors verified, and
the oracle (any report is right). Wall-clock: one question at a time, median. Target: 8 agents at least 10 points above one, as an
interval.
"""
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from configurator import configure
from data.twice.task import problem, verify
from data.checkpoint import checkpoints
from sample import contemplate, load_model, turn

out_dir = 'out-sft-twice'
problems = 200
level = 6
think = 64      # positions of an agent's thought
temperature = 1.0
timed = 5       # questions for the wall-clock
threads = 1
seed = 0
configure(globals())

torch.set_num_threads(threads)
if not checkpoints(out_dir):
    command = [sys.executable, 'train.py', 'config/sft_twice.py', f'--out_dir={Path(out_dir).resolve()}']
    subprocess.run(command, cwd=ROOT, check=True)
model, codec, meta = load_model(out_dir)
tasks = [problem(f'bench/{seed}/{i}', level, 'held') for i in range(problems)]
prompts = [codec.encode(turn(codec, p['question'])) for p in tasks]
brief = level + 4                                                     # the answer, </report>, <eot>
options = dict(temperature=temperature, seed=seed, rows=256)

def right(answers):
    """-> (problems,) float: 1 where the answer is right."""
    return np.array([verify(p, a) for p, a in zip(tasks, answers)])

def interval(x):
    """Bootstrap over problems -> mean and 95% interval."""
    means = x[np.random.default_rng(0).integers(0, len(x), (4000, len(x)))].mean(1)
    return float(x.mean()), *map(float, np.quantile(means, (.025, .975)))

def many(n, some=prompts, alone=brief + 1):
    return contemplate(model, codec, some, n, think=think, brief=brief, max_new=32, alone=alone, **options)

def one(steps, some=prompts):
    """One alone with so many steps, from <think> to the answer: beside an agent that has nothing to do."""
    return contemplate(model, codec, some, 1, think=1, brief=brief, max_new=brief + 1, alone=steps, **options)

def seconds(ask):
    spent = []
    for p in prompts[:timed]:
        began = time.perf_counter()
        ask([p])
        spent.append(time.perf_counter() - began)
    return float(np.median(spent))

rows, points, fine = [], [], {}
for n in (1, 2, 4, 8, 16):
    groups = many(n)
    most = max(g['steps'] for g in groups)
    alone = one(most)                                                 # </think> put in: a step, too
    merge, single = right([g['answer'] for g in groups]), right([g['one'] for g in alone])
    other = {k: right([g[k] for g in groups]).mean() for k in ('majority', 'vote')}
    oracle = np.max([right([g['reports'][a].lstrip('?') for g in groups]) for a in range(n)], 0)
    claims = np.array([[verify(p, r), r[:1] not in ('?', '')] for p, g in zip(tasks, groups) for r in g['reports']])
    gain, over = interval(merge - single), interval(merge - right([g['vote'] for g in groups]))
    mean = float(np.mean([g['steps'] for g in groups]))
    fine[n] = dict(merge=float(merge.mean()), one=float(single.mean()), oracle=float(oracle.mean()),
                   **{k: float(v) for k, v in other.items()},
                   gain=gain, over_vote=over, steps=mean, most=most, claims_right=float(claims[claims[:, 1] > 0, 0].mean()),
                   steps_one=float(np.mean([g['steps_one'] for g in alone])), seconds=seconds(lambda p: many(n, p)),
                   seconds_one=seconds(lambda p: one(most, p)))
    points.append((n, mean, interval(merge), float(other['vote'])))
    if n == 1:
        print(f'{problems} held-out problems of level {level}, {think} positions to think, temperature {temperature}\n')
        print('agents  merge  verified vote  majority  oracle | steps mean, max | one alone, given max | merge - one           merge - vote'
              '          claims right   seconds, one')
    f = fine[n]
    print(f'{n:6d} {f["merge"]:6.1%} {f["vote"]:14.1%} {f["majority"]:9.1%} {f["oracle"]:7.1%} | {mean:10.1f} {most:4d} | '
          f'{f["one"]:11.1%} in {f["steps_one"]:5.1f} | ' +
          '  '.join(f'{100 * m:+5.1f} [{100 * a:+5.1f}, {100 * b:+5.1f}]' for m, a, b in (gain, over)) +
          f' {f["claims_right"]:14.1%} {f["seconds"]:9.2f} {f["seconds_one"]:5.2f}', flush=True)

curve = [(steps, interval(right([g['one'] for g in one(steps)]))) for steps in (32, 64, 96, 128, 192, 256)]
print('\none alone:  ' + '   '.join(f'{s} steps {m:.1%}' for s, (m, _, _) in curve))

def plot(path, W=720, H=480):
    """Accuracy against steps, logarithmic: one alone (line), merges (dots) and votes (rings) of N agents, with intervals."""
    im = Image.new('RGB', (W, H), 'white')
    draw, lo, hi = ImageDraw.Draw(im), np.log(24), np.log(max(300, *(x for _, x, _, _ in points)))
    at = lambda x, y: (60 + (np.log(x) - lo) / (hi - lo) * (W - 90), H - 50 - y * (H - 90))
    for y in (0, .2, .4, .6, .8, 1):
        draw.line([at(24, y), (W - 30, at(24, y)[1])], fill='#dddddd')
        draw.text((22, at(24, y)[1] - 6), f'{y:.0%}', fill='black')
    for x in (32, 64, 128, 256):
        draw.text((at(x, 0)[0] - 8, H - 42), str(x), fill='black')
    draw.text((W // 2 - 90, H - 22), 'sequential decode steps', fill='black')
    draw.text((60, 14), 'held-out problems solved. blue: one alone; red: N agents, merged (rings: self-verified vote); bars: 95%',
              fill='black')
    draw.line([at(s, m) for s, (m, _, _) in curve], fill='#2255bb', width=3)
    for colour, dots in (('#2255bb', [(None, s, i, None) for s, i in curve]), ('#cc2222', points)):
        for n, s, (m, a, b), vote in dots:
            (x, y), r = at(s, m), 5
            draw.line([at(s, a), at(s, b)], fill=colour, width=2)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
            if n:
                draw.text((x + 9, y - 6), f'N={n}', fill=colour)
                vx, vy = at(s, vote)
                draw.ellipse((vx - r, vy - r, vx + r, vy + r), outline='#cc8800', width=2)
    im.save(path)

plot(Path(out_dir) / 'contemplate.png')
print(f'{out_dir}/contemplate.png')
ok = fine[8]['gain'][1] >= .10
result = json.dumps(dict(bench='contemplate', ok=ok, problems=problems, think=think, agents=fine,
                         one_alone={s: m for s, (m, _, _) in curve}))
(Path(out_dir) / 'contemplate.json').write_text(result)                # scaling.py fits a law to it
print(result)
sys.exit(not ok)
