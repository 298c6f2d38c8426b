"""
One causal transformer for text, image patches and audio frames.

Every position is one text token, one 8x8x3 patch or one frame of log-mel; raw values enter through one linear per modality, and the next
position is predicted whatever it is: ids by a softmax, patches and frames by a softmax for each of their numbers, or by a small
flow-matching head (Li et al. 2024, "Autoregressive Image Generation without Vector Quantization"; x-prediction as in Li and He 2025, "Back
to Basics"), both given the hidden state.
There is no encoder and no bidirectional span, so the KV cache, packing and every parallelism see a plain causal model.

Shapes: B rows, T positions, C = n_embd, nh heads of hd, D = 192 payload. With tensor parallelism heads and hidden units are those of this
rank (nh/tp); with sequence parallelism T is T/tp between the blocks' linears; parallel.py says where.
"""
import math
from dataclasses import dataclass
import torch
import torch.nn as nn
import torch.nn.functional as F
from parallel import (all_gather, all_reduce, attention, attention_mask, copy_to, count, embed_partial, enter_tp, gather_from,
                      init_params, leave_tp, linear, linear_cross_entropy, moe, my_slice, param, reduce_from, solo_mesh, split_layers,
                      split_to)

D, N_FREQ = 192, 6


@dataclass
class ModelConfig:
    vocab_size: int = 364
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 0            # 0: n_head
    n_embd: int = 192
    ff: int = 0                   # hidden units of the MLP; 0: 4 n_embd (relu2) or 8/3 n_embd rounded up to 32 (swiglu)
    act: str = 'relu2'            # relu2 | swiglu
    qk_norm: bool = True
    rope_base: float = 10000.0
    rope_2d: bool = True          # with images: a third of the pairs turns by the row, a third by the column of a patch or a point
    norm_eps: float = 1e-6        # added to the mean square in RMSNorm
    tie: bool = False             # output head = embedding
    zero_init: bool = True        # output projections of the blocks start at 0
    softcap: float = 0.0          # logits = c tanh(logits / c)
    z_loss: float = 1e-4
    image: bool = True            # patches in and out
    audio: bool = True            # frames in and out
    flow_width: int = 192
    flow_depth: int = 3
    audio_velocity: bool = False  # the head of frames says the velocity x_1 - e, that of patches x_1
    bins: int = 0                 # heads of patches and frames: a softmax over so many values of each number; 0: flow matching
    n_expert: int = 0             # experts per MoE layer; 0: dense
    top_k: int = 2
    expert_ff: int = 0            # hidden units of one expert; 0: ff / top_k
    shared_ff: int = 0            # hidden units of the shared expert; 0: ff / top_k
    dense_layers: int = 1         # the first layers stay dense
    smear: int = 0                # so many ids before each are embedded with it, by tables of their own
    value_embed: bool = False     # each layer adds a row of a table, looked up by the id, to its values
    token_shift: bool = False     # dense MLPs read the position before, too, by a weight for each channel
    ngram: int = 0                # memory tables for the last 2, 3, .. ngram ids; 0: none
    ngram_rows: int = 1 << 17     # of each table

    def __post_init__(self):
        sizes = dict.fromkeys(('vocab_size', 'n_layer', 'n_head', 'n_embd', 'top_k', 'flow_width', 'rope_base'), 1)
        for k in ('n_kv_head', 'ff', 'flow_depth', 'bins', 'n_expert', 'expert_ff', 'shared_ff', 'dense_layers', 'norm_eps', *sizes):
            if getattr(self, k) < sizes.get(k, 0):
                raise ValueError(f'{k}={getattr(self, k)}: it must be at least {sizes.get(k, 0)}')
        self.n_kv_head, self.bins = self.n_kv_head or self.n_head, self.bins * (self.image or self.audio)
        self.audio_velocity = self.audio_velocity and self.audio and not self.bins
        self.ff = self.ff or (4 * self.n_embd if self.act == 'relu2' else -(-8 * self.n_embd // 96) * 32)
        self.expert_ff, self.shared_ff = self.expert_ff or self.ff // self.top_k, self.shared_ff or self.ff // self.top_k
        for ok, say in ((self.act in ('relu2', 'swiglu'), f'act={self.act}: use relu2 or swiglu'),
                        (self.n_embd % self.n_head == 0, f'n_embd={self.n_embd} does not divide by n_head={self.n_head}'),
                        (self.hd % 2 == 0, f'n_embd/n_head={self.hd} is odd: rotary positions need pairs'),
                        (self.n_head % self.n_kv_head == 0, f'n_head={self.n_head} does not divide by n_kv_head={self.n_kv_head}'),
                        (self.ngram != 1 and self.ngram >= 0, f'ngram={self.ngram}: use 0 for no memory, or 2 and more'),
                        (self.smear >= 0, f'smear={self.smear}: use 0 or more'),
                        (self.bins != 1, f'bins={self.bins}: use 0 for flow matching, or 2 and more'),
                        (self.ngram_rows > 0, f'ngram_rows={self.ngram_rows}: use 1 or more'),
                        (self.top_k <= max(self.n_expert, 1) or not self.n_expert, f'top_k={self.top_k} exceeds n_expert={self.n_expert}')):
            if not ok:
                raise ValueError(say)

    @property
    def hd(self):
        return self.n_embd // self.n_head

    @property
    def past(self):
        """How many ids before each the model looks at, which the batch must bring."""
        return max(self.ngram - 1, self.smear)


# -------- three elementwise pieces with their gradients by hand: fewer passes over memory than autograd makes, which is what they cost

class _ReLU2(torch.autograd.Function):
    """relu(h)^2."""
    @staticmethod
    def forward(ctx, h):
        r = F.relu(h)
        ctx.save_for_backward(r)
        return r * r

    @staticmethod
    def backward(ctx, dy):
        r, = ctx.saved_tensors
        return r.mul_(dy).mul_(2)                                  # in its place: nobody reads it again, and new pages cost more than this


class _RMSNorm(torch.autograd.Function):
    """
    x / rms(x) * gain over the last dimension (Zhang and Sennrich 2019); the mean square in float32 or wider. backward: that of LayerNorm at
    mean 0, in one kernel, which subtracts the mean of the gradient, too: it is added again. In bfloat16 that kernel sums gain's gradient
    in bfloat16, 5% off: summed here.
    """
    @staticmethod
    def forward(ctx, x, gain, eps):
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        r = r.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
        ctx.save_for_backward(x, r, gain)
        return x * r if gain is None else (x * r).mul_(gain)

    @staticmethod
    def backward(ctx, dy):
        (x, r, gain), n = ctx.saved_tensors, dy.shape[-1]
        if x.dtype != torch.bfloat16:
            dx, dgain, _ = torch.ops.aten.native_layer_norm_backward(dy, x, (n,), torch.zeros_like(r), r, gain, None,
                                                                     (True, gain is not None, False))
            mean = dy.mean(-1, keepdim=True) if gain is None else (dy @ gain / n)[..., None]
            return dx.add_(mean.mul_(r)), dgain, None
        y = x * r
        p = dy * y
        if gain is None:
            return torch.addcmul(dy, y, p.mean(-1, keepdim=True), value=-1).mul_(r), None, None
        dgain = p.sum(tuple(range(p.dim() - 1)), dtype=torch.float32).to(gain.dtype)
        return (dy * gain).addcmul_(y, (p @ gain / n)[..., None], value=-1).mul_(r), dgain, None


def rms_norm(x, gain, eps):
    """On CUDA torch has it as one kernel each way."""
    return F.rms_norm(x, x.shape[-1:], gain, eps) if x.is_cuda else _RMSNorm.apply(x, gain, eps)


class _Rotate(torch.autograd.Function):
    """Rotary positions (Su et al. 2021). x (B, T, n, hd); turn: see turns(), of these positions."""
    @staticmethod
    def forward(ctx, x, turn):
        ctx.save_for_backward(turn)
        return rotate(x, turn)

    @staticmethod
    def backward(ctx, dy):
        return rotate(dy, *ctx.saved_tensors, back=True), None


def turns(cfg, pos, dtype, i=None, rc=None):
    """
    Positions (...) -> (..., 1, hd/2, 2), float32 or wider: cosine and sine of each pair's angle. With rope_2d the last two thirds of the
    pairs turn by the row and by the column, an eighth of a period to 2 of them in a picture, of the positions i (n,) that have some:
    rc (n, 2 or more) in [0, 1], -1: none. So a point finds the patches around it by their distance, whatever the picture's width. Elsewhere
    these pairs, which would be the slow ones, stand still (as in Barbero et al. 2024, "Round and Round We Go!").
    """
    arange = lambda n: torch.arange(n, device=pos.device, dtype=torch.float32)
    n = cfg.hd // 2
    n_axis = n // 3 if cfg.image and cfg.rope_2d else 0
    angle = pos[..., None, None].float() * F.pad(cfg.rope_base ** (-arange(n - 2 * n_axis) / n), (0, 2 * n_axis))
    if n_axis and i is not None:
        at = rc[:, :2].float().clamp(min=0)[..., None] * (math.pi / 4 * 16 ** (arange(n_axis) / max(1, n_axis - 1)))      # (n, 2, n_axis)
        angle.view(-1, n)[:, n - 2 * n_axis:].index_add_(0, i, at.flatten(1))
    return torch.stack((angle.cos(), angle.sin()), -1).to(torch.promote_types(dtype, torch.float32))


def rotate(x, turn, back=False):
    """
    x (..., n, hd), two neighbours a complex number, times turn (..., 1, hd/2, 2), or its conjugate. As one complex product it takes a CPU a
    third of the time of products, shifts and sums of halves.
    """
    pair = (x if x.stride(-1) == 1 else x.contiguous()).unflatten(-1, (-1, 2)).to(turn.dtype)
    if torch.compiler.is_compiling():                              # which makes no code for complex numbers
        (a, b), (c, s) = pair.unbind(-1), turn.unbind(-1)
        s = -s if back else s
        return torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2).to(x.dtype)
    y, turn = torch.view_as_complex(pair), torch.view_as_complex(turn)
    turn = turn.conj() if back else turn
    y = y * turn if x.dtype == turn.real.dtype else y.mul_(turn)   # a wider copy is ours
    return torch.view_as_real(y).flatten(-2).to(x.dtype)


class _Remember(torch.autograd.Function):
    """
    x (N, C) plus the sum of K rows of a table for each position, rows (N, K); with tensor parallelism the table (.., C/tp) has this rank's
    columns. backward: rows and gradients are put down in table.pairs for the optimizer, which touches these rows only: there is no dense
    gradient.
    """
    @staticmethod
    def forward(ctx, x, table, rows):
        ctx.args, x = (table, rows), x.clone()
        table.spec.local(x).add_(F.embedding_bag(rows, table, mode='sum'))
        return x

    @staticmethod
    def backward(ctx, dy):
        table, rows = ctx.args
        table.pairs.append((rows, table.spec.local(dy).contiguous()))
        return dy, None, None


def ngrams(ids, past, n_rows):
    """
    ids (B, T), past (B, T, n - 1) the ids before each, the nearest first -> (B T, n - 1) int64: the rows of its last 2, 3, .. n ids in a
    table that has n_rows for each length, by a hash: contexts that meet in a row share it.
    """
    h, out = ids, []
    for i, before in enumerate(past.unbind(-1)):
        h = (h * 1000003 + before + 1) * -7046029254386353131                    # wraps around; odd factors lose nothing
        h = h ^ h >> 32
        out.append(h % n_rows + i * n_rows)
    return torch.stack(out, -1).flatten(0, 1)


def earlier(x, inner, g):
    """
    x (B, T, n) -> what stands one position before; 0 where inner (B, T, 1) is 0, and in front of a row. With context parallelism (g) the
    last positions of all chunks are gathered; backward: their gradients are summed and scattered.
    """
    n, r = x.shape[1] // 2, g.rank
    if g.size == 1:
        return F.pad(x[:, :-1], (0, 0, 1, 0)) * inner
    ends = gather_from(x[:, n - 1::n], g, 1, partial=True)         # (B, 2 cp, n): of rank r those of the chunks r and 2 cp - 1 - r
    ends = F.pad(ends, (0, 0, 1, 0))
    first, second = 2 * r - 1 if r else 0, 2 * r + 4 if r + 1 < g.size else 2 * r + 1
    return torch.cat((ends[:, first:first + 1], x[:, :n - 1], ends[:, second:second + 1], x[:, n:-1]), 1) * inner


def activation(h, act):
    """h (..., ff) or (..., 2 ff) -> (..., ff)."""
    if act == 'relu2':
        return _ReLU2.apply(h)
    gate, up = h.chunk(2, -1)
    return F.silu(gate) * up


class Norm(nn.Module):
    """RMSNorm with a gain."""
    def __init__(self, mesh, n, partial, eps):
        super().__init__()
        self.eps = eps
        self.gain = param(mesh, n, std=math.nan, kind='scalar', partial=partial)

    def forward(self, x):
        return rms_norm(x, self.gain, self.eps)


class Attention(nn.Module):
    def __init__(self, cfg, mesh):
        super().__init__()
        C, hd, kv = cfg.n_embd, cfg.hd, cfg.n_kv_head
        self.cfg, self.mesh = cfg, mesh
        self.q = param(mesh, C, C, tp=0, std=C ** -0.5)
        self.kv = param(mesh, 2 * kv * hd, C, tp=0, parts=(kv * hd, kv * hd), kv=kv, std=C ** -0.5)      # fewer heads than tp: copies
        self.out = param(mesh, C, C, tp=1, std=0.0 if cfg.zero_init else C ** -0.5 / (2 * cfg.n_layer) ** 0.5)
        self.ve = param(mesh, cfg.vocab_size, kv * hd, tp=1, kv=kv, std=0.0, kind='embed') if cfg.value_embed else None
        self.gain = param(mesh, hd, std=math.nan, kind='scalar', partial=True) if cfg.qk_norm else None     # of all heads: summed over tp
        self.nh, self.nkv = cfg.n_head // mesh.tp.size, max(1, kv // mesh.tp.size)

    def forward(self, x, ctx):
        # x (B, T, C) -> (B, T, C): q, k, v from one copied input
        hd, nh, nkv = self.cfg.hd, self.nh, self.nkv
        x = enter_tp(x, self.mesh)
        B, T, _ = x.shape
        q = linear(x, self.q, self.mesh).view(B, T, nh, hd)
        k, v = linear(x, self.kv, self.mesh).view(B, T, 2 * nkv, hd).split(nkv, 2)
        if self.ve is not None:
            v = v + F.embedding(ctx['ids'], self.ve).view(B, T, nkv, hd)
        if self.cfg.qk_norm:
            q, k = rms_norm(q, self.gain, self.cfg.norm_eps), rms_norm(k, None, self.cfg.norm_eps)
        q, k = _Rotate.apply(q, ctx['turn']), _Rotate.apply(k, ctx['turn'])
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)      # (B, nh, T, hd)
        y = attention(q, k, v, ctx['mask'], hd ** -0.5, self.mesh)
        return leave_tp(linear(y.transpose(1, 2).reshape(B, T, nh * hd), self.out, self.mesh), self.mesh)


