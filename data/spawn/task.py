"""
spawn: several independent sums, too long one after the other: agents do them at the same time.

    37..48 5..17 20..31     <tool>spawn{"tasks": ["37..48", "5..17", "20..31"]}</tool><out>1. 10\n2. 43\n3. 6</out>10,43,6

    p = problem(7, 4)                          # number 7 of level 4 (sums), from the training part
    score = verify(p, '10,43,6,75')            # 1.0 or 0.0

a..b is a + (a + 1) + ... + b, modulo 100, of 10 to 14 numbers, a at most 40; a thought adds one after the other (`37+38=75+39=14...`),
6 characters each. An agent has AGENT positions, enough for one sum. Alone, level K takes more than 50 K positions of thought: max_new=160
is enough for 2 sums, not for 4. Without a thought every sum is a guess, 1 in 100, but for what can be done in the head. Whatever a model
wrote is only wrong.
"""
import hashlib
import random
import re

NAME, LEVELS, AGENT = 'spawn', range(1, 9), 90   # sums; positions of an agent

def problem(seed, level, split='train'):
    """Problem number `seed` of a level and of 'train' or 'held', which have no sum in common."""
    rng, sums = random.Random(f'{NAME}/{seed}/{level}/{split}'), []
    while len(sums) < level:
        a, n = rng.randrange(1, 41), rng.randint(9, 13)
        r = f'{a}..{a + n}'
        # the longest from a is never held out, since nothing else shows its last step
        if ('train' if n == 13 or hashlib.sha256(r.encode()).digest()[0] % 8 else 'held') == split and r not in sums:
            sums.append(r)
    return dict(task=NAME, level=level, question=' '.join(sums), values=[values(r)[-1] for r in sums],
                ctx=dict(depth=1, tokens=AGENT * level, max_new=AGENT))

def values(r):
    """'37..48' -> the sums on the way."""
    a, b = map(int, r.split('..'))
    out = [a]
    for n in range(a + 1, b + 1):
        out.append((out[-1] + n) % 100)
    return out

def thought(r):
    """'37..48' -> '37+38=75+39=14...': the number that comes next stands there, so that a sum never seen takes only steps that were."""
    said = values(r)
    return str(said[0]) + ''.join(f'+{said[0] + k}={v}' for k, v in enumerate(said[1:], 1))

def canary(seed, level):
    """A problem without a solution, since the end of a sum is missing: any reward for it is an alarm."""
    p = problem(f'canary/{seed}', level)
    return dict(p, question=re.sub(r'[0-9]+$', '??', p['question']), values=None)

def verify(p, answer):
    """1.0 if answer (str) is the sums in their order, without zeros in front; else 0.0."""
    return float(isinstance(answer, str) and p['values'] is not None and answer == ','.join(map(str, p['values'])))

def judge(p, answer):
    """The same by another way, for evaluation: reads the question; the sum of an arithmetic series."""
    try:
        if not re.fullmatch('[0-9]{1,2}(,[0-9]{1,2}){0,9}', answer, re.ASCII):
            return 0.0
        ends = [tuple(map(int, r.split('..'))) for r in p['question'].split(' ')]
        return float(answer.split(',') == [str((a + b) * (b - a + 1) // 2 % 100) for a, b in ends])
    except Exception:
        return 0.0

def call(p):
    """The call that gives every sum to an agent."""
    return 'spawn{"tasks": [' + ', '.join(f'"{r}"' for r in p['question'].split(' ')) + ']}'

def steps(p, thought):
    """-> (right, all) calls in a thought (str)."""
    said = re.findall(r'<tool>(.*?)</tool>', thought, re.S)
    return said.count(call(p)), len(said)

SKILLS = ()   # for the table of train.py, which is about pictures and sounds: rl.py says what this one can do
