"""
The optimizer over flat units, and checkpoints that fit any layout.

A unit is what is reduced together: the parameters of one block (or of the embedding, the heads, one layer's experts) whose gradients are
summed over the same groups. It owns one flat buffer of parameters in the compute type (the model's parameters become views of it), one flat
float32 buffer of gradients, and float32 masters and optimizer state. Gradients are accumulated and reduced in float32; the reduction of a unit
starts in the backward pass of the last microbatch, as soon as its last gradient is there, and overlaps with the rest of the backward pass.

AdamW (Loshchilov and Hutter 2019) for everything, or Muon (Jordan et al. 2024) for the matrices inside the blocks.

A checkpoint is a folder step_00000120/: one raw file per rank, and manifest.json with the name, slice, offset and CRC32 of each tensor. It is
written under a temporary name, flushed to disk and renamed, so a folder with the final name is whole. Nothing is ever unpickled.
    python optim_zero.py inspect DIR     lists and verifies what is inside
"""
import ctypes, json, math, os, shutil, sys, zlib
from pathlib import Path
import numpy as np
import torch
import torch.distributed as dist
from parallel import all_gather, all_reduce


# ---------------------------------------------------------------- units

class Unit:
    """Parameters with the same `sums`, flattened: .param (compute type), .grad and .master (float32), all of length n."""
    def __init__(self, name, params, dtype):
        self.name, self.params, self.sums = name, params, params[0].spec.sums
        n, dev = sum(p.numel() for p in params), params[0].device
        wide = torch.promote_types(dtype, torch.float32)                       # float64 stays float64
        self.master = torch.cat([p.data.reshape(-1).to(wide) for p in params])
        self.param = self.master if dtype == wide else self.master.to(dtype)
        self.grad = torch.zeros(n, dtype=wide, device=dev)
        self.pending, self.work, at = 0, None, 0
        self.slices = []
        for p in params:
            self.slices.append(slice(at, at + p.numel()))
            p.data = self.param[self.slices[-1]].view_as(p)
            p.main_grad = self.grad[self.slices[-1]].view_as(p)
            at += p.numel()


def make_units(model, dtype):
    """One unit per block, one per experts of a layer, one for what comes before and one for what comes after the blocks; split by `sums`."""
    groups = {}                                # the head alone: its slices may differ in length, and buffers of other lengths are summed in another order,
    for name, p in model.named_parameters():   # so that copies in one unit with it would drift apart
        part = name.split('.')
        where = '.'.join(part[:2]) if part[0] == 'blocks' else part[0] if part[0] in ('wte', 'image_in', 'audio_in', 'coord_in', 'head') else 'heads'
        groups.setdefault((where, p.spec.sums), []).append(p)
    return [Unit(f'{where}[{"+".join(sums)}]', ps, dtype) for (where, sums), ps in groups.items()]


# ---------------------------------------------------------------- Muon