class MLP(nn.Module):
    """shift: its input is x_t + shift x_(t - 1) (as in RWKV, Peng et al. 2023, and in Canon layers, Allen-Zhu 2025), at first x_t alone."""
    def __init__(self, cfg, mesh, ff, shift=False):
        super().__init__()
        C, n = cfg.n_embd, 2 if cfg.act == 'swiglu' else 1
        self.cfg, self.mesh = cfg, mesh
        self.up = param(mesh, n * ff, C, tp=0, parts=(ff,) * n, std=C ** -0.5)
        self.down = param(mesh, C, ff, tp=1, std=0.0 if cfg.zero_init else ff ** -0.5 / (2 * cfg.n_layer) ** 0.5)
        self.shift = param(mesh, C, std=0.0, kind='scalar', partial=True) if shift else None

    def forward(self, x, ctx=None):
        x = enter_tp(x, self.mesh)
        if self.shift is not None:
            x = x + earlier(x, ctx['inner'], self.mesh.cp) * self.shift
        h = activation(linear(x, self.up, self.mesh), self.cfg.act)
        return leave_tp(linear(h, self.down, self.mesh), self.mesh)


class MoE(nn.Module):
    """
    A shared expert beside top_k of n_expert, chosen by sigmoid scores in float32 plus a balancing bias that takes no gradient (Wang et al.
    2024, "Auxiliary-Loss-Free Load Balancing"); the gates are the chosen scores, normalised if there are several (one alone would always be
    1, and the router learn nothing: it is left as it is, as in Switch and Llama 4). Dropless. Tokens are split over tp, so no token is
    computed twice: experts see (edp, ep) of the same ranks.
    """
    def __init__(self, cfg, mesh):
        super().__init__()
        C, ff, n = cfg.n_embd, cfg.expert_ff, 2 if cfg.act == 'swiglu' else 1
        self.cfg, self.mesh = cfg, mesh
        self.shared = MLP(cfg, mesh, cfg.shared_ff)
        self.router = param(mesh, cfg.n_expert, C, std=C ** -0.5, kind='router', partial=True)
        self.w1 = param(mesh, cfg.n_expert, n * ff, C, expert=True, std=C ** -0.5)
        self.w2 = param(mesh, cfg.n_expert, C, ff, expert=True, std=0.0 if cfg.zero_init else ff ** -0.5 / (2 * cfg.n_layer) ** 0.5)
        self.register_buffer('bias', torch.zeros(cfg.n_expert))                # moved by the training loop, saved in checkpoints
        self.register_buffer('load', torch.zeros(3, cfg.n_expert), persistent=False)       # tokens since the last step: text, image, audio

    def forward(self, x, ctx):
        # x (B, T, C), or its T-slice under sp
        xs = x if self.mesh.sp else split_to(x, self.mesh.tp, 1)
        flat = xs.reshape(-1, xs.shape[-1])
        wide = torch.promote_types(flat.dtype, torch.float32)
        score = torch.sigmoid(F.linear(flat.to(wide), self.router.to(wide)))      # (N, E)
        top = (score.detach() + self.bias).topk(self.cfg.top_k, -1).indices
        gate = score.gather(1, top)
        gate = gate / (gate.sum(-1, keepdim=True) + 1e-9) if self.cfg.top_k > 1 else gate
        if self.training and ctx.get('kind') is not None:
            kind = my_slice(ctx['kind'], self.mesh.tp, 1).reshape(-1, 1).expand_as(top)        # 0 text, 1 image, 2 audio, 3 padding
            n = count(kind * self.cfg.n_expert + top, 4 * self.cfg.n_expert)
            self.load += n.view(4, -1)[:3]
        y, shared = moe(flat, top, gate, self.w1, self.w2, lambda h: activation(h, self.cfg.act), self.mesh, lambda: self.shared(x))
        return shared + (y.view_as(xs) if self.mesh.sp else gather_from(y.view_as(xs), self.mesh.tp, 1, partial=False))


