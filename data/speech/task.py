"""
Held-out recordings: what is said?

    for p in problems('digit', 64, codec):              # p['prompt']: document segments ending in <assistant>
        score = verify(p, {'text': 'seven<eot>'})

digit: a spoken digit (data sets prepared with --fsdd), right or wrong; two digits, three digits: so many of one speaker, joined, and
transcript: a clip, 1 - word error rate.
"""
import re
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
from data.shards import shard_dir
from data.media import BadInput
from data.source import kept

CHANCE = {'digit': .1, 'two digits': .1, 'three digits': .1, 'transcript': 0.}
SKILLS = list(CHANCE)

def problems(skill, n, codec, seed=0, split='val', shards=''):
    """Up to n dicts, a recording at most once: skill, prompt (segments), answer (str), choices (None), speaker, chance.
    BadInput if none of the kind was prepared. shards: '' = data/speech/shards-TOKENIZER."""
    if skill not in CHANCE or split != 'val':
        raise ValueError(f'no problems for skill={skill!r}, split={split!r}: skills are {SKILLS}, the split is val')
    shards, sp, out = shards or shard_dir('speech', codec), codec.sp, []
    v = kept(shards)
    ends, mine = np.cumsum(v['n_frames']), np.flatnonzero(
        ~np.isin(v['kind'], SKILLS) if skill == 'transcript' else v['kind'] == skill)
    if not len(mine):
        raise BadInput(f'{shards} holds nothing for {skill}: ' + ('prepare it with --fsdd=PATH' if skill != 'transcript' else
                                                                  'prepare it with the Asterisk clips or --dir=FOLDER'))
    for k in np.random.default_rng(seed).permutation(mine)[:n]:
        frames = v['frames'][ends[k] - v['n_frames'][k]:ends[k]].astype(np.float32)
        ask, end = [('ids', [sp['user']], 0)], [('text', 'transcribe', 0), ('ids', [sp['assistant']], 0)]
        out.append(dict(skill=skill, prompt=ask + [('audio', frames, 0)] + end, answer=str(v['name'][k]), choices=None,
                        speaker=str(v['speaker'][k]), chance=CHANCE[skill]))
    return out

def words(text):
    return re.sub(r"[^\w' ]", ' ', re.split('<eot>|<user>', text)[0].lower()).split()

def errors(said, heard):
    """Two lists of words -> the fewest words to put in, take out or change: Levenshtein's distance."""
    row = list(range(len(heard) + 1))
    for i, a in enumerate(said):
        row, last = [i + 1], row
        for j, b in enumerate(heard):
            row.append(min(last[j + 1] + 1, row[j] + 1, last[j] + (a != b)))
    return row[-1]

def verify(problem, output, codec=None):
    """output: dict with text (specials as <name>), or ids with codec -> score in [0, 1]; case and marks don't count."""
    text = codec.untext(output['ids']) if codec is not None and 'ids' in output else output.get('text', '')
    said, heard = words(problem['answer']), words(text)
    if problem['skill'] == 'digit':
        return float(said == heard)
    return max(0., 1 - errors(said, heard) / max(len(said), 1))
