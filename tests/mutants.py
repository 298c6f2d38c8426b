"""
The bugs that this field makes silently, put back one at a time: does a test go red?

    python tests/mutants.py                  about 6 minutes on 2 cores
    python tests/mutants.py --only=cp        those whose name has it

Each mutant is one substitution in a copy of the repository (the text must occur exactly once), and the tests that should notice: layouts of
tests/grid.py, or a pytest file and expression. The same tests are run without any mutant first, and must be green. The numbers are those of
the list of silent bugs that the tests were written against. Caught means that a comparison failed, or that a rank crashed or hung until its
time was up; a mutant that does not even load counts as missed.
"""
import json, os, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 240      # seconds for the tests of one mutant; those in which all processes are stopped do not count

# (number, name, file, tests, old text, new text); tests: layouts of the grid; 'muon: ...' with that optimizer; 'pytest: FILE EXPRESSION'
MUTANTS = [
    (1, 'mean over the positions of a microbatch', 'parallel.py', 'dense dp4',
     'return (w * (out[0] + z_loss * out[1].square())).sum(), nll',
     'return (w * (out[0] + z_loss * out[1].square())).sum() / (w > 0).sum().clamp(min=1), nll'),
    (1, 'each data-parallel rank divides by its own count', 'train.py', 'pytest: tests/test_parallel.py train_py and dp',
     'device=device), mesh.dp).tolist()',
     'device=device), mesh.cp).tolist()'),
    (1, 'each microbatch divides by its own count', 'train.py', 'pytest: tests/test_parallel.py train_py and micro',
     "b[f'{k}_w'] *= w / max(c, 1)",
     "b[f'{k}_w'] *= w / max(len(micros) * mesh.dp.size * float(b[f'{k}_w'].sum()), 1)"),
    (2, 'an all-ignored microbatch gives nan', 'model.py', 'pytest: tests/test_model.py ignored',
     'return (w * err).sum(), err.detach()',
     'return (w * err).sum() / (w > 0).sum() * (w > 0).sum(), err.detach()'),
    (3, 'pp: loss times the number of microbatches', 'parallel.py', 'dense pp2 1f1b',
     "y[key] = y[key]['loss']",
     "y[key] = y[key]['loss'] * len(micros)"),
    (4, 'evaluation divided by the microbatches', 'train.py', 'pytest: tests/test_parallel.py train_py and micro',
     'r = {k: total[i] / n[i] for',
     'r = {k: total[i] / n[i] / n_micro for'),
    (5, 'targets of other vocabulary slices', 'parallel.py', 'dense tp2',
     'd.scatter_add_(1, at, (-w[s] * mine)[:, None].to(d.dtype))',
     'd.scatter_add_(1, at, (-w[s])[:, None].to(d.dtype))'),
    (5, 'ignored segments are learned', 'data/loader.py', 'pytest: tests/test_loader.py literally',
     'learn = w.reshape(-1) > 0',
     'learn = w.reshape(-1) > -1'),
    (6, 'cp without dp never reduces', 'parallel.py', 'dense cp2 ring',
     "sums = ('dpcp',) + (('tp',)",
     "sums = ('dp',) + (('tp',)"),
    (7, 'labels shifted after the split of cp', 'data/loader.py', 'dense cp2 ring',
     "g[f'{name}_i'] = i // T * (2 * h) + new[i % T]",
     "g[f'{name}_i'] = i // T * (2 * h) + (new[i % T] + 1) % (2 * h)"),
    (8, 'rotary positions do not follow the zigzag of cp', 'data/loader.py', 'dense cp2 ring',
     'ids, pos = ids[:, cols], pos[:, cols]',
     'ids, pos = ids[:, cols], pos[:, :2 * h]'),
    (8, 'cp: rotary positions in order on a later stage', 'model.py', 'dense pp2 cp2 1f1b ring',
     "b['pos'][:, :, None, None].float()",
     "(b['pos'] if self.first else b['pos'].sort(1)[0])[:, :, None, None].float()"),
    (9, 'cp: queries of a kv head not summed', 'parallel.py', 'dense cp2 ring',
     '(dsc.transpose(-1, -2) @ qs).to(wide).sum(2)',
     '(dsc.transpose(-1, -2) @ qs).to(wide)[:, :, 0]'),
    (9, 'cp: outputs merged by the maximum', 'parallel.py', 'dense cp2 ring',
     'torch.logaddexp(lse[..., rows, :], l)',
     'torch.maximum(lse[..., rows, :], l)'),
    (9, 'cp: gradients of K and V do not come home', 'parallel.py', 'dense cp2 ring',
     '        own += dkv_in\n',
     '        own += 0 * dkv_in\n'),
    (9, 'cp: merged in the compute type', 'parallel.py', 'pytest: tests/test_parallel.py float32',
     'nkv, wide = k.shape[1], torch.promote_types(q.dtype, torch.float32)',
     'nkv, wide = k.shape[1], q.dtype'),
    (9, 'cp: rows with nothing to attend in a block', 'parallel.py', 'dense cp4 ring',
     '(sc - l.clamp(min=-1e30)).exp()',
     '(sc - l).exp()'),
    (9, 'cp: a block is used before it is there', 'parallel.py', 'dense cp2 ring',
     'for w in work:\n            w.wait()',
     'for w in work[:0]:\n            w.wait()'),
    (9, 'cp: gradients on their way summed in the compute type', 'parallel.py', 'pytest: tests/test_parallel.py ring_merges',
     'new = torch.zeros(kv.shape, dtype=wide,',
     'new = torch.zeros(kv.shape, dtype=kv.dtype,'),
    (10, 'cp: documents see each other across chunks', 'parallel.py', 'dense cp2 ring',
     'ok = (doc[:, rows, None] == doc[:, None, cols]) & ',
     'ok = (doc[:, rows, None] >= doc[:, None, cols]) & '),
    (10, 'cp allgather: keys masked in the order of the row', 'parallel.py', 'dense cp2 allgather',
     'torch.cat([zigzag(T, cp.size, r) for r in range(cp.size)])',
     'torch.arange(T)'),
    (11, 'sp: gradient of the norms not summed', 'model.py', 'dense tp2 sp',
     'self.norm1, self.attn = Norm(mesh, cfg.n_embd, mesh.sp)',
     'self.norm1, self.attn = Norm(mesh, cfg.n_embd, False)'),
    (11, 'tp: gradient of the router not summed', 'model.py', 'moe tp2',
     "kind='router', partial=True)",
     "kind='router')"),
    (12, 'tp: gain shared by the heads not summed', 'model.py', 'dense tp2',
     "kind='scalar', partial=True) if cfg.qk_norm",
     "kind='scalar') if cfg.qk_norm"),
    (13, 'tp: row sums counted twice backwards', 'parallel.py', 'dense tp2',
     '        return dy, None\n',
     '        return dy * 2, None\n'),
    (13, 'tp: every rank adds every payload', 'model.py', 'dense tp2',
     'tp, r, dt = mesh.tp.size, mesh.tp.rank, x.dtype',
     'tp, r, dt = 1, 0, x.dtype'),
    (14, 'tp: the wrong kv head where heads are fewer', 'parallel.py', 'dense tp4',
     'g.rank * kv // g.size * n, n',
     'g.rank % kv * n, n'),
    (14, 'tp: copies of a kv head not summed', 'parallel.py', 'dense tp4',
     "sums, copies = ('dpcp', 'kv'), mesh.dpcp.size * mesh.kv.size",
     "sums, copies = ('dpcp',), mesh.dpcp.size * mesh.kv.size"),
    (15, 'sp: gather before the heads sums what is replicated', 'model.py', 'dense tp2 sp',
     'x = gather_from(x, mesh.tp, 1, partial=False)',
     'x = gather_from(x, mesh.tp, 1, partial=True)'),
    (15, 'sp: gradient of the gather sliced where it is partial', 'parallel.py', 'dense tp2 sp',
     'gather_from(x, mesh.tp, 1, partial=True) if mesh.sp',
     'gather_from(x, mesh.tp, 1, partial=False) if mesh.sp'),
    (15, "tp: experts' gather sums what is replicated", 'model.py', 'moe tp2',
     'y = gather_from(y, self.mesh.tp, 1, partial=False)',
     'y = gather_from(y, self.mesh.tp, 1, partial=True)'),
    (15, 'tp: T-slices for the experts lose their gradient', 'model.py', 'moe tp2',
     'split_to(x, self.mesh.tp, 1)',
     'my_slice(x, self.mesh.tp, 1)'),
    (15, 'tp: hidden states into the logits not copied', 'model.py', 'dense tp2',
     "copy_to(h[b['txt_i']], mesh.tp)",
     "h[b['txt_i']]"),
    (16, 'tp: all-reduce in place on the gradient', 'parallel.py', 'pytest: tests/test_parallel.py collectives',
     'all_reduce(dy.clone(memory_format=torch.contiguous_format), ctx.g), None',
     'all_reduce(dy.contiguous(), ctx.g).mul_(1), None'),
    (17, 'tp: gate and up sliced as one', 'parallel.py', 'tied tp2',
     'enumerate(parts or (shape[tp],))',
     'enumerate((shape[tp],))'),
    (18, 'tp: share of the payloads not summed', 'model.py', 'dense tp2',
     'self.image_in = param(mesh, C, D, std=D ** -0.5, partial=True)',
     'self.image_in = param(mesh, C, D, std=D ** -0.5)'),
    (18, 'tp: copies summed in buffers of different sizes', 'optim_zero.py', 'dense dp4 tp2',
     "'coord_in', 'head')",
     "'coord_in')"),
    (19, 'initial weights depend on the layout', 'parallel.py', 'dense tp2',
     'p.spec.local(torch.randn(p.spec.shape, generator=gen) * std)',
     'torch.randn(p.shape, generator=gen) * std'),
    (21, 'ep: gradients of experts off', 'parallel.py', 'moe dp2 ep2',
     "sums, copies = ('edp',), mesh.edp.size",
     "sums, copies = ('dpcp',), mesh.edp.size"),
    (21, 'ep: tokens return in the wrong order', 'parallel.py', 'moe dp2 ep2',
     'torch.zeros_like(yr).index_copy(0, by_expert, yr)',
     'yr'),
    (22, 'z-loss of a slice of the vocabulary', 'parallel.py', 'dense tp2',
     'lse = part[0].log() + top',
     'lse = p.sum(1).log() + top'),
    (23, 'ep: padding counted in the load', 'model.py', 'pytest: tests/test_model.py load',
     'self.load += n.view(4, -1)[:3]',
     'self.load += n.view(4, -1)[1:]'),
    (23, 'ep: balancing counts of one tp rank', 'train.py', 'pytest: tests/test_parallel.py train_py and tp',
     'all_reduce(m.load.sum(0), mesh.stage)',
     'all_reduce(m.load.sum(0), mesh.dpcp)'),
    (24, 'an expert without tokens has no gradient', 'parallel.py', 'pytest: tests/test_parallel.py experts and two',
     'F.linear(act(F.linear(xe, w1[i])), w2[i]) for',
     'F.linear(act(F.linear(xe, w1[i])), w2[i]) if len(xe) else xe for'),
    (26, 'the router has no gradient through the gates', 'model.py', 'pytest: tests/test_model.py experts',
     'gate = score.gather(1, top)',
     'gate = score.detach().gather(1, top)'),
    (27, 'norm counts replicated elements again', 'optim_zero.py', 'dense dp2',
     'total += torch.dot(g, g) / u.params[at].spec.copies',
     'total += torch.dot(g, g)'),
    (27, 'norm counts the tied embedding twice', 'parallel.py', 'tied pp2 1f1b',
     "sums + ('ends',), copies * 2",
     "sums + ('ends',), copies"),
    (27, 'each stage clips by its own norm', 'optim_zero.py', 'dense pp2 1f1b',
     'all_reduce(total, self.mesh.world)',
     'all_reduce(total, self.mesh.stage)'),
    (27, 'a rank skips a bad step alone', 'optim_zero.py', 'pytest: tests/test_parallel.py finite',
     'if math.isfinite(norm):',
     'if all(bool(u.grad.isfinite().all()) for u in self.units):'),
    (28, 'Muon on slices', 'optim_zero.py', 'muon: dense tp2',
     "if p.spec.blocks and 'edp' not in p.spec.sums:",
     "if p.spec.blocks and p.spec.parts and 'edp' not in p.spec.sums:"),
    (29, 'weight decay on everything', 'optim_zero.py', 'pytest: tests/test_optim.py decay',
     "weight_decay=self.wd if kind == 'matrix' else 0.0",
     'weight_decay=self.wd'),
    (30, 'reduced before the last microbatch', 'optim_zero.py', 'dense dp2',
     'u.pending = len(u.params) * micros',
     'u.pending = len(u.params)'),
    (31, 'accumulated in the compute type', 'optim_zero.py', 'pytest: tests/test_optim.py masters or microbatches',
     'p.main_grad.add_(p.grad)',
     'p.main_grad.copy_(p.main_grad.to(p.grad.dtype) + p.grad)'),
    (33, 'pp: the tied embedding is not summed', 'parallel.py', 'tied pp2 1f1b',
     "sums, copies = sums + ('ends',), copies * 2",
     'sums, copies = sums, copies * 2'),
    (34, 'pp: swapped messages of the same shape', 'parallel.py', 'dense pp2 gpipe',
     "(x if kind == 'RECV_F' else dy)[key] = buf",
     "(x if kind == 'RECV_F' else dy)[(c, mb ^ 1) if kind == 'RECV_F' else key] = buf"),
    (35, 'pp: a deferred W bypasses the hooks', 'parallel.py', 'dense pp2 zbh1',
     "if hasattr(w, 'ready'):",
     'if False:'),
    (35, 'pp: a weight gradient both at once and deferred', 'parallel.py', 'dense pp2 zbh1',
     'return dy @ w, None, None',
     'return dy @ w, dy.flatten(0, -2).t() @ x.flatten(0, -2), None'),
    (37, 'pp: losses of the first stage only', 'train.py', 'pytest: tests/test_parallel.py train_py and pp',
     'all_reduce(all_reduce(sums, mesh.pp), mesh.dpcp)',
     'all_reduce(sums, mesh.dpcp)'),
    (39, 'every data-parallel rank reads the same rows', 'data/loader.py', 'pytest: tests/test_parallel.py train_py and dp',
     'range(dp_rank * rows // dp, (dp_rank + 1) * rows // dp)',
     'range(rows // dp)'),
    (41, 'patches predicted from themselves', 'data/loader.py', 'pytest: tests/test_loader.py literally',
     'where[nxt] - 1), out',
     'where[nxt]), out'),
    (42, 'patches in column order', 'data/media.py', 'pytest: tests/test_codec.py pixel or patch',
     '.transpose(0, 2, 1, 3, 4).reshape(-1, D)',
     '.transpose(2, 0, 1, 3, 4).reshape(-1, D)'),
    (43, 'positions do not restart with the document', 'data/loader.py', 'pytest: tests/test_loader.py literally or two_documents',
     'np.arange(n), k\n',
     'np.arange(at, at + n), k\n'),
    (44, 'noise depends on the rank', 'data/loader.py', 'dense dp4',
     'counter=[0, 0, keys[b][1], keys[b][2]]',
     'counter=[0, 0, keys[b][1], b]'),
    (44, 'sampling with another clock than training', 'model.py', 'pytest: tests/test_model.py oracle',
     'x = x + (x1 - x) / (steps - i)',
     'x = x + (x1 - x) / (steps - i + 1)'),
    (45, 'the cache forgets a position', 'sample.py', 'pytest: tests/test_sample.py cached_equals',
     'cache.n, cache.used = cache.n + n, max',
     'cache.n, cache.used = cache.n + n - int(T > 1), max'),
    (46, 'a later position is seen', 'parallel.py', 'pytest: tests/test_model.py later',
     '(doc[:, :, None] == doc[:, None, :]).tril_()',
     '(doc[:, :, None] == doc[:, None, :]).tril_(1)'),
    (46, 'a modality without positions is left out', 'model.py', 'dense dp4',
     '            if head is not None:\n',
     "            if head is not None and len(b[f'{kind}_i']):\n"),
]


