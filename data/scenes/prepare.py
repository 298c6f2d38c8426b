"""
The embedded data set: generated pictures, sounds and questions about them (see scenes.py). Needs nothing from outside.

    python data/scenes/prepare.py                       # about 10 s on 2 cores; train.py does it by itself

Documents, every one short, so that a model of 1-2 M parameters learns them in minutes on a CPU:
    ask      <boi> h w ... <eoi> <user>how many red?<assistant>2<eot> <user>where is pink 3?<assistant>top left<eot>
    chart    <boi> h w ... <eoi> <user>how tall is red?<assistant>4<eot> <user>which is tallest?<assistant>blue<eot>
    draw     <user>draw: a red circle and a blue 3<assistant><boi> h w ... <eoi><eot>
    notes    <user><boa> ... <eoa>notes?<assistant>C E G<eot>
    play     <user>play: C E G<assistant><boa> ... <eoa><eot>
Questions have weight 0, answers 1. The picture or sound before a question is learned in 10% of the documents. 10% of
the draw and play prompts are empty, <user><assistant>, for guidance. Objects whose colour has no name go by `shape` alone.

Document i of a split depends on (seed, split, i) only. The training split never contains a held-out combination
(colour with shape or digit, colour with height of bar, melody: listed in scenes.py). In the validation split every even
document does contain one, every odd one is a fresh sample of what training is made of.
"""
import random
import sys
from functools import partial
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import configure
from data.codec import BadInput, Codec, mel
from data.shards import shard_dir, write_shards
from data.scenes import scenes as S
from data.source import guard
from data.workers import made

n_train = 40000  # documents
n_val = 1500
seed = 0
workers = 2  # processes
p_nameless = .15  # share of objects in colours that no word names: asked for by shape alone, which is learned apart from colour
p_draw, p_chart, p_notes, p_play = .2, .09, .05, .08  # shares of the kinds of documents; the rest is ask
tokenizer = 'bytes'  # see data/codec.py
n_loc = 64  # bins of a coordinate
out = ''  # folder; '': data/scenes/shards-TOKENIZER

def ask(codec, question, before=(), inner=()):
    """The prompt as segments of weight 0: those in `before`, <user>, those in `inner`, the question, <assistant>."""
    return [*before, ('ids', [codec.sp['user']], 0), *inner, *say(question, 0), ('ids', [codec.sp['assistant']], 0)]

def say(parts, w=1):
    """List of str and ids -> document segments of weight w."""
    return [('text', p, w) if isinstance(p, str) else ('ids', [p], w) for p in parts]

def questions(rng, sc, codec):
    """
    Scene -> 1 to 7 different (question, answer): what each object is, once, and other kinds, in any order, since what comes later may lean
    on what was said, and so is not learned from the picture. A caption comes last: it gives all away.
    """
    what = lambda o: (S.what if o.colour in S.PALETTE and rng.random() < .6 else S.shape)(rng, sc._replace(objs=[o]), codec)
    found = [*map(what, sc.objs), *(k(rng, sc, codec) for k in (S.count, S.where, S.relation, S.point, S.box))]
    found = [q for q in rng.sample(found, len(found)) if q][:7]          # a picture's positions are paid for once
    last = S.caption(rng, sc, codec) if rng.random() < .35 else None
    if last:                                                            # alone or instead of another one
        found = [*(found[:-1] if rng.random() < .6 else []), last]
    return [(q, a) for q, a, _ in found]

def document(i, split, codec, seed=0, shares=(p_draw, p_chart, p_notes, p_play)):
    """-> document i of split 'train' or 'val': a list of segments."""
    rng = random.Random(f'{seed}/{split}/{i}')
    held, eot, rarely = split == 'val' and i % 2 == 0, ('ids', [codec.sp['eot']]), lambda: int(rng.random() < .1)
    nameless = 0 if held else p_nameless
    kind = rng.choices(['draw', 'chart', 'notes', 'play', 'ask'], [*shares, 1 - sum(shares)])[0]
    if kind == 'draw':
        sc = S.poster(rng, held, nameless)
        return [*ask(codec, [] if rarely() else ['draw: ' + S.describe(sc.objs)]), ('image', sc.img), eot]
    if kind in ('notes', 'play'):
        notes = S.melody(rng, held, (3, 4) if held else (1, 2, 3, 3, 3, 4, 4, 4))
        text, sound = ' '.join(notes), mel(S.wave(rng, notes))
        if kind == 'notes':
            return [*ask(codec, ['notes?'], inner=[('audio', sound, rarely())]), ('text', text), eot]
        return [*ask(codec, [] if rarely() else ['play: ' + text]), ('audio', sound), eot]
    sc = S.chart(rng, held) if kind == 'chart' else S.scene(rng, held, p_nameless=nameless)
    if kind == 'chart':                                                 # up to 3 different questions
        pairs = {tuple(q): (q, a) for q, a, _ in (S.bars(rng, sc, codec) for _ in range(3))}.values()
    else:
        pairs = questions(rng, sc, codec)
    return [('image', sc.img, rarely()), *(s for q, a in pairs for s in [*ask(codec, q), *say(a), eot])]

if __name__ == '__main__':
    configure(globals())
    with guard('scenes'):
        codec, shares = Codec(tokenizer, n_loc), (p_draw, p_chart, p_notes, p_play)
        if n_train < 1 or n_val < 1 or workers < 1 or min(shares) < 0 or sum(shares) > 1 or not 0 <= p_nameless <= 1:
            raise BadInput(f'n_train={n_train}, n_val={n_val}, workers={workers}: at least 1 of each; '
                           f'p_draw, p_chart, p_notes, p_play={shares}: none below 0, together at most 1; '
                           f'p_nameless={p_nameless}: from 0 to 1')
        docs = {s: made(partial(document, split=s, codec=codec, seed=seed, shares=shares), n, workers)
                for s, n in (('train', n_train), ('val', n_val))}
        info = dict(licence='MIT, as nanoMuse itself', source='generated by data/scenes/scenes.py', skipped={})
        write_shards(out or shard_dir('scenes', codec), docs, codec, info)
