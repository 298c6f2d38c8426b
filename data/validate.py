"""
Validation losses of all data sets, over all ranks: each document once, by the trainer's own forward pass, also blind.
"""
import math
import numpy as np
import torch
from data.loader import eval_batches, to_device
from parallel import all_reduce, forward_only


def told(losses, blind, frequencies):
    """Losses of one data set, those of the blind control and the loss by unigram frequencies (None: not known) -> the words of the log."""
    other = {k: f' (blind {c:.4f})' for k, c in blind.items() if c and c != losses[k]}
    return (', '.join(f'{k} {v:.4f}{other.get(k, "")}' for k, v in losses.items())
            + ('' if frequencies is None else f'; text by unigram frequencies {frequencies:.4f}'))


@torch.no_grad()
def evaluate(models, mesh, sets, codec, compute, device, blind=False, **batch):
    """
    This rank's models and sets {data set: open_shards() of it} -> {data set: {txt, bpb, img, aud}} on every rank: nats per text token, bits
    per byte, weighted squared error of flow heads or, with bins, nats per number. batch: the sizes that eval_batches() takes.
    blind: the control, with all payloads in the input replaced by zeros.
    """
    out, kinds, cfg = {}, ('txt', 'img', 'aud'), models[0].cfg
    for m in models:
        m.eval()
    for name, s in sets.items():
        total, n = torch.zeros(3, dtype=torch.float64), np.zeros(4)
        for b, counts in eval_batches(s, codec, **batch):
            if blind:
                b['xin_img'].zero_(), b['xin_aud'].zero_()
            b = to_device(b, device, compute, codec, mesh, cfg)             # weights are 1, and 0 for padding
            o = forward_only(models, b, mesh, (*b['ids'].shape, cfg.n_embd), compute, device)
            if o:
                total += torch.stack([(o[f'{k}_each'].double() * b[f'{k}_w']).sum().cpu() if f'{k}_each' in o else torch.zeros(())
                                      for k in kinds])
            n += counts
        total = all_reduce(all_reduce(total.to(device), mesh.pp), mesh.dpcp).tolist()           # only the last stage has something to add
        n = all_reduce(torch.from_numpy(n).to(device), mesh.dp).tolist()
        r = {k: total[i] / n[i] for i, k in enumerate(kinds) if n[i]}
        if n[3]:
            r['bpb'] = total[0] / math.log(2) / n[3]
        out[name] = r
    for m in models:
        m.train()
    return out
