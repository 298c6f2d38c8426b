"""
Riddles that were never trained on, to be answered with a thought in pictures or without. See visual.py, prepare.py.

    for p in problems('maze', 64, codec):               # p['prompt']: document segments ending in <assistant>
        score = verify(p, {'text': '<think>...</think>red<eot>'})       # 1. or 0.

Skills: peek, maze, tangle, puzzle with a thought; `say maze` and so on without; `wait maze`, maze, tangle, puzzle only and not in SKILLS:
with empty pictures. What the environment does while a model thinks is on_stop(); p['thought'] is the true thought, so that a model can be
made to go on from it, or from another problem's: then its answer must be wrong, or the pictures were not what it thought with.
"""
import random
import re
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
from data.media import PATCH
from data.visual import visual as V
from data.visual.prepare import prompt

# riddle -> what the best answer scores that is always the same; guessing among what the picture shows is no better
CHANCE = dict(peek=.1, maze=.25, tangle=.25, puzzle=.25)
SKILLS = [*CHANCE, *(f'say {k}' for k in CHANCE)]
EXTRA = [f'wait {k}' for k in CHANCE if k != 'peek']

def problems(skill, n, codec, seed=0, split='val', shards=''):
    """
    -> n dicts: skill, prompt (segments), question, answer (str), chance, held (every even one if split is 'val', none if it is 'train');
    for the engine: max_new, patches (of a picture, at most), stop (ids at which on_stop is asked); source (peek: the original, uint8),
    thought (segments) and steps (its pictures). The same riddles for the same arguments, with and without a thought.
    """
    mode, kind = ('think ' + skill).split()[-2:]
    if skill not in SKILLS + EXTRA or split not in ('train', 'val'):
        raise ValueError(f'no problems of skill={skill!r}, split={split!r}: there are {", ".join(SKILLS + EXTRA)}; train, val')
    out = []
    for i in range(n):
        held = split == 'val' and i % 2 == 0
        r = V.RIDDLES[kind](random.Random(f'visual/problem/{seed}/{split}/{kind}/{i}'), held)
        drawn = 0 if mode == 'say' else sum(s.size // 3 // PATCH ** 2 + 5 for s in r.steps) + 8
        p = dict(skill=skill, prompt=prompt(r, mode, codec), question=r.question, answer=r.answer, chance=CHANCE[kind], held=held,
                 max_new=16 + drawn * 3 // 2, patches=max([s.size // 3 // PATCH ** 2 for s in r.steps], default=V.CROP), source=r.source,
                 stop=(codec.sp['look'],) if mode == 'think' and r.source is not None else (), steps=r.steps)
        out.append(p if mode == 'say' else dict(p, thought=V.thought(r, codec, mode == 'wait')))
    return out

def on_stop(p, row, codec):
    """For Engine(on_stop=...): at `<box> x0 y0 x1 y1 <look>` the crop of p['source'], anything else ends the row."""
    ids = row.ids[-6:]
    if p['source'] is None or len(ids) < 6 or ids[0] != codec.sp['box'] or ids[5] != codec.sp['look'] or min(ids[1:5]) < codec.loc0:
        return None
    crop = V.look(p['source'], [codec.unloc(i) for i in ids[1:5]])
    return crop and [crop]

def stranger(p, ps):
    """Another of the problems ps, whose thought has p's place in it but another answer; None if there is none."""
    size = lambda q: [np.shape(s) for s in q['steps'][:1]]
    return next((q for q in ps if q['answer'] != p['answer'] and size(q) == size(p)), None)

def verify(problem, output, codec=None):
    """-> float: the score of judge()."""
    return judge(problem, output, codec)['score']

def judge(problem, output, codec=None):
    """output: dict with text (str, specials as <name>), or ids if codec is given; images [uint8 (H, W, 3)] -> dict: score: 1 for the exact
    answer behind the thought (without a thought where none is allowed), else 0; drawn: the part of the thought's pictures that are right
    in every patch (off by less than 16 levels on average), None where there is nothing to draw."""
    try:
        text = codec.untext(output['ids']) if codec and 'ids' in output else output['text']
        text = re.split('<eot>|<user>', text)[0]
        open_, answer = text.count('<think>') - text.count('</think>'), text.split('</think>')[-1].strip()
        said = open_ == 0 and not ('<think>' in text and problem['skill'].startswith('say '))
        score = dict(score=float(said and answer == problem['answer']), drawn=None)
    except Exception:                                   # whatever a model may have made, it is only a wrong answer
        return dict(score=0., drawn=None)
    try:
        if problem['steps'] and not problem['skill'].startswith('say '):
            right = [near(a, b) for a, b in zip(problem['steps'], output.get('images') or [])]
            score['drawn'] = sum(right) / len(problem['steps'])
    except Exception:
        score['drawn'] = 0.
    return score

def near(a, b):
    """Two uint8 (8h, 8w, 3): is every patch the same, but for 16 levels on average?"""
    a, b = np.asarray(a, int), np.asarray(b, int)
    return a.shape == b.shape and bool((abs(a - b).reshape(len(a) // PATCH, PATCH, -1, PATCH * 3).mean((1, 3)) < 16).all())
