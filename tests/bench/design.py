"""
The design of inputs, heads, positions and weights, settled by numbers: the default job, smaller (width 128) and shorter, one thing changed
at a time.

    python tests/bench/design.py                     18 designs, three seeds: 3 hours of one core, two runs at a time
    python tests/bench/design.py --only=1-D,flow     the default and some of them; --seeds=1

Each run is train.py in a copy of the tree where a few lines are others (DESIGNS), one thread, the same rows: equal positions; CPU s says
what they cost. Measured on held-out documents, teacher-forced, in float32:

    text      nats per text token; `point`: of loc tokens that say points and boxes; `hear`: of what is said of a sound
    picture   energy score of the patches that the heads make behind the true ones: E|s - y| - E|s - s'|/2 over samples s, s' per root of
              the number of values, a proper score of a distribution (Gneiting and Raftery 2007), the same for all heads; sound: of frames
    draw      per cent of 200 pictures in which a rule-based reader finds the asked colours; exact: shapes, too, in order; play: melodies
              that are what was asked, by FFT

A difference beyond two standard errors, by the spread of the default's seeds, has an exclamation mark. What a design cannot be compared in
is left out (LEARNED). The last line is JSON; ok: no design is beyond that better than the default in text without being worse in picture or
sound.
"""
import json, os, shutil, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
import numpy as np
import torch
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from configurator import configure

steps = 650
seeds = 3
only = ''            # of DESIGNS, comma-separated; '': all
jobs = 2
side = ''            # the checkpoint that this process measures, in a copy of the tree
cases = 200          # of draw and of play; 0: none
configure(globals())

SHORT = ['--n_embd=128', '--flow_width=128', '--flow_draws=2', '--skills=0', '--save_every=0', '--eval_docs=20', '--device=cpu',
         '--init_from=scratch']
EXPERTS = ['--n_expert=8', '--expert_ff=170', '--shared_ff=172']       # three of them are as large as the dense MLP
MODEL, MEDIA, LOADER = 'model.py', 'data/media.py', 'data/loader.py'
X_OUT = 'return xt + (1 - t[..., None]) * y if self.velocity else y'
NOISE = 'xt = t[..., None] * x1 + (1 - t[..., None]) * e\n'
SAMPLE = 'x, c = e[:, None, :self.d], self.cond(h)\n'
COORDS = "F.linear(fourier(b['rc'][r::tp]).to(dt), self.coord_in)"
NO_COORDS = (MODEL, COORDS, f'0 * {COORDS}')
NO_TEXT = ('train.py', '(1.0, image_weight', '(0.0, image_weight')
KINDS = (LOADER, '    if cfg.n_expert:   ', '    if True:   ')

