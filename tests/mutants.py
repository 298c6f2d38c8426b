"""
The bugs that this field makes silently, put back one at a time: does a test go red?

    python tests/mutants.py                  about 8 minutes on 2 cores
    python tests/mutants.py --only=cp        those whose name has it

Each mutant is one substitution in a copy of the repository (the text must occur exactly once), and the tests that should notice: layouts of tests/grid.py, or
a pytest expression. The numbers are those of the list of silent bugs that the tests were written against. A test that hangs is red: a time limit ends it.
"""
import json, os, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 240      # seconds for the tests of one mutant

# (number, name, file, old, new, tests): layouts of the grid; 'muon: ...' with that optimizer; 'pytest: FILE EXPRESSION'
MUTANTS = [
    (1, 'mean over the positions of a rank', 'parallel.py', 'return (w * (out[0] + z_loss * out[1].square())).sum(), nll',
     'return (w * (out[0] + z_loss * out[1].square())).sum() / max(len(h), 1), nll', 'dense dp2'),
    (2, 'an all-ignored microbatch gives nan', 'model.py', 'return (w * err).sum(), err.detach()', 'return (w * err).sum() / (w > 0).sum() * (w > 0).sum(), err.detach()',
     'pytest: tests/test_model.py ignored'),
    (5, 'targets of other vocabulary slices', 'parallel.py', 'd.scatter_add_(1, at, (-w[s] * mine)[:, None].to(d.dtype))', 'd.scatter_add_(1, at, (-w[s])[:, None].to(d.dtype))',
     'dense tp2'),
    (5, 'ignored segments are learned', 'data/loader.py', 'learn = w.reshape(-1) > 0', 'learn = w.reshape(-1) > -1', 'pytest: tests/test_loader.py literally'),
    (6, 'cp without dp never reduces', 'parallel.py', "sums = ('dpcp',) + (('tp',)", "sums = ('dp',) + (('tp',)", 'dense cp2 ring'),
    (7, 'labels shifted after the split of cp', 'data/loader.py', "g[f'{name}_i'] = i // T * (2 * h) + new[i % T]", "g[f'{name}_i'] = i // T * (2 * h) + (new[i % T] + 1) % (2 * h)",
     'dense cp2 ring'),
    (8, 'rotary positions do not follow the zigzag of cp', 'data/loader.py', 'ids, pos = ids[:, cols], pos[:, cols]', 'ids, pos = ids[:, cols], pos[:, :2 * h]', 'dense cp2 ring'),
    (9, 'cp: queries of a kv head not summed', 'parallel.py', '(dsc.transpose(-1, -2) @ qs).to(wide).sum(2)', '(dsc.transpose(-1, -2) @ qs).to(wide)[:, :, 0]', 'dense cp2 ring'),
    (9, 'cp: outputs merged by the maximum', 'parallel.py', 'torch.logaddexp(lse[..., rows, :], l)', 'torch.maximum(lse[..., rows, :], l)', 'dense cp2 ring'),
    (9, 'cp: gradients of K and V do not come home', 'parallel.py', '        own += dkv_in\n', '        own += 0 * dkv_in\n', 'dense cp2 ring'),
    (9, 'cp: merged in the compute type', 'parallel.py', 'nkv, wide = k.shape[1], torch.promote_types(q.dtype, torch.float32)', 'nkv, wide = k.shape[1], q.dtype',
     'pytest: tests/test_parallel.py float32'),
    (10, 'cp: documents see each other across chunks', 'parallel.py', 'ok = (doc[:, rows, None] == doc[:, None, cols]) & ', 'ok = (doc[:, rows, None] >= doc[:, None, cols]) & ', 'dense cp2 ring'),
    (11, 'sp: gradient of the norms not summed', 'model.py', 'self.norm1, self.attn = Norm(mesh, cfg.n_embd, mesh.sp)', 'self.norm1, self.attn = Norm(mesh, cfg.n_embd, False)', 'dense tp2 sp'),
    (11, 'tp: gradient of the router not summed', 'model.py', "kind='router', partial=True)", "kind='router')", 'moe tp2'),
    (12, 'tp: gain shared by the heads not summed', 'model.py', "kind='scalar', partial=True) if cfg.qk_norm", "kind='scalar') if cfg.qk_norm", 'dense tp2'),
    (13, 'tp: row sums counted twice backwards', 'parallel.py', '        return dy, None\n', '        return dy * 2, None\n', 'dense tp2'),
    (14, 'tp: the wrong kv head where heads are fewer', 'parallel.py', 'g.rank * kv // g.size * n, n', 'g.rank % kv * n, n', 'dense tp4'),
    (14, 'tp: copies of a kv head not summed', 'parallel.py', "sums, copies = ('dpcp', 'kv'), mesh.dpcp.size * mesh.kv.size", "sums, copies = ('dpcp',), mesh.dpcp.size * mesh.kv.size", 'dense tp4'),
    (15, 'sp: gather before the heads sums what is replicated', 'model.py', 'x = gather_from(x, mesh.tp, 1, partial=False)', 'x = gather_from(x, mesh.tp, 1, partial=True)', 'dense tp2 sp'),
    (16, 'tp: all-reduce in place on the gradient', 'parallel.py', 'all_reduce(dy.clone(memory_format=torch.contiguous_format), ctx.g), None', 'all_reduce(dy.contiguous(), ctx.g).mul_(1), None',
     'pytest: tests/test_parallel.py collectives'),
    (17, 'tp: gate and up sliced as one', 'parallel.py', 'enumerate(parts or (shape[tp],))', 'enumerate((shape[tp],))', 'tied tp2'),
    (18, 'tp: share of the payloads not summed', 'model.py', 'self.image_in = param(mesh, C, D, std=D ** -0.5, partial=True)', 'self.image_in = param(mesh, C, D, std=D ** -0.5)', 'dense tp2'),
    (19, 'initial weights depend on the layout', 'parallel.py', 'p.spec.local(torch.randn(p.spec.shape, generator=gen) * std)', 'torch.randn(p.shape, generator=gen) * std', 'dense tp2'),
    (21, 'ep: gradients of experts off', 'parallel.py', "sums, copies = ('edp',), mesh.edp.size", "sums, copies = ('dpcp',), mesh.edp.size", 'moe dp2 ep2'),
    (21, 'ep: tokens return in the wrong order', 'parallel.py', 'torch.zeros_like(yr).index_copy(0, by_expert, yr)', 'yr', 'moe dp2 ep2'),
    (22, 'z-loss of a slice of the vocabulary', 'parallel.py', 'lse = part[0].log() + top', 'lse = p.sum(1).log() + top', 'dense tp2'),
    (23, 'ep: padding counted in the load', 'model.py', 'self.load += n.view(4, -1)[:3]', 'self.load += n.view(4, -1)[1:]', 'pytest: tests/test_model.py load'),
    (24, 'an expert without tokens has no gradient', 'parallel.py', 'for i, xe in enumerate(x.split(counts.tolist()))])', 'for i, xe in enumerate(x.split(counts.tolist())) for w1 in [w1 if len(xe) else w1.detach()]])',
     'pytest: tests/test_model.py experts'),
    (26, 'the router has no gradient through the gates', 'model.py', 'gate = score.gather(1, top)', 'gate = score.detach().gather(1, top)', 'pytest: tests/test_model.py experts'),
    (27, 'norm counts replicated elements again', 'optim_zero.py', 'total += torch.dot(g, g) / u.params[at].spec.copies', 'total += torch.dot(g, g)', 'dense dp2'),
    (27, 'norm counts the tied embedding twice', 'parallel.py', "sums + ('ends',), copies * 2", "sums + ('ends',), copies", 'tied pp2 1f1b'),
    (28, 'Muon on slices', 'optim_zero.py', "if p.spec.blocks and 'edp' not in p.spec.sums:", 'if False:', 'muon: dense tp2'),
    (29, 'weight decay on everything', 'optim_zero.py', "weight_decay=self.wd if kind == 'matrix' else 0.0", 'weight_decay=self.wd', 'pytest: tests/test_optim.py decay'),
    (30, 'reduced before the last microbatch', 'optim_zero.py', 'u.pending = len(u.params) * micros', 'u.pending = len(u.params)', 'dense dp2'),
    (31, 'accumulated in the compute type', 'optim_zero.py', 'self.grad = torch.zeros(n, dtype=wide, device=dev)', 'self.grad = torch.zeros(n, dtype=dtype, device=dev)', 'pytest: tests/test_optim.py masters or microbatches'),
    (33, 'pp: the tied embedding is not summed', 'parallel.py', "sums, copies = sums + ('ends',), copies * 2", 'sums, copies = sums, copies * 2', 'tied pp2 1f1b'),
    (34, 'pp: messages posted in another order', 'parallel.py', 'posts.sort(key=lambda act: made[message(act, rank, pp)[2]])', 'posts.sort(key=lambda act: (act[2], act[1]))', 'dense pp2 interleaved x2'),
    (35, 'pp: a deferred W bypasses the hooks', 'parallel.py', "if hasattr(w, 'ready'):", 'if False:', 'dense pp2 zbh1'),
    (35, 'pp: W of one microbatch runs with another', 'parallel.py', 'mesh.queue_dw = queue.setdefault(key, [])', 'mesh.queue_dw = queue.setdefault((c, mb - mb % 2), [])', 'dense pp2 zbh1'),
    (41, 'patches predicted from themselves', 'data/loader.py', 'where[nxt] - 1), out', 'where[nxt]), out', 'pytest: tests/test_loader.py literally'),
    (42, 'patches in column order', 'data/media.py', '.transpose(0, 2, 1, 3, 4).reshape(-1, D)', '.transpose(2, 0, 1, 3, 4).reshape(-1, D)', 'pytest: tests/test_codec.py pixel or patch'),
    (43, 'positions do not restart with the document', 'data/loader.py', 'np.arange(n), k\n', 'np.arange(at, at + n), k\n', 'pytest: tests/test_loader.py literally or two_documents'),
    (44, 'noise depends on the rank', 'data/loader.py', 'counter=[0, 0, keys[b][1], keys[b][2]]', 'counter=[0, 0, keys[b][1], b]', 'dense dp2'),
    (44, 'sampling with another clock than training', 'model.py', 'x = x + (x1 - x) / (steps - i)', 'x = x + (x1 - x) / (steps - i + 1)', 'pytest: tests/test_model.py oracle'),
    (45, 'the cache forgets a position', 'sample.py', 'cache.n, cache.used = cache.n + n, max', 'cache.n, cache.used = cache.n + n - (T > 1), max', 'pytest: tests/test_sample.py cached_equals'),
    (46, 'a later position is seen', 'parallel.py', '(doc[:, :, None] == doc[:, None, :]).tril_()', '(doc[:, :, None] == doc[:, None, :]).tril_(1)', 'pytest: tests/test_model.py later'),
]


