"""
Between the engine and what its model says: turns and reports as documents, tools that are run while a row waits, agents that answer.

Nothing here knows the model: agent_step() asks the engine that calls it (sample.py).
"""
from collections import Counter
import numpy as np
import torch.distributed as dist
from PIL import Image
from data.media import check, load_image
from data.tools import call


def turn(codec, text, images=(), sounds=()):
    """The segments of a user's turn, up to the point where the assistant speaks. Pictures come first, sounds inside the turn."""
    return [*(('image', x, 0) for x in images), ('ids', [codec.sp['user']], 0), *(('audio', x, 0) for x in sounds), ('text', text, 0),
            ('ids', [codec.sp['assistant']], 0)]


def reports(codec, said):
    """What agents have to say (list of str) as segments, for the one who reads them."""
    return [x for s in said for x in (('ids', [codec.sp['report']], 0), ('text', s, 0), ('ids', [codec.sp['/report']], 0))]


def report(codec, ids):
    """What an agent has to say, str: its last <report>, else what stands behind its last thought or tool; nothing inside of one."""
    sp = codec.sp
    said = [i for i in ids if not sp['r0'] <= i <= sp['r7'] and i not in [sp[k] for k in ('eot', 'img', 'aud', 'agent')]]
    ends = {sp[k]: k for k in ('think', '/think', 'tool', '/out', 'report')}
    at = max((k for k, i in enumerate(said) if i in ends), default=-1)
    last = said[at + 1:]
    last = last[:last.index(sp['/report'])] if sp['/report'] in last else last
    return '' if at >= 0 and ends[said[at]] in ('think', 'tool') else codec.untext(last).strip()


def agent_step(engine, row):
    """
    on_stop of rows with a ctx (data/tools.py): what they say between <tool> and </tool> is run, by the first rank of the model for all, and
    the result goes between <out> and </out>. ground, draw and spawn ask the model itself: new requests to this engine, for which the row
    waits; their random numbers are a hash of the row's. ctx may also have
        max_new   positions of a sub-agent (256)
        room      positions of the whole document: a result that does not fit is left out, and the row ends where it is full
    n sub-agents share the row's pictures and get an nth part of its `tokens` each, of which those that may have agents themselves keep half
    for these; what they do not say comes back.
    """
    c, sp, ctx, mesh, said, asked = engine.codec, engine.codec.sp, row.ctx, engine.model.mesh, [], []
    if ctx is None or row.ids[-1] != sp['/tool']:
        return None
    ids = [*row.prompt['ids'].tolist(), *row.ids[:-1]]
    last = max((k for k, i in enumerate(ids) if i in (sp['tool'], sp['/tool'])), default=0)
    text, tokens = c.untext(ids[last + 1:]) if ids[last] == sp['tool'] else '', ctx.get('tokens', 0)
    small = lambda k: load_image(Image.fromarray(ctx['images'][k]), engine.max_patches, c.n_loc - 1)

    def ask(*documents, **options):
        asked[:] = [(d, options) for d in documents]
        return [r.result for r in said]                                # none yet when the call is made first

    def ground(query, image):
        found, = ask(turn(c, query, [small(image)]), max_new=64, temperature=0)
        return [('ids', [i for i in found['ids'] if i < c.n_text or i >= c.loc0 or i in (sp['point'], sp['box'])], 0)]

    def draw(prompt):
        made, = ask(turn(c, prompt), max_new=engine.max_patches + 8)
        check(made['images'], 'nothing was drawn')
        return made['images'][0]

    def spawn(tasks):
        share, pictures = tokens // len(tasks), [small(k) for k in range(len(ctx.get('images', ())))]
        check(share, f'{tokens} tokens are left, too few for {len(tasks)} agents')
        own = min(-(-share // 2) if ctx['depth'] > 1 else share, ctx.get('max_new', 256))
        said = ask(*([*turn(c, t, pictures), ('ids', [sp['agent']], 0)] for t in tasks), max_new=own,
                   ctx=dict(ctx, depth=ctx['depth'] - 1, tokens=share - own))
        return [report(c, r['ids']) for r in said]

    def answer():
        """The call: once to see what it asks the model (what it returns is of no use then), once more with the answers."""
        more = dict(tokens=tokens, n_loc=c.n_loc, max_patches=engine.max_patches, ground=ground, draw=draw, spawn=spawn)
        box = [(call(text, {**ctx, **more}), asked) if mesh.tp.rank == mesh.pp.rank == 0 else None]
        for g in (mesh.tp, mesh.pp):
            if g.size > 1:
                dist.broadcast_object_list(box, g.ranks[0], group=g.pg)
        result, asked[:] = box[0]
        for out in (result, [('text', 'error: no room for the result', 0)]):
            out = [('ids', [sp['out']], 0), *out, ('ids', [sp['/out']], 0)]
            free = ctx.get('room', 1 << 30) - len(ids) - 1 - len(c.encode(out)['ids'])
            if free > 0:
                row.left = min(row.left, free)
                return out

    def back(_):
        if all(r.result for r in said):
            for r in said:
                if r.ctx:
                    ctx['tokens'] += r.left + r.ctx['tokens']
            out = answer()
            engine.insert(row, out) if out else engine.end(row)

    out, (t, k, p) = answer(), row.knobs
    for j, (document, options) in enumerate(asked):
        options = dict(dict(temperature=t, top_k=k, top_p=p), **options)
        if 'ctx' in options:
            options['ctx'] = dict(options['ctx'])
            ctx['tokens'] -= options['max_new'] + options['ctx']['tokens']
        said.append(engine.add(c.encode(document), seed=int(row.key[0]), index=64 * len(ids) + j, on_end=back, **options))
    return 'wait' if said else out


def majority(answers):
    """The most frequent; the first of several."""
    return Counter(answers).most_common(1)[0][0] if answers else ''


def latency(row):
    """Decode steps that a row took one after the other: a position said (pictures are not counted) or a document read, each one."""
    w = np.array(row.w)
    return int(w.sum() + (np.diff(w, prepend=1) < 0).sum())
