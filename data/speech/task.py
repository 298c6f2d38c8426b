"""
Held-out recordings: what is said? And: say a digit.

    for p in problems('digit', 64, codec):              # p['prompt']: document segments ending in <assistant>
        score = verify(p, {'text': 'seven<eot>'})

digit: a spoken digit (data sets prepared with --fsdd), right or wrong; two digits, three digits: so many of one speaker, joined, and
transcript: a clip, 1 - word error rate. say: {'audio': [wave]} is judged by its nearest neighbour among some recordings of training, by
cepstra and dynamic time warping (judge_alone: how well that reads held-out recordings).
"""
import re
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
from data.shards import shard_dir
from data.media import BadInput, mel
from data.source import kept

CHANCE = {'digit': .1, 'two digits': .1, 'three digits': .1, 'transcript': 0., 'say': .1}
SKILLS = list(CHANCE)

def problems(skill, n, codec, seed=0, split='val', shards=''):
    """
    Up to n dicts, a recording at most once: skill, prompt (segments), answer (str), choices (None), speaker, chance; for say also question,
    guide and the judge's `known`, one for all. BadInput if none of the kind was prepared. shards: '': data/speech/shards-TOKENIZER.
    """
    if skill not in CHANCE or split != 'val':
        raise ValueError(f'no problems for skill={skill!r}, split={split!r}: skills are {SKILLS}, the split is val')
    shards, sp, out = shards or shard_dir('speech', codec), codec.sp, []
    v = kept(shards)
    ends, mine = np.cumsum(v['n_frames']), np.flatnonzero(
        np.isin(v['kind'], ('clip', 'own')) if skill == 'transcript' else v['kind'] == (skill if skill != 'say' else 'known'))
    if not len(mine):
        raise BadInput(f'{shards} holds nothing for {skill}: ' + ('prepare it with --fsdd=PATH' if skill != 'transcript' else
                                                                  'prepare it with the Asterisk clips or --dir=FOLDER'))
    if skill == 'say':                                                  # every other one in the voice of a speaker
        known, pairs = recordings(v), sorted({(str(v['speaker'][k]), str(v['name'][k])) for k in mine})
        for i, j in enumerate(np.random.default_rng(seed).integers(len(pairs), size=n)):
            text = f'say as {pairs[j][0]}: {pairs[j][1]}' if i % 2 else f'say: {pairs[j][1]}'
            out.append(dict(skill=skill, prompt=[('ids', [sp['user']], 0), ('text', text, 0), ('ids', [sp['assistant']], 0)], question=text,
                            answer=pairs[j][1], choices=None, speaker=pairs[j][0] if i % 2 else '', chance=CHANCE[skill], known=known,
                            guide=2.5))
        return out
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

def cepstra(frames):
    """float (n, 128), two log-mel spectra a row -> (at most 2n, 12): their cosine transforms, without the quiet before and behind."""
    x = np.asarray(frames, np.float32).reshape(-1, 64)
    loud = np.flatnonzero(x.mean(1) > x.mean(1).max() - 1.5)
    return x[loud[0]:loud[-1] + 1] @ np.cos(np.pi / 64 * np.outer(np.arange(64) + .5, np.arange(1, 13)))

def recordings(v):
    """What kept() gives -> (cepstra (K, longest, 12), filled up with 0; their lengths (K,); what is said) of the known recordings."""
    ends, mine = np.cumsum(v['n_frames']), np.flatnonzero(v['kind'] == 'known')
    some = [cepstra(v['frames'][ends[k] - v['n_frames'][k]:ends[k]]) for k in mine]
    size, x = np.array([len(c) for c in some]), np.zeros((len(some), max(map(len, some)), 12))
    for row, c in zip(x, some):
        row[:len(c)] = c
    return x, size, v['name'][mine]

def nearest(known, frames):
    """What the known recording says that is nearest to frames (n, 128) by dynamic time warping, for each frame of both."""
    (x, size, name), y = known, cepstra(frames)
    apart = np.sqrt(np.maximum((x ** 2).sum(-1)[..., None] + (y ** 2).sum(-1) - 2 * x @ y.T, 0))         # (K, longest, len(y))
    row, last = np.where(np.arange(len(y) + 1), np.inf, np.zeros((len(x), 1))), np.full(len(x), np.inf)  # the shortest ways so far
    for i in range(x.shape[1]):
        new = np.full_like(row, np.inf)
        for j in range(len(y)):
            new[:, j + 1] = apart[:, i, j] + np.minimum(np.minimum(row[:, j], row[:, j + 1]), new[:, j])
        row = new
        last = np.where(size == i + 1, row[:, -1], last)
    return str(name[(last / (size + len(y))).argmin()])

def judge_alone(shards, n=200):
    """The part of n held-out recordings that the judge of what is said reads right."""
    v = kept(shards)
    ends, known = np.cumsum(v['n_frames']), recordings(v)
    mine = np.random.default_rng(0).permutation(np.flatnonzero(v['kind'] == 'digit'))[:n]
    return float(np.mean([nearest(known, v['frames'][ends[k] - v['n_frames'][k]:ends[k]]) == v['name'][k] for k in mine]))

def verify(problem, output, codec=None):
    """output: dict with text (specials as <name>), or ids with codec, or audio -> score in [0, 1]; case and marks don't count."""
    if problem['skill'] == 'say':
        made = output.get('audio') or []
        return float(len(made) > 0 and len(made[0]) > 0 and nearest(problem['known'], mel(made[0])) == problem['answer'])
    text = codec.untext(output['ids']) if codec is not None and 'ids' in output else output.get('text', '')
    said, heard = words(problem['answer']), words(text)
    if problem['skill'] == 'digit':
        return float(said == heard)
    return max(0., 1 - errors(said, heard) / max(len(said), 1))
