"""
chain: operations from left to right, modulo 100.

    12+7*3-8=    12+7=19, 19*3=57, 57-8=49: the answer is 49

    p = problem(7, 5)                          # number 7 of level 5 (operations), from the training part
    score = verify(p, '49')                    # 1.0 or 0.0

What a warm start thinks (prepare.py): every value (`19,57,49`), every second value, or nothing.
Nothing here is evaluated and no random state moves; whatever a model may have written, it is only a wrong answer.
"""
import hashlib
import random
import re

NAME, LEVELS = 'chain', range(2, 17)   # operations

def problem(seed, level, split='train'):
    """Problem number `seed` of a level and of 'train' or 'held', which have no question in common."""
    rng = random.Random(f'{NAME}/{seed}/{level}/{split}')
    while True:
        p = _make(str(rng.randrange(100)), [(rng.choice('+-*'), rng.randrange(2, 10)) for _ in range(level)])
        if ('train' if hashlib.sha256(p['question'].encode()).digest()[0] % 8 else 'held') == split:
            return p

def canary(seed, level):
    """A problem without a solution, since its first number is missing: any reward for it is an alarm."""
    p = _make('0', problem(f'canary/{seed}', level)['ops'])
    return dict(p, question='?' + p['question'][1:], values=[None] * level)

def _make(first, ops):
    values, v = [], int(first)
    for op, n in ops:
        v = {'+': v + n, '-': v - n, '*': v * n}[op] % 100
        values.append(v)
    return dict(task=NAME, level=len(ops), question=first + ''.join(f'{o}{n}' for o, n in ops) + '=', ops=ops, values=values)

def verify(p, answer):
    """1.0 if answer (str) is the last value, without zeros in front; else 0.0."""
    return float(isinstance(answer, str) and p['values'][-1] is not None and answer == str(p['values'][-1]))

def judge(p, answer):
    """The same by another way, for evaluation: reads the question from its end, as a function a v + b of the first number v."""
    try:
        first, rest = re.fullmatch(r'([0-9]{1,2})((?:[+\-*][0-9])+)=', p['question'], re.ASCII).groups()
        if not re.fullmatch(r'0|[1-9][0-9]?', answer, re.ASCII):
            return 0.0
        a, b = 1, 0
        for op, n in zip(rest[-2::-2], rest[::-2]):
            n = int(n)
            a, b = (a * n, b) if op == '*' else (a, b + (a * n if op == '+' else -a * n))
        return float((a * int(first) + b) % 100 == int(answer))
    except Exception:
        return 0.0

def steps(p, thought):
    """Arithmetic in a thought (str) -> (right, all): each said value against the one said before it, one or two operations later."""
    said = thought.split(',')
    if len(said) not in (p['level'], (p['level'] + 1) // 2) or not re.fullmatch('[0-9]{1,2}(,[0-9]{1,2})*', thought, re.ASCII):
        return (0, len(said)) if thought else (0, 0)
    at = range(p['level']) if len(said) == p['level'] else [*range(1, p['level'] - 1, 2), p['level'] - 1]
    v, begin, right = int(re.match('[0-9?]+', p['question'])[0].replace('?', '0')), 0, 0
    for s, k in zip(said, at):
        for op, n in p['ops'][begin:k + 1]:
            v = {'+': v + n, '-': v - n, '*': v * n}[op] % 100
        right, v, begin = right + (v == int(s)), int(s), k + 1
    return right, len(said)

SKILLS = ()   # for the table of train.py, which is about pictures and sounds: rl.py says what this one can do
