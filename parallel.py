"""
Every parallelism, by hand over torch.distributed: the mesh, the collectives, and the layers that are sharded.

    data (dp)      rows of the batch                    context (cp)   chunks of the sequence, zigzag
    tensor (tp)    heads, hidden units, vocabulary      sequence (sp)  the T-slices between the tensor-parallel regions
    pipeline (pp)  layers                               expert (ep)    experts, over the same ranks as dp * cp * tp

Rules that hold everywhere (DESIGN.md 3):
  * The loss is a plain sum over this rank's positions of terms divided by a *global* count. All gradient reductions are SUM.
  * A group of size 1 costs nothing: every collective on it is the identity. At world size 1 all layers are plain linears.
  * Each parameter carries a Spec: its global shape, the slice held here, the groups over which its gradient is summed, its number
    of copies in the world. Initialisation, gradient sync, norm, optimizer and checkpoint all read it, and nothing else.
"""
import atexit, ctypes, hashlib, math, os, sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from data.watch import watch

# ---------------------------------------------------------------- mesh

@dataclass(frozen=True)
class Group:
    """Some ranks of the world in order, and where this rank stands among them."""
    name: str
    size: int = 1
    rank: int = 0
    ranks: tuple = (0,)
    pg: object = None


@dataclass
class Mesh:
    """ranks.view(pp, dp, cp, tp), tp fastest; experts see the same ranks as (pp, edp, ep). Made by make_mesh; passed, never global."""
    pp: Group; dp: Group; cp: Group; tp: Group                     # noqa: E702
    ep: Group; edp: Group; dpcp: Group; world: Group; stage: Group # noqa: E702   stage: all ranks that hold the same layers
    sp: bool = False                                               # sequence parallel: T-slices over tp between the blocks' linears
    kv: Group = field(default_factory=lambda: Group('kv'))         # the tp ranks that share a key/value head, if heads are fewer than tp
    ends: Group = field(default_factory=lambda: Group('ends'))     # first and last stage, for tied embeddings
    shard: Group = field(default_factory=lambda: Group('dpcp'))    # ZeRO shards over it: dpcp, or adjacent ranks of it (a node) ...
    replica: Group = field(default_factory=lambda: Group('replica'))   # ... and then the shards are summed over this
    eshard: Group = field(default_factory=lambda: Group('edp'))    # the same for experts, over edp
    ereplica: Group = field(default_factory=lambda: Group('ereplica'))
    orth: Group = field(default_factory=lambda: Group('stage'))    # shard x tp: the ranks that hold whole matrices between them, for Muon
    cp_mode: str = 'ring'                                          # ring | allgather | ulysses
    host: object = None                                            # all ranks over Gloo: objects of the checkpoint, also from a thread
    fp8: str = ''                                                  # '' | tensorwise | rowwise: the linears of the blocks in 8 bits
    compiled: bool = False                                         # torch.compile for what lies between the products of the loss, too
    queue_dw: list = None                                          # zero-bubble: linears put their weight gradient here, not computed yet


def solo_mesh():
    """The mesh of one process."""
    return Mesh(*(Group(n) for n in ('pp', 'dp', 'cp', 'tp', 'ep', 'edp', 'dpcp', 'world', 'stage')))