# per name: flags of train.py, (file, its text, the other text)
DESIGNS = {
    'default': ([], []),
    'convolutions within a patch': ([], [                              # two of 3x3 and stride 2, as in Xiao et al. 2021
        (MODEL, 'self.image_in = param(mesh, C, D, std=D ** -0.5, partial=True)',
         'self.stem = nn.ParameterList((param(mesh, 48, 27, std=27 ** -0.5), param(mesh, 96, 432, std=432 ** -0.5)))\n'
         '                self.image_in = param(mesh, C, 384, std=384 ** -0.5)'),
        (MODEL, "F.linear(b['xin_img'][r::tp].to(dt), self.image_in)", "F.linear(self.convolved(b['xin_img'].to(dt)), self.image_in)"),
        (MODEL, '    def context(self, b, dtype):',
         '    def convolved(self, x):\n'
         '        x = x.view(-1, 8, 8, 3).permute(0, 3, 1, 2)\n'
         '        for w in self.stem:\n'
         '            x = F.gelu(F.conv2d(x, w.view(len(w), -1, 3, 3), stride=2, padding=1))\n'
         '        return x.flatten(1)\n\n'
         '    def context(self, b, dtype):')]),
    '8 bins': (['--bins=8'], []),
    '128 bins': (['--bins=128'], []),
    'flow: patches, velocity of frames': (['--bins=0'], []),
    'flow: patches and frames': (['--bins=0', '--audio_velocity=false'], []),
    'flow: velocities': (['--bins=0'], [(MODEL, X_OUT, 'return xt + (1 - t[..., None]) * y')]),
    'regression': (['--bins=0', '--audio_velocity=false'], [
        (MODEL, NOISE, 'xt, t = torch.ones_like(x1), torch.zeros_like(t[:, :1])\n'),
        (MODEL, SAMPLE, 'x, c, steps = torch.ones_like(e[:, None, :self.d]), self.cond(h), 1\n')]),
    '1-D positions': (['--rope_2d=false'], []),
    'no coordinates': ([], [NO_COORDS]),
    '1-D positions, no coordinates': (['--rope_2d=false'], [NO_COORDS]),
    'waveform frames': ([], [                                          # mu-law windows of 128 samples, 16 ms, not 40
        (MEDIA, 'def mel(wave):', 'def mel(wave):\n'
         '    x = np.pad(np.asarray(wave, np.float32), (0, -len(wave) % 128)).reshape(-1, 128)\n'
         '    return (4 * np.sign(x) * np.log1p(255 * abs(x)) / np.log(256)).astype(np.float32)\n\ndef log_mel(wave):'),
        (MEDIA, 'def unmel(frames, n_iter=60, seed=0):', 'def unmel(frames, n_iter=60, seed=0):\n'
         '    x = np.asarray(frames, np.float32).ravel() / 4\n'
         '    return np.sign(x) * np.expm1(abs(x).clip(max=1) * np.log(256)) / 255\n\ndef log_unmel(frames, n_iter=60, seed=0):')]),
    'an MLP for each modality': ([], [KINDS,                           # attention shared; Liang et al. 2024, "Mixture-of-Transformers"
        (MODEL, 'MLP(cfg, mesh, cfg.ff, cfg.token_shift)', 'PerKind(cfg, mesh)'),
        (MODEL, 'class Block(nn.Module):',
         'class PerKind(nn.Module):\n'
         '    def __init__(self, cfg, mesh):\n'
         '        super().__init__()\n'
         '        self.each = nn.ModuleList(MLP(cfg, mesh, cfg.ff) for _ in range(3))\n'
         '        self.shift = param(mesh, cfg.n_embd, std=0.0, kind="scalar")\n\n'
         '    def forward(self, x, ctx):\n'
         '        flat = (x + earlier(x, ctx["inner"], solo_mesh().cp) * self.shift).flatten(0, 1)\n'
         '        y, kind = torch.zeros_like(flat), ctx["kind"].flatten() % 3\n'
         '        for k, m in enumerate(self.each):\n'
         '            i = torch.nonzero(kind == k)[:, 0]\n'
         '            y = y.index_copy(0, i, m(flat[i][None])[0])\n'
         '        return y.view_as(x)\n\n\n'
         'class Block(nn.Module):')]),
    '8 experts, 2 of them and a shared one': (EXPERTS, []),
    'the same, 4, 2, 2 for each modality': (EXPERTS, [
        (MODEL, 'top = (score.detach() + self.bias).topk',
         'mine = torch.tensor([[0] * 4 + [9] * 4, [9] * 4 + [0] * 2 + [9] * 2, [9] * 6 + [0] * 2, [0] * 4 + [9] * 4])\n'
         '        top = (score.detach() + self.bias - mine[ctx["kind"].flatten()]).topk')]),
    'only text learned': (['--image_weight=0', '--audio_weight=0'], []),
    'only pictures learned': (['--audio_weight=0'], [NO_TEXT]),
    'only sound learned': (['--image_weight=0'], [NO_TEXT]),
}
# what can be compared; of a waveform there are more frames, and each is announced by an id
LEARNED = {'waveform frames': ('point', 'hear', 'picture', 'draw', 'exact', 'play'),
           'only text learned': ('text', 'point', 'hear'), 'only pictures learned': ('picture', 'draw', 'exact'),
           'only sound learned': ('sound', 'play')}
