"""
Questions about pictures, asked aloud by voices that training never heard; and what was said?

    for p in problems('asked point', 64, codec):        # p['prompt']: document segments ending in <assistant>
        score = verify(p, {'text': '<point><31><12><eot>'})

asked count, where, relation, point: the problems of data/scenes and their judges, the question as sound. heard: 1 - word error rate.
"""
import random
import re
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from data.media import mel
from data.scenes import task as scenes
from data.speech.task import errors, words
from data.spoken.voices import someone, speak

SKILLS = ['heard', 'asked count', 'asked where', 'asked relation', 'asked point']

def problems(skill, n, codec, seed=0, split='val', shards=''):
    """n dicts as data/scenes has them: skill, prompt (segments), question, answer (str), chance, and what the judge needs."""
    if skill not in SKILLS or split != 'val':
        raise ValueError(f'no problems for skill={skill!r}, split={split!r}: skills are {SKILLS}, the split is val')
    sp, out = codec.sp, []
    for i in range(n):
        rng = random.Random(f'asked/{seed}/{skill}/{i}')
        kind = rng.choice(['count', 'where', 'relation', 'point']) if skill == 'heard' else skill.split()[1]
        p = scenes.problem(kind, rng, i % 2 == 0, codec)
        sound = ('audio', mel(speak(p['question'], *someone(rng, True))), 0)
        end = [('ids', [sp['assistant']], 0)]
        if skill == 'heard':
            p = dict(skill=skill, prompt=[('ids', [sp['user']], 0), sound, ('text', 'transcribe', 0), *end], question='transcribe',
                     answer=p['question'], chance=0.)
        else:
            p.update(skill=skill, prompt=[p['prompt'][0], ('ids', [sp['user']], 0), sound, *end])
        out.append(p)
    return out

def verify(problem, output, codec=None):
    """output: dict with text (specials as <name>), or ids with codec -> score in [0, 1]."""
    if problem['skill'] == 'heard':
        text = codec.untext(output['ids']) if codec is not None and 'ids' in output else output.get('text', '')
        asked, said = words(problem['answer']), words(re.split('<eot>|<user>', text)[0])
        return max(0., 1 - errors(asked, said) / len(asked))
    return scenes.verify(dict(problem, skill=problem['skill'].split()[1]), output, codec)