def trial(m):
    """One mutant -> 'caught', 'MISSED', or what is wrong with the mutant itself."""
    _, _, file, old, new, tests = m
    with tempfile.TemporaryDirectory() as tmp:
        for part in ('configurator.py', 'model.py', 'optim_zero.py', 'parallel.py', 'sample.py', 'train.py', 'data', 'tests'):
            src = ROOT / part
            shutil.copytree(src, Path(tmp) / part, ignore=shutil.ignore_patterns('shards-*', '*.deb', '__pycache__', '*.npz', '*.txt')) if src.is_dir() else shutil.copy(src, tmp)
        text = (Path(tmp) / file).read_text()
        if text.count(old) != 1:
            return f'the text occurs {text.count(old)} times in {file}'
        (Path(tmp) / file).write_text(text.replace(old, new))
        if tests.startswith('pytest: '):
            name, words = tests[8:].split(' ', 1)
            cmd = ['-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', name, '-k', words]
        else:
            muon = tests.startswith('muon: ')
            cmd = ['tests/grid.py', f'--these={tests.removeprefix("muon: ")}', '--patience=60', *(['--optimizers=sgd,muon'] if muon else [])]
        p = subprocess.Popen([sys.executable, *cmd], cwd=tmp, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                             env={**os.environ, 'OMP_NUM_THREADS': '1'})
        try:
            out = p.communicate(timeout=LIMIT)[0]
        except subprocess.TimeoutExpired:
            out = ''
        finally:
            try:
                os.killpg(p.pid, 9)
            except ProcessLookupError:
                pass
        return 'no test ran' if p.returncode == 5 or 'SyntaxError' in out else 'MISSED' if p.returncode == 0 else 'caught'


if __name__ == '__main__':
    only = dict(a.removeprefix('--').split('=', 1) for a in sys.argv[1:]).get('only', '')
    todo, begin, bad = [m for m in MUTANTS if only in m[1]], time.time(), []
    with ThreadPoolExecutor(2) as pool:
        for m, verdict in zip(todo, pool.map(trial, todo)):
            print(f'{m[0]:3d} {m[1]:55s} {m[2]:15s} {verdict}', flush=True)
            if verdict != 'caught':
                bad.append(m[1])
    print(json.dumps(dict(bench='mutants', ok=not bad, mutants=len(todo), caught=len(todo) - len(bad), missed=bad, seconds=round(time.time() - begin))))
    sys.exit(bool(bad))
