"""
What rl.py makes of rollouts: thought and answer, batches, and figures that tell whether something goes wrong.
"""
import math
import numpy as np
import torch
from data.collate import collate
from parallel import zigzag


def split(codec, ids):
    """
    What came after a prompt -> thought, answer: what stands before the last </think> or </out>, and behind it; no answer in an open thought
    or call.
    """
    sp, ids = codec.sp, [i for i in ids if i not in [codec.sp[k] for k in ('eot', 'img', 'aud')]]
    marks = [k for k, i in enumerate(ids) if i in [sp[m] for m in ('think', '/think', 'tool', '/tool', '/out')]]
    end = (marks[-1] if ids[marks[-1]] in (sp['/think'], sp['/out']) else len(ids)) if marks else -1
    return codec.untext([i for i in ids[:max(end, 0)] if i != sp['think']]), codec.untext(ids[end + 1:])


def pass_at(k, right, n):
    """Probability that one of k rollouts is right, when `right` of n were: 1 - C(n - right, k) / C(n, k), unbiased (Chen et al. 2021)."""
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def repeated(ids, n=8):
    """Share of a sequence's n-grams that came before in it."""
    grams = [tuple(ids[i:i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def figures(groups, steps):
    """
    What the log shows of some rollouts: lists of those of rl.ask(). steps: of the task, (problem, thought) -> how many of its steps are
    right, and how many there are. entropy: nats per drawn token, estimated by minus its log-probability.
    """
    every = [o for g in groups for o in g]
    mean = lambda xs: float(np.mean(xs)) if len(xs) else 0.0
    right, total = np.sum([(0, 0)] + [steps(o['problem'], o['thought']) for o in every if o['done']], 0)
    return dict(pass1=mean([o['r'] for o in every]), length=mean([o['n'] for o in every]), truncated=mean([not o['done'] for o in every]),
                length_right=mean([o['n'] for o in every if o['r'] > 0]), length_wrong=mean([o['n'] for o in every if o['r'] == 0]),
                skill=float(right / max(total, 1)), entropy=-mean(np.concatenate([o['logp'][o['w'] > 0] for o in every])),
                repeat=mean([repeated(o['ids']) for o in every]), disagree=sum(o['r'] != o['second'] for o in every))


def passes(groups):
    """Lists of as many rollouts each -> pass1, pass4, pass16, as far as there are so many, by the second verifier."""
    n, right = len(groups[0]), [sum(o['second'] > 0 for o in g) for g in groups]
    return {f'pass{k}': float(np.mean([pass_at(k, c, n) for c in right])) for k in (1, 4, 16) if k <= n}


def refusals(f, config):
    """Figures of the warm start -> [why rl.py does not begin with it]."""
    skill, cut, c = f['skill'], f['truncated'], config
    return [say for ok, say in (
        (skill >= c['min_skill'], f"{skill:.1%} of the steps in the warm start's thoughts are right, RL wants {c['min_skill']:.0%}, or it "
         f"loses more than it finds: train it longer (config/sft_{c['task']}.py, more --max_steps), or accept it by --min_skill"),
        (cut <= 0.1 or c['budget'], f"{cut:.0%} of its rollouts do not end within max_new={c['max_new']}: raise it"),
        (f.get('pass16') != 0, f"pass@16 is 0 at levels {c['levels']}: there is nothing to make more of: choose easier --levels")
    ) if not ok]


def alarms(f, first):
    """Figures now and in step 1 -> [what is wrong, and what to change]."""
    get = lambda k: f.get(k, 0)
    return [say for bad, say in (
        (f['entropy'] < 0.1 * first['entropy'], f'entropy {f["entropy"]:.4f}: it has collapsed: lower --lr, or raise --kl'),
        (f['repeat'] > 0.5, f'{f["repeat"]:.0%} of 8-grams are repetitions: it goes round in circles: lower --lr, or raise --lam'),
        (f['truncated'] > first.get('truncated', 0) + 0.25,
         f'{f["truncated"]:.0%} of rollouts are truncated: lengths explode: raise --max_new, or --lam'),
        (f['disagree'] > 0, f'{f["disagree"]} answers divide the two verifiers: one is wrong, or gamed: read `strange` in metrics.jsonl'),
        (get('canary') > 0, f'{get("canary")} rewards for problems without a solution: the verifier is gamed: stop, and repair verify()'),
        (get('gap') > 0.15, f'{get("gap"):.0%} more solved in training than held-out: learned by heart: lower --epochs or --lr'),
        (get('twin') > 0.2, f'problems in another order are solved {get("twin"):.0%} less often: learned by heart: lower --epochs or --lr')
    ) if bad]


def pack(rolls, T, micro, mesh, codec, past=0, times=1):
    """
    Rollouts (doc: encoded prompt and what followed; first: where that begins) -> this rank's microbatches [(batch, where)]. Longest first,
    each into the first row of T positions with room; empty rows make the microbatches full. where: for each text target of the batch the
    number of its token when what followed the prompts is laid end to end; -1: not learned from. Patches and frames are not in the loss.
    times: microbatches come in such groups (interleaved stages).
    """
    cat = lambda k: np.concatenate([r['doc'][k] for r in rolls])
    at = np.cumsum([[0, 0, 0]] + [[len(r['doc'][k]) for k in ('ids', 'patches', 'frames')] for r in rolls], 0)
    s = dict(ids=cat('ids'), w=cat('w'), patch=cat('patches'), rc=cat('rc'), frame=cat('frames'), doc=at)     # as shards.open_shards
    first, size = np.array([r['first'] for r in rolls]), np.diff(at[:, 0])
    begin, rows, room = np.cumsum(size - first) - (size - first), [], []
    for d in np.argsort(-size, kind='stable').tolist():
        n = int(size[d]) - 1
        b = next((b for b, left in enumerate(room) if left >= n), len(rows))
        if b == len(rows):
            rows.append([]), room.append(T)
        rows[b].append((s, d, 0, n))
        room[b] -= n
    rows += [[] for _ in range(-len(rows) % (micro * times * mesh.dp.size))]
    mine, out = len(rows) // mesh.dp.size, []
    cols = zigzag(T, mesh.cp.size, mesh.cp.rank) if mesh.cp.size > 1 else torch.arange(T)
    for a in range(mesh.dp.rank * mine, (mesh.dp.rank + 1) * mine, micro):
        b, _ = collate(rows[a:a + micro], T, codec, 1, [(0, 0, r) for r in range(a, a + micro)], mesh.cp.size, mesh.cp.rank, past)
        i, learn = b['txt_i'].numpy(), b['txt_w'].numpy() > 0
        chunk, pos = b['doc'][:, cols].reshape(-1).numpy()[i], b['pos'].reshape(-1).numpy()[i]
        d = np.array([rows[a + r][k][1] if ok else 0 for r, k, ok in zip(i // len(cols), chunk, learn)], np.int64)
        b['img_w'].zero_(), b['aud_w'].zero_()
        out.append((b, np.where(learn, begin[d] + pos + 1 - first[d], -1)))
    return out
