"""
The transformer for generation: a stage's blocks on one KV cache, few positions of many rows at a time. See sample.py.

What model.py computes in training, once more for inference: without autograd, in place, with the norms' gains inside the matrices, which
are laid out for few rows. tests/test_sample.py holds it to model.py's own forward pass.
"""
import torch
import torch.distributed as dist
import torch.nn.functional as F
from model import MLP, activation, product, rotate, turns
from parallel import all_gather, all_reduce, my_slice


def packs(dtype):
    """Whether oneDNN keeps matrices of this type in an order of its own here: on x86."""
    there = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return there and (dtype == torch.float32 or dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def unit(x, eps):
    """RMSNorm of x (..., n) but for the root of n, which the weights behind it hold; eps: a tensor, the root of n norm_eps."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=eps.dtype).hypot_(eps).to(x.dtype)


class Decoder:
    """
    A stage for generation: its blocks with their own copy of the matrices, laid out for few rows, and the keys and values of all rows,
    contiguous: kv (L, 2, slots, nkv, size + 1, hd), a slot per row; with token shift also what the MLPs read, mlp_in (L, slots, size + 2,
    C), which is as much again for two kv heads in four. Padding is written to the last place, which nobody reads.
    Weights are transposed (x @ w takes CPUs up to a third less time than x @ w.T for 8 rows), and hold the gain of the norm before them
    and the root of its width. half: the large ones of attention and dense MLPs are bfloat16, where packs() says so, and all else as it is.
    """
    def __init__(self, model, half=False):
        b = next(iter(model.blocks.values()))
        w, hd, C = b.attn.q.detach(), model.cfg.hd, model.cfg.n_embd
        self.model, self.few, self.many, self.nh = model, None, None, b.attn.nh
        self.gain = model.norm.gain.detach() * C ** 0.5 if model.last else None
        self.eps = torch.tensor([C, hd], dtype=torch.promote_types(w.dtype, torch.float32), device=w.device)
        self.eps = self.eps.mul_(model.cfg.norm_eps).sqrt_().unbind()          # what norms of the width and of a head are given beside
        self.ids = torch.zeros(0, 1, dtype=torch.int64, device=w.device)       # (slots, size + 1): what was read, for batch['past']
        self.kv = w.new_zeros(len(model.blocks), 2, 0, b.attn.nkv, 1, hd)      # zeros: what is masked must be finite
        self.mlp_in = w.new_zeros(len(model.blocks), 0, 2, C * model.cfg.token_shift)            # one later: 0 is none
        self.able = w.is_cpu and packs(w.dtype)
        self.half = half and self.able and packs(torch.bfloat16)

    @torch.no_grad()
    def laid(self, rows):
        """
        The matrices for a product with so many rows, made when they are first asked for: {block: pack()}, head. From 4 on, on CPUs, large
        ones are in oneDNN's own order, of which it makes that product in down to a third of the time; for one row it would take longer,
        unless they are bfloat16.
        """
        many, m = rows >= 4 and self.able, self.model
        if (there := self.many if many else self.few) is not None:
            return there
        root, hd = m.cfg.n_embd ** 0.5, m.cfg.hd

        def lay(w, half=self.half):
            if not (many or half) or w.numel() < 1 << 16:
                return w.t().contiguous()
            return torch.ops.mkldnn._reorder_linear_weight(w.bfloat16() if half else w)

        def pack(b):
            a, mlp, gain, gain2 = b.attn, b.mlp, None, b.norm2.gain * root
            qkv = torch.cat((a.q, a.kv)) * (b.norm1.gain * root)
            if a.gain is None:
                qkv[:len(a.q)] *= hd ** -0.5                       # of the scores; with qk_norm it cancels the root of the norm of q
            else:
                gain = torch.cat((a.gain.expand(a.nh, -1), torch.full_like(a.gain, hd ** 0.5).expand(a.nkv, -1)))
            if isinstance(mlp, MLP):                               # up (C, ff), of swiglu (C, 2 ff); down (ff, C)
                mlp = lay(mlp.up * gain2), lay(mlp.down)
            return lay(qkv), gain, a.ve, lay(a.out), mlp, gain2, getattr(b.mlp, 'shift', None)
        head = lay(m.wte if m.cfg.tie else m.head, False) if m.last else None
        other = (self.few or self.many) if self.half else None         # of which the blocks are the same then
        made = other[0] if other else {i: m.around(f'blocks.{i}', pack, b) for i, b in m.blocks.items()}, head
        setattr(self, 'many' if many else 'few', made)
        return made

    def fit(self, slots, size):
        """Room for so many rows and positions; what is there stays."""
        L, _, have, nkv, most, hd = self.kv.shape
        if slots > have or size > most - 1:
            slots, size = max(slots, have), max(size, most - 1)
            shapes = dict(kv=(L, 2, slots, nkv, size + 1, hd), ids=(slots, size + 1), mlp_in=(L, slots, size + 2, self.mlp_in.shape[3]))
            for k, shape in shapes.items():
                old = getattr(self, k)
                setattr(self, k, new := old.new_zeros(shape))
                new[tuple(map(slice, old.shape))] = old
            self.turn = turns(self.model.cfg, torch.arange(size + 1, device=old.device), self.kv.dtype)

    def copy(self, a, b, n):
        """The first n positions of slot a to slot b."""
        self.kv[:, :, b, :, :n] = self.kv[:, :, a, :, :n]
        self.ids[b, :n], self.mlp_in[:, b, :n + 1] = self.ids[a, :n], self.mlp_in[:, a, :n + 1]

    def step(self, batch, n, S, rows=None, level=False):
        """
        The next T positions of B rows, a batch as for embed_share(), after the n (B,) that each row has; S >= the largest n + T.  rows
        (B,): their slots; None: the first B.  Rows that have less than T to say are padded behind: that is overwritten later.  level: rows
        is None, T = 1 and all rows have S - 1: nothing to mask.
        -> (B, T, C) hidden states behind this stage; of the last stage normalised, ready for the heads. Keys and values are in the cache.
        """
        (B, T), m, g, dev = batch['ids'].shape, self.model, self.model.mesh.pp, n.device
        slots = (torch.arange(B, device=dev) if rows is None else rows)[:, None]
        pos = (n[:, None] + torch.arange(T, device=dev)).clamp_(max=self.kv.shape[4] - 1)         # (B, T)
        if m.first:
            if m.cfg.past:                                         # as collate() makes it: the ids before each, -1: none
                self.ids[slots, pos] = batch['ids']
                at = pos[:, :, None] - torch.arange(1, 1 + m.cfg.past, device=dev)
                batch['past'] = self.ids[slots[:, :, None], at.clamp(min=0)].masked_fill_(at < 0, -1)
            x = all_reduce(m.around('embed', m.embed_share, batch), m.mesh.tp)
        else:
            x = self.kv.new_empty(B, T, m.cfg.n_embd)
            dist.recv(x, g.ranks[g.rank - 1], group=g.pg)
        x = self.blocks(x, slots, pos, S, rows, level, batch)
        if m.last:
            return unit(x, self.eps[0]) * self.gain
        dist.send(x, g.ranks[g.rank + 1], group=g.pg)
        return x

    def blocks(self, x, slots, pos, S, rows, level, batch):
        cfg, g, nh, dev = self.model.cfg, self.model.mesh.tp, self.nh, x.device
        (B, T, C), (L, _, R, nkv, size, hd) = x.shape, self.kv.shape
        rep, turn, x = nh // nkv, self.turn[pos.flatten()], x.reshape(B * T, C)                            # rep: queries per kv head
        if (i := batch.get('rc_i')) is not None:
            turn[i] = turns(cfg, pos.flatten()[i], turn.dtype, torch.arange(len(i), device=dev), batch['rc'])
        qkv = x.new_empty(B * T, nh + 2 * nkv, hd)                 # one buffer for all layers: what is a view of it is made once
        flat, q, qk, new = qkv.flatten(1), qkv[:, :nh].view(B, T, nkv, rep, hd), qkv[:, :nh + nkv], qkv[:, nh:].view(B * T, 2, nkv, hd)
        qk_complex = torch.view_as_complex(qk.unflatten(-1, (-1, 2))) if turn.dtype == x.dtype else None
        turn_complex = torch.view_as_complex(turn)
        seen = zip(*self.kv[:, :, :B, :, :S].flatten(2, 3).unbind(1)) if rows is None else [None] * L      # views: B is all, or the first
        here = self.kv[:, :, :B, :, S - 1].transpose(1, 2).unbind() if level else [None] * L               # of all; (B, 2, nkv, hd)
        if not level:
            at = (torch.arange(2, device=dev)[:, None] * R + slots[:, :, None]) * nkv + torch.arange(nkv, device=dev)
            at = (at[:, None] * size + pos[:, :, None, None]).flatten()        # (B, T, 2, nkv): rows of kv[layer] as (2 R nkv size, hd)
            mask = torch.zeros(B, T, S, dtype=x.dtype, device=dev)
            mask = mask.masked_fill_(torch.arange(S, device=dev) > pos[:, :, None], float('-inf'))
            mask = mask[:, None, :, None].expand(B, nkv, T, rep, S).reshape(B * nkv, T * rep, S)
        eps, eps_head = self.eps

        def add(x, y, w):                                          # to x, in its place where that can be: y w, summed over tp
            if g.size > 1 or not y.dtype == w.dtype == x.dtype:
                return x.add_(all_reduce(product(y, w).to(x.dtype), g))
            return torch.ops.mkldnn._linear_pointwise.binary(y, x, w, None, 'add') if w.is_mkldnn else x.addmm_(y, w)

        for (i, w), kv, near, place, read in zip(self.laid(B * T)[0].items(), self.kv, seen, here, self.mlp_in):
            w, gain, ve, out, mlp, gain2, shift = w
            product(unit(x, eps), w, out=flat)
            if ve is not None:
                new[:, 1] += F.embedding(batch['ids'], ve).view(B * T, nkv, hd)
            if gain is not None:
                torch.mul(unit(qk, eps_head), gain, out=qk)
            if qk_complex is not None:                             # rotate(), in its place
                qk_complex.mul_(turn_complex)
            else:
                qk.copy_(rotate(qk, turn))
            if level:
                place.copy_(new)
            else:
                kv.view(-1, hd).index_copy_(0, at, new.reshape(-1, hd))
            k, v = near if rows is None else kv[:, :, :, :S][:, rows].view(2, B * nkv, S, hd)
            y = (q if T == 1 else q.transpose(1, 2)).reshape(B * nkv, T * rep, hd)
            y = torch.bmm(y, k.transpose(1, 2)) if level else torch.baddbmm(mask, y, k.transpose(1, 2))
            y = torch.bmm(y.softmax(-1), v)
            x = add(x, y.view(B, nkv, T, rep, hd).transpose(1, 2).reshape(B * T, nh * hd) if T > 1 else y.view(B, nh * hd), out)
            h = unit(x, eps)
            if isinstance(mlp, tuple):
                if shift is not None:
                    read[slots, pos + 1] = h.view(B, T, C)
                    h.addcmul_(read[slots, pos].view(B * T, C), shift)
                h = product(h, mlp[0])
                x = add(x, h.relu_().square_() if cfg.act == 'relu2' else activation(h, cfg.act), mlp[1])
            else:                                                  # experts: the tokens are split over tp
                y = F.pad(h * gain2, (0, 0, 0, -B * T % g.size))[None]
                y = self.model.around(f'blocks.{i}', mlp, my_slice(y, g, 1) if mlp.mesh.sp else y, {})
                x = x + (all_gather(y, g, 1) if mlp.mesh.sp else y)[0, :B * T]
        return x.view(B, T, C)
