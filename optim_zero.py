"""
The optimizer over flat units, ZeRO 0-3.

A unit is what is gathered and reduced together: the parameters of one block (or of the embedding, the heads, one layer's experts) whose
gradients are summed over the same groups, flattened and padded so that the d ranks of a group can own equal shards of it. (Rajbhandari et
al. 2019, "ZeRO")

    zero   parameters   gradients   masters, moments    sent per step, M microbatches           bytes per parameter (bf16, AdamW)
    0      whole        whole       whole               all-reduce                2(d-1)/d P    18
    1      whole        whole       shard               reduce-scatter, gather    2(d-1)/d P    6 + 12/d
    2      whole        shard       shard               M reduce-scatters, gather (M+1)(d-1)/d P    2 + 16/d, and units on their way
    3      shard        shard       shard               M (2 gathers, reduce-scatter) 3M(d-1)/d P   18/d, and units in use

Gradients are accumulated and reduced in float32, whatever the compute type. A reduction starts in the backward pass as soon as the unit's
last gradient is there and overlaps with the backward pass of the next unit; a gather starts one part ahead of its use. In one layout the
stages give the same bits (with several microbatches 0 and 1 do, and 2 and 3: the latter add up what was reduced already).

AdamW (Loshchilov and Hutter 2019) for everything, or Muon (Jordan et al. 2024) for the matrices inside the blocks. Memory tables lie
outside the units, whole over dp*cp: row-wise Adagrad (Duchi et al. 2011) touches the rows of a step and no others.

Checkpoints, which hold what Optimizer.tensors() yields: data/checkpoint.py.
    python optim_zero.py inspect DIR               lists and verifies what is inside
    python optim_zero.py export DIR FILE           its weights as one safetensors file
    python optim_zero.py export-hf DIR FOLDER      as a Llama that transformers loads, if the model is one (data/llama.py)
"""
import math, sys, weakref
import torch
import torch.nn.functional as F
from data.checkpoint import command
from parallel import Spec, all_gather, all_gather_into, all_reduce, all_to_all, reduce_scatter_into


# ---------------------------------------------------------------- units

ALIGN = 16   # parameters and shards begin at multiples of it: elementwise kernels then round every element alike, whatever the shards


def meet(a, b, lo, hi):
    """[a, b) and [lo, hi) have in common: (start, stop), start = stop if nothing."""
    return max(a, lo), max(max(a, lo), min(b, hi))