def orthogonalise(g, steps=5, dtype=torch.bfloat16):
    """
    g (n, rows, cols) -> roughly the U V^T of its singular value decomposition, by `steps` of a quintic Newton-Schulz iteration whose coefficients
    push every singular value in (0, 1] into about [0.7, 1.2] (Jordan et al. 2024). In `dtype`; float64 stays float64.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g if g.dtype == torch.float64 else g.to(dtype)
    if flip := x.shape[-2] > x.shape[-1]:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x.mT if flip else x


def split_matrices(full, spec):
    """A global parameter as its separate matrices (views): rows of fused ones, experts of stacked ones."""
    if full.dim() == 3:
        return [full]
    return list(full.split(spec.parts)) if spec.parts else [full]


# ---------------------------------------------------------------- the optimizer

class Optimizer:
    """
    opt = Optimizer(model, mesh, ...);  opt.start(micros) before the backward passes of a step;  opt.step(lr) after the last.
    lr_scale: {kind: factor on the learning rate} for embed, head, scalar, router (matrix: 1).  muon=True: matrices by Muon with learning
    rate lr_muon and momentum; weight decay on matrices only (Spec.kind says which they are, never the shape or the name).
    """
    def __init__(self, models, mesh, dtype=torch.float32, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, lr_scale=None, muon=False, muon_lr=1.0,
                 momentum=0.95, clip=1.0):
        self.mesh, self.dtype, self.betas, self.eps, self.wd, self.clip = mesh, dtype, betas, eps, weight_decay, clip
        self.lr_scale, self.muon, self.muon_lr, self.momentum = dict(lr_scale or {}), muon, muon_lr, momentum
        self.t = 0
        self.units = [u for model in models for u in make_units(model, dtype)]
        self.runs, self.matrices = [], []
        for u in self.units:
            u.m, u.v = torch.zeros_like(u.master), torch.zeros_like(u.master)
            for p, s in zip(u.params, u.slices):
                p.ready = lambda p, u=u: self._ready(p, u)
                p.register_post_accumulate_grad_hook(p.ready)
                if muon and p.spec.kind == 'matrix':
                    self.matrices.append((u, p, s))
                elif self.runs and self.runs[-1][0] is u and self.runs[-1][2] == p.spec.kind and self.runs[-1][1].stop == s.start:
                    self.runs[-1][1] = slice(self.runs[-1][1].start, s.stop)   # neighbours of one kind: one call
                else:
                    self.runs.append([u, s, p.spec.kind])
        self.steps = torch.zeros((), dtype=torch.float32, device=self.units[0].grad.device)

    # -------- gradients

    def start(self, micros):
        """Call before the first backward pass of a step of `micros` microbatches: a unit is reduced when its last gradient of the last one is there."""
        for u in self.units:
            u.pending = len(u.params) * micros

    @torch.no_grad()
    def _ready(self, p, u):
        if p.grad is None:                                                     # a queued weight gradient: it comes later, through W
            return
        p.main_grad.add_(p.grad)                                               # accumulated in float32, whatever the compute type
        p.grad = None
        u.pending -= 1
        if u.pending == 0:
            u.work = all_reduce(u.grad, getattr(self.mesh, u.sums[0]), async_op=True)

    def reduce(self):
        """Wait for the reductions that were started, do the rest; every gradient is then the global sum."""
        for u in self.units:
            if u.work is not None:
                u.work.wait()
            elif u.pending:
                all_reduce(u.grad, getattr(self.mesh, u.sums[0]))
            for g in u.sums[1:]:
                all_reduce(u.grad, getattr(self.mesh, g))
            u.work = None

    def norm(self):
        """Global gradient norm, a 0-d tensor: the sum over the world of g^2 / copies, one all-reduce."""
        total = torch.zeros((), dtype=self.units[0].grad.dtype, device=self.units[0].grad.device)
        for u in self.units:
            at = 0
            while at < len(u.params):                                          # neighbours with as many copies: one pass
                end = at
                while end < len(u.params) and u.params[end].spec.copies == u.params[at].spec.copies:
                    end += 1
                g = u.grad[u.slices[at].start:u.slices[end - 1].stop]
                total += torch.dot(g, g) / u.params[at].spec.copies
                at = end
        return all_reduce(total, self.mesh.world).sqrt()

    def zero(self):
        for u in self.units:
            u.grad.zero_()

    # -------- the step

    @torch.no_grad()
    def step(self, lr):
        """Reduce, clip, update, zero. Returns the gradient norm before clipping (float); a non-finite norm skips the update on all ranks alike."""
        self.reduce()
        norm = float(self.norm())
        if math.isfinite(norm):
            self.t += 1
            self.steps.fill_(self.t)
            if self.clip and norm > self.clip:
                torch._foreach_mul_([u.grad for u in self.units], self.clip / norm)
            for kind in {k: 0 for *_, k in self.runs}:                         # in order: one call for each kind
                mine = [(u, s) for u, s, k in self.runs if k == kind]
                lists = [[getattr(u, name)[s] for u, s in mine] for name in ('master', 'grad', 'm', 'v')]
                torch._fused_adamw_(*lists, [], [self.steps] * len(mine), amsgrad=False, lr=lr * self.lr_scale.get(kind, 1.0), beta1=self.betas[0],
                                    beta2=self.betas[1], weight_decay=self.wd if kind == 'matrix' else 0.0, eps=self.eps, maximize=False)
            self._muon(lr)
            for u in self.units:
                if u.param is not u.master:
                    u.param.copy_(u.master)
        self.zero()
        return norm

    def _muon(self, lr):
        """Nesterov momentum, orthogonalise (matrices of one shape in one batch), scale by the global shape, decoupled weight decay."""
        if not self.matrices:
            return
        grads, moms = [u.grad[s] for u, p, s in self.matrices], [u.m[s] for u, p, s in self.matrices]
        torch._foreach_lerp_(moms, grads, 1 - self.momentum)
        torch._foreach_lerp_(grads, moms, self.momentum)                       # the gradient is not needed any more
        batch = {}                                                             # shape -> [(parameter, part, its matrices)]
        for i, (u, p, s) in enumerate(self.matrices):
            g = grads[i].view_as(p)
            if p.spec.blocks and 'edp' not in p.spec.sums:                     # Muon on slices is not Muon: make the matrix whole
                g = self._gather(g, p.spec)
            for j, m in enumerate(split_matrices(g, p.spec)):
                batch.setdefault(tuple(m.shape[-2:]), []).append((i, j, m))
        done = {}
        for (rows, cols), items in batch.items():
            o = orthogonalise(torch.cat([m.reshape(-1, rows, cols) for *_, m in items]), dtype=self.dtype)
            o = o * max(1, rows / cols) ** 0.5                                  # the same spectral size per input, whatever the shape
            for (i, j, m), x in zip(items, o.split([m.numel() // (rows * cols) for *_, m in items])):
                done.setdefault(i, {})[j] = x.reshape(m.shape)
        new = []
        for i, (u, p, s) in enumerate(self.matrices):
            full = torch.cat([done[i][j] for j in range(len(done[i]))]) if len(done[i]) > 1 else done[i][0]
            new.append((p.spec.local(full) if full.shape == p.spec.shape else full).to(u.master.dtype).flatten())
        masters = [u.master[s] for u, p, s in self.matrices]
        torch._foreach_mul_(masters, 1 - lr * self.muon_lr * self.wd)
        torch._foreach_add_(masters, new, alpha=-lr * self.muon_lr)

    def _gather(self, g, spec):
        """The global tensor from the slices of the tensor-parallel ranks."""
        tp, full = self.mesh.tp, g.new_zeros(spec.shape)
        sizes = [None] * tp.size
        dist.all_gather_object(sizes, spec.blocks, group=tp.pg)
        rows = [sum(n for _, n in b) for b in sizes]
        pad = g.movedim(spec.dim, 0)
        pad = torch.cat([pad, pad.new_zeros(max(rows) - len(pad), *pad.shape[1:])])
        for blocks, n, x in zip(sizes, rows, all_gather(pad.contiguous(), tp).chunk(tp.size)):
            x, at = x[:n].movedim(0, spec.dim), 0
            for o, k in blocks:
                full.narrow(spec.dim, o, k).copy_(x.narrow(spec.dim, at, k))
                at += k
        return full

    # -------- state

    def tensors(self):
        """(name, Spec, this rank's tensor) of all that a checkpoint holds: masters, first and second moments."""
        for u in self.units:
            for p, s in zip(u.params, u.slices):
                for kind, flat in (('param', u.master), ('exp_avg', u.m), ('exp_avg_sq', u.v)):
                    if not (kind == 'exp_avg_sq' and self.muon and p.spec.kind == 'matrix'):
                        yield f'{kind}/{p.spec.name}', p.spec, flat[s].view_as(p)

    def loaded(self, t):
        """After the tensors were filled from a checkpoint."""
        self.t = t
        for u in self.units:
            if u.param is not u.master:
                u.param.copy_(u.master)


# ---------------------------------------------------------------- checkpoints

def _fsync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _replace(tmp, final):
    """Give the folder tmp the name final; what had that name gets the name tmp. At no moment is there none (Linux: renameat2 with RENAME_EXCHANGE)."""
    if not final.exists():
        os.rename(tmp, final)
    elif not hasattr(libc := ctypes.CDLL(None), 'renameat2') or libc.renameat2(-100, os.fsencode(tmp), -100, os.fsencode(final), 2):
        old = final.with_name(f'.{final.name}.old')
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
        try:
            os.rename(tmp, final)
        except OSError:
            os.rename(old, final)
            raise
        os.rename(old, tmp)


def writes(spec, mesh):
    """Of the ranks that hold the same slice, one writes it."""
    if 'edp' in spec.sums:
        return mesh.edp.rank == 0
    if mesh.dpcp.rank or ('ends' in spec.sums and mesh.pp.rank):
        return False
    return mesh.kv.rank == 0 if 'kv' in spec.sums else bool(spec.blocks) or mesh.tp.rank == 0


def save_checkpoint(out_dir, name, tensors, meta, mesh):
    """
    tensors: iterable of (name, Spec, tensor) of this rank; meta: JSON-able dict. Writes out_dir/name/ whole or not at all, on all ranks.
    OSError (disk full, permission) leaves what was saved before untouched.
    """
    out = Path(out_dir)
    final, tmp = out / name, out / f'.{name}.tmp'
    entries, at, file, error = [], 0, f'rank{mesh.world.rank:05d}.bin', None

    def agree(value, error):
        """What every rank has to say; an error of any of them is raised by all, so that nobody waits for a rank that has left."""
        said = [(value, error)]
        if mesh.world.size > 1:
            said = [None] * mesh.world.size
            dist.all_gather_object(said, (value, error))
        if first := next((e for _, e in said if e), None):
            if mesh.world.rank == 0:
                shutil.rmtree(tmp, ignore_errors=True)
            raise first
        return [v for v, _ in said]

    try:
        if mesh.world.rank == 0:
            shutil.rmtree(tmp, ignore_errors=True)
            tmp.mkdir(parents=True)
    except OSError as e:
        error = e
    agree(None, error)
    try:
        with open(tmp / file, 'wb') as f:
            for tname, spec, x in tensors:
                if writes(spec, mesh):
                    raw = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
                    f.write(raw)
                    entries.append(dict(name=tname, file=file, dtype=str(x.dtype)[6:], shape=list(spec.shape), dim=spec.dim,
                                        blocks=[list(b) for b in spec.blocks], offset=at, nbytes=raw.nbytes, crc=zlib.crc32(raw)))
                    at += raw.nbytes
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        error = e
    entries = agree(entries, error)
    try:
        if mesh.world.rank == 0:
            with open(tmp / 'manifest.json', 'w') as f:
                body = json.dumps(dict(meta, tensors=sum(entries, [])))
                f.write(f'{body[:-1]}, "crc": {zlib.crc32(body.encode())}}}')
                f.flush()
                os.fsync(f.fileno())
            _fsync(tmp)
            _replace(tmp, final)
            _fsync(out)
            shutil.rmtree(tmp, ignore_errors=True)                              # holds what was there before, if there was anything
    except OSError as e:
        error = e
    agree(None, error)


def checkpoints(out_dir):
    """Whole checkpoints step_*, newest first."""
    return sorted((p.parent for p in Path(out_dir).glob('step_*/manifest.json')), key=lambda p: p.name, reverse=True)


def prune(out_dir, keep):
    for p in checkpoints(out_dir)[keep:]:
        os.rename(p, p.with_name('.' + p.name + '.old'))
        shutil.rmtree(p.with_name('.' + p.name + '.old'), ignore_errors=True)


class Checkpoint:
    """An opened checkpoint: .meta, .names, and full(name) -> the assembled global tensor. ValueError, one line, for anything missing or damaged."""
    def __init__(self, path):
        self.path = Path(path)
        try:
            text = (self.path / 'manifest.json').read_text()
            body, _, crc = text.rpartition(', "crc": ')
            if not crc.endswith('}') or crc[:-1] != str(zlib.crc32((body + '}').encode())):
                raise ValueError('the checksum of manifest.json does not match')
            self.meta = json.loads(body + '}')
            self.parts = {}
            for e in self.meta.pop('tensors'):
                self.parts.setdefault(e['name'], []).append(e)
        except (OSError, ValueError, KeyError) as e:
            raise ValueError(f'{path}: no readable checkpoint ({e}): give another one, or delete that folder') from None
        self.files = {}

    @property
    def names(self):
        return list(self.parts)

    def _raw(self, e):
        f = e['file']
        if f not in self.files:
            try:
                self.files[f] = np.memmap(self.path / f, np.uint8, 'r')
            except (OSError, ValueError) as err:
                raise ValueError(f'{self.path / f}: missing or empty shard ({err}): use an earlier checkpoint') from None
        raw = self.files[f][e['offset']:e['offset'] + e['nbytes']]
        if len(raw) != e['nbytes'] or zlib.crc32(raw) != e['crc']:
            raise ValueError(f'{self.path / f}: damaged at {e["name"]} (its checksum does not match): use an earlier checkpoint')
        return torch.frombuffer(bytearray(raw.tobytes()), dtype=getattr(torch, e['dtype']))

    def full(self, name):
        if name not in self.parts:
            raise ValueError(f'{self.path}: holds no {name}: it was written by another model or optimizer')
        e0 = self.parts[name][0]
        if not e0['blocks']:
            return self._raw(e0).view(e0['shape'])
        out = torch.empty(e0['shape'], dtype=getattr(torch, e0['dtype']))
        seen = 0
        for e in self.parts[name]:
            local, at = list(e['shape']), 0
            local[e['dim']] = sum(n for _, n in e['blocks'])
            x = self._raw(e).view(local)
            for o, n in e['blocks']:
                out.narrow(e['dim'], o, n).copy_(x.narrow(e['dim'], at, n))
                at += n
            seen += at
        if seen != e0['shape'][e0['dim']]:
            raise ValueError(f'{self.path}: {name} is not whole: a shard is missing from the manifest')
        return out

    def fill(self, tensors):
        """Copy into (name, Spec, tensor) of this rank, whatever layout wrote it."""
        for name, spec, x in tensors:
            full = self.full(name)
            if tuple(full.shape) != tuple(spec.shape):
                raise ValueError(f'{self.path}: {name} has shape {tuple(full.shape)}, this model wants {tuple(spec.shape)}')
            x.data.copy_(spec.local(full))


if __name__ == '__main__':
    if len(sys.argv) != 3 or sys.argv[1] != 'inspect':
        sys.exit(__doc__)
    try:
        ck = Checkpoint(sys.argv[2])
        for n in ck.names:
            x = ck.full(n)
            print(f'{n:60s} {str(tuple(x.shape)):20s} {str(x.dtype)[6:]:9s} mean {x.double().mean():+.3e} std {x.double().std(correction=0):.3e}')
        print({k: v for k, v in ck.meta.items() if not isinstance(v, (dict, list))})
        print(f'{len(ck.names)} tensors, all checksums right')
    except ValueError as e:
        sys.exit(str(e))