def copy(to):
    """The repository without its data."""
    skip = shutil.ignore_patterns('shards-*', 'raw*', '*.deb', '*.npz', '*.txt', '*.bin', '__pycache__')
    for part in (*ROOT.glob('*.py'), ROOT / 'data', ROOT / 'config', ROOT / 'tests'):
        shutil.copytree(part, to / part.name, ignore=skip) if part.is_dir() else shutil.copy(part, to)


def look(root, tests):
    """Run tests in a copy -> ('green' or 'red' or 'broken', what was seen)."""
    if tests.startswith('pytest: '):
        name, words = tests[8:].split(' ', 1)
        cmd = ['-m', 'pytest', '-q', '-x', '--tb=line', '-p', 'no:cacheprovider', name, '-k', words]
    else:
        cmd = ['tests/grid.py', f'--these={tests.removeprefix("muon: ")}', '--patience=40']
        cmd += ['--optimizers=sgd,muon' if tests.startswith('muon: ') else '--optimizers=sgd']
    with open(root / 'out', 'w+') as out:
        p = subprocess.Popen([sys.executable, *cmd], cwd=root, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
                             env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONDONTWRITEBYTECODE': '1'})
        for _ in range(LIMIT):                                # by the second: while we are stopped, so is the clock
            try:
                p.wait(1)
                break
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(p.pid, 9)                               # what hangs, and what the tests left behind
        except ProcessLookupError:
            pass
        p.wait()
        out.seek(0)
        lines = out.read().splitlines()
    if p.returncode == 0:
        return 'green', ''
    seen = [x for x in lines if ' hangs' in x or ' FAILED at ' in x or ' differ in ' in x]
    seen = (seen or [x for x in lines if 'Error' in x or x[:6] == 'FAILED'] or lines[-1:] or ['no end'])[0]
    ended = p.returncode == 1 and (tests.startswith('pytest: ') or lines[-1][:1] == '{' or 'AssertionError' in lines[-1])
    return 'red' if ended or p.returncode == -9 else 'broken', ' '.join(seen.split())[-80:]


def trial(m, base, green):
    """One mutant -> (caught, what was seen)."""
    _, _, file, tests, old, new = m
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(shutil.copytree(base, Path(tmp) / 'repo'))
        text = (root / file).read_text()
        if text.count(old) != 1:
            return False, f'the text occurs {text.count(old)} times in {file}'
        (root / file).write_text(text.replace(old, new))
        verdict, seen = look(root, tests)
        return (verdict == 'red' and green[tests], seen if green[tests] else 'the tests are red without it')


if __name__ == '__main__':
    only = dict(a.removeprefix('--').split('=', 1) for a in sys.argv[1:]).get('only', '')
    todo, begin, bad = [m for m in MUTANTS if only in m[1]], time.time(), []
    with tempfile.TemporaryDirectory() as tmp, ThreadPoolExecutor(2) as pool:
        copy(base := Path(tmp))
        def clean(tests):
            with tempfile.TemporaryDirectory() as one:
                return look(Path(shutil.copytree(base, Path(one) / 'repo')), tests)
        together = {}                                         # without a mutant: all layouts in one run, all expressions of a file in one
        for t in {m[3]: 0 for m in todo}:
            where, _, words = t.removeprefix('pytest: ').partition(' ') if t.startswith('pytest: ') else ('grid', '', t)
            together.setdefault(where if where != 'grid' else 'muon' if words.startswith('muon: ') else where, {})[t] = words
        runs = {k: f'pytest: {k} ' + ' or '.join(f'({w})' for w in ts.values()) if k.endswith('.py') else
                ('muon: ' if k == 'muon' else '') + '; '.join(t.removeprefix('muon: ') for t in ts) for k, ts in together.items()}
        green = {}
        for (k, ts), (verdict, seen) in zip(together.items(), pool.map(clean, runs.values())):
            for t in ts:
                green[t] = verdict == 'green' or clean(t)[0] == 'green'
                if not green[t]:
                    print(f'red without any mutant: {t}', flush=True)
        for m, (caught, seen) in zip(todo, pool.map(lambda m: trial(m, base, green), todo)):
            print(f'{m[0]:3d} {m[1]:57s} {"caught" if caught else "MISSED"}  {seen}', flush=True)
            bad += [] if caught else [m[1]]
    print(json.dumps(dict(bench='mutants', ok=not bad and len(todo) > 0, mutants=len(todo), caught=len(todo) - len(bad), missed=bad,
                          seconds=round(time.time() - begin))))
    sys.exit(bool(bad) or not todo)