class Unit:
    """
    Parameters with the same `sums`, flattened and padded (zeros, which stay zeros) to n = d w; rank k of the d in .group owns [k w, (k+1)
    w), and .span is what this rank keeps float32 masters and moments of: all of it at stage 0, then its shard.
        param (n,) compute type, the model's parameters are views of it; at stage 3 its memory is there between gather and free only
        shard (w,) compute type: this rank's part of param, at stage 3 on its own
        grad  (n,) float32; from stage 2 on (w,).  own: this rank's shard of it.  due: as long as the span
        master, m, v  float32, as long as the span
    """
    def __init__(self, name, params, dtype, mesh, zero):
        self.name, self.params, self.sums, dev = name, params, params[0].spec.sums, params[0].device
        expert, wide = self.sums[0] == 'edp', torch.promote_types(dtype, torch.float32)   # float64 stays float64
        self.group, replica = (mesh.eshard, mesh.ereplica) if expert else (mesh.shard, mesh.replica)
        self.then = [replica] + [getattr(mesh, g) for g in self.sums[1:]]        # groups to sum over once the shards are
        self.orth, self.tp = (self.group, 1) if expert else (mesh.orth, mesh.tp.size)      # ranks that hold its matrices between them
        self.stage, d, k = zero if self.group.size > 1 else 0, self.group.size, self.group.rank
        self.slices, at = [], 0
        for p in params:
            self.slices.append(slice(at, at + p.numel()))
            at += -(-p.numel() // ALIGN) * ALIGN
        self.w = -(-at // (d * ALIGN)) * ALIGN
        self.n, self.lo, self.hi = self.w * d, k * self.w, (k + 1) * self.w
        self.span = (0, self.n) if not self.stage else (self.lo, self.hi)
        flat = torch.zeros(self.n, dtype=wide, device=dev)
        for p, s in zip(params, self.slices):
            flat[s] = p.data.reshape(-1)
        self.master = flat[slice(*self.span)].clone()
        self.param = self.master if self.stage == 0 and dtype == wide else flat.to(dtype)
        self.shard = self.param[self.lo:self.hi]
        if self.stage == 3:
            self.shard = self.master if dtype == wide else self.shard.clone()
        elif self.stage and dtype == wide:
            self.master = self.shard
        self.m, self.v = torch.zeros_like(self.master), torch.zeros_like(self.master)
        self.grad = torch.zeros(self.n if self.stage < 2 else self.w, dtype=wide, device=dev)
        self.own = self.grad if self.stage > 1 else self.grad[self.lo:self.hi]
        self.due = self.own if self.stage else self.grad
        self.sum = self.grad if self.stage < 2 else None                       # where gradients are added
        self.moving, self.coming = None, None                                  # the reduction, the gather on its way
        self.here = True                                                       # the whole parameters, up to date, or on their way
        self.left, self.done = 0, False                                        # gradients to come before the next reduction; it was started
        for p, s in zip(params, self.slices):
            p.data = self.param[s].view_as(p)
            if self.stage < 2:
                p.main_grad = self.grad[s].view_as(p)
        if self.stage == 3:
            self.free()

    def gather(self):
        """Start to fetch the whole parameters, if they are neither here nor on their way."""
        if not self.here:
            if self.stage == 3:
                self.param.untyped_storage().resize_(self.n * self.param.element_size())
            self.coming, self.here = all_gather_into(self.param, self.shard, self.group), True

    def ready(self):
        """Wait until they are here."""
        self.gather()
        if self.coming:
            self.coming.wait()
            self.coming = None

    def free(self):
        """Stage 3: views of the parameters, and what autograd saved of them, stay valid: their storage is filled again before a read."""
        if self.stage == 3:
            self.param.untyped_storage().resize_(0)
            self.here = False

    def add(self, p, i):
        """A gradient has come: add it in float32, whatever the compute type."""
        if self.sum is None:
            self.sum = torch.zeros(self.n, dtype=self.grad.dtype, device=p.device)
        self.sum[self.slices[i]].view_as(p).add_(p.grad)
        p.grad = None
        self.left -= 1

    def reduce(self):
        """Start to sum the gradients over the group."""
        self.done = True
        if self.stage == 0:
            self.moving = all_reduce(self.grad, self.group, async_op=True), None, None
        else:
            out = torch.empty(self.w, dtype=self.grad.dtype, device=self.grad.device)
            self.moving = reduce_scatter_into(out, self.sum, self.group), out, self.sum
            if self.stage > 1:
                self.sum = None

    def land(self):
        """Wait for the reduction that was started."""
        if self.moving:
            handle, out, _ = self.moving
            if handle:
                handle.wait()
            if out is not None:
                self.own.copy_(out) if self.stage == 1 else self.own.add_(out)
            self.moving = None


def make_units(model, dtype, mesh, zero):
    """[(part, unit)]: one per block, one per experts of a layer, for each embedding, the softmaxes of heads, what is left; by `sums`."""
    alone, groups = ('wte', 'before', 'image_in', 'audio_in', 'coord_in', 'head'), {}
    for name, p in model.named_parameters():   # softmaxes alone: slices may differ in length, and buffers of other lengths are
        part = name.split('.')                 # summed in another order, so that copies in one unit with it would drift apart
        if p.spec.kind == 'table':
            continue
        where = '.'.join(part[:2]) if part[0] == 'blocks' else part[0] if part[0] in alone else 'heads' if part[-1] != 'out' else 'head'
        groups.setdefault((where, p.spec.sums), []).append(p)
    return [(where, Unit(f'{where}[{"+".join(sums)}]', ps, dtype, mesh, zero)) for (where, sums), ps in groups.items()]


class _Enter(torch.autograd.Function):
    """forward: identity.  backward: when the part's backward pass is done, its parameters are freed."""
    @staticmethod
    def forward(ctx, x, units):
        ctx.units = units
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dx):
        for u in ctx.units:
            u.free()
        return dx, None


class _Leave(torch.autograd.Function):
    """forward: identity.  backward: the part's parameters are fetched, and those of the part before it are sent for."""
    @staticmethod
    def forward(ctx, y, units, before):
        ctx.args = units, before
        return y.view_as(y)

    @staticmethod
    def backward(ctx, dy):
        units, before = ctx.args
        for u in units:
            u.ready()
        for u in before:
            u.gather()
        return dy, None, None


def gather_around(model, units):
    """
    model.around waits for the parameters of a part before it computes and sends for those of the next; at stage 3 it frees them afterwards.
    At stages 1 and 2 they are fetched once a step: publish() has sent for them.
    """
    names = ['embed'] * model.first + [f'blocks.{i}' for i in model.blocks] + ['heads'] * model.last
    ends = {'embed': {'wte', 'before', 'image_in', 'audio_in', 'coord_in'}, 'heads': {'heads', 'head', *['wte'] * model.cfg.tie}}
    parts = [[u for where, u in units if where in ends.get(n, {n})] for n in names]
    back = [[u for where, u in units if where == n and n != 'embed'] for n in names]       # embeddings, softmax head: no weights are read

    def around(part, f, x, *args):
        i = names.index(part)
        for u in parts[i]:
            u.ready()
        for u in parts[i + 1] if i + 1 < len(parts) else ():
            u.gather()
        grad = torch.is_grad_enabled()
        y = f(_Enter.apply(x, back[i]) if grad and torch.is_tensor(x) else x, *args)
        for u in parts[i]:
            u.free()
        if not grad:
            return y
        leave = lambda y: _Leave.apply(y, back[i], back[i - 1] if i else [])
        return {**y, 'loss': leave(y['loss'])} if isinstance(y, dict) else leave(y)
    model.around = around


# ---------------------------------------------------------------- memory tables

def gather_rows(table, g):
    """
    The pairs (rows (N, K), gradient (N, C/tp)) that this step's backward passes left, of all ranks of g -> the rows touched (U,),
    ascending, and the gradient of each (U, C/tp). Sent: (N, C/tp) per rank, never the table; added in one order, so that copies stay equal.
    """
    rows, grad = (all_gather(torch.cat(x), g) for x in zip(*table.pairs))
    at, order = rows.flatten().sort(stable=True)
    at, n = at.unique_consecutive(return_counts=True)
    return at, F.embedding_bag(order // rows.shape[1], grad.to(table.dtype), n.cumsum(0) - n, mode='sum')


# ---------------------------------------------------------------- Muon

# a x + b x^3 + c x^5, each the nearest to 1 on the interval to which those before it take the singular values: so together they are the
# nearest that so many can be (Amsel et al. 2025, "The Polar Express"). Of x / 1.01: past the end, where bfloat16 may round, they explode.
QUINTICS = {3: ((8.0132, -22.9258, 16.5994), (3.6006, -2.6419, 0.5105), (2.6350, -1.9190, 0.4306)),      # from .01 on into [.71, 1.27]
            4: ((8.3007, -24.0375, 17.4661), (4.0034, -2.9228, 0.5419), (3.4709, -2.5494, 0.5002),       # .003, [.77, 1.2]
                (2.4655, -1.7803, 0.4156)),
            5: ((8.3865, -24.3696, 17.7251), (4.1414, -3.0173, 0.5524), (3.9226, -2.8672, 0.5357),       # .001, [.85, 1.12]
                (3.2540, -2.3922, 0.4827), (2.2512, -1.5963, 0.3960))}


def orthogonalise(g, steps=5, dtype=torch.bfloat16):
    """
    g (n, rows, cols) -> roughly the U V^T of its singular value decomposition, by a Newton-Schulz iteration (Jordan et al. 2024) of 3 to 5
    QUINTICS, which say what becomes of singular values over the Frobenius norm. In `dtype`; float64 stays float64.
    """
    x = g if g.dtype == torch.float64 else g.to(dtype)
    if flip := x.shape[-2] > x.shape[-1]:
        x = x.mT
    n = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)).norm(dim=-2, keepdim=True)
    x = (x / (n + 1e-7)).to(x.dtype)                               # in bfloat16 the norm of a large matrix would come out too small
    for a, b, c in QUINTICS[steps]:
        s = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x.mT if flip else x


