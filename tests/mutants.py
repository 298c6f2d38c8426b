"""
The bugs that this field makes silently, put back one at a time: does a test go red?

    python tests/mutants.py                  11 minutes on 2 cores with other work beside it
    python tests/mutants.py --only=cp        those whose name has it;  --number=9: those with this number

Each mutant is one substitution in a copy of the repository (the text must occur exactly once), and the tests that should notice: layouts of
tests/grid.py, or a pytest file and expression. The same tests are run without any mutant first, and must be green. The numbers are those of
the list of silent bugs that the tests were written against; 54 is n-gram memory, 55 what else the recipe brings. Caught means that a
comparison failed, or that a rank crashed or hung until its time was up; a mutant that does not even load counts as missed.
"""
import json, multiprocessing, os, runpy, shutil, sys, tempfile, time, traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER = multiprocessing.get_context('forkserver')
LIMIT = 240      # seconds for the tests of one mutant; those in which all processes are stopped do not count

# (number, name, file, tests, old text, new text); tests: layouts of the grid; 'muon: ...' with that optimizer; 'pytest: FILE EXPRESSION'
MUTANTS = [
    (1, 'mean over the positions of a microbatch', 'parallel.py', 'dense dp4',
     'return (w * (out[0] + z_loss * out[1].square())).sum(), nll',
     'return (w * (out[0] + z_loss * out[1].square())).sum() / (w > 0).sum().clamp(min=1), nll'),
    (1, 'each data-parallel rank divides by its own count', 'train.py', 'pytest: tests/test_parallel.py train_py and dp',
     '[c / (tp * pp * cp) for c in all_reduce(counts, mesh.world).tolist()]',
     '[c / cp for c in all_reduce(counts, mesh.cp).tolist()]'),
    (1, 'each microbatch divides by its own count', 'train.py', 'pytest: tests/test_parallel.py train_py and micro',
     "b[f'{k}_w'] *= w / max(c, 1)",
     "b[f'{k}_w'] *= w / max(len(micros) * mesh.dp.size * float(b[f'{k}_w'].sum()), 1)"),
    (2, 'an all-ignored microbatch gives nan', 'model.py', 'pytest: tests/test_model.py ignored',
     'return (w * err).sum(), err.detach()',
     'return (w * err).sum() / (w > 0).sum() * (w > 0).sum(), err.detach()'),
    (3, 'pp: loss times the number of microbatches', 'parallel.py', 'dense pp2 1f1b',
     "y[key] = y[key]['loss']",
     "y[key] = y[key]['loss'] * len(micros)"),
    (4, 'evaluation divided by the microbatches', 'data/validate.py', 'pytest: tests/test_parallel.py train_py and micro',
     'r = {k: total[i] / n[i] for',
     "r = {k: total[i] / n[i] / batch['micro'] for"),
    (5, 'targets of other vocabulary slices', 'parallel.py', 'dense tp2',
     'd.scatter_add_(1, at, (-w * mine)[:, None].to(d.dtype))',
     'd.scatter_add_(1, at, (-w)[:, None].to(d.dtype))'),
    (5, 'ignored segments are learned', 'data/collate.py', 'pytest: tests/test_loader.py literally',
     'learn = w.reshape(-1) > 0',
     'learn = w.reshape(-1) > -1'),
    (6, 'cp without dp never reduces', 'optim_zero.py', 'dense cp2 ring',
     'if expert else (mesh.shard, mesh.replica)',
     'if expert else (mesh.dp, mesh.replica)'),
    (7, 'labels shifted after the split of cp', 'data/collate.py', 'dense cp2 ring',
     "g[f'{name}_i'] = i // T * (2 * h) + new[i % T]",
     "g[f'{name}_i'] = i // T * (2 * h) + (new[i % T] + 1) % (2 * h)"),
    (8, 'rotary positions do not follow the zigzag of cp', 'data/collate.py', 'dense cp2 ring',
     'ids[:, cols], pos[:, cols], before[:, cols]',
     'ids[:, cols], pos[:, :2 * h], before[:, cols]'),
    (8, 'cp: rotary positions in order on a later stage', 'model.py', 'dense pp2 cp2 1f1b ring',
     "turns(self.cfg, b['pos'], dtype",
     "turns(self.cfg, b['pos'] if self.first else b['pos'].sort(1)[0], dtype"),
    (8, 'rows and columns of patches do not turn on a later stage', 'model.py', 'dense pp2 1f1b',
     "b.get('rc_i'), b.get('rc'))",
     "b.get('rc_i') if self.first else None, b.get('rc'))"),
    (8, 'rows and columns of patches do not turn in generation', 'data/decoder.py', 'pytest: tests/test_sample.py insertions',
     "if (i := batch.get('rc_i')) is not None:",
     "if (i := batch.get('none')) is not None:"),
    (9, 'cp: queries of a kv head not summed', 'parallel.py', 'pytest: tests/test_parallel.py ring_merges',
     'wide(ds.transpose(-1, -2) @ q5).sum(2)',
     'wide(ds.transpose(-1, -2) @ q5)[:, :, 0]'),
    (9, 'cp: outputs merged by the maximum', 'parallel.py', 'dense cp2 ring',
     'torch.logaddexp(lse[:, :, rows], l)',
     'torch.maximum(lse[:, :, rows], l)'),
    (9, 'cp: gradients of K and V do not come home', 'parallel.py', 'dense cp2 ring',
     '        own += coming\n',
     '        own += 0 * coming\n'),
    (9, 'cp: merged in the compute type', 'parallel.py', 'pytest: tests/test_parallel.py ring_merges',
     'return o.to(s.dtype).view(B, nh, T, hd), l.view(B, nh, T, 1)',
     'return o.to(q.dtype).view(B, nh, T, hd), l.to(q.dtype).view(B, nh, T, 1)'),
    (9, 'cp: rows with nothing to attend in a block', 'parallel.py', 'pytest: tests/test_parallel.py ring_merges',
     '(s - l.clamp(min=-1e30)).exp()',
     '(s - l).exp()'),
    (9, "cp: the kernel's word on rows with nothing to attend", 'parallel.py', 'dense cp4 ring',
     "l.masked_fill((mask.amax(-1) < 0)[:, None], float('-inf'))",
     'l'),
    (9, 'cp: gradients of the ranks behind are left out', 'parallel.py', 'dense cp4 ring',
     '                    new += coming\n',
     '                    new += 0 * coming\n'),
    (9, 'cp: a block is used before it is there', 'parallel.py', 'dense cp2 ring',
     'for w in work:\n            w.wait()',
     'for w in work[:0]:\n            w.wait()'),
    (9, 'cp: gradients on their way summed in the compute type', 'parallel.py', 'pytest: tests/test_parallel.py ring_merges',
     'new = torch.zeros(kv.shape, dtype=out.dtype,',
     'new = torch.zeros(kv.shape, dtype=kv.dtype,'),
    (10, 'cp: documents see each other across chunks', 'parallel.py', 'dense cp2 ring',
     'ok = (doc[:, rows, None] == doc[:, None, cols]) & ',
     'ok = (doc[:, rows, None] >= doc[:, None, cols]) & '),
    (10, 'cp allgather: keys masked in the order of the row', 'parallel.py', 'dense cp2 allgather',
     'torch.cat([zigzag(T, cp.size, r) for r in range(cp.size)])',
     'torch.arange(T)'),
    (11, 'sp: gradient of the norms not summed', 'model.py', 'dense tp2 sp',
     'self.norm1, self.attn = Norm(mesh, cfg.n_embd, mesh.sp, cfg',
     'self.norm1, self.attn = Norm(mesh, cfg.n_embd, False, cfg'),
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
     'r * kv // g.size * n, n',
     'r % kv * n, n'),
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
     'gather_from(y.view_as(xs), self.mesh.tp, 1, partial=False)',
     'gather_from(y.view_as(xs), self.mesh.tp, 1, partial=True)'),
    (15, 'tp: T-slices for the experts lose their gradient', 'model.py', 'moe tp2',
     'split_to(x, self.mesh.tp, 1)',
     'my_slice(x, self.mesh.tp, 1)'),
    (15, 'tp: hidden states into the logits not copied', 'model.py', 'dense tp2',
     "copy_to(h[b['txt_i']], mesh.tp)",
     "h[b['txt_i']]"),
    (15, 'tp: hidden states into the bins not copied', 'model.py', 'moe tp2',
     'return copy_to(F.layer_norm(u, u.shape[-1:]), tp)',
     'return F.layer_norm(u, u.shape[-1:])'),
    (15, 'tp: bins averaged over the numbers of one rank', 'model.py', 'moe tp2',
     'w = (w / self.d)[:, None]',
     'w = (w / at.shape[1])[:, None]'),
    (16, 'tp: all-reduce in place on the gradient', 'parallel.py', 'pytest: tests/test_parallel.py collectives',
     'all_reduce(dy.clone(memory_format=torch.contiguous_format), ctx.g), None',
     'all_reduce(dy.contiguous(), ctx.g).mul_(1), None'),
    (17, 'tp: gate and up sliced as one', 'parallel.py', 'tied tp2',
     'for rows in parts or (shape[tp],):',
     'for rows in (shape[tp],):'),
    (18, 'tp: share of the payloads not summed', 'model.py', 'dense tp2',
     'self.image_in = param(mesh, C, D, std=D ** -0.5, partial=True)',
     'self.image_in = param(mesh, C, D, std=D ** -0.5)'),
    (18, 'tp: copies summed in buffers of different sizes', 'optim_zero.py', 'dense dp4 tp2',
     "'coord_in', 'head'), {}",
     "'coord_in'), {}"),
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
    (23, 'recompute counts the load again', 'model.py', 'pytest: tests/test_zero.py recompute_has and moe',
     "{**c, 'kind': None}",
     'c'),
    (20, 'recompute sees other documents', 'model.py', 'pytest: tests/test_zero.py recompute_has and dense',
     "{**c, 'kind': None}",
     "{**c, 'kind': None, 'mask': c['mask'].triu(-8)}"),
    (35, 'pp: recompute makes what W is to make', 'model.py', 'pytest: tests/test_zero.py recompute_leaves',
     'before, mesh.queue_dw = mesh.queue_dw, queue',
     'before = mesh.queue_dw'),
    (35, 'pp: recompute leaves the queue open', 'model.py', 'pytest: tests/test_zero.py recompute_leaves',
     '        mesh.queue_dw = before\n',
     ''),
    (24, 'an expert without tokens has no gradient', 'parallel.py', 'pytest: tests/test_parallel.py experts and two',
     'F.linear(act(F.linear(xe, w1[i])), w2[i]) for',
     'F.linear(act(F.linear(xe, w1[i])), w2[i]) if len(xe) else xe for'),
    (26, 'the router has no gradient through the gates', 'model.py', 'pytest: tests/test_model.py experts',
     'gate = score.gather(1, top)',
     'gate = score.detach().gather(1, top)'),
    (27, 'norm counts replicated elements again', 'optim_zero.py', 'dense tp2',
     'torch.dot(u.own[s], u.own[s]) / copies',
     'torch.dot(u.own[s], u.own[s])'),
    (27, 'norm counts the tied embedding twice', 'parallel.py', 'tied pp2 1f1b',
     "sums + ('ends',), copies * 2",
     "sums + ('ends',), copies"),
    (27, 'each stage clips by its own norm', 'optim_zero.py', 'dense pp2 1f1b',
     'torch.cat((total.double(), more)), self.mesh.world)',
     'torch.cat((total.double(), more)), self.mesh.stage)'),
    (27, 'a rank skips a bad step alone', 'optim_zero.py', 'pytest: tests/test_parallel.py finite',
     'if math.isfinite(norm):',
     'if all(bool(u.grad.isfinite().all()) for u in self.units):'),
    (27, 'norm counts the copies of a kv head again', 'parallel.py', 'dense tp4',
     "sums, copies = ('dpcp', 'kv'), mesh.dpcp.size * mesh.kv.size",
     "sums, copies = ('dpcp', 'kv'), mesh.dpcp.size"),
    (27, 'norm counts the copies of a shard again', 'optim_zero.py', 'moe dp4 shard2 zero1',
     'p.spec.copies // u.group.size)',
     'p.spec.copies // u.group.size // u.then[0].size)'),
    (27, 'norm of the first shard on every rank', 'optim_zero.py', 'dense dp2',
     'torch.dot(u.own[s], u.own[s])',
     'torch.dot(u.due[s], u.due[s])'),
    (27, 'ZeRO-0: only the own shard is clipped', 'optim_zero.py', 'muon: dense dp2',
     'torch._foreach_mul_([u.due for u in self.units]',
     'torch._foreach_mul_([u.own for u in self.units]'),
    (28, 'Muon on slices', 'optim_zero.py', 'muon: dense tp2',
     'o = orthogonalise(torch.stack([m for _, m in items]), self.muon_steps, self.dtype)',
     'o = torch.stack([torch.cat([orthogonalise(m.narrow(x.dim, *c)[None], 5, self.dtype)[0] for c in x.cuts], x.dim) for x, m in items])'),
    (28, 'Muon scaled by the shape of the slice', 'optim_zero.py', 'muon: dense tp2',
     'max(1, rows / cols) ** 0.5',
     'max(1, rows / (items[0][0].u.tp if items[0][0].dim == 0 else 1) / cols) ** 0.5'),
    (28, 'Muon: slices in the order of tp, then shards', 'optim_zero.py', 'muon: dense dp2 tp2 zero1',
     'flat = [next(got[k * x.u.tp + t]) for k, _, _ in x.pieces()]',
     'flat = [next(got[t * (g.size // x.u.tp) + k]) for k, _, _ in x.pieces()]'),
    (28, 'Muon: updates sent back to other ranks', 'optim_zero.py', 'muon: dense dp2 tp2 zero1',
     'out[k * x.u.tp + t].append(flat[a - x.lo:b - x.lo])',
     'out[t * (g.size // x.u.tp) + k].append(flat[a - x.lo:b - x.lo])'),
    (28, 'Muon: a kv head is taken from each rank that holds it', 'optim_zero.py', 'muon: dense tp4',
     'self.senders = [t for t, c in enumerate(cuts) if cuts.index(c) == t]',
     'self.senders = list(range(len(cuts)))'),
    (28, 'Muon: momentum of the shard, gradients of all', 'optim_zero.py', 'muon: dense dp2',
     'self.runs, u, meet(a, b, *u.span), u.span[0], p.spec.kind)',
     'self.runs, u, meet(a, b, u.lo, u.hi), u.span[0], p.spec.kind)'),
    (28, 'Muon: keys and values as one matrix', 'optim_zero.py', 'pytest: tests/test_optim.py plain_implementation',
     'for i, rows in enumerate(spec.parts or (spec.shape[0],)):',
     'for i, rows in enumerate((spec.shape[0],)):'),
    (29, 'weight decay on everything', 'optim_zero.py', 'pytest: tests/test_optim.py decay',
     "weight_decay=self.wd if kind == 'matrix' else 0.0",
     'weight_decay=self.wd'),
    (29, 'weight decay by the dimension of what is flat', 'optim_zero.py', 'pytest: tests/test_optim.py decay',
     "self.wd if kind == 'matrix' else 0.0",
     'self.wd if mine[0][0].master.dim() > 1 else 0.0'),
    (30, 'reduced before the last microbatch', 'optim_zero.py', 'dense dp2',
     'u.left = len(u.params) * (micros if u.stage < 2 else 1)',
     'u.left = len(u.params)'),
    (30, 'ZeRO-1: sums of microbatches reduced again', 'optim_zero.py', 'dense dp2 zero1',
     '(micros if u.stage < 2 else 1)',
     '(micros if u.stage < 1 else 1)'),
    (30, 'ZeRO-2: the last microbatch only', 'optim_zero.py', 'dense dp2 zero2',
     'self.own.copy_(out) if self.stage == 1 else self.own.add_(out)',
     'self.own.copy_(out)'),
    (30, 'ZeRO-2: a reduction on its way is forgotten', 'optim_zero.py', 'pytest: tests/test_zero.py one_unit',
     'while len(self.flying) > 1 and u.stage > 1 or u.moving:',
     'while len(self.flying) > 1 and u.stage > 1:'),
    (30, 'gradients of a part that was left out are not reduced', 'optim_zero.py', 'pytest: tests/test_zero.py one_unit',
     'if u.sum is not None and not (u.done and u.stage < 2):',
     'if u.sum is not None and u.stage < 2 and not u.done:'),
    (31, 'accumulated in the compute type', 'optim_zero.py', 'pytest: tests/test_optim.py masters or microbatches',
     'self.sum[self.slices[i]].view_as(p).add_(p.grad)',
     '(s := self.sum[self.slices[i]].view_as(p)).copy_(s.to(p.grad.dtype) + p.grad)'),
    (31, 'masters begin in the compute type', 'optim_zero.py', 'pytest: tests/test_zero.py masters',
     'self.master = flat[slice(*self.span)].clone()',
     'self.master = flat[slice(*self.span)].to(dtype).to(wide, copy=True)'),
    (31, 'masters loaded from the compute type', 'optim_zero.py', 'pytest: tests/test_optim.py loaded_masters',
     '        self.t = t\n        self.publish()',
     '        self.t = t\n        self.publish()\n        for u in self.units:\n            u.master.copy_(u.shard)'),
    (31, 'masters replaced by what is published', 'optim_zero.py', 'pytest: tests/test_optim.py masters_keep',
     'to.copy_(u.master)',
     'u.master.copy_(to.copy_(u.master))'),
    (32, 'ZeRO-3: backward reads what was freed', 'optim_zero.py', 'pytest: tests/test_zero.py nothing_is_used and recompute',
     '        units, before = ctx.args\n        for u in units:\n',
     '        units, before = ctx.args\n        for u in units[:0]:\n'),
    (32, 'ZeRO-3: freed before the part has run', 'optim_zero.py', 'pytest: tests/test_zero.py nothing_is_used and recompute',
     '        grad = torch.is_grad_enabled()\n        y = f(',
     '        for u in parts[i]:\n            u.free()\n        grad = torch.is_grad_enabled()\n        y = f('),
    (32, 'ZeRO-3: not freed, so not fetched anew', 'optim_zero.py', 'dense dp2 zero3',
     '        for u in ctx.units:\n            u.free()\n',
     '        for u in ctx.units[:0]:\n            u.free()\n'),
    (32, 'ZeRO-3: the embedding is freed while the head needs it', 'optim_zero.py', 'pytest: tests/test_zero.py nothing_is_used and tied',
     "'heads': {'heads', 'head', *['wte'] * model.cfg.tie}",
     "'heads': {'heads', 'head'}"),
    (32, 'gathers are not waited for', 'optim_zero.py', 'pytest: tests/test_zero.py nothing_is_used and recompute',
     '            self.coming.wait()\n',
     ''),
    (32, 'reductions are not waited for', 'optim_zero.py', 'pytest: tests/test_zero.py nothing_is_used and zbh1',
     '            if handle:\n                handle.wait()\n',
     ''),
    (32, 'a shard is not published', 'optim_zero.py', 'dense dp2 zero1',
     '                u.here = False\n                u.gather()',
     '                u.here = u.stage == 1\n                u.gather()'),
    (32, 'hybrid: shards not summed over the nodes', 'optim_zero.py', 'moe dp4 shard2 zero1',
     'self.then = [replica] + [getattr',
     'self.then = [getattr'),
    (32, "hybrid: experts summed over others' nodes", 'optim_zero.py', 'moe dp4 ep2 shard2 zero2',
     '(mesh.eshard, mesh.ereplica) if expert',
     '(mesh.eshard, mesh.replica) if expert'),
    (32, 'hybrid: shards that do not lie side by side', 'parallel.py', 'pytest: tests/test_zero.py replicas',
     'by_node = lists[\'dpcp\'].reshape(pp, tp, -1, n)',
     'by_node = lists[\'dpcp\'].reshape(pp, tp, n, -1).transpose(2, 3)'),
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
     '        return dx, None, None',
     '        return dx, dy.flatten(0, -2).t() @ x.flatten(0, -2), None'),
    (37, 'pp: losses of the first stage only', 'train.py', 'pytest: tests/test_parallel.py train_py and pp',
     'opt.step(lr * lr_at(step), sums / tp)',
     'opt.step(lr * lr_at(step), sums / tp * (mesh.pp.rank == 0))'),
    (37, 'tp: losses counted by every rank', 'train.py', 'pytest: tests/test_parallel.py train_py and tp',
     'opt.step(lr * lr_at(step), sums / tp)',
     'opt.step(lr * lr_at(step), sums)'),
    (38, 'the maximum of a part of the tensor scales it', 'parallel.py', 'pytest: tests/test_parallel.py 8_bits_are',
     '    if split and mesh.tp.size > 1:',
     '    if False:'),
    (38, 'gradients in e4m3', 'parallel.py', 'pytest: tests/test_parallel.py linears_in_8',
     'mesh.fp8 and torch.float8_e5m2',
     'mesh.fp8 and torch.float8_e4m3fn'),
    (6, 'zero: the shards decide in which order tp is summed', 'optim_zero.py', 'pytest: tests/test_zero.py stages_equal',
     'if k and g.size > 2:',
     'if False:'),
    (39, 'every data-parallel rank reads the same rows', 'data/loader.py', 'pytest: tests/test_parallel.py train_py and dp',
     'range(dp_rank * rows // dp, (dp_rank + 1) * rows // dp)',
     'range(rows // dp)'),
    (39, 'the number of updates is lost on resume', 'train.py', 'pytest: tests/test_zero.py a_stop',
     "opt.loaded(0 if weights_only else meta['optimizer_steps'])",
     'opt.loaded(0)'),
    (39, 'the balancing bias is lost on resume', 'train.py', 'pytest: tests/test_zero.py a_stop',
     "ck.fill(x for x in state(opt, models, mesh) if not weights_only or not x[0].startswith('exp_'))",
     "ck.fill(x for x in state(opt, models, mesh) if not x[0].startswith('buffer/'))"),
    (39, 'the moments are lost on resume', 'train.py', 'pytest: tests/test_zero.py a_stop',
     "ck.fill(x for x in state(opt, models, mesh) if not weights_only or not x[0].startswith('exp_'))",
     "ck.fill(x for x in state(opt, models, mesh) if not x[0].startswith('exp_'))"),
    (39, 'batches left out come back on resume', 'train.py', 'pytest: tests/test_zero.py spike_is_left_out and not rank',
     "step, best, bad, shift = (meta.get(k, 0) for k in ('step', 'best', 'bad', 'shift'))",
     "step, best = (meta.get(k, 0) for k in ('step', 'best'))"),
    (39, 'the last losses are lost on resume', 'train.py', 'pytest: tests/test_zero.py only_reported',
     "recent.extend(meta.get('recent', ()))",
     'None'),
    (39, 'a rollback repeats the bad batch', 'train.py', 'pytest: tests/test_zero.py spike_is_left_out and not rank',
     'step + shift + 1',
     'step + shift'),
    (39, 'one rank alone looks at the loss', 'train.py', 'pytest: tests/test_zero.py spike_on_one_rank',
     'norm, (txt, img, aud) = opt.step(lr * lr_at(step), sums / tp)',
     'norm, _ = opt.step(lr * lr_at(step), sums / tp)\n    txt, img, aud = (sums / tp).tolist()'),
    (39, 'the background writes what training has moved on', 'data/checkpoint.py', 'pytest: tests/test_zero.py background_writes',
     "x.detach().to('cpu', copy=True)",
     "x.detach().to('cpu')"),
    (39, 'the start of an interval is ignored', 'data/checkpoint.py', 'pytest: tests/test_zero.py moves and tied',
     "flat[e.get('start', 0):e.get('start', 0) + x.numel()] = x",
     'flat[:x.numel()] = x'),
    (39, 'the start of the interval to be filled is ignored', 'data/checkpoint.py', 'pytest: tests/test_zero.py moves and tied',
     'reshape(-1)[start:start + x.numel()]',
     'reshape(-1)[:x.numel()]'),
    (39, "hybrid: experts' shards not written", 'data/checkpoint.py', 'pytest: tests/test_zero.py moves and moe',
     'return mesh.ereplica.rank == 0',
     'return mesh.replica.rank == 0'),
    (39, 'hybrid: written by every node', 'data/checkpoint.py', 'pytest: tests/test_zero.py moves and dense',
     "if mesh.replica.rank or (",
     'if ('),
    (39, 'pp: the tied embedding written by both ends', 'data/checkpoint.py', 'pytest: tests/test_zero.py moves and tied',
     "or ('ends' in spec.sums and mesh.pp.rank)",
     ''),
    (17, 'keys and values put together in the wrong place', 'data/checkpoint.py', 'pytest: tests/test_zero.py moves and dense',
     '                at += n\n        return out',
     '        return out'),
    (40, 'a restart meets the keys of the attempt before', 'parallel.py', 'pytest: tests/test_zero.py restart',
     "f'attempt{os.environ.get(\"TORCHELASTIC_RESTART_COUNT\", 0)}'",
     "'attempt'"),
    (41, 'patches predicted from themselves', 'data/collate.py', 'pytest: tests/test_loader.py literally',
     'where[nxt] - 1), out',
     'where[nxt]), out'),
    (42, 'patches in column order', 'data/media.py', 'pytest: tests/test_codec.py pixel or patch',
     '.transpose(0, 2, 1, 3, 4).reshape(-1, D)',
     '.transpose(2, 0, 1, 3, 4).reshape(-1, D)'),
    (43, 'positions do not restart with the document', 'data/collate.py', 'pytest: tests/test_loader.py literally or two_documents',
     'np.arange(n), k\n',
     'np.arange(at, at + n), k\n'),
    (44, 'noise depends on the rank', 'data/collate.py', 'dense dp4',
     'counter=[0, 0, keys[b][1], keys[b][2]]',
     'counter=[0, 0, keys[b][1], b]'),
    (44, 'sampling with another clock than training', 'model.py', 'pytest: tests/test_model.py oracle',
     'x = x + (x1 - x) / (steps - i)',
     'x = x + (x1 - x) / (steps - i + 1)'),
    (44, 'a velocity is taken for what is left to noise', 'model.py', 'pytest: tests/test_model.py velocity',
     'xt + (1 - t[..., None]) * y if',
     'xt + t[..., None] * y if'),
    (45, 'coordinates of what was said last stay behind an insertion', 'sample.py', 'pytest: tests/test_sample.py loc_token',
     'self.rc.pop(s, None), self.x.pop(s, None)',
     'pass'),
    (45, 'the cache forgets a position', 'sample.py', 'pytest: tests/test_sample.py plain_loop and dense',
     'self.n[on] += 1',
     'self.n[on] += self.n[on] < 20'),
    (46, 'a later position is seen', 'parallel.py', 'pytest: tests/test_model.py later',
     '(doc[:, :, None] == doc[:, None, :]).tril_()',
     '(doc[:, :, None] == doc[:, None, :]).tril_(1)'),
    (46, 'a modality without positions is left out', 'model.py', 'dense dp4',
     '            if head is not None:\n',
     "            if head is not None and len(b[f'{kind}_i']):\n"),
    (54, 'memory: gradients of other ranks are not gathered', 'optim_zero.py', 'tied dp2',
     '(all_gather(torch.cat(x), g) for x in',
     '(torch.cat(x) for x in'),
    (54, "memory: a row's norm by the columns of one rank", 'optim_zero.py', 'muon: tied tp2',
     'all_reduce(g.square().sum(1), self.mesh.tp)',
     'g.square().sum(1)'),
    (54, "memory: another rank's columns are read", 'model.py', 'tied tp2',
     'table.spec.local(x).add_(',
     'x[:, :table.shape[1]].add_('),
    (54, 'memory: past ids do not follow the zigzag of cp', 'data/collate.py', 'tied cp2 ring',
     'pos[:, cols], before[:, cols]',
     'pos[:, cols], before[:, :2 * h]'),
    (54, 'memory: past ids of the document before', 'data/collate.py', 'pytest: tests/test_loader.py past',
     'np.where(pos[:, k:] >= k, ids[:, :-k], -1)',
     'ids[:, :-k]'),
    (54, 'memory: past ids of the document before, in the model', 'data/collate.py', 'pytest: tests/test_model.py packed and tied',
     'np.where(pos[:, k:] >= k, ids[:, :-k], -1)',
     'ids[:, :-k]'),
    (54, 'memory: all lengths in one table', 'model.py', 'pytest: tests/test_model.py contexts',
     'h % n_rows + i * n_rows',
     'h % n_rows'),
    (54, 'memory: the hash forgets the nearest id', 'model.py', 'pytest: tests/test_model.py contexts',
     'h * 1000003 + before + 1',
     'h * 0 + before + 1'),
    (54, 'memory: clipped with the rest', 'optim_zero.py', 'pytest: tests/test_optim.py memory',
     '[u.due for u in self.units], self.clip',
     '[u.due for u in self.units] + [g for _, g in self.touched], self.clip'),
    (54, 'memory: rows of the step before stay', 'optim_zero.py', 'pytest: tests/test_optim.py memory',
     'p.pairs.clear()',
     'pass'),
    (54, 'memory: the sums of squares are not saved', 'optim_zero.py', 'pytest: tests/test_train.py stopped_by_signals',
     'Spec(tuple(total.shape)), total, 0)',
     'Spec(tuple(total.shape)), total * 0, 0)'),
    (54, 'memory: a fork forgets what was read', 'data/decoder.py', 'pytest: tests/test_sample.py plain_loop and tied or prefix',
     '= self.ids[a, :n], self.mlp_in',
     '= self.ids[b, :n], self.mlp_in'),
    (54, 'memory: the engine sees the ids one late', 'data/decoder.py', 'pytest: tests/test_sample.py plain_loop and tied',
     'torch.arange(1, 1 + m.cfg.past',
     'torch.arange(2, 2 + m.cfg.past'),
    (54, 'the ids before: none is taken for the first id', 'model.py', 'pytest: tests/test_model.py by_the_book',
     'w, mesh) * (past >= 0)[..., None]',
     'w, mesh)'),
    (55, 'token shift: from the wrong chunk of cp', 'model.py', 'tied cp4 ring',
     '2 * r + 4 if r + 1 < g.size',
     '2 * r + 2 if r + 1 < g.size'),
    (55, 'token shift: its gradient is not summed over tp', 'model.py', 'tied tp2',
     "kind='scalar', partial=True) if shift",
     "kind='scalar') if shift"),
    (55, 'token shift: from the document before', 'model.py', 'pytest: tests/test_model.py packed and tied',
     "(b['pos'] > 0)[..., None]",
     "(b['pos'] >= 0)[..., None]"),
    (55, 'token shift: a fork forgets what was read', 'data/decoder.py', 'pytest: tests/test_sample.py plain_loop and tied or prefix',
     ', self.mlp_in[:, a, :n + 1]',
     ', self.mlp_in[:, b, :n + 1]'),
    (55, 'token shift: the engine adds the position itself', 'data/decoder.py', 'pytest: tests/test_sample.py plain_loop and tied',
     'h.addcmul_(read[slots, pos]',
     'h.addcmul_(read[slots, pos + 1]'),
    (55, 'value embeddings: in generation to the keys', 'data/decoder.py', 'pytest: tests/test_sample.py plain_loop and tied',
     'new[:, 1] += F.embedding',
     'new[:, 0] += F.embedding'),
    (55, 'value embeddings: of every head those of the first', 'model.py', 'tied tp2',
     'tp=1, kv=kv, std=0.0, kind=',
     'std=0.0, kind='),
]


