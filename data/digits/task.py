"""
Held-out handwritten digits: which one is it, and draw one.

    for p in problems('read', 64, codec):               # p['prompt']: document segments ending in <assistant>
        score = verify(p, {'text': '7<eot>'})           # draw: {'images': [uint8 (8, 8, 3)]}

What was drawn is judged by its nearest neighbour among the pictures of training, by the sum of squares, which reads 98% of the held-out
ones right (judge_alone).
"""
import re
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
from data.shards import shard_dir
from data.source import kept

CHANCE = dict(read=.1, draw=.1)
SKILLS = list(CHANCE)

def problems(skill, n, codec, seed=0, split='val', shards=''):
    """
    Up to n dicts: skill, prompt (segments), question, answer (str), chance; for draw also patches and the judge's `known`, (pixels float32
    (m, 64), what they are), one for all. read: a picture at most once. shards: '': data/digits/shards-TOKENIZER.
    """
    if skill not in CHANCE or split != 'val':
        raise ValueError(f'no problems for skill={skill!r}, split={split!r}: skills are {SKILLS}, the split is val')
    v, sp = kept(shards or shard_dir('digits', codec)), codec.sp
    pixels, name, held = v['pixels'], v['name'], np.flatnonzero(v['val'])
    known = pixels[~v['val']].reshape(-1, 64).astype(np.float32), name[~v['val']]
    ask = lambda text: [('ids', [sp['user']], 0), ('text', text, 0), ('ids', [sp['assistant']], 0)]
    if skill == 'draw':
        return [dict(skill=skill, prompt=ask(f'draw: {i % 10}'), question=f'draw: {i % 10}', answer=str(i % 10), chance=.1, patches=1,
                     known=known) for i in range(n)]
    return [dict(skill=skill, prompt=[('image', np.repeat(pixels[k][..., None], 3, 2), 0), *ask('digit?')], question='digit?',
                 answer=str(name[k]), chance=.1) for k in np.random.default_rng(seed).permutation(held)[:n]]

def nearest(known, img):
    """uint8 (8, 8, 3) -> what the nearest of the known pictures is."""
    pixels, name = known
    return int(name[np.square(pixels - np.asarray(img, np.float32).mean(-1).ravel()).sum(1).argmin()])

def judge_alone(shards):
    """The part of the held-out pictures that the judge of drawings reads right."""
    v = kept(shards)
    known = v['pixels'][~v['val']].reshape(-1, 64).astype(np.float32), v['name'][~v['val']]
    return float(np.mean([nearest(known, np.repeat(p[..., None], 3, 2)) == n for p, n in zip(v['pixels'][v['val']], v['name'][v['val']])]))

def verify(problem, output, codec=None):
    """output: dict with text (str, specials as <name>) or ids with codec, or images -> 1. if it is the digit, else 0."""
    if problem['skill'] == 'draw':
        made = output.get('images') or []
        return float(len(made) > 0 and made[0].shape == (8, 8, 3) and nearest(problem['known'], made[0]) == int(problem['answer']))
    text = codec.untext(output['ids']) if codec is not None and 'ids' in output else output.get('text', '')
    return float(re.split('<eot>|<user>', text)[0].strip() == problem['answer'])
