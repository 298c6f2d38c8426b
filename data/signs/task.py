"""
signs: put + and - between the digits so that the value, modulo 31, ends at the target. Guess, check, try again.

    3,9,2=r      3-9=-6=p, p+2=r: the answer is -+        values are one character: 0 to 9, a=10 to u=30

    p = problem(7, 3)                          # number 7 of level 3 (digits), from the training part
    score = verify(p, '+-')                    # 1.0 or 0.0

What a warm start thinks (prepare.py) is attempts, `x` after one that missed: `3+9=c+2=ex3-9=p+2=r` says every sum in full, `+c+ex-p+r`
signs and values alone, half as long. A random attempt hits 1 time in 4 with 3 digits, 1 in 30 with 8: from easy to hard in one task.
Nothing here is evaluated and no random state moves; whatever a model may have written, it is only a wrong answer.
"""
import hashlib
import random

NAME, LEVELS = 'signs', range(2, 10)   # digits
VALUES = '0123456789abcdefghijklmnopqrstu'   # odd in number: + and - never do the same
M = len(VALUES)

def problem(seed, level, split='train'):
    """Problem number `seed` of a level and of 'train' or 'held', which have no (first digit, set of others, target) in common. The target
    is uniform among those that can be reached."""
    rng = random.Random(f'{NAME}/{seed}/{level}/{split}')
    while True:
        digits = [rng.randrange(10)] + [rng.randrange(1, 10) for _ in range(level - 1)]
        p = _make(digits, rng.choice(sorted(_reach(digits))))
        if _part(p) == split:
            return p

def canary(seed, level):
    """A problem without a solution: any reward for it is an alarm."""
    rng = random.Random(f'{NAME}/canary/{seed}/{level}')
    digits = [rng.randrange(10)] + [rng.choice((2, 4))] * (level - 1)      # all the same, so that few values can be reached
    return _make(digits, rng.choice(sorted(set(range(M)) - _reach(digits))))

def twin(p):
    """The same problem in another order: who has learned the problems by heart solves it less often."""
    first, *rest = p['digits']
    return _make([first, *rest[::-1]], p['target'])

def _make(digits, target):
    return dict(task=NAME, level=len(digits), question=f'{",".join(map(str, digits))}={VALUES[target]}', digits=digits, target=target)

def _part(p):
    """By hash of the problem, whatever the order of its digits after the first: 1/8 is held out."""
    key = f'{p["digits"][0]}/{sorted(p["digits"][1:])}/{p["target"]}'
    return 'train' if hashlib.sha256(key.encode()).digest()[0] % 8 else 'held'

def _reach(digits):
    values = set(digits[:1])
    for d in digits[1:]:
        values = {(v + e) % M for v in values for e in (d, -d)}
    return values

def _ends(digits, signs):
    v = digits[0]
    for d, s in zip(digits[1:], signs):
        v += d if s == '+' else -d
    return v % M

def verify(p, answer):
    """1.0 if answer (str) is signs that end at the target, one for each digit after the first; else 0.0."""
    if not isinstance(answer, str) or len(answer) != p['level'] - 1 or answer.strip('+-'):
        return 0.0
    return float(_ends(p['digits'], answer) == p['target'])

def judge(p, answer):
    """The same by another way, for evaluation: reads the question, and goes back from the target to the first digit."""
    try:
        left, v = p['question'].split('=')
        first, *rest = left.split(',')
        level = len(rest) + 1
        back, v = list(answer[:level]), int(v, 36)
        for d in reversed(rest):
            v -= {'+': 1, '-': -1}[back.pop()] * int(d)
        return float(not back and (v - int(first)) % 31 == 0)
    except Exception:
        return 0.0

def steps(p, thought):
    """
    Arithmetic in a thought (str) -> (right, all): every value against the value and digit before it, and after every attempt whether the
    verdict fits (`x`: missed; the end: hit, unless it gave up after an `x`).
    """
    right = total = 0
    for i, attempt in enumerate(parts := thought.split('x')):
        last = i == len(parts) - 1
        if last and not attempt:                            # gave up after a miss
            break
        full, v, good, left = '=' in attempt, p['digits'][0], True, attempt
        if full:
            good, left = attempt[:1] == str(v), attempt[1:]
        for d in p['digits'][1:]:
            sign, left = left[:1], left[1:]
            if full:
                good, left = good and left[:2] == f'{d}=', left[2:]
            new, left = left[:1], left[1:]
            good = good and sign in ('+', '-') and new == VALUES[(v + d if sign == '+' else v - d) % M]
            right, total, v = right + good, total + 1, VALUES.index(new) if good else v
        whole = good and not left
        right, total = right + (whole and (v == p['target']) == last), total + 1
    return right, total

SKILLS = ()   # for the table of train.py, which is about pictures and sounds: rl.py says what this one can do
