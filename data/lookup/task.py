"""
lookup: from one document to the next, by search and open, and say the number that stands in the last.

    tuvo>>       search tuvo: "tuvo.txt: tuvo 731 to_bela"; open bela.txt: "bela 204 to_miro"; open miro.txt: 958 is the answer

    p = problem(7, 2)                          # number 7 of level 2 (documents after the first), from the training part
    score = verify(p, '958')                   # 1.0 or 0.0

Numbers are drawn at random, 100 to 999, so that without the documents nothing is better than a guess: 1 in 900. A world is a folder of
SIZE documents, written when a problem of it is first asked for, removed at the end of the process. Held-out problems are about worlds whose
names and numbers training has never seen. Nothing that a model wrote is more than a wrong answer.
"""
import atexit
import os
import random
import re
import tempfile
from functools import lru_cache
from data.files import search

NAME, LEVELS, SIZE, WORLDS = 'lookup', range(1, 5), 40, 16   # documents after the first; documents in a world; worlds of a split

def links(number, split):
    """World `number` of a split -> {name: (its number, the name after it)}, one circle."""
    rng = random.Random(f'{NAME}/{number}/{split}')
    syllables = [c + v for c in 'bdfgklmnprstvz' for v in 'aeiou']
    ours = lambda n: (sum(map(ord, n)) % 8 == 0) == (split == 'held')          # 1/8 of the names are held out
    names = []
    while len(names) < SIZE:
        n = ''.join(rng.choices(syllables, k=2))
        if ours(n) and n not in names:
            names.append(n)
    return {n: (rng.randrange(100, 1000), names[i - 1]) for i, n in enumerate(names)}

def text(name, world):
    return f'{name} {world[name][0]} to_{world[name][1]}'          # one word: a search for the name finds one document

@lru_cache(None)
def folder(number, split):
    """The same as documents -> what the tools must know about them; the index is made once."""
    held, world = tempfile.TemporaryDirectory(prefix='lookup-'), links(number, split)
    atexit.register(held.cleanup)
    for name in world:
        with open(os.path.join(held.name, f'{name}.txt'), 'w') as f:
            f.write(text(name, world) + '\n')
    search(ctx := dict(documents=held.name), NAME)
    return ctx

def problem(seed, level, split='train'):
    """Problem number `seed` of a level and of 'train' or 'held'."""
    rng = random.Random(f'{NAME}/{seed}/{level}/{split}')
    number = rng.randrange(WORLDS)
    world = links(number, split)
    name = rng.choice(list(world))
    path = [name] + [name := world[name][1] for _ in range(level)]
    return dict(task=NAME, level=level, question=path[0] + '>' * level, path=path, number=world[path[-1]][0], ctx=folder(number, split))

def canary(seed, level):
    """A problem without a solution, since no document has that name: any reward for it is an alarm."""
    p = problem(f'canary/{seed}', level)
    return dict(p, question='qqqq' + '>' * level, number=None)

def verify(p, answer):
    """1.0 if answer (str) is the number; else 0.0."""
    return float(isinstance(answer, str) and p['number'] is not None and answer == str(p['number']))

def judge(p, answer):
    """The same by another way, for evaluation: reads the documents, from where the question begins."""
    try:
        if not re.fullmatch('[0-9]{3}', answer, re.ASCII):
            return 0.0
        name, n = p['question'].rstrip('>'), p['question'].count('>') + 1
        for _ in range(n):
            with open(os.path.join(p['ctx']['documents'], f'{name}.txt')) as f:
                said, name = re.fullmatch(r'\w+ ([0-9]{3}) to_(\w+)\n', f.read(), re.ASCII).groups()
        return float(said == answer)
    except Exception:
        return 0.0

def calls(p):
    """What is to be called: a search, then as many documents as there are after the first."""
    return [f'search{{"query": "{p["path"][0]}"}}'] + [f'open{{"path": "{n}.txt"}}' for n in p['path'][1:]]

def steps(p, thought):
    """-> (right, all) calls in a thought (str), each at its place."""
    said = re.findall(r'<tool>(.*?)</tool>', thought, re.S)
    return sum(a == b for a, b in zip(said, calls(p))), len(said)

SKILLS = ()   # for the table of train.py, which is about pictures and sounds: rl.py says what this one can do
