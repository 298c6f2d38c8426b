"""
twice: one row of + and - before two rows of digits, so that both sums, modulo 10, come out. Guess, check, try again: a search that can be
shared.

    342718=5,193746=3      -3+4-2+7-1+8=13, -1+9-3+7-4+6=14: both miss; ++---+ would be another try

An answer has a letter for each column, A or a, B or b, ...: upper case for +, lower case for -; here aBcDeF. Each letter says which column
it is about, so that copying one of many answers, as an orchestrator does, is a look-up and not a matter of counting.

    p = problem(7, 6)                          # number 7 of level 6 (digits of a row), from the training part
    score = verify(p, 'AbCdeF')                # 1.0 or 0.0

Of 64 guesses for six digits 3.5 are right on average, at least one. What a warm start thinks (prepare.py) is attempts: after every sign
what is left of the target, `A2b6C4...` for 3, 4, 2, ... and 5; `,` when 0 is left, then the second row; `x` after a miss. Digits are never
0 or 5, for which both signs do the same. Nothing here is evaluated and no random state moves; whatever a model may have written, it is
only a wrong answer.
"""
import hashlib
import itertools
import random

NAME, LEVELS = 'twice', range(3, 8)   # digits of a row
DIGITS = (1, 2, 3, 4, 6, 7, 8, 9)

def problem(seed, level, split='train'):
    """Problem number `seed` of a level and of 'train' or 'held', which have no problem in common, however its columns are ordered."""
    rng = random.Random(f'{NAME}/{seed}/{level}/{split}')
    while True:
        rows = [[rng.choice(DIGITS) for _ in range(level)] for _ in range(2)]
        signs = [rng.choice('+-') for _ in range(level)]
        p = _make(rows, [_sum(row, signs) for row in rows])
        if _part(p) == split:
            return p

def canary(seed, level):
    """A problem without a solution: any reward for it is an alarm."""
    rng = random.Random(f'{NAME}/canary/{seed}/{level}')
    while True:
        p = _make([[rng.choice(DIGITS) for _ in range(level)] for _ in range(2)], [rng.randrange(10) for _ in range(2)])
        if not any(verify(p, word(s)) for s in itertools.product('+-', repeat=level)):
            return p

def twin(p):
    """The same problem in another order: who has learned the problems by heart solves it less often."""
    return _make([row[::-1] for row in p['rows']], p['targets'])

def _make(rows, targets):
    question = ','.join(f'{"".join(map(str, r))}={t}' for r, t in zip(rows, targets))
    return dict(task=NAME, level=len(rows[0]), question=question, rows=rows, targets=targets)

def _part(p):
    """By hash of the problem, whatever the order of its columns: 1/8 is held out."""
    key = f'{sorted(zip(*p["rows"]))}/{p["targets"]}'
    return 'train' if hashlib.sha256(key.encode()).digest()[0] % 8 else 'held'

def _sum(row, signs):
    return sum(d if s == '+' else -d for d, s in zip(row, signs)) % 10

def word(signs):
    """'+-+' -> 'AbC'."""
    return ''.join(chr((65 if s == '+' else 97) + k) for k, s in enumerate(signs))

def verify(p, answer):
    """1.0 if answer (str) is a letter for each column and both sums come out; else 0.0."""
    if not isinstance(answer, str) or len(answer) != p['level']:
        return 0.0
    signs = ['+' if c == chr(65 + k) else '-' if c == chr(97 + k) else '' for k, c in enumerate(answer)]
    return float(all(signs) and [_sum(row, signs) for row in p['rows']] == p['targets'])

def judge(p, answer):
    """The same by another way, for evaluation: reads the question, and brings both targets to zero digit by digit."""
    try:
        left = []
        for part in p['question'].split(','):
            row, v = part.split('=')
            v, letters = int(v), list(answer)
            for column, d in reversed(list(zip('ABCDEFG', row))):
                v -= {column: 1, column.lower(): -1}[letters.pop()] * int(d)
            left += [v % 10, len(letters)]
        return float(not any(left))
    except Exception:
        return 0.0

def steps(p, thought):
    """
    Arithmetic in a thought (str) -> (right, all): every value against the value before it, and after every attempt that is whole whether
    the verdict fits (`,` first row comes out, `x` missed, the end: both come out). A last attempt that was cut off has none.
    """
    right = total = 0
    for i, attempt in enumerate(parts := thought.split('x')):
        last, signs = i == len(parts) - 1, None
        for k, (said, row, target) in enumerate(zip(attempt.split(','), p['rows'], p['targets'])):
            v, good = target, True
            for j, d in enumerate(row[:len(said) // 2]):
                s, new = said[2 * j], said[2 * j + 1]
                good = good and s in ((chr(65 + j), chr(97 + j)) if signs is None else signs[j:j + 1])
                good = good and new == str((v - d if s.isupper() else v + d) % 10)
                right, total, v = right + good, total + 1, int(new) if good else v
            if len(said) >= 2 * len(row):
                goes_on, comes_out = k == 0 and ',' in attempt, good and len(said) == 2 * len(row) and v == 0
                if not last or goes_on or k == 1 and comes_out:
                    right, total = right + (comes_out == (goes_on or last)), total + 1
            elif not last:
                total += 1                                  # `x` in the middle of an attempt
            signs = said[::2]
    return right, total

SKILLS = ()   # for the table of train.py, which is about pictures and sounds