def copy(to):
    """The repository without its data."""
    skip = shutil.ignore_patterns('shards-*', 'raw*', '*.deb', '*.npz', '*.txt', '*.bin', '__pycache__')
    for part in (*ROOT.glob('*.py'), ROOT / 'data', ROOT / 'config', ROOT / 'tests'):
        shutil.copytree(part, to / part.name, ignore=skip) if part.is_dir() else shutil.copy(part, to)


def work(root, script, argv):
    """One run of the tests, in a process forked from one that has torch loaded, which saves more than a second each."""
    os.setsid(), os.chdir(root)
    out = os.open('out', os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1), os.dup2(out, 2)
    # not this repository, but what is installed, even if inside of it
    sys.path[:] = [root] + [p for p in sys.path if p and Path(p) not in (ROOT, ROOT / 'tests')]
    sys.argv, sys.dont_write_bytecode, code = [script, *argv], True, 1
    try:
        if script == 'pytest':
            import pytest
            sys.exit(pytest.main(argv))
        runpy.run_path(script, run_name='__main__')
        code = 0
    except SystemExit as e:
        code = int(e.code or 0) if isinstance(e.code, int) or not e.code else print(e.code) or 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def look(root, tests):
    """Run tests in a copy -> ('green' or 'red' or 'broken', what was seen)."""
    if tests.startswith('pytest: '):
        name, words = tests[8:].split(' ', 1)
        cmd = 'pytest', ['-q', '-x', '--tb=line', '-p', 'no:cacheprovider', name, '-k', words]
    else:
        which = '--optimizers=sgd' + ',muon' * tests.startswith('muon: ')
        cmd = 'tests/grid.py', [f'--these={tests.removeprefix("muon: ")}', '--patience=40', which]
    p = SERVER.Process(target=work, args=(str(root), *cmd))
    p.start()
    for _ in range(LIMIT):                                    # by the second: while we are stopped, so is the clock
        p.join(1)
        if p.exitcode is not None:
            break
    try:
        os.killpg(p.pid, 9)                                   # what hangs, and what the tests left behind
    except ProcessLookupError:
        pass
    p.join()
    lines = (root / 'out').read_text(errors='replace').splitlines()
    if p.exitcode == 0:
        return 'green', ''
    seen = [x for x in lines if ' hangs' in x or ' FAILED at ' in x or ' differ in ' in x]
    seen = (seen or [x for x in lines if 'Error' in x or x[:6] == 'FAILED'] or lines[-1:] or ['no end'])[0]
    ended = p.exitcode == 1 and lines and (tests.startswith('pytest: ') or lines[-1][:1] == '{' or 'AssertionError' in lines[-1])
    return 'red' if ended or p.exitcode == -9 else 'broken', ' '.join(seen.split())[-80:]


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
    if unknown := [a for a in sys.argv[1:] if a.partition('=')[0] not in ('--only', '--number') or '=' not in a]:
        sys.exit(f'mutants.py: unknown {unknown[0]}: use --only=TEXT --number=N')
    flags = dict(a.removeprefix('--').split('=', 1) for a in sys.argv[1:])
    todo = [m for m in MUTANTS if flags.get('only', '') in m[1] and flags.get('number', str(m[0])) == str(m[0])]
    begin, bad = time.time(), []
    os.environ.update(OMP_NUM_THREADS='1', PYTHONDONTWRITEBYTECODE='1')
    SERVER.set_forkserver_preload(['numpy', 'pytest', 'tiktoken', 'torch.multiprocessing'])
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