class Block(nn.Module):
    def __init__(self, cfg, mesh, layer):
        super().__init__()
        self.norm1, self.attn = Norm(mesh, cfg.n_embd, mesh.sp, cfg.norm_eps), Attention(cfg, mesh)
        self.norm2 = Norm(mesh, cfg.n_embd, mesh.sp, cfg.norm_eps)
        self.mlp = MoE(cfg, mesh) if cfg.n_expert and layer >= cfg.dense_layers else MLP(cfg, mesh, cfg.ff, cfg.token_shift)

    def forward(self, x, ctx):
        x = x + self.attn(self.norm1(x), ctx)
        return x + self.mlp(self.norm2(x), ctx)


class _Recompute(torch.autograd.Function):
    """
    block(x, ctx) that keeps x alone and runs again in the backward pass (Chen et al. 2016); expert loads are counted once, queued weight
    gradients stay queued.
    """
    @staticmethod
    def forward(ctx, x, block, c, mesh):
        ctx.save_for_backward(x)
        ctx.args = block, c, mesh, mesh.queue_dw
        return block(x, c)

    @staticmethod
    def backward(ctx, dy):
        (block, c, mesh, queue), (x,) = ctx.args, ctx.saved_tensors
        x = x.detach().requires_grad_()
        before, mesh.queue_dw = mesh.queue_dw, queue
        with torch.enable_grad():
            y = block(x, {**c, 'kind': None})
        mesh.queue_dw = before
        torch.autograd.backward(y, dy)
        return x.grad, None, None, None