def make_mesh(*, dp=1, tp=1, pp=1, cp=1, ep=1, sp=False, cp_mode='ring', n_kv_head=1 << 30, tie=False, zero_shard=0):
    """
    The mesh of the running torch.distributed world (dp*tp*pp*cp ranks). Every rank makes every group, in the same order. zero_shard: ZeRO
    shards over so many adjacent ranks of dp*cp, and over as many of edp as divide it (0: over all of them).
    """
    world, me = dp * tp * pp * cp, dist.get_rank() if dist.is_initialized() else 0
    grid = torch.arange(world).view(pp, dp, cp, tp)
    experts = grid.view(pp, -1, ep)                                # (pp, edp, ep)
    share = max(1, tp // n_kv_head)                                # tp ranks on one key/value head
    lists = dict(pp=grid.permute(1, 2, 3, 0), dp=grid.permute(0, 2, 3, 1), cp=grid.permute(0, 1, 3, 2), tp=grid, ep=experts,
                 edp=experts.transpose(1, 2),
                 dpcp=grid.permute(0, 3, 1, 2).reshape(pp * tp, dp * cp), world=grid.view(1, -1), stage=grid.view(pp, -1),
                 kv=grid.view(pp, dp, cp, tp // share, share),
                 ends=grid[[0, -1]].permute(1, 2, 3, 0) if tie and pp > 1 else grid[..., None])
    n, e = zero_shard or dp * cp, math.gcd(zero_shard or dp * cp * tp // ep, dp * cp * tp // ep)
    by_node = lists['dpcp'].reshape(pp, tp, -1, n)                 # (pp, tp, replica, shard)
    if n < dp * cp:
        lists.update(shard=by_node, replica=by_node.transpose(2, 3), orth=by_node.permute(0, 2, 3, 1).reshape(-1, n * tp))
    if e < experts.shape[1]:
        nodes = experts.transpose(1, 2).reshape(pp, ep, -1, e)
        lists.update(eshard=nodes, ereplica=nodes.transpose(2, 3))
    groups = {}
    for name, ranks in lists.items():
        groups[name] = Group(name)
        for r in ranks.reshape(-1, ranks.shape[-1]).tolist():
            if len(r) > 1:
                pg = dist.new_group(r)
                if me in r:
                    groups[name] = Group(name, len(r), r.index(me), tuple(r), pg)
    for name, whole in (('shard', 'dpcp'), ('eshard', 'edp'), ('orth', 'stage')):
        groups.setdefault(name, groups[whole])
    return Mesh(**groups, sp=sp and tp > 1, cp_mode=cp_mode, host=dist.new_group(backend='gloo') if world > 1 else None)


def start_world(device, minutes=10):
    """Join the world that torchrun launched -> (rank, world, device of this rank); a single process is a world of one and joins nothing."""
    world, rank = int(os.environ.get('WORLD_SIZE', 1)), int(os.environ.get('RANK', 0))
    if device == 'cuda':
        device = f'cuda:{os.environ.get("LOCAL_RANK", 0)}'
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream())                 # the default one cannot be recorded (data/graph.py)
    if world > 1:                                                  # a restart must not meet the keys of the attempt before
        agent, limit = os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True', timedelta(minutes=minutes)
        meet, pulse = (dist.PrefixStore(f'attempt{os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}', dist.TCPStore(
            os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), is_master=holds, timeout=limit, wait_for_workers=False))
            for holds in (rank == 0 and not agent, False))
        pulse.set(f'pulse{rank}', '0'), pulse.set('why', '-')
        dist.init_process_group('nccl' if 'cuda' in device else 'gloo', rank=rank, world_size=world, timeout=limit, store=meet)
        atexit.register(dist.destroy_process_group)                # without it Gloo sometimes aborts a run that has ended well
        watch(pulse, rank, world, 60 * minutes, 'torchrun' if agent else 'rank 0')
    return rank, world, device


def keep_pages():
    """On CPU glibc gives large blocks back to the kernel and asks for them again at every step, zeroed page by page: let it keep them."""
    if hasattr(libc := ctypes.CDLL(None), 'mallopt'):
        libc.mallopt(-3, 1 << 25), libc.mallopt(-1, 1 << 30)


# ---------------------------------------------------------------- collectives

COMM = Counter()   # (operation, group name) -> bytes that this rank sent, counted as a ring sends them


def _count(op, g, nbytes):
    COMM[op, g.name] += nbytes


def all_reduce(x, g, op=dist.ReduceOp.SUM, async_op=False):
    """x summed over g, in place. Counted as 2 (n-1)/n of its bytes."""
    if g.size == 1:
        return None if async_op else x
    _count('all_reduce', g, 2 * (g.size - 1) * x.numel() * x.element_size() // g.size)
    work = dist.all_reduce(x, op, group=g.pg, async_op=async_op)
    return work if async_op else x


def all_gather(x, g, dim=0):
    """The slices of g side by side along dim. Sends (n-1)/n of the whole per rank."""
    if g.size == 1:
        return x
    _count('all_gather', g, (g.size - 1) * x.numel() * x.element_size())
    y = x.new_empty((g.size * x.shape[0], *x.shape[1:]))
    dist.all_gather_single(y, x.contiguous(), group=g.pg)
    return torch.cat(y.chunk(g.size), dim) if dim else y


def reduce_scatter(x, g, dim=0):
    """This rank's slice along dim of the sum over g. Sends (n-1)/n of the whole per rank."""
    if g.size == 1:
        return x
    x = torch.cat(x.chunk(g.size, dim)) if dim else x.contiguous()            # the slices one after the other
    _count('reduce_scatter', g, (g.size - 1) * x.numel() * x.element_size() // g.size)
    y = x.new_empty((x.shape[0] // g.size, *x.shape[1:]))
    dist.reduce_scatter_single(y, x, group=g.pg)
    return y


def all_gather_into(y, x, g):
    """Starts y (size * n,) = the x (n,) of all ranks; x may be this rank's slice of y. Returns the handle to wait for."""
    _count('all_gather', g, (g.size - 1) * x.numel() * x.element_size())
    return dist.all_gather_single(y, x, group=g.pg, async_op=True)


def reduce_scatter_into(y, x, g):
    """Starts y (n,) = this rank's slice of the sum of x (size * n,). Returns the handle to wait for."""
    _count('reduce_scatter', g, (g.size - 1) * y.numel() * x.element_size())
    return dist.reduce_scatter_single(y, x, group=g.pg, async_op=True)


def all_to_all(x, g, out_splits, in_splits, work=None):
    """Rows of x (N, ...) to the ranks of g: in_splits[r] go to r, out_splits[r] come from r. work, a list: gets the handle to wait for."""
    if g.size == 1:
        return x
    row = x[0].numel() * x.element_size() if len(x) else 0
    _count('all_to_all', g, (sum(in_splits) - in_splits[g.rank]) * row)
    y = x.new_empty((sum(out_splits), *x.shape[1:]))
    handle = dist.all_to_all_single(y, x.contiguous(), out_splits, in_splits, group=g.pg, async_op=work is not None)
    if work is not None:
        work.append(handle)
    return y


def my_slice(x, g, dim):
    """This rank's slice of x along dim, a view."""
    return x if g.size == 1 else x.chunk(g.size, dim)[g.rank]


class _Copy(torch.autograd.Function):
    """forward: identity.  backward: all-reduce (a copy of the gradient: the residual branch still reads the original)."""
    @staticmethod
    def forward(ctx, x, g):
        ctx.g = g
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy):
        return all_reduce(dy.clone(memory_format=torch.contiguous_format), ctx.g), None


class _Reduce(torch.autograd.Function):
    """forward: all-reduce.  backward: identity."""
    @staticmethod
    def forward(ctx, x, g):
        return all_reduce(x.clone(memory_format=torch.contiguous_format), g)

    @staticmethod
    def backward(ctx, dy):
        return dy, None


class _Gather(torch.autograd.Function):
    """forward: all-gather along dim.  backward: reduce-scatter if what follows gives partial gradients, slice if it is replicated."""
    @staticmethod
    def forward(ctx, x, g, dim, partial):
        ctx.args = g, dim, partial
        return all_gather(x, g, dim)

    @staticmethod
    def backward(ctx, dy):
        g, dim, partial = ctx.args
        return (reduce_scatter(dy, g, dim) if partial else my_slice(dy, g, dim).contiguous()), None, None, None


class _ReduceScatter(torch.autograd.Function):
    """forward: reduce-scatter along dim.  backward: all-gather."""
    @staticmethod
    def forward(ctx, x, g, dim):
        ctx.args = g, dim
        return reduce_scatter(x, g, dim)

    @staticmethod
    def backward(ctx, dy):
        return all_gather(dy, *ctx.args), None, None


class _Split(torch.autograd.Function):
    """forward: this rank's slice of a replicated tensor.  backward: all-gather."""
    @staticmethod
    def forward(ctx, x, g, dim):
        ctx.args = g, dim
        return my_slice(x, g, dim).contiguous()

    @staticmethod
    def backward(ctx, dy):
        return all_gather(dy, *ctx.args), None, None


class _AllToAll(torch.autograd.Function):
    """forward: all-to-all with uneven splits, with `work` only started.  backward: the inverse all-to-all."""
    @staticmethod
    def forward(ctx, x, g, out_splits, in_splits, work=None):
        ctx.args = g, in_splits, out_splits
        return all_to_all(x, g, out_splits, in_splits, work)

    @staticmethod
    def backward(ctx, dy):
        return all_to_all(dy, *ctx.args), None, None, None, None


def _run(function, *args):
    """function.apply. With --compile train.py keeps it out of the graphs: the counters change, which would compile it anew each time."""
    return function.apply(*args)


def copy_to(x, g): return x if g.size == 1 else _run(_Copy, x, g)
def reduce_from(x, g): return x if g.size == 1 else _run(_Reduce, x, g)
def gather_from(x, g, dim, partial): return x if g.size == 1 else _run(_Gather, x, g, dim, partial)
def reduce_scatter_to(x, g, dim): return x if g.size == 1 else _run(_ReduceScatter, x, g, dim)
def split_to(x, g, dim): return x if g.size == 1 else _run(_Split, x, g, dim)
def exchange(x, g, out_splits, in_splits): return x if g.size == 1 else _run(_AllToAll, x, g, out_splits, in_splits)


# ---------------------------------------------------------------- parameters

@dataclass
class Spec:
    """What a parameter is in the world. blocks: (offset, length) runs along `dim` of the global tensor, in the order they lie here."""
    shape: tuple                      # global
    dim: int = 0
    blocks: tuple = ()                # () : the whole tensor
    std: float = 0.02                 # of the initial normal distribution; 0: zeros; nan: ones
    kind: str = 'matrix'              # matrix | embed | head | scalar: the optimizer's parameter groups
    sums: tuple = ('dpcp',)           # groups over which its gradient is summed
    copies: int = 1                   # ranks of the world that hold each of its elements
    parts: tuple = ()                 # rows of separate matrices inside a fused one (global), e.g. k, v
    by_tp: tuple = ()                 # blocks of every tensor-parallel rank; () if all hold the whole
    name: str = ''

    def local(self, full):
        """This rank's slice of the global tensor (a copy when it is made of several runs)."""
        if not self.blocks:
            return full
        runs = [full.narrow(self.dim, o, n) for o, n in self.blocks]
        return runs[0] if len(runs) == 1 else torch.cat(runs, self.dim)


def param(mesh, *shape, tp=None, expert=False, parts=(), partial=False, kv=None, tied=False, **kw):
    """
    An empty parameter that holds this rank's slice, with its Spec.  tp: the dimension split over the tensor-parallel group (for fused
    matrices each of `parts` is split alike).  expert: dimension 0 is split over ep.  partial: used on a T-slice or a part of the work, so
    its gradient is summed over tp.  kv: number of key/value heads, if it may be smaller than tp.
    tied: the embedding that is also the output head.
    """
    g, blocks, by_tp, copies, dim = mesh.tp, (), (), mesh.dpcp.size * mesh.tp.size, tp or 0
    sums = ('dpcp',) + (('tp',) if partial and g.size > 1 else ())
    if expert:
        n = shape[0] // mesh.ep.size
        blocks = ((mesh.ep.rank * n, n),) if mesh.ep.size > 1 else ()
        sums, copies = ('edp',), mesh.edp.size
    elif tp is not None and g.size > 1:
        def blocks_of(r):
            runs, at = [], 0
            for rows in parts or (shape[tp],):
                if kv and kv < g.size:                            # fewer kv heads than tp: neighbours hold the same head
                    n = rows // kv
                    runs.append((at + r * kv // g.size * n, n))
                else:
                    n = -(-rows // g.size)                        # a vocabulary that does not divide leaves the last ranks fewer rows
                    lo = min(r * n, rows)
                    runs.append((at + lo, min(n, rows - lo)))
                at += rows
            return tuple(runs)
        by_tp = tuple(blocks_of(r) for r in range(g.size))
        blocks, copies = by_tp[g.rank], mesh.dpcp.size
        if kv and kv < g.size:
            sums, copies = ('dpcp', 'kv'), mesh.dpcp.size * mesh.kv.size
    if tied and mesh.ends.size > 1:                               # held by the first and by the last stage
        sums, copies = sums + ('ends',), copies * 2
    local = list(shape)
    if blocks:
        local[dim] = sum(n for _, n in blocks)
    p = nn.Parameter(torch.empty(local))
    p.spec = Spec(tuple(shape), dim, blocks, sums=sums, copies=copies, parts=parts, by_tp=by_tp, **kw)
    return p


def init_params(module, seed):
    """Each parameter drawn from hash(seed, global name) as a full float32 tensor, then sliced: weights never depend on the layout."""
    for name, p in module.named_parameters():
        p.spec.name, std = name, p.spec.std
        if std != std or std == 0:
            p.data.fill_(0 if std == 0 else 1)
            continue
        gen = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f'{seed}/{name}'.encode()).digest()[:7], 'little'))
        p.data.copy_(p.spec.local(torch.randn(p.spec.shape, generator=gen) * std))


# ---------------------------------------------------------------- layers

def _product(x, w, mesh, kind=None, split=False):
    """
    x (N, in) @ w (out, in)^T.  mesh.fp8: x as `kind` (e4m3, gradients e5m2) and w as e4m3 (Micikevicius et al. 2022), summed in float32;
    scales are those of the moment: tensorwise one for x and one for w, rowwise one for each row of both. split: the part of a product, or
    of the tensors that share a scale, that lies on other tp ranks: they agree on the maximum, so that tp does not change the numbers.
    """
    if not kind:
        return x @ w.t()
    over = () if mesh.fp8 == 'tensorwise' else (1,)
    tops = [y.abs().amax(over or (0, 1), keepdim=True).float() for y in (x, w)]
    if split and mesh.tp.size > 1:
        n, both = tops[0].numel(), all_reduce(torch.cat([y.flatten() for y in tops]), mesh.tp, dist.ReduceOp.MAX)
        tops = [both[:n, None], both[n:, None]]
    parts, scales = [], []
    for y, top, k in zip((x, w), tops, (kind, torch.float8_e4m3fn)):
        most = torch.finfo(k).max
        scales.append(top.clamp(min=1e-12) / most)
        # e5m2 has an infinity: what rounds past the end goes there
        parts.append((y / scales[-1]).clamp(-most, most).to(k).contiguous())
    if x.is_cuda:
        return torch._scaled_mm(parts[0], parts[1].t(), scale_a=scales[0], scale_b=scales[1].t(), out_dtype=x.dtype,
                                use_fast_accum=kind == torch.float8_e4m3fn)            # of forward products alone
    # the same; that op crawls on CPUs
    return ((parts[0].to(x.dtype) @ parts[1].to(x.dtype).t()) * (scales[0] * scales[1].t())).to(x.dtype)


class _Linear(torch.autograd.Function):
    """
    y = x W^T in 8 bits (mesh.fp8), or with a weight gradient that is queued instead of computed (zero-bubble pipelines run it later, as W).
    Rowwise, the weight gradient is a product of the compute type: its rows of x and dy would need scales of their own.
    """
    @staticmethod
    def forward(ctx, x, w, mesh):
        ctx.save_for_backward(x, w)
        ctx.args = mesh, mesh.queue_dw
        y = _product(x.flatten(0, -2), w, mesh, mesh.fp8 and torch.float8_e4m3fn, mesh.fp8 == 'tensorwise' or w.spec.dim == 1)
        return y.view(*x.shape[:-1], len(w))

    @staticmethod
    def backward(ctx, dy):
        (x, w), (mesh, queue) = ctx.saved_tensors, ctx.args
        dx = _product(dy.flatten(0, -2), w.t(), mesh, mesh.fp8 and torch.float8_e5m2,
                      mesh.fp8 == 'tensorwise' or w.spec.dim == 0).view_as(x)
        if queue is None:
            return dx, weight_gradient(dy, x, mesh), None
        queue.append((w, dy, x.detach()))                          # with its graph, which holds this queue, x would never be freed
        return dx, None, None


def weight_gradient(dy, x, mesh):
    """dy (..., out), x (..., in) -> (out, in)."""
    return _product(dy.flatten(0, -2).t(), x.flatten(0, -2).t(), mesh, mesh.fp8 == 'tensorwise' and torch.float8_e5m2, True)


def linear(x, w, mesh):
    """x (..., in) @ w (out, in)^T."""
    if mesh.queue_dw is None and not mesh.fp8:
        return F.linear(x, w)
    return _run(_Linear, x, w, mesh) if mesh.tp.size > 1 else _Linear.apply(x, w, mesh)


def enter_tp(x, mesh):
    """Before the column-split linears of a block: x (B, T or T/tp, C) -> (B, T, C); the backward sums the partial gradients."""
    return gather_from(x, mesh.tp, 1, partial=True) if mesh.sp else copy_to(x, mesh.tp)


def leave_tp(x, mesh):
    """After a row-split linear: partial sums (B, T, C) -> the sum (B, T or T/tp, C)."""
    return reduce_scatter_to(x, mesh.tp, 1) if mesh.sp else reduce_from(x, mesh.tp)


def embed_partial(ids, w, mesh):
    """Vocabulary-parallel lookup: ids (B, T), w (V/tp, C) -> (B, T, C), rows of other ranks 0. Sum over tp with leave_tp."""
    if mesh.tp.size == 1:
        return F.embedding(ids, w)
    first = w.spec.blocks[0][0]
    mine = (ids >= first) & (ids < first + len(w))
    return F.embedding((ids - first).clamp(0, len(w) - 1), w) * mine[..., None]


def _loss(logits, at, w, g, z_loss, softcap, grad):
    """
    logits (N, V/tp) of the compute type, at (N,) targets counted from this rank's first, weights w (N,) -> nll, lse (N,), float32 or wider,
    and the gradient of the weighted sum in the type of the logits.
    """
    dtype, logits = logits.dtype, logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    mine = (at >= 0) & (at < logits.shape[1])
    at = at.clamp(0, logits.shape[1] - 1)[:, None]
    if g.size == 1:
        p = torch.log_softmax(logits, 1)
        nll = -p.gather(1, at)[:, 0]
        lse = logits.gather(1, at)[:, 0] + nll
        p = p.exp_()
    else:
        top = all_reduce(logits.amax(1), g, dist.ReduceOp.MAX)
        p = (logits - top[:, None]).exp_()
        part = all_reduce(torch.stack([p.sum(1), logits.gather(1, at)[:, 0] * mine]), g)
        lse = part[0].log() + top
        nll, p = lse - part[1], p.div_(part[0][:, None])
    if not grad:
        return nll, lse, None
    d = p.mul_(((1 + 2 * z_loss * lse) * w)[:, None])
    d.scatter_add_(1, at, (-w * mine)[:, None].to(d.dtype))
    if softcap:
        d *= 1 - (logits / softcap).square()
    return nll, lse, d.to(dtype)


def _fused_loss(logits, at, w, g, z_loss, softcap, grad):
    """The same on one rank, in a form that --compile makes two kernels of: large vocabularies pay for every pass over the logits."""
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    x = softcap * torch.tanh(x / softcap) if softcap else x
    lse, here = x.logsumexp(1), torch.arange(x.shape[1], device=x.device) == at[:, None]
    nll = lse - torch.where(here, x, 0.0).sum(1)
    if not grad:
        return nll, lse, None
    d = (x - lse[:, None]).exp() * ((1 + 2 * z_loss * lse) * w)[:, None] - torch.where(here, w[:, None], 0.0)
    return nll, lse, (d * (1 - (x / softcap).square()) if softcap else d).to(logits.dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    """
    Sum of w (lse - logit[y]) + z w lse^2 over N positions, with logits = softcap(h W^T) in float32, in chunks: the logits of all positions
    are never held. Vocabulary-parallel: only the maximum, the sum of exponentials and the target's logit cross the group.
    forward also makes the gradients (the loss is a plain sum).  backward: scales them.  dh is partial over tp: copy_to before.
    y and w (N, d), without tp: of d softmaxes side by side, of V/d each.
    """
    @staticmethod
    def forward(ctx, h, weight, y, w, mesh, z_loss, softcap, chunk, grad):
        g = mesh.tp
        first = weight.spec.blocks[0][0] if g.size > 1 else 0
        grad, loss = grad and (ctx.needs_input_grad[0] or ctx.needs_input_grad[1]), _fused_loss if mesh.compiled and g.size == 1 else _loss
        dh, dw = None, None
        if grad:
            dh, dw = torch.empty_like(h), torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        out = torch.empty(2, *y.shape, dtype=torch.promote_types(h.dtype, torch.float32), device=h.device)  # nll, lse
        for a in range(0, len(h), chunk):
            s = slice(a, a + chunk)
            z, at = F.linear(h[s], weight), y[s] - first
            nll, lse, d = loss(z.view(at.numel(), -1), at.flatten(), w[s].flatten(), g, z_loss, softcap, grad)
            out[0, s], out[1, s] = nll.view_as(at), lse.view_as(at)
            if grad:
                torch.mm(d.view_as(z), weight, out=dh[s])
                dw += d.view_as(z).t() @ h[s]
        ctx.save_for_backward(dh, dw)
        ctx.mark_non_differentiable(nll := out[0])
        return (w * (out[0] + z_loss * out[1].square())).sum(), nll

    @staticmethod
    def backward(ctx, d, _):
        dh, dw = ctx.saved_tensors
        return dh * d.to(dh.dtype), (dw * d).to(dh.dtype), None, None, None, None, None, None, None


def linear_cross_entropy(h, weight, y, w, mesh, z_loss=0.0, softcap=0.0, chunk=4096):
    """h (N, C), weight (V/tp, C), targets y (N,) or (N, d), weights w -> weighted sum, and nll as y, in nats, no gradient; float32."""
    return _LinearCrossEntropy.apply(h, weight, y, w, mesh, z_loss, softcap, chunk, torch.is_grad_enabled())


# ---------------------------------------------------------------- attention

def zigzag(T, cp, rank):
    """Columns of a row that a context-parallel rank holds: of 2 cp chunks number `rank` and its mirror image: causal work is even."""
    h = T // (2 * cp)
    return torch.cat((torch.arange(rank * h, (rank + 1) * h), torch.arange(T - (rank + 1) * h, T - rank * h)))


def _mask(doc, rows, cols, dtype):
    """Additive (B, rows, cols): 0 where the key is not later and of the same document, else -inf (padding sees padding)."""
    ok = (doc[:, rows, None] == doc[:, None, cols]) & (rows[:, None] >= cols)
    return torch.zeros(ok.shape, dtype=dtype, device=doc.device).masked_fill_(~ok, float('-inf'))


def attention_mask(doc, mesh, dtype):
    """
    doc (B, T), whole rows -> what attention() needs, once per microbatch: the mask (B, T, T), or with context parallelism by allgather (B,
    T/cp, T) with keys in the order of the ranks, by ulysses (B, T, T) in that order, by ring a list with the mask of each step. None in
    place of a mask: all rows are one document, and a kernel is used that needs no mask for that (padding comes last, so what it sees is
    never learned from).
    """
    T, cp, dev = doc.shape[1], mesh.cp, doc.device
    plain = _fused(doc, dtype) and int(doc.max()) < 1
    if cp.size == 1:
        if plain:
            return None
        ok = (doc[:, :, None] == doc[:, None, :]).tril_()
        return torch.zeros(ok.shape, dtype=dtype, device=dev).masked_fill_(~ok, float('-inf'))
    mine = zigzag(T, cp.size, cp.rank).to(dev)
    if mesh.cp_mode != 'ring':
        every = torch.cat([zigzag(T, cp.size, r) for r in range(cp.size)]).to(dev)
        return _mask(doc, mine if mesh.cp_mode == 'allgather' else every, every, dtype)
    out = []
    for s in range(0 if plain else cp.size):
        theirs = zigzag(T, cp.size, (cp.rank - s) % cp.size).to(dev)
        out.append(_mask(doc, *(x[sl] for x, sl in zip((mine, theirs), _ring_part(cp, s, len(mine)))), dtype))
    return out or [None] * cp.size


def flash_mask(doc, mesh, device):
    """
    The same where attention is FlashAttention (CUDA, bfloat16), from doc on the host, so that nothing waits for the device: None if all
    rows are one document, else where the queries and the keys of each document begin, (B n + 1,) int32 both, as its varlen kernels take
    them; ring: a list with those of each step. n: documents of a row, padding last, a power of two, so that shapes are few.
    """
    (B, T), cp, most = doc.shape, mesh.cp, int(doc.max())
    if cp.size == 1 and most < 1:
        return None
    n = max(8, 1 << (most + 1).bit_length())
    doc = torch.where(doc < 0, n - 1, doc).long() + n * torch.arange(B)[:, None]
    begins = lambda cols: F.pad(torch.bincount(doc[:, cols].flatten(), minlength=n * B).cumsum(0), (1, 0)).int()
    send = lambda x: x.pin_memory().to(device, non_blocking=True)
    if cp.size == 1:
        return (send(begins(slice(None))),) * 2
    at = [zigzag(T, cp.size, (cp.rank - s) % cp.size) for s in range(cp.size)]
    return [tuple(send(begins(x[sl])) for x, sl in zip((at[0], at[s]), _ring_part(cp, s, len(at[0])))) for s in range(cp.size)]


def _ring_part(cp, s, n):
    """At ring step s, of n local queries and n keys of rank (cp.rank - s): the slices between which anything can be attended."""
    whole, first, second = slice(0, n), slice(0, n // 2), slice(n // 2, n)
    if s == 0:
        return whole, whole
    return (whole, first) if (cp.rank - s) % cp.size < cp.rank else (second, whole)


def attention(q, k, v, mask, scale, mesh):
    """q (B, nh, T, hd), k and v (B, nkv, S, hd), mask of attention_mask() or flash_mask() -> (B, nh, T, hd); T is T/cp with cp."""
    cp = mesh.cp
    if cp.size == 1 or isinstance(mask, torch.Tensor) and mesh.cp_mode == 'ring':      # the latter: generation, which has whole rows
        return _attend(q, k, v, mask, scale)
    if mesh.cp_mode == 'ring':
        return _run(_Ring, q, k, v, mask, scale, cp)
    if mesh.cp_mode == 'allgather':                                # one all-gather of K and V; their gradients are partial sums
        k, v = gather_from(torch.stack((k, v)), cp, 3, partial=True)
        return _attend(q, k, v, mask, scale)
    q, k, v = (_swap(x, cp, 1, 2) for x in (q, k, v))              # ulysses: heads for positions, (B, nh/cp, T, hd)
    return _swap(_attend(q, k, v, mask, scale), cp, 2, 1)


def _swap(x, g, give, take):
    """All-to-all: dimension `give` is split over g, dimension `take` becomes whole."""
    x = torch.stack(x.chunk(g.size, give))                         # (cp, ...): one piece for each rank
    y = exchange(x, g, [1] * g.size, [1] * g.size)
    return torch.cat(y.unbind(0), take)


def _fused(x, dtype):
    """Whether aten's flash attention is the fast path: on CPU in float32 and float64 (bfloat16: 2 to 4 times slower than products)."""
    return not x.is_cuda and dtype in (torch.float32, torch.float64)


def _attend(q, k, v, mask, scale):
    """Attention on whole keys; mask None: causal, a tuple: see flash_mask()."""
    B, nh, T, hd = q.shape
    nkv, S = k.shape[1], k.shape[2]
    if isinstance(mask, tuple):
        return _unpack(torch.ops.aten._flash_attention_forward(*map(_pack, (q, k, v)), *mask, T, S, 0.0, True, False, scale=scale)[0], q)
    if q.is_cuda or _fused(q, q.dtype):
        return F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None], is_causal=mask is None, scale=scale,
                                              enable_gqa=nh != nkv)
    m = mask[:, None, None].expand(B, nkv, nh // nkv, T, S).reshape(B * nkv, nh // nkv * T, S)
    s = torch.baddbmm(m, q.reshape(B * nkv, nh // nkv * T, hd), k.reshape(B * nkv, S, hd).transpose(1, 2), alpha=scale)
    return (s.softmax(-1) @ v.reshape(B * nkv, S, hd)).view(B, nh, T, hd)


def _pack(x):
    """(B, n, T, hd) -> (B T, n, hd), as FlashAttention takes sequences; it wants a multiple of 8 numbers in a head."""
    x = x.transpose(1, 2).flatten(0, 1)
    return F.pad(x, (0, -x.shape[-1] % 8)) if x.shape[-1] % 8 else x


def _unpack(y, x):
    """(B T, n, ..) -> the shape of x, (B, n, T, hd)."""
    return y[..., :x.shape[-1]].unflatten(0, (len(x), -1)).transpose(1, 2)


class _Ring(torch.autograd.Function):
    """
    Ring attention over zigzag chunks (Liu et al. 2023; the zigzag of Zhu 2024).
    forward: K and V travel cp - 1 hops while each rank attends to the block it holds; partial outputs merge by their log-sum-exp in
    float32. backward: K and V travel again; the gradients of a block are summed in float32 while it travels and come home with the last hop
    (cp - 1 hops: what a rank adds to its own block never travels). The next block is on its way while the present one is computed on (two
    buffers, never written while read).
    """
    @staticmethod
    def forward(ctx, q, k, v, masks, scale, g):
        T, kv = q.shape[2], torch.stack((k, v))                     # (2, B, nkv, T, hd)
        for s in range(g.size):
            nxt, wait = _hop(kv, g) if s < g.size - 1 else (None, None)
            rows, cols = _ring_part(g, s, T)
            o, l = _partial(q[:, :, rows], kv[:, :, :, cols], masks[s], s == 0, scale)
            if s == 0:
                out, lse = o, l
            else:
                both = torch.logaddexp(lse[:, :, rows], l)
                out[:, :, rows] = out[:, :, rows] * (lse[:, :, rows] - both).exp() + o * (l - both).exp()
                lse[:, :, rows] = both
            if wait:
                wait()
                kv = nxt
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.args = masks, scale, g
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx, do):
        (q, k, v, out, lse), (masks, scale, g) = ctx.saved_tensors, ctx.args
        T, dq, kv = q.shape[2], torch.zeros_like(out), torch.stack((k, v))
        own, coming, home = None, None, None                       # gradients of this rank's block here; of the one it holds, on their way
        for s in range(g.size):
            nxt, wait = _hop(kv, g) if s < g.size - 1 else (None, None)
            rows, cols = _ring_part(g, s, T)
            new = torch.zeros(kv.shape, dtype=out.dtype, device=kv.device)
            dqs, *dkv = _partial_backward(do[:, :, rows], q[:, :, rows], kv[:, :, :, cols], out[:, :, rows], lse[:, :, rows], masks[s],
                                          s == 0, scale)
            dq[:, :, rows] += dqs
            new[0][:, :, cols], new[1][:, :, cols] = dkv
            if s == 0:
                own = new
            else:
                if home:
                    home()                                         # what was summed so far on the ranks behind
                    new += coming
                coming, home = _hop(new, g)
            if wait:
                wait()
                kv = nxt
        home()
        own += coming
        return dq.to(q.dtype), own[0].to(k.dtype), own[1].to(v.dtype), None, None, None


def _partial(q, kv, mask, causal, scale):
    """q (B, nh, T, hd) on a block kv (2, B, nkv, S, hd) -> output and log-sum-exp (B, nh, T, 1), float32; nothing to attend: 0, -inf."""
    (B, nh, T, hd), nkv = q.shape, kv.shape[2]
    if isinstance(mask, tuple):
        o, l, *_ = torch.ops.aten._flash_attention_forward(*map(_pack, (q, *kv)), *mask, T, kv.shape[3], 0.0, causal, False, scale=scale)
        return _unpack(o, q).float(), l.masked_fill(l == math.inf, -math.inf).view(nh, B, T, 1).transpose(0, 1)    # nothing to attend: inf
    if _fused(q, q.dtype):
        o, l = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, *kv, 0.0, causal and mask is None, scale=scale,
                                                                          attn_mask=None if mask is None else mask[:, None])
        if mask is not None:                                       # the kernel says 0 where it should say -inf
            l = l.masked_fill((mask.amax(-1) < 0)[:, None], float('-inf'))
        return o, l[..., None]
    s = _scores(q, kv[0], mask, scale)
    l = s.logsumexp(-1, keepdim=True)
    o = (s - l.clamp(min=-1e30)).exp().to(q.dtype) @ kv[1][:, :, None]
    return o.to(s.dtype).view(B, nh, T, hd), l.view(B, nh, T, 1)


def _partial_backward(do, q, kv, out, lse, mask, causal, scale):
    """Gradients by this block, float32: dq (B, nh, T, hd), dk and dv (B, nkv, S, hd). out and lse are those of the whole row."""
    (B, nh, T, hd), (nkv, S) = q.shape, kv.shape[2:4]
    if isinstance(mask, tuple):
        rng, lse = torch.zeros(2, dtype=torch.uint64, device=q.device), lse.transpose(0, 1).reshape(nh, B * T)     # rng: of no dropout
        grads = torch.ops.aten._flash_attention_backward(*map(_pack, (do, q, *kv, out.to(q.dtype))), lse, *mask, T, S, 0.0, causal, rng,
                                                         rng[:0], scale=scale)
        return [_unpack(d, x).to(out.dtype) for d, x in zip(grads, (q, *kv))]
    if _fused(q, q.dtype):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(do, q, *kv, out, lse[..., 0], 0.0,
                                                                                   causal and mask is None, scale=scale,
                                                                                   attn_mask=None if mask is None else mask[:, None])
    five = lambda x: x.reshape(B, nkv, nh // nkv, T, -1)
    do, q5, delta = five(do), five(q), five((do.to(out.dtype) * out).sum(-1, keepdim=True))
    p = (_scores(q, kv[0], mask, scale) - five(lse)).exp()
    ds = (p * ((do @ kv[1][:, :, None].transpose(-1, -2)).to(p.dtype) - delta) * scale).to(q.dtype)
    wide = lambda x: x.to(out.dtype)
    # the queries of a group share a kv head
    return (wide(ds @ kv[0][:, :, None]).view(B, nh, T, hd), wide(ds.transpose(-1, -2) @ q5).sum(2),
            wide(p.to(q.dtype).transpose(-1, -2) @ do).sum(2))


def _scores(q, k, mask, scale):
    """q (B, nh, T, hd), k (B, nkv, S, hd), mask (B, T, S) -> (B, nkv, nh/nkv, T, S), float32; scaled after the product: rounds less."""
    s = q.reshape(len(q), k.shape[1], -1, *q.shape[2:]) @ k[:, :, None].transpose(-1, -2)
    return s.to(torch.promote_types(s.dtype, torch.float32)) * scale + mask[:, None, None]


def _hop(x, g):
    """Send x to the next rank of the ring while the previous one's comes: (buffer, wait)."""
    _count('p2p', g, x.numel() * x.element_size())
    x, buf = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    work = dist.batch_isend_irecv([dist.P2POp(dist.isend, x, g.ranks[(g.rank + 1) % g.size], g.pg),
                                   dist.P2POp(dist.irecv, buf, g.ranks[g.rank - 1], g.pg)])

    def wait(keep=x):
        for w in work:
            w.wait()
    return buf, wait


# ---------------------------------------------------------------- experts

def count(i, n):
    """Integers in [0, n) -> (n,) int64: how often each is there. On CUDA bincount would wait for the device."""
    return torch.zeros(n, dtype=torch.int64, device=i.device).scatter_add_(0, i.flatten(), torch.ones_like(i).flatten())


def expert_mlp(x, counts, w1, w2, act):
    """x (N, C), contiguous and sorted by expert, counts (E,) tokens of each local expert, w1 (E, F, C), w2 (E, C, F) -> (N, C). Grouped
    products in bfloat16, without a host synchronisation, and in float32 on a CPU, where torch.compile does not know them; else a loop.
    Experts without tokens get zero gradients, not none."""
    fits = not any(k * x.element_size() % 16 for k in (*w1.shape[1:], w2.shape[2]))                        # rows of 16 bytes
    if fits and len(x) and (x.dtype == torch.bfloat16 or x.dtype == torch.float32 and not (x.is_cuda or torch.compiler.is_compiling())):
        ends = counts.cumsum(0).to(torch.int32)
        return F.grouped_mm(act(F.grouped_mm(x, w1.transpose(1, 2), offs=ends)), w2.transpose(1, 2), offs=ends)
    return torch.cat([F.linear(act(F.linear(xe, w1[i])), w2[i]) for i, xe in enumerate(x.split(counts.tolist()))])


def moe(x, top, weight, w1, w2, act, mesh, meanwhile=lambda: None):
    """
    Dropless mixture of experts.  x (N, C) tokens of this rank, top (N, k) chosen experts (global), weight (N, k) their gates -> (N, C), and
    what meanwhile() returned: it runs (the shared expert) while the tokens are on their way.
    Sort by expert, exchange counts, all-to-all, local experts, the inverse, weighted sum.
    """
    N, k = top.shape
    ep, n_local = mesh.ep, w1.shape[0]
    order = top.flatten().argsort(stable=True)                              # by expert, hence by owner
    sent = count(top, n_local * ep.size).view(ep.size, n_local)
    xs = x[order // k]
    if ep.size == 1:
        other, y = meanwhile(), expert_mlp(xs, sent[0], w1, w2, act)
    else:
        got = all_to_all(sent, ep, [1] * ep.size, [1] * ep.size)           # (from rank, my expert)
        ins, outs = sent.sum(1).tolist(), got.sum(1).tolist()
        work = []
        xr = _run(_AllToAll, xs, ep, outs, ins, work)                       # by source, then by expert
        other = meanwhile()
        work[0].wait()
        by_expert = torch.arange(n_local, device=x.device).repeat(ep.size).repeat_interleave(got.flatten()).argsort(stable=True)
        yr = expert_mlp(xr[by_expert], got.sum(0), w1, w2, act)
        y = exchange(torch.zeros_like(yr).index_copy(0, by_expert, yr), ep, ins, outs)
    y = torch.zeros_like(y).index_copy(0, order, y).view(N, k, x.shape[1])  # back to token order: a gather, no atomics, the same sum order
    return (y * weight[..., None].to(y.dtype)).sum(1), other


# ---------------------------------------------------------------- pipeline

# Pipeline schedules, pure Python. A schedule is one list of actions (kind, chunk, mb) per rank; chunk c of rank r is
# global stage c * pp + r. SEND and RECV post and return; F, B and BW wait for the request of their own RECV.
#   F  forward       B  gradient of the stage's input       W  gradient of its weights       BW  both, in one action
#   SEND_F  isend the output of F(chunk, mb) to rank + 1    RECV_F  irecv the input of F(chunk, mb) from rank - 1
#   SEND_B  isend the input gradient of B to rank - 1       RECV_B  irecv the output gradient of B from rank + 1
# Ranks wrap around: chunk c of the last feeds chunk c + 1 of rank 0; with pp=1 stages hand over in place, unsent. ZB-H1
# alone splits B from W. The others have BW, not B next to W: one plain autograd call, whose input gradient leaves when
# all of it is done, as their bubble formulas say.
SCHEDULES = ('gpipe', '1f1b', 'interleaved', 'zbh1')
STEP = {'SEND_F': 1, 'RECV_F': -1, 'SEND_B': -1, 'RECV_B': 1}      # peer = (rank + step) % pp

def schedule(name, pp, m, v=1):
    """Lists of compute actions, one per rank, for m microbatches; ValueError, one line, for sizes that cannot work.
    gpipe: all forwards, then all backwards (GPipe, Huang et al. 2019). 1f1b: PipeDream-Flush (Narayanan et al. 2021).
    interleaved: v chunks per rank, microbatches in groups of pp (Megatron-LM, Narayanan et al. 2021). zbh1: 1F1B where
    rank r runs W r microbatches behind B, so that late W fill the drain (Zero Bubble, Qi et al. 2023)."""
    if name not in SCHEDULES:
        raise ValueError(f'schedule {name!r} is not known: take one of {", ".join(SCHEDULES)}')
    if min(pp, m, v) < 1 or (name == 'interleaved') != (v > 1):
        raise ValueError(f'{name} with pp={pp}, m={m}, v={v}: all are at least 1, v >= 2 for interleaved, else v=1')
    if name == 'interleaved' and m % pp:
        raise ValueError(f'interleaved with m={m}, pp={pp}: m must be a multiple of pp, such as {m - m % pp + pp}')
    lists, split, n = [], name == 'zbh1', m * v
    order = [(k // pp % v, k // (pp * v) * pp + k % pp) for k in range(n)]                  # k-th forward: (chunk, mb)
    for rank in range(pp):
        ahead = {'gpipe': n, 'interleaved': 2 * (pp - 1 - rank) + (v - 1) * pp}.get(name, pp - 1 - rank)
        todo = [('F', *x) for x in order[:ahead]]                                           # warm-up
        for k, (c, mb) in enumerate(order):                                                 # steady state, then drain
            todo += [('F', *x) for x in order[ahead + k:ahead + k + 1]] + [('B' if split else 'BW', v - 1 - c, mb)]
            todo += [('W', 0, mb - rank)] if split and mb >= rank else []
        lists.append(todo + [('W', 0, mb) for mb in range(max(m - rank, 0), m) if split])
    return lists

def message(act, rank, pp):
    """A SEND or RECV of a rank -> source rank, destination rank, whose output it is: (F or B, global stage, mb)."""
    kind, c, mb = act
    peer, stage = (rank + STEP[kind]) % pp, c * pp + rank
    return (rank, peer, (kind[-1], stage, mb)) if kind[0] == 'S' else (peer, rank, (kind[-1], stage + STEP[kind], mb))

def add_messages(lists, m, v=1):
    """The lists with SEND and RECV put in. All messages have one global order, that of their making at unit times; each
    rank posts its own in that order, a SEND right after what makes it, a RECV as early as the order lets. So a directed
    link matches in order, also where chunks and directions share a pair of ranks (pp=2), and as every wait points back
    in one order, the backend may even move a rank's messages one at a time (NCCL: a stream per communicator)."""
    pp, wired = len(lists), []
    made = {(kind[0], c * pp + rank, mb): (end, c * pp + rank, kind, mb) for rank, row in
            enumerate(simulate(lists, m, v, messages=False)['timeline']) for kind, c, mb, _, end in row}
    for rank, todo in enumerate(lists):
        posts, out = [(kind, c, mb) for kind, step in STEP.items() for c in range(v) for mb in range(m)
                      if pp > 1 and 0 <= c * pp + rank + step < pp * v], []
        posts.sort(key=lambda act: made[message(act, rank, pp)[2]])
        for kind, c, mb in [('', 0, 0)] + todo:
            out.append((kind, c, mb))
            while posts and (posts[0][0][:4] == 'RECV' or posts[0] == (f'SEND_{kind[:1]}', c, mb)):
                out.append(posts.pop(0))
        wired.append(out[1:])
    return wired

def simulate(lists, m, v=1, F=1, B=1, W=1, comm=0, scale=None, serial=False, messages=True):
    """Runs the lists on paper; ValueError, one line, unless each rank has each F, B, W and message exactly once, each
    link receives in the order in which it sends, and nothing deadlocks. F, B, W: time of one microbatch on one rank (a
    chunk takes 1/v), times scale(kind, stage, mb). comm: time of a message; it moves once both sides have posted it and
    the one before it on its directed link is there (serial: the one before it on either rank, the strictest backend).
    messages=False: lists as schedule() makes them. Returns makespan; per rank: idle, peak (live activations: microbatch
    chunks from F to W, or BW; a split B frees none), timeline [(kind, chunk, mb, start, end)]."""
    pp, last = len(lists), len(lists) * v - 1
    for rank, todo in enumerate(lists):
        must = Counter((kind, c, mb) for kind in ('F', 'B', 'W', *(STEP if messages and pp > 1 else ()))
                       for c in range(v) for mb in range(m) if 0 <= c * pp + rank + STEP.get(kind, 0) <= last)
        have = Counter((k, c, mb) for kind, c, mb in todo for k in (kind if kind == 'BW' else [kind]))
        for act in have | must:
            if have[act] != must[act]:
                raise ValueError(f'rank {rank}: {act} is there {have[act]} times, it must be {must[act]}')
    cost = {'F': F / v, 'B': B / v, 'W': W / v, 'BW': (B + W) / v}
    now, at, timeline, known = [0] * pp, [0] * pp, [[] for _ in lists], [{} for _ in lists]
    queue, free, moved = defaultdict(list), defaultdict(int), True     # (rank, link) -> posts in line; free since when
    while moved:
        moved = False
        for rank, todo in enumerate(lists):
            for kind, c, mb in todo[at[rank]:]:
                stage = c * pp + rank
                if kind in STEP:
                    a, b, msg = message((kind, c, mb), rank, pp)
                    if rank == a and msg not in known[rank]:
                        break
                    queue[rank, 0 if serial else (a, b)].append((msg, a + b - rank, now[rank]))
                else:
                    need = {'F': [('F', stage - 1, mb)], 'W': [('B', stage, mb)]}
                    need = [x for x in need.get(kind, [('F', stage, mb), ('B', stage + 1, mb)]) if 0 <= x[1] <= last]
                    if any(x not in known[rank] for x in need):
                        break
                    start = max([now[rank]] + [known[rank][x] for x in need])
                    now[rank] = start + cost[kind] * (scale(kind, stage, mb) if scale else 1)
                    for places in [known[rank]] if messages else known:
                        places[kind[0], stage, mb] = now[rank]
                    timeline[rank].append((kind, c, mb, start, now[rank]))
                at[rank], moved = at[rank] + 1, True
        for (rank, link), mine in list(queue.items()):         # a message moves when it is first in line on both sides
            while mine and (theirs := queue[mine[0][1], link]) and (mine[0][0] == theirs[0][0] or not serial):
                (msg, peer, t), (other, _, u), moved = mine.pop(0), theirs.pop(0), True
                if msg != other:
                    raise ValueError(f'link {link}: rank {rank} posts {msg} where rank {peer} posts {other}')
                free[rank, link] = free[peer, link] = max(t, u, free[rank, link], free[peer, link]) + comm
                for places in known[rank], known[peer]:                    # where it was made it is known already
                    places.setdefault(msg, free[rank, link])
    if stuck := [f'rank {rank} at {todo[at[rank]]}' for rank, todo in enumerate(lists) if at[rank] < len(todo)]:
        raise ValueError('deadlock: ' + ', '.join(stuck))
    idle = [max(now) - sum(end - start for *_, start, end in row) for row in timeline]
    peak = [max(accumulate({'F': 1, 'B': 0}.get(kind, -1) for kind, *_ in row)) for row in timeline]
    return dict(makespan=max(now), idle=idle, peak=peak, timeline=timeline)

def split_layers(n_layer, stages, embed_cost=0, head_cost=0):
    """[(start, stop)] of every stage's layers, at least one each, so that the largest stage cost is the least possible.
    Costs in layers: the first stage has the embedding's on top, the last the heads'. ValueError: too few layers."""
    if not 1 <= stages <= n_layer:
        raise ValueError(f'{n_layer} layers over {stages} stages (pp * v): each needs one, 1 to {n_layer} stages work')
    best = {0: (0, 0, [])}                       # layers placed -> largest cost, sum of squares (breaks ties), ranges
    for s in range(stages):
        extra = embed_cost * (s == 0) + head_cost * (s == stages - 1)
        best = {stop: min((max(top, stop - a + extra), total + (stop - a + extra) ** 2, ranges + [(a, stop)])
                          for a, (top, total, ranges) in best.items() if a < stop)
                for stop in range(s + 1, n_layer - stages + s + 2)}
    return best[n_layer][2]


def run_pipeline(todo, models, micros, mesh, shape, dtype, device):
    """
    The interpreter: runs this rank's actions (a list of add_messages(schedule(...))) over its model chunks and the microbatches; hidden
    states of `shape` (B, T/cp, C) travel. Returns the losses of every microbatch that this rank's last chunk made, [] elsewhere. Gradients
    are left where the optimizer's hooks put them; under zbh1 the weight gradients of a B wait in mesh.queue_dw until their W.
    """
    g, last = mesh.pp, mesh.pp.size * len(models) - 1
    x, y, dy, queue, waits, losses, sent = {}, {}, {}, {}, {}, [], []
    split = any(kind == 'W' for kind, *_ in todo)
    for kind, c, mb in todo:
        stage, key = c * g.size + g.rank, (c, mb)
        if kind[:4] == 'RECV':
            buf = torch.empty(shape, dtype=dtype, device=device)
            (x if kind == 'RECV_F' else dy)[key] = buf
            waits[kind[-1], c, mb] = dist.irecv(buf, g.ranks[(g.rank + STEP[kind]) % g.size], group=g.pg)
        elif kind[:4] == 'SEND':
            out = (y[key] if kind == 'SEND_F' else x.pop(key).grad).detach().contiguous()
            _count('p2p', g, out.numel() * out.element_size())
            sent.append((dist.isend(out, g.ranks[(g.rank + STEP[kind]) % g.size], group=g.pg), out))
        elif kind == 'F':
            if ('F', c, mb) in waits:
                waits.pop(('F', c, mb)).wait()
            if stage:
                x[key] = (x[key] if key in x else y[c - 1, mb].detach()).requires_grad_()
            mesh.queue_dw = queue.setdefault(key, []) if split else None
            y[key] = models[c](micros[mb], x.get(key))
            mesh.queue_dw = None
            if stage == last:
                losses.append({k: t.detach() for k, t in y[key].items()})
                y[key] = y[key]['loss']
        elif kind == 'W':
            for w, d, a in queue.pop(key):
                if w.grad is None or mesh.fp8:
                    d = weight_gradient(d, a, mesh)
                    w.grad = d if w.grad is None else w.grad.add_(d)
                else:
                    w.grad.addmm_(d.flatten(0, -2).t(), a.flatten(0, -2))
                if hasattr(w, 'ready'):
                    w.ready(w)                                     # the gradient hook that autograd would have called
        else:                                                      # B, BW
            if ('B', c, mb) in waits:
                waits.pop(('B', c, mb)).wait()
            grad = None if stage == last else dy.pop(key) if key in dy else x.pop((c + 1, mb)).grad
            torch.autograd.backward(y.pop(key), grad)
    for work, _ in sent:
        work.wait()
    return losses


def forward_backward(models, micros, mesh, todo=None, shape=None, dtype=None, device='cpu'):
    """All microbatches of a step through this rank's model chunks -> the losses of each, detached (on the last stage; elsewhere [])."""
    if mesh.pp.size > 1:
        return run_pipeline(todo, models, micros, mesh, shape, dtype, device)
    out = []
    for b in micros:
        o = models[0](b)
        o['loss'].backward()
        out.append({k: t.detach() for k, t in o.items()})
    return out


@torch.no_grad()
def forward_only(models, b, mesh, shape, dtype, device):
    """One batch (B, T/cp) through all stages in turn -> its losses on the last stage, {} elsewhere. For evaluation."""
    g, shape = mesh.pp, (shape[0], shape[1] // (mesh.tp.size if mesh.sp else 1), shape[2])
    out = {}
    for c, model in enumerate(models):
        x = None
        if not model.first:
            x = out if g.size == 1 else torch.empty(shape, dtype=dtype, device=device)
            if g.size > 1:
                dist.recv(x, g.ranks[g.rank - 1], group=g.pg)
        out = model(b, x)
        if not model.last and g.size > 1:
            dist.send(out.contiguous(), g.ranks[(g.rank + 1) % g.size], group=g.pg)
    return out if models[-1].last else {}


if __name__ == '__main__':
    from data.layouts import plan_command, schedule_command
    command = dict(plan=plan_command, schedule=schedule_command).get(' '.join(sys.argv[1:2]))
    if not command:
        sys.exit('usage: python parallel.py schedule [--name=1f1b --pp=4 --m=8 --v=1 ...] | plan --model=config/x.py --gpus=8 --gpu=h100')
    command(sys.argv[2:])