class Matrix:
    """
    One matrix for Muon: a parameter, one part of a fused one (k of k and v), or one expert. Its slice lies in [lo, hi) of the unit on every
    tensor-parallel rank, cut again by the shards; the whole is put together on its owner among the ranks of u.orth (shard x tp, tp
    fastest). cuts: (offset, length) along dim of the slice of each tp rank.
    """
    def __init__(self, u, lo, shape, dim, cuts):
        self.u, self.lo, self.shape, self.dim, self.cuts = u, lo, shape, dim, cuts
        self.hi = lo + cuts[0][1] * shape[1 - dim]
        self.senders = [t for t, c in enumerate(cuts) if cuts.index(c) == t]    # of the tp ranks with the same slice, the first

    def pieces(self):
        """[(shard, start, stop)]: where the slice lies."""
        w = self.u.w
        return [(k, *meet(self.lo, self.hi, k * w, (k + 1) * w)) for k in range(self.lo // w, -(-self.hi // w))]


def split_matrices(u, p, at):
    """The matrices of a parameter that begins at `at` in its unit."""
    spec = p.spec
    if p.dim() == 3:                                                           # experts: split over ep only
        n, rows, cols = p.shape
        return [Matrix(u, at + e * rows * cols, (rows, cols), 0, [(0, rows)]) for e in range(n)]
    out, first = [], 0
    for i, rows in enumerate(spec.parts or (spec.shape[0],)):
        shape = (rows, spec.shape[1])
        cuts = [(b[i][0] - first, b[i][1]) for b in spec.by_tp] or [(0, shape[spec.dim])] * u.tp
        out.append(Matrix(u, at, shape, spec.dim, cuts))
        at, first = out[-1].hi, first + rows
    return out


def swap(pieces, lengths, g, dtype):
    """pieces: for each rank of g flat tensors for it; lengths: of those that come from each -> lists of them, by source. One all-to-all."""
    if g.size == 1:
        return pieces
    flat = torch.cat([x.to(dtype) for to in pieces for x in to] or [torch.empty(0, dtype=dtype)])
    got = all_to_all(flat, g, [sum(n) for n in lengths], [sum(x.numel() for x in to) for to in pieces])
    return [x.split(n) if n else [] for x, n in zip(got.split([sum(n) for n in lengths]), lengths)]


# ---------------------------------------------------------------- the optimizer

class Optimizer:
    """
    opt = Optimizer(models, mesh, ...);  opt.start(micros) before the backward passes of a step;  opt.step(lr) after the last.
    lr_scale: {kind: factor on the learning rate} for embed, head, scalar, router, table (matrix: 1).  muon=True: matrices by Muon (learning
    rate lr * muon_lr, momentum, muon_steps QUINTICS); weight decay on matrices only (Spec.kind says which, never the shape or the name).
    """
    def __init__(self, models, mesh, dtype=torch.float32, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, lr_scale=None, muon=False,
                 muon_lr=1.0, muon_steps=5, momentum=0.95, clip=1.0, zero=0):
        self.mesh, self.dtype, self.betas, self.eps, self.wd, self.clip = mesh, dtype, betas, eps, weight_decay, clip
        self.lr_scale, self.muon, self.muon_lr, self.muon_steps = dict(lr_scale or {}), muon, muon_lr, muon_steps
        self.momentum, self.t, self.units, self.flying = momentum, 0, [], []   # flying: units whose reduction is on its way
        self.runs, self.copies, self.spans = [], [], []                        # of state, by kind; of own gradients, by copies; for Muon
        for model in models:
            units = make_units(model, dtype, mesh, zero)
            if zero:
                gather_around(model, units)
            self.units += [u for _, u in units]
        plans = {}
        for u in self.units:
            for i, (p, s) in enumerate(zip(u.params, u.slices)):
                a, b = s.start, -(-s.stop // ALIGN) * ALIGN                      # with the padding behind it, so that neighbours touch
                p.ready = lambda p, me=weakref.ref(self), u=weakref.ref(u), i=i: me()._ready(p, u(), i)    # else a cycle unseen by python
                p.register_post_accumulate_grad_hook(p.ready)
                is_muon = muon and p.spec.kind == 'matrix'
                self._run(self.spans if is_muon else self.runs, u, meet(a, b, *u.span), u.span[0], p.spec.kind)
                self._run(self.copies, u, meet(a, b, u.lo, u.hi), u.lo, p.spec.copies // u.group.size)
                if is_muon:
                    plans.setdefault(u.orth.name, (u.orth, []))[1].extend(split_matrices(u, p, a))
        self.plans = [self._plan(*x) for x in plans.values()]
        self.tables, self.touched = [], []                                     # (table, sum of squares of each row); gather_rows() of each
        for p in (p for model in models for p in model.parameters() if p.spec.kind == 'table'):
            p.data, p.pairs = p.data.to(self.units[0].master.dtype), []
            self.tables.append((p, p.new_zeros(len(p))))
        self.steps = torch.zeros((), dtype=torch.float32, device=self.units[0].grad.device)

    @staticmethod
    def _run(runs, u, ab, first, kind):
        """Note [a, b), counted from `first`; neighbours of one kind become one."""
        a, b = ab[0] - first, ab[1] - first
        if b > a and runs and runs[-1][0] is u and runs[-1][2] == kind and runs[-1][1].stop == a:
            runs[-1][1] = slice(runs[-1][1].start, b)
        elif b > a:
            runs.append([u, slice(a, b), kind])

    # -------- gradients

    def start(self, micros):
        """Before the backward passes of `micros` microbatches: a unit is reduced at its last gradient of the last (ZeRO-2, 3: of each)."""
        for u in self.units:
            u.left = len(u.params) * (micros if u.stage < 2 else 1)

    @torch.no_grad()
    def _ready(self, p, u, i):
        if p.grad is None:                                                     # a queued weight gradient: it comes later, through W
            return
        u.add(p, i)
        if u.left == 0:
            self._reduce(u)
            u.left = len(u.params)

    def _reduce(self, u):
        while len(self.flying) > 1 and u.stage > 1 or u.moving:                # at most two whole gradients at once
            self.flying.pop(0).land()
        u.reduce()
        self.flying.append(u)

    def reduce(self):
        """Wait for the reductions that were started, do the rest: gradients that this rank owns (ZeRO-0: all) are then the global sum."""
        for u in self.units:
            if u.sum is not None and not (u.done and u.stage < 2):             # some of its gradients did not come
                self._reduce(u)
        for u in self.flying:
            u.land()
        self.flying = []
        for u in self.units:
            for k, g in enumerate(u.then):
                if k and g.size > 2:                                           # little, and in the order of the ranks: a ring's depends on
                    first, *rest = all_gather(u.due, g).view(g.size, -1)       # where in the buffer a number lies, and so on the shards
                    u.due.copy_(first)
                    for x in rest:
                        u.due.add_(x)
                else:
                    all_reduce(u.due, g)
        self.touched = [gather_rows(p, self.mesh.dpcp) for p, _ in self.tables]

    def norm(self, more=None):
        """
        Global gradient norm, memory tables left out (Adagrad divides by their own): the square root of the sum over the world of g^2 /
        copies, each rank its shards, one all-reduce. Returns the norm and, behind it, the sums of `more` (1-d, float64), which goes along.
        """
        total = self.units[0].grad.new_zeros(1)
        for u, s, copies in self.copies:
            total += torch.dot(u.own[s], u.own[s]) / copies
        both = all_reduce(total if more is None else torch.cat((total.double(), more)), self.mesh.world)
        both[0].sqrt_()
        return both

    def zero(self):
        torch._foreach_zero_([u.grad for u in self.units])
        self.touched = []
        for u in self.units:
            u.done = False
        for p, _ in self.tables:
            p.pairs.clear()

    # -------- the step

    @torch.no_grad()
    def step(self, lr, more=None):
        """
        Reduce, clip, update, zero. Returns the gradient norm before clipping (float); a non-finite norm skips the update on all ranks
        alike. more: see norm(); then returns (norm, list of the sums).
        """
        self.reduce()
        norm, *sums = self.norm(more).tolist()
        if math.isfinite(norm):
            self.t += 1
            self.steps.fill_(self.t)
            if self.clip and norm > self.clip:
                torch._foreach_mul_([u.due for u in self.units], self.clip / norm)
            self.update(lr)
        self.zero()
        return norm if more is None else (norm, sums)

    def update(self, lr):                                                      # a number, or a tensor of one: see data/graph.py
        for kind in {k: 0 for *_, k in self.runs}:                             # in order: one call for each kind
            mine = [(u, s) for u, s, k in self.runs if k == kind]
            lists = [[getattr(u, name)[s] for u, s in mine] for name in ('master', 'due', 'm', 'v')]
            torch._fused_adamw_(*lists, [], [self.steps] * len(mine), lr=lr * self.lr_scale.get(kind, 1.0), beta1=self.betas[0],
                                beta2=self.betas[1], weight_decay=self.wd if kind == 'matrix' else 0.0, eps=self.eps, amsgrad=False,
                                maximize=False)
        self._muon(lr)
        self._adagrad(lr * self.lr_scale.get('table', 1.0))
        self.publish()

    def publish(self):
        """The parameters in the compute type from the masters; ZeRO-1 and 2 start to gather them, in the order of their use."""
        for u in self.units:
            to = u.param if u.stage == 0 else u.shard
            if to is not u.master:
                to.copy_(u.master)
            if u.stage in (1, 2):
                u.here = False
                u.gather()

    def _plan(self, g, matrices):
        """Owners, by cost, and the lengths of what comes from each rank: to the owner, and back."""
        load = [0] * g.size
        for x in sorted(matrices, key=lambda x: -max(x.shape) * min(x.shape) ** 2):
            x.owner = load.index(min(load))
            load[x.owner] += max(x.shape) * min(x.shape) ** 2
        there, back = [[] for _ in load], [[] for _ in load]
        for x in matrices:
            for t in x.senders if x.owner == g.rank else ():
                for k, a, b in x.pieces():
                    there[k * x.u.tp + t].append(b - a)
            a, b = meet(x.lo, x.hi, *x.u.span)
            if b > a:
                back[x.owner].append(b - a)
        return g, matrices, there, back

    def _muon(self, lr):
        """
        Nesterov momentum on the shards; pieces of each matrix to its owner, which orthogonalises it (matrices of one shape in one batch)
        and scales by the global shape; the pieces back; decoupled weight decay. Muon on slices would not be Muon.
        """
        if self.spans:
            grads, moms = [u.due[s] for u, s, _ in self.spans], [u.m[s] for u, s, _ in self.spans]
            torch._foreach_lerp_(moms, grads, 1 - self.momentum)
            torch._foreach_lerp_(grads, moms, self.momentum)                   # the gradient is not needed any more
        for g, matrices, there, back in self.plans:
            out = [[] for _ in there]
            for x in matrices:
                a, b = meet(x.lo, x.hi, x.u.lo, x.u.hi)
                if b > a and g.rank % x.u.tp in x.senders:
                    out[x.owner].append(x.u.own[a - x.u.lo:b - x.u.lo])
            got, batch = [iter(x) for x in swap(out, there, g, self.dtype)], {}
            for x in matrices:
                if x.owner == g.rank:
                    slices = []
                    for t in x.senders:
                        flat = [next(got[k * x.u.tp + t]) for k, _, _ in x.pieces()]
                        flat = torch.cat(flat) if len(flat) > 1 else flat[0]
                        slices.append(flat.view(-1, x.shape[1]) if x.dim == 0 else flat.view(x.shape[0], -1))
                    batch.setdefault(x.shape, []).append((x, torch.cat(slices, x.dim) if len(slices) > 1 else slices[0]))
            whole = {}
            for (rows, cols), items in batch.items():
                o = orthogonalise(torch.stack([m for _, m in items]), self.muon_steps, self.dtype)
                o = o * max(1, rows / cols) ** 0.5                             # the same spectral size per input, whatever the shape
                whole.update({id(x): m for (x, _), m in zip(items, o)})
            out = [[] for _ in there]
            for x in matrices:
                for t, (first, n) in enumerate(x.cuts) if x.owner == g.rank else ():
                    flat = whole[id(x)].narrow(x.dim, first, n).reshape(-1)
                    for k, a, b in x.pieces() if x.u.stage else [(k, x.lo, x.hi) for k in range(x.u.group.size)]:
                        out[k * x.u.tp + t].append(flat[a - x.lo:b - x.lo])
            got, masters, new = [iter(x) for x in swap(out, back, g, self.dtype)], [], []
            for x in matrices:
                a, b = meet(x.lo, x.hi, *x.u.span)
                if b > a:
                    masters.append(x.u.master[a - x.u.span[0]:b - x.u.span[0]])
                    new.append(next(got[x.owner]).to(masters[-1].dtype))
            if masters:
                torch._foreach_mul_(masters, 1 - lr * self.muon_lr * self.wd)
                torch._foreach_add_(masters, torch._foreach_mul(new, lr * -self.muon_lr))

    def _adagrad(self, lr):
        """A touched row moves by its gradient over the root of all its squared norms so far: the first step has the length lr."""
        for (p, total), (rows, g) in zip(self.tables, self.touched):
            s = total[rows] + all_reduce(g.square().sum(1), self.mesh.tp)
            total[rows] = s
            p.data[rows] -= g * (lr * s.clamp(min=1e-30).rsqrt())[:, None]

    def flops(self):
        """Operations of one step on the whole parameters of this rank's stage, in any layout; 16 per parameter, clipping included."""
        total = 0
        for p in (p for u in self.units for p in u.params):
            if 'ends' in p.spec.sums and self.mesh.pp.rank:                    # the tied embedding is on the first stage, too
                continue
            total += 16 * math.prod(p.spec.shape)
            if self.muon and p.spec.kind == 'matrix':                          # each time a a^T, its square, that times a;
                for rows in p.spec.parts or p.spec.shape[-2:-1]:
                    r, c = sorted((rows, p.spec.shape[-1]))                    # the smaller side is squared
                    total += math.prod(p.spec.shape[:-2]) * self.muon_steps * (4 * r * r * c + 2 * r ** 3)
        return total

    # -------- state

    def tensors(self, saving=False):
        """(name, Spec, tensor, where it begins in this rank's slice) of what a checkpoint holds. saving: what this rank owns of it."""
        for u in self.units:
            for p, s in zip(u.params, u.slices):
                a, b = meet(s.start, s.stop, *((u.lo, u.hi) if saving else u.span))
                for kind, flat in (('param', u.master), ('exp_avg', u.m), ('exp_avg_sq', u.v)):
                    if b > a and not (kind == 'exp_avg_sq' and self.muon and p.spec.kind == 'matrix'):
                        x = flat[a - u.span[0]:b - u.span[0]]
                        yield f'{kind}/{p.spec.name}', p.spec, x.view(p.shape) if b - a == p.numel() else x, a - s.start
        for p, total in self.tables if not (saving and self.mesh.dpcp.rank) else ():
            yield from ((f'param/{p.spec.name}', p.spec, p.data, 0), (f'exp_avg_sq/{p.spec.name}', Spec(tuple(total.shape)), total, 0))

    def loaded(self, t):                                                       # the tensors were filled from a checkpoint
        self.t = t
        self.publish()

    def nbytes(self):
        """Bytes on this rank, at rest: {'parameters', 'gradients', 'masters', 'moments'}."""
        size = lambda *xs: sum(s.nbytes() for s in {s.data_ptr(): s for s in (x.untyped_storage() for x in xs)}.values() if s.nbytes())
        every = lambda *names: [getattr(u, k) for u in self.units for k in names]
        tables, sums = [p for p, _ in self.tables], [t for _, t in self.tables]
        params = size(*tables, *every('param', 'shard'))
        return dict(parameters=params, gradients=size(*every('grad')), masters=size(*tables, *every('param', 'shard', 'master')) - params,
                    moments=size(*sums, *every('m', 'v')))


if __name__ == '__main__':
    if not command(sys.argv[1:]):
        sys.exit(__doc__)
