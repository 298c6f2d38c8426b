"""
Rows of chunks of documents -> the tensors of a batch, for one context-parallel rank.

Targets are shifted here, so a split of the row along T needs no halo. Payloads travel compactly: *_i are flat positions into this rank's
(B, T), sorted; everything else has one entry per such position.
"""
import numpy as np
import torch
from data.media import D

PAD = 128                       # compact arrays are padded to a multiple of it


def loc_rc(ids, codec):
    """
    ids (..., T) -> (..., T, 2): a loc token says its value as `row` in the features that patches have too, and the loc token before it as
    `column`: the y of a point (x, y) has the features of the patch that it lies in. -1 where there is none.
    """
    v = np.where(ids >= codec.loc0, (ids - codec.loc0 + np.float32(0.5)) / np.float32(codec.n_loc), np.float32(-1))
    before = np.concatenate([np.full_like(v[..., :1], -1), v[..., :-1]], -1)
    return np.stack([v, np.where(v >= 0, before, np.float32(-1))], -1)


def collate(rows, T, codec, draws, keys, cp=1, cp_rank=0, past=0):
    """
    Chunks of B rows -> a batch for one context-parallel rank (cp = 1: whole rows), as torch tensors:
        ids (B, Tl), pos (B, Tl) int64; doc (B, T) int32, whole rows, -1 padding (attention masks need the other ranks' documents too)
        past (B, Tl, past) int64: the ids before each, of its document in this row, the nearest first; -1: none
        txt_i (N,) positions with a text target, txt_y (N,) ids, txt_w (N,) weights
        img_i, img_y (N, D), img_w, img_e (N, draws, D) flow noise, img_t (N, draws) times; likewise aud_*
        xin_img_i (N,), xin_img (N, D) patches as input; xin_aud_i, xin_aud
        rc_i (N,), rc (N, 4) own and next centre of patches, loc_rc() of loc tokens; -1: none
    Compact arrays are padded to a multiple of PAD, so that kernels meet few sizes, with entries that add nothing (position 0, weight 0,
    payload 0, no coordinates). Also returns the counts of targets of the *whole* rows, (text, image, audio, bytes of text).
    keys: per row the key of its flow noise and times.
    """
    B, img, aud, eoi = len(rows), codec.sp['img'], codec.sp['aud'], codec.sp['eoi']
    ids, tgt = np.full((B, T), codec.sp['pad'], np.int64), np.full((B, T), codec.sp['pad'], np.int64)
    w, pos, doc = np.zeros((B, T), np.uint8), np.zeros((B, T), np.int64), np.full((B, T), -1, np.int32)
    rc = np.full((B, T, 4), -1, np.float32)
    out = {k: [] for k in ('xin_img_i', 'xin_img', 'xin_aud_i', 'xin_aud', 'img_i', 'img_y', 'aud_i', 'aud_y')}
    for b, chunks in enumerate(rows):
        at = 0
        for k, (s, d, first, n) in enumerate(chunks):
            lo, p0, f0 = (int(v) for v in s['doc'][d])
            a = s['ids'][lo + first:lo + first + n + 1].astype(np.int64)
            ids[b, at:at + n], tgt[b, at:at + n] = a[:-1], a[1:]
            w[b, at:at + n] = s['w'][lo + first + 1:lo + first + n + 1]
            pos[b, at:at + n], doc[b, at:at + n] = np.arange(n), k
            for kind, ph, data, off in (('img', img, s['patch'], p0), ('aud', aud, s['frame'], f0)):
                if len(data) == 0:
                    continue
                where = np.flatnonzero(a == ph)          # windows of long documents have none; whole documents start at payload `off`
                if len(where) == 0:
                    continue
                v = np.zeros((len(where), D), np.float32)
                raw = data[off:off + len(where)]
                v[:, :raw.shape[1]] = raw / np.float32(127.5) - 1 if kind == 'img' else raw
                own, nxt = where < n, where > 0          # as inputs, as targets
                out[f'xin_{kind}_i'].append(b * T + at + where[own]), out[f'xin_{kind}'].append(v[own])
                out[f'{kind}_i'].append(b * T + at + where[nxt] - 1), out[f'{kind}_y'].append(v[nxt])
                if kind == 'img':
                    c = s['rc'][off:off + len(where)]
                    rc[b, at + where[own], :2], rc[b, at + where[nxt] - 1, 2:] = c[own], c[nxt]
            at += n
    before = np.full((B, T, past), -1, np.int64)
    for k in range(1, min(past, T - 1) + 1):
        before[:, k:, k - 1] = np.where(pos[:, k:] >= k, ids[:, :-k], -1)
    at_loc = loc_rc(ids, codec)
    at_loc[pos == 0, 1] = -1                             # what comes before belongs to another document
    rc[..., :2] = np.where((ids >= codec.loc0)[..., None], at_loc, rc[..., :2])
    cat = lambda k, width: np.concatenate(out[k]) if out[k] else np.zeros((0, width) if width else 0, np.float32 if width else np.int64)
    g = {k: cat(k, 0 if k.endswith('_i') else D) for k in out}
    learn = w.reshape(-1) > 0
    is_txt = learn & (tgt.reshape(-1) != img)
    g['txt_i'] = np.flatnonzero(is_txt)
    g['txt_y'] = tgt.reshape(-1)[g['txt_i']]
    for kind in ('img', 'aud'):
        keep = learn[g[f'{kind}_i']]
        g[f'{kind}_i'], g[f'{kind}_y'] = g[f'{kind}_i'][keep], g[f'{kind}_y'][keep]
        n_row = np.bincount(g[f'{kind}_i'] // T, minlength=B)
        e, t = [np.zeros((0, draws, D), np.float32)], [np.zeros((0, draws), np.float32)]
        for b in np.flatnonzero(n_row):                  # drawn for the whole row, then sliced: never depends on the layout
            rng = np.random.Generator(np.random.Philox(key=keys[b][0] * 1000003 + (11 if kind == 'img' else 13),
                                                       counter=[0, 0, keys[b][1], keys[b][2]]))
            e.append(rng.standard_normal((n_row[b], draws, D), np.float32))
            t.append(1 / (1 + np.exp(-rng.standard_normal((n_row[b], draws), np.float32))))
        g[f'{kind}_e'], g[f'{kind}_t'] = np.concatenate(e), np.concatenate(t)
    g['rc_i'] = np.flatnonzero((rc >= 0).any(-1).reshape(-1))
    g['rc'] = rc.reshape(-1, 4)[g['rc_i']]
    counts = np.array([len(g['txt_i']), len(g['img_i']), len(g['aud_i']), codec.n_bytes(g['txt_y'])], np.float64)
    if cp > 1:                                           # zigzag: of 2 cp chunks this rank holds number cp_rank and its mirror image
        h = T // (2 * cp)
        cols = np.r_[cp_rank * h:(cp_rank + 1) * h, T - (cp_rank + 1) * h:T - cp_rank * h]
        new = np.full(T, -1)
        new[cols] = np.arange(2 * h)
        for name in ('xin_img', 'xin_aud', 'img', 'aud', 'txt', 'rc'):
            i = g[f'{name}_i']
            g[f'{name}_i'] = i // T * (2 * h) + new[i % T]
            mine = np.flatnonzero(new[i % T] >= 0)
            mine = mine[np.argsort(g[f'{name}_i'][mine], kind='stable')]
            for k in [k for k in g if k == name or k.startswith(name + '_')]:
                g[k] = g[k][mine]
        ids, pos, before = ids[:, cols], pos[:, cols], before[:, cols]
    for name in ('txt', 'img', 'aud'):
        g[f'{name}_w'] = np.ones(len(g[f'{name}_i']), np.float32)
    for k, v in g.items():
        g[k] = np.concatenate([v, np.full((-len(v) % PAD, *v.shape[1:]), -1 if k == 'rc' else 0, v.dtype)])
    g.update(ids=ids, pos=pos, doc=doc, **({'past': before} if past else {}))
    return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in g.items()}, counts


def features(codec, e, blind=False, before=-1):
    """
    An encoded document -> what the model reads: ids (n,), rc (n, 4) own and next coordinates, x (k, D) float32 the payloads of its <img>
    and <aud>, in order. blind: zeros instead. before: the id in front of the document.
    """
    ids, img, aud = e['ids'], codec.sp['img'], codec.sp['aud']
    rc, at = np.full((len(ids), 4), -1, np.float32), np.flatnonzero(ids == img)
    rc[at, :2], rc[at - 1, 2:] = e['rc'], e['rc']                      # an <img> is never first: its header is
    rc[:, :2] = np.where((ids >= codec.loc0)[:, None], loc_rc(np.r_[before, ids], codec)[1:], rc[:, :2])
    kind = ids[np.isin(ids, (img, aud))]
    x = np.zeros((len(kind), D), np.float32)
    if not blind:
        x[kind == img] = e['patches'] / np.float32(127.5) - 1
        x[kind == aud, :e['frames'].shape[1]] = e['frames']
    return ids, rc, x