class Flow(nn.Module):
    """
    Flow-matching head: x_t = t x_1 + (1 - t) e, and the network says x_1 from (x_t, t, hidden state), or the velocity x_1 - e, which needs
    at least d units, but comes out sharper (tests/bench/design.py). loss and sample derive from denoise(). Residual MLP blocks with
    adaLN-zero (Peebles and Xie 2023). What of the modulation comes from the hidden state is computed once per position, not per draw.
    """
    def __init__(self, cfg, mesh, d, velocity=False):
        super().__init__()
        C, W, zero = cfg.n_embd, cfg.flow_width, 0.0 if cfg.zero_init else 0.1
        self.d, self.depth, self.mesh, self.velocity = d, cfg.flow_depth, mesh, velocity
        self.x_in = param(mesh, W, d, std=d ** -0.5)
        self.t_in = param(mesh, 64, 64, std=64 ** -0.5)
        self.mod_t = param(mesh, (3 * cfg.flow_depth + 2) * W, 64, std=zero)
        self.mod_c = param(mesh, (3 * cfg.flow_depth + 2) * W, C, std=zero)
        self.up = nn.ParameterList(param(mesh, W, W, tp=0, std=W ** -0.5) for _ in range(cfg.flow_depth))
        self.down = nn.ParameterList(param(mesh, W, W, tp=1, std=W ** -0.5) for _ in range(cfg.flow_depth))
        self.x_out = param(mesh, d, W, std=zero, kind='head')

    def denoise(self, xt, t, c):
        """xt (N, R, d) noisy payloads, t (N, R) times, c (N, 1, mod) from cond() -> (N, R, d) float32 estimate of x_1."""
        a = t[..., None] * (torch.exp(torch.arange(32, device=t.device, dtype=t.dtype) * (-math.log(1000.0) / 31)) * 1000)
        te = torch.cat((a.cos(), a.sin()), -1).to(self.t_in.dtype)               # (N, R, 64)
        mods = (c + F.linear(F.silu(F.linear(te, self.t_in)), self.mod_t)).chunk(3 * self.depth + 2, -1)
        h = F.linear(xt.to(self.x_in.dtype), self.x_in)
        for i in range(self.depth):
            shift, scale, gate = mods[3 * i:3 * i + 3]
            u = F.layer_norm(h, (h.shape[-1],)) * (1 + scale) + shift
            u = F.linear(F.silu(F.linear(copy_to(u, self.mesh.tp), self.up[i])), self.down[i])
            h = h + gate * reduce_from(u, self.mesh.tp)
        h = F.layer_norm(h, (h.shape[-1],)) * (1 + mods[-1]) + mods[-2]
        y = F.linear(h, self.x_out).to(t.dtype)
        return xt + (1 - t[..., None]) * y if self.velocity else y

    def cond(self, h):
        """h (N, C) hidden states -> (N, 1, mod)."""
        return F.linear(F.silu(h), self.mod_c)[:, None]

    def loss(self, h, x1, e, t, w):
        """h (N, C), x1 (N, D), noise e (N, R, D), times t (N, R), weights w (N,) -> weighted sum, errors (N,) without gradient."""
        x1, e = x1[:, None, :self.d], e[..., :self.d]
        xt = t[..., None] * x1 + (1 - t[..., None]) * e
        err = (self.denoise(xt, t, self.cond(h)) - x1).square().mean(-1)         # (N, R)
        err = (err / (1 - t).clamp(min=0.05).square()).mean(-1)
        return (w * err).sum(), err.detach()

    @torch.no_grad()
    def sample(self, h, e, steps=20, guide=1.0, h0=None):
        """
        h (N, C), noise e (N, D) already scaled -> payload (N, D), zeros past d. Euler steps of dx/dt = (x_1 - x_t) / (1 - t), so an oracle
        head ends exactly at x_1.  guide > 1: x_1 = x_1(h0) + guide (x_1(h) - x_1(h0)), h0 the hidden states without the prompt.
        """
        x, c = e[:, None, :self.d], self.cond(h)
        c0 = self.cond(h0) if h0 is not None and guide != 1 else None
        for i in range(steps):
            t = torch.full(x.shape[:2], i / steps, dtype=x.dtype, device=x.device)
            x1 = self.denoise(x, t, c)
            if c0 is not None:
                x0 = self.denoise(x, t, c0)
                x1 = x0 + guide * (x1 - x0)
            x = x + (x1 - x) / (steps - i)
        return F.pad(x[:, 0], (0, D - self.d))


