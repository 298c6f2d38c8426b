"""
Held-out emoji (or pictures of your own): which of 16 names is it?

    for p in problems('name', 64, codec):               # p['prompt']: document segments ending in <assistant>
        score = verify(p, {'text': 'avocado<eot>'})     # or text = the candidate of p['choices'] that scores best

The candidates are names of held-out pictures of 16 different families: never two skin tones or genders of one emoji.
"""
import re
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
from data.shards import shard_dir
from data.source import kept

CHOICES = 16
CHANCE = dict(name=1 / CHOICES)
SKILLS = list(CHANCE)

def problems(skill, n, codec, seed=0, split='val', shards=''):
    """n dicts: skill, prompt (segments), answer (str), choices ([str], shuffled, the answer among them), chance. A
    picture comes again, with other candidates, when all were asked for. shards: '' = data/emoji/shards-TOKENIZER."""
    if skill not in CHANCE or split != 'val':
        raise ValueError(f'no problems for skill={skill!r}, split={split!r}: the skill is name, the split val')
    v, sp, out = kept(shards or shard_dir('emoji', codec)), codec.sp, []
    ends = np.cumsum(v['shape'].prod(1))
    for i in range(n):
        rng = np.random.default_rng((seed, i))
        asked = np.random.default_rng((seed, i // len(ends), 7)).permutation(len(ends))[i % len(ends)]
        chosen = {v['family'][asked]: str(v['name'][asked])}
        for k in rng.permutation(len(ends)):
            if len(chosen) < CHOICES and v['family'][k] not in chosen and v['name'][k] not in chosen.values():
                chosen[v['family'][k]] = str(v['name'][k])
        choices = rng.permutation(list(chosen.values())).tolist()
        img = v['pixels'][ends[asked] - v['shape'][asked].prod():ends[asked]].reshape(v['shape'][asked])
        prompt = [('image', img, 0), ('ids', [sp['user']], 0), ('text', 'name?', 0), ('ids', [sp['assistant']], 0)]
        answer = str(v['name'][asked])
        out.append(dict(skill=skill, prompt=prompt, answer=answer, choices=choices, chance=1 / len(choices)))
    return out

def verify(problem, output, codec=None):
    """output: dict with text (str, specials as <name>), or ids if codec is given -> 1. for exactly the name, else 0."""
    text = codec.untext(output['ids']) if codec is not None and 'ids' in output else output.get('text', '')
    return float(re.split('<eot>|<user>', text)[0].strip().lower() == problem['answer'].lower())