NO_DECODER = ('an MLP for each modality', 'the same, 4, 2, 2 for each modality')         # sample.py does not know them


@torch.no_grad()
def measure(checkpoint):
    """Losses of a checkpoint on the first 400 documents of val, and what it draws and plays -> dict, as JSON on the last line."""
    from data.collate import collate
    from data.loader import to_device
    from data.shards import open_shards, shard_dir
    from data.scenes.task import judge
    from data.skills import table
    from sample import load_model
    net, codec, _ = load_model(checkpoint)
    s, T = open_shards(shard_dir('scenes', codec), 'val', codec), 256
    total, g = {}, torch.Generator().manual_seed(0)

    def add(name, values):
        a, n = total.get(name, (0.0, 0))
        total[name] = a + float(values.sum()), n + len(values)
    for at in range(0, 400, 25):
        rows = [[(s, d, 0, min(T, int(s['doc'][d + 1, 0] - s['doc'][d, 0]) - 1))] for d in range(at, at + 25)]
        b, _ = collate(rows, T, codec, 1, [(1, 0, r) for r in range(len(rows))], past=net.cfg.past)
        b = to_device(b, 'cpu', torch.float32, codec, net.mesh, net.cfg)
        x = net.embed(b)
        ctx = net.context(b, x.dtype)
        for block in net.blocks.values():
            x = block(x, ctx)
        o, h = net.losses(x, b), net.norm(x).flatten(0, 1)
        real = b['txt_w'] > 0
        i, y, each = b['txt_i'][real] // T, b['txt_y'][real], o['txt_each'][real]
        drawn, played = torch.zeros(2, len(rows), dtype=torch.bool)
        drawn[b['img_i'][b['img_w'] > 0] // T] = True                  # their height and width are loc tokens, too
        played[b['aud_i'][b['aud_w'] > 0] // T] = True
        heard = (b['ids'] == codec.sp['aud']).any(1) & ~played
        add('text', each)
        add('point', each[(y >= codec.loc0) & ~drawn[i]])
        add('hear', each[heard[i]])
        for name, kind, head in (('picture', 'img', net.image_out), ('sound', 'aud', net.audio_out)):
            if head is not None and (w := b[f'{kind}_w'] > 0).any():
                where, y = b[f'{kind}_i'][w], b[f'{kind}_y'][w]
                one, two = (head.sample(h[where], torch.randn(len(y), y.shape[1], generator=g)) for _ in range(2))
                dist = lambda a, c: (a - c).norm(dim=-1) / head.d ** 0.5
                add(name, (dist(one, y) + dist(two, y) - dist(one, two)) / 2)
    out = {k: a / n for k, (a, n) in total.items() if n}
    if cases:
        def keep(_, skill, ps, results):
            if skill == 'draw':
                out['exact'] = 100 * mean(judge(p, r).get('exact', 0.0) for p, r in zip(ps, results))
        for row in table(net, codec, dict(scenes=shard_dir('scenes', codec)), cases, lambda line: None, keep, ['draw', 'play']):
            out[row['skill']] = row['score']
    print(json.dumps(out))


def run(args, cwd):
    r = subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                       env={**os.environ, 'OMP_NUM_THREADS': '1'})
    if r.returncode:
        print(f'{" ".join(map(str, args))}\n{r.stdout[-1000:]}{r.stderr[-2000:]}')
        print(json.dumps(dict(bench='design', ok=False)), flush=True)
        os._exit(1)
    return r.stdout


def copied(name, source):
    """-> a copy of the tree with a design's texts in it, and with its data."""
    tree, changes = Path(tmp.name) / f'tree{len(os.listdir(tmp.name))}', DESIGNS[name][1]
    left = ['.git', 'out*', '__pycache__', *['shards-*'] * (source == ROOT or any(file == MEDIA for file, *_ in changes))]
    shutil.copytree(source, tree, ignore=shutil.ignore_patterns(*left))
    for file, old, new in changes:
        text = (tree / file).read_text()
        if text.count(old) != 1:
            sys.exit(f'design.py: {name}: {file} has this {text.count(old)} times, not once: {old!r}')
        (tree / file).write_text(text.replace(old, new))
    if 'shards-*' in left:                                             # before two processes want it
        run(['train.py', '--max_steps=1', f'--out_dir={tree}/once', *SHORT], tree)
    return tree


def trained(name, seed):
    """-> dict of measure(), and cpu."""
    tree, flags = trees[name], DESIGNS[name][0]
    with tempfile.TemporaryDirectory(dir=tree) as out:
        run(['train.py', f'--max_steps={steps}', f'--seed={seed}', f'--out_dir={out}', f'--log_every={steps}', *SHORT, *flags], tree)
        cpu = next(r['cost']['cpu_s'] for r in map(json.loads, open(Path(out) / 'metrics.jsonl')) if 'cost' in r)
        said = run(['tests/bench/design.py', f'--side={out}', f'--cases={0 if name in NO_DECODER else cases}'], tree)
    return dict(cpu=cpu, **{k: v for k, v in json.loads(said.splitlines()[-1]).items() if name not in LEARNED or k in LEARNED[name]})


if side:
    torch.set_num_threads(1)
    measure(side)
    sys.exit()

COLUMNS = dict(text=3, point=3, hear=3, picture=4, sound=4, draw=1, exact=1, play=1, cpu=0)
tmp, pool = tempfile.TemporaryDirectory(), ThreadPoolExecutor(jobs)
chosen = {k: v for k, v in DESIGNS.items() if k == 'default' or not only or any(o in k for o in only.split(','))}
trees = {}
for k in chosen:
    trees[k] = copied(k, trees['default'] if trees else ROOT)
wait = {(k, s): pool.submit(trained, k, 1336 + s) for s in range(1, seeds + 1) for k in chosen}
print(f'{steps} steps, {seeds} seeds\n{"":40}' + ''.join(f'{c:>17}' for c in COLUMNS), flush=True)
for (k, s), f in wait.items():                                         # as they come
    r = f.result()
    print(f'{k:36}{s:4d}' + ''.join(f'{r[c]:17.{d}f}' if c in r else f'{"-":>17}' for c, d in COLUMNS.items()), flush=True)
done = {k: [wait[k, s].result() for s in range(1, seeds + 1)] for k in chosen}
base, ok, means = done['default'], True, {}
COLUMNS = {c: d for c, d in COLUMNS.items() if c in base[0]}
error = {c: stdev(r[c] for r in base) * (2 / seeds) ** 0.5 if seeds > 1 else float('inf') for c in COLUMNS}
print('\nmean over seeds; ! beyond two standard errors of a difference, which are last')
for k, runs in done.items():
    m = {c: mean(r[c] for r in runs) for c in COLUMNS if c in runs[0]}
    off = {c: (m[c] - mean(r[c] for r in base)) * (1 if c in ('draw', 'exact', 'play') else -1) / max(error[c], 1e-9) for c in m}
    print(f'{k:40}' + ''.join(f'{m[c]:16.{d}f}{"!" if c != "cpu" and abs(off[c]) > 2 else " "}' if c in m else f'{"-":>16} '
                              for c, d in COLUMNS.items()))
    means[k] = {c: round(v, 4) for c, v in m.items()}
    ok = ok and not (off.get('text', 0) > 2 and min(off.get(c, -9) for c in ('picture', 'sound')) > -2)
print(f'{"2 standard errors":40}' + ''.join(f'{2 * error[c]:16.{d}f} ' for c, d in COLUMNS.items()))
error = {c: round(e, 5) for c, e in error.items()} if seeds > 1 else None
print(json.dumps(dict(bench='design', ok=ok, steps=steps, seeds=seeds, error=error, table=means)))
sys.exit(not ok)
