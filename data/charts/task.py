"""
Questions about charts that were never trained on, and the rules that judge the answers. See charts.py, prepare.py.

    for p in problems('value', 64, codec):              # p['prompt']: document segments ending in <assistant>
        score = verify(p, {'text': '40<eot>'})          # 1. or 0.

Values count within one grid step (pies: 5 percent), differences within half a step, names exactly. Text is only compared.
"""
import random
import re
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data.charts import charts as G
from data.scenes.prepare import ask

# skill -> what the best answer scores that is always the same (tests/test_skills.py counts it)
CHANCE = dict(value=.25, largest=.1, difference=.22, trend=.36, crossing=.12)
SKILLS = list(CHANCE)

def problems(skill, n, codec, seed=0, split='val', shards=''):
    """-> n dicts: skill, prompt (segments), question and answer (str), kind of chart, step (what a number may be off by; 0 for
    names), chance, held (every even one if split is 'val', none if it is 'train'). The same for the same arguments."""
    if skill not in SKILLS or split not in ('train', 'val'):
        raise ValueError(f'no problems of skill={skill!r}, split={split!r}: there are {", ".join(SKILLS)}; train, val')
    return [problem(skill, random.Random(f'charts/problem/{seed}/{split}/{skill}/{i}'), split == 'val' and i % 2 == 0, codec)
            for i in range(n)]

def problem(skill, rng, held, codec):
    """One of problems(), drawn from rng (random.Random)."""
    kinds = dict(trend=['line', 'scatter'], crossing=['line']).get(skill, G.KINDS)
    found = None
    while not found:
        ch = G.chart(rng, held, rng.choice(kinds), rising=skill == 'crossing')
        found = G.QUESTIONS[skill](rng, ch)
    q, a, _ = found
    return dict(skill=skill, prompt=ask(codec, [q], [('image', ch.img, 0)]), question=q, answer=a, kind=ch.kind,
                step=ch.step // dict(value=1, difference=2).get(skill, ch.step + 1), chance=CHANCE[skill], held=held)

def verify(problem, output, codec=None):
    """-> float: the score of judge()."""
    return judge(problem, output, codec)['score']

def judge(problem, output, codec=None):
    """output: dict with text (str, specials as <name>), or ids if codec is given -> dict(score, exact), each 1. or 0."""
    try:
        text = codec.untext(output['ids']) if codec and 'ids' in output else output['text']
        text = re.split('<eot>|<user>', text)[0].strip()
        exact = float(text == problem['answer'])
        near = problem['step'] and re.fullmatch('[0-9]{1,5}', text, re.ASCII) and \
            abs(int(text) - int(problem['answer'])) <= problem['step']
        return dict(score=float(bool(exact or near)), exact=exact)
    except Exception:                                   # whatever a model may have made, it is only a wrong answer
        return dict(score=0., exact=0.)