class Bins(nn.Module):
    """
    Head that says each of the d numbers of a payload as one of n values, evenly spaced from -top to top, by a softmax of its own (as the
    channels of a pixel in van den Oord et al. 2016, "Pixel Recurrent Neural Networks", but independent given the hidden state). At the
    sizes that were measured it draws far better than Flow, and in one step (tests/bench/design.py). With tensor parallelism a rank has d/tp
    of the numbers.
    """
    def __init__(self, cfg, mesh, d, top):
        super().__init__()
        C, W, zero = cfg.n_embd, cfg.flow_width, 0.0 if cfg.zero_init else 0.1
        self.d, self.n, self.top, self.mesh = d, cfg.bins, top, mesh
        self.h_in = param(mesh, W, C, std=C ** -0.5)
        self.up = nn.ParameterList(param(mesh, W, W, tp=0, std=W ** -0.5) for _ in range(cfg.flow_depth))
        self.down = nn.ParameterList(param(mesh, W, W, tp=1, std=zero and W ** -0.5) for _ in range(cfg.flow_depth))
        self.out = param(mesh, d, cfg.bins * W, tp=0, std=zero, kind='head')

    def weight(self):
        """(d/tp n, W); the parameter has a row for each number, so that tp splits between numbers, as a vocabulary."""
        return self.out.view(len(self.out) * self.n, len(self.h_in))

    def hidden(self, h):
        """h (N, C) -> (N, W), what the softmaxes see."""
        u, tp = F.linear(h, self.h_in), self.mesh.tp
        for up, down in zip(self.up, self.down):
            v = F.silu(F.linear(copy_to(F.layer_norm(u, u.shape[-1:]), tp), up))
            u = u + reduce_from(F.linear(v, down), tp)
        return copy_to(F.layer_norm(u, u.shape[-1:]), tp)

    def loss(self, h, x1, e, t, w):
        """As Flow.loss(), in nats per number; e and t are not used."""
        x = self.out.spec.local(x1.t()[:self.d]).t()                             # (N, d/tp)
        at = ((x / self.top + 1) * ((self.n - 1) / 2)).round().long().clamp(0, self.n - 1)
        w = (w / self.d)[:, None].expand(at.shape)
        loss, nll = linear_cross_entropy(self.hidden(h), self.weight(), at, w, solo_mesh(), chunk=512)
        return reduce_from(loss, self.mesh.tp), all_reduce(nll.sum(1) / self.d, self.mesh.tp)

    @torch.no_grad()
    def sample(self, h, e, steps=1, guide=1.0, h0=None):
        """As Flow.sample(), by the inverse of the cumulative distribution; e that is scaled down stays near the median."""
        g, logits = self.mesh.tp, lambda h: F.linear(self.hidden(h), self.weight()).float().unflatten(-1, (-1, self.n))
        z = logits(h)                                                            # (N, d/tp, n)
        if h0 is not None and guide != 1:
            z0 = logits(h0)
            z = z0 + guide * (z - z0)
        u = self.out.spec.local(torch.special.ndtr(e.t()[:self.d].float())).t()
        i = (z.softmax(-1).cumsum(-1) < u[..., None]).sum(-1).clamp(max=self.n - 1)
        x = (i * (2 / (self.n - 1)) - 1) * self.top
        x = all_gather(F.pad(x, (0, -(-self.d // g.size) - x.shape[1])), g, 1)[:, :self.d]
        return F.pad(x, (0, D - self.d)).to(e.dtype)


def fourier(rc):
    """
    rc (N, 4): own and next (row, column) in [0, 1], -1: none -> (N, 4 (2 N_FREQ + 1)) absolute coordinate features, 0 where there is none.
    """
    some = (rc >= 0).to(rc.dtype)[..., None]
    a = rc[..., None] * (math.pi * 2.0 ** torch.arange(N_FREQ, device=rc.device, dtype=rc.dtype))
    return (torch.cat((a.sin(), a.cos(), torch.ones_like(rc[..., None])), -1) * some).flatten(1)


class Muse(nn.Module):
    """
    The model, or the stage of it that holds `layers` (global indices); the first stage embeds, the last has the heads.  Parameter names are
    global: blocks.3 is layer 3 on whatever rank it lies.
    """
    def __init__(self, cfg, mesh=None, layers=None, seed=1337):
        super().__init__()
        self.cfg, self.mesh = cfg, (mesh := mesh or solo_mesh())
        self.recompute = 0.0                                       # share of the blocks that keep only their input for the backward pass
        self.around = lambda part, f, *args: f(*args)              # ZeRO puts the gathering of a part's parameters around its computation
        layers = range(cfg.n_layer) if layers is None else layers
        self.first, self.last = layers.start == 0, layers.stop == cfg.n_layer
        C = cfg.n_embd
        if self.first or (self.last and cfg.tie):
            self.wte = param(mesh, cfg.vocab_size, C, tp=0, std=C ** -0.5 if cfg.tie else 1.0, kind='embed', tied=cfg.tie)
        if self.first:
            self.before = nn.ParameterList(param(mesh, cfg.vocab_size, C, tp=0, std=0.0, kind='embed') for _ in range(cfg.smear))
            if cfg.ngram:
                self.memory = param(mesh, (cfg.ngram - 1) * cfg.ngram_rows, C, tp=1, std=0.0, kind='table')
            if cfg.image:
                self.image_in = param(mesh, C, D, std=D ** -0.5, partial=True)
                self.coord_in = param(mesh, C, 4 * (2 * N_FREQ + 1), std=0.25, partial=True)
            if cfg.audio:
                self.audio_in = param(mesh, C, 128, std=128 ** -0.5, partial=True)
        self.blocks = nn.ModuleDict({str(i): Block(cfg, mesh, i) for i in layers})
        if self.last:
            self.norm = Norm(mesh, C, mesh.sp, cfg.norm_eps)
            if not cfg.tie:
                self.head = param(mesh, cfg.vocab_size, C, tp=0, std=0.0 if cfg.zero_init else C ** -0.5, kind='head')
            # pixels lie in [-1, 1]; of frames few numbers are beyond 4
            self.image_out = (Bins(cfg, mesh, D, 1.0) if cfg.bins else Flow(cfg, mesh, D)) if cfg.image else None
            self.audio_out = (Bins(cfg, mesh, 128, 4.0) if cfg.bins else Flow(cfg, mesh, 128, cfg.audio_velocity)) if cfg.audio else None
        init_params(self, seed)

    # -------- the three steps of a forward pass

    def embed(self, b):
        """Batch -> (B, T, C), T-sliced under sp."""
        return leave_tp(self.embed_share(b), self.mesh)

    def embed_share(self, b):
        """Batch -> (B, T, C), this tp rank's share of it: the sum over tp is whole. Payloads may be missing from the batch (generation)."""
        mesh, cfg = self.mesh, self.cfg
        x = embed_partial(b['ids'], self.wte, mesh)
        for i, w in enumerate(self.before):
            past = b['past'][:, :, i]
            x = x + embed_partial(past.clamp(min=0), w, mesh) * (past >= 0)[..., None]
        flat = x.view(-1, x.shape[-1])
        tp, r, dt = mesh.tp.size, mesh.tp.rank, x.dtype
        if cfg.image and 'xin_img_i' in b:
            flat = flat.index_add(0, b['xin_img_i'][r::tp], F.linear(b['xin_img'][r::tp].to(dt), self.image_in))
        if cfg.image and 'rc_i' in b:
            flat = flat.index_add(0, b['rc_i'][r::tp], F.linear(fourier(b['rc'][r::tp]).to(dt), self.coord_in))
        if cfg.audio and 'xin_aud_i' in b:
            flat = flat.index_add(0, b['xin_aud_i'][r::tp], F.linear(b['xin_aud'][r::tp, :128].to(dt), self.audio_in))
        if cfg.ngram:
            flat = _Remember.apply(flat, self.memory, ngrams(b['ids'], b['past'][:, :, :cfg.ngram - 1], cfg.ngram_rows))
        return flat.view_as(x)

    def context(self, b, dtype):
        """What all blocks of a microbatch share: rotary angles, mask, ids, kind of each position (for the experts' load), see earlier()."""
        mask = b['mask'] if 'mask' in b else attention_mask(b['doc'], self.mesh, dtype)
        turn = turns(self.cfg, b['pos'], dtype, b.get('rc_i'), b.get('rc'))
        return dict(turn=turn, mask=mask, ids=b['ids'], kind=b.get('kind'),
                    inner=(b['pos'] > 0)[..., None].to(dtype) if self.cfg.token_shift else None)        # not the first of a document

    def losses(self, x, b):
        """
        Hidden states (B, T, C) -> {'loss': the sum to minimise, 'txt', 'img', 'aud': weighted sums, *_each: per position, no gradient}.
        A modality without positions gives an exact 0, and its parameters zero gradients.
        """
        cfg, mesh = self.cfg, self.mesh
        x = self.norm(x)
        if mesh.sp:
            x = gather_from(x, mesh.tp, 1, partial=False)
        h = x.reshape(-1, x.shape[-1])
        weight = self.wte if cfg.tie else self.head
        out = {}
        out['txt'], out['txt_each'] = linear_cross_entropy(copy_to(h[b['txt_i']], mesh.tp), weight, b['txt_y'], b['txt_w'], mesh,
                                                           cfg.z_loss, cfg.softcap)
        for kind, head in (('img', self.image_out), ('aud', self.audio_out)):
            if head is not None:
                out[kind], out[f'{kind}_each'] = head.loss(h[b[f'{kind}_i']], *(b[f'{kind}_{k}'] for k in 'yetw'))
        out['loss'] = sum(out[k] for k in ('txt', 'img', 'aud') if k in out)
        return out

    def forward(self, b, x=None):
        """Batch (and the hidden states from the stage before) -> losses on the last stage, else hidden states."""
        x = self.around('embed', self.embed, b) if self.first else x
        ctx = self.context(b, x.dtype)
        share = self.recompute * torch.is_grad_enabled()           # spread evenly over the layers, and so over the stages
        for i, block in self.blocks.items():
            again = int((int(i) + 1) * share) > int(int(i) * share)
            x = self.around(f'blocks.{i}', *((_Recompute.apply, x, block, ctx, self.mesh) if again else (block, x, ctx)))
        return self.around('heads', self.losses, x, b) if self.last else x

    def logits(self, h, weight=None):
        """h (N, C) -> logits (N, vocab), float32 or wider, whole on every tp rank. weight (C, vocab/tp): the head, transposed (Decoder)."""
        y = F.linear(h, self.wte if self.cfg.tie else self.head) if weight is None else product(h, weight)
        y, V, g = y.to(torch.promote_types(y.dtype, torch.float32)), self.cfg.vocab_size, self.mesh.tp
        if g.size > 1:
            y = all_gather(F.pad(y, (0, -(-V // g.size) - y.shape[1])), g, 1)[:, :V]
        return self.cfg.softcap * torch.tanh(y / self.cfg.softcap) if self.cfg.softcap else y


def product(x, w, out=None):
    """x (N, n) times w (n, m), or what oneDNN made of that (see Decoder.laid()), in the type of w."""
    if not w.is_mkldnn:
        return torch.mm(x.to(w.dtype), w, out=out)
    y = torch.ops.mkldnn._linear_pointwise(x.to(w.dtype), w, None, 'none', [], '')
    return y if out is None else out.copy_(y)


def build(cfg, mesh, seed, chunks=1):
    """The model chunks of this rank: chunk c of pipeline rank r is stage c * pp + r, the layers split so that embedding and heads count."""
    heads = (cfg.vocab_size * cfg.n_embd + (cfg.image + cfg.audio) * 12 * cfg.flow_width ** 2) / (12 * cfg.n_embd ** 2)
    stages = split_layers(cfg.n_layer, mesh.pp.size * chunks, 0.1, min(heads, cfg.n_layer / mesh.pp.size))
    return [Muse(cfg, mesh, range(*stages[c * mesh.pp.size + mesh.pp.rank]), seed) for c in range(chunks)]
