"""
countdown: with every number exactly once, and + - * / and parentheses, make the target.

    3 8 5=55     (3+8)*5 is an answer, and so is 5*(8+3)

    p = problem(7, 3)                          # number 7 of level 3 (numbers), from the training part
    score = verify(p, '(3+8)*5')               # 1.0 or 0.0

What a warm start thinks (prepare.py) is chains of operations from left to right, `x` after one that missed: `3+8=11*5=55x`.
Expressions are parsed, never evaluated as code, and only out of the characters 0-9 + - * / ( ): no powers, no points, no digits of other
scripts. No random state moves; whatever a model may have written, it is only a wrong answer.
"""
import ast
import hashlib
import random
import re
from fractions import Fraction

NAME, LEVELS = 'countdown', range(2, 6)   # numbers
MAX = 99                                  # of a value on the way, and of the target
OPS = {'+': lambda a, b: a + b, '-': lambda a, b: a - b, '*': lambda a, b: a * b, '/': lambda a, b: a / b}

def problem(seed, level, split='train'):
    """Problem number `seed` of a level and of 'train' or 'held', which have no (set of numbers, target) in common; a chain of + - * with
    values from 0 to MAX solves it."""
    rng = random.Random(f'{NAME}/{seed}/{level}/{split}')
    while True:
        numbers = [rng.randrange(1, 10) for _ in range(level)]
        v = numbers[0]
        for n in numbers[1:]:
            v = OPS[rng.choice('+-*')](v, n)
            if not 0 <= v <= MAX:
                break
        else:
            p = _make(rng.sample(numbers, level), v)
            if v and _part(p) == split:
                return p

def canary(seed, level):
    """A problem without a solution: any reward for it is an alarm."""
    rng = random.Random(f'{NAME}/canary/{seed}/{level}')
    while True:
        numbers = [rng.randrange(1, 10) for _ in range(level)]
        left = sorted(set(range(1, MAX + 1)) - _reach(tuple(sorted(numbers)), {}))
        if left:
            return _make(numbers, rng.choice(left))

def twin(p):
    """The same problem in another order: who has learned the problems by heart solves it less often."""
    return _make(p['numbers'][::-1], p['target'])

def _make(numbers, target):
    return dict(task=NAME, level=len(numbers), question=f'{" ".join(map(str, numbers))}={target}', numbers=numbers, target=target)

def _part(p):
    """By hash of the problem, whatever the order of its numbers: 1/8 is held out."""
    return 'train' if hashlib.sha256(f'{sorted(p["numbers"])}={p["target"]}'.encode()).digest()[0] % 8 else 'held'

def _reach(numbers, known):
    """All values that some expression with each of the numbers (sorted tuple) has."""
    if len(numbers) == 1:
        return {Fraction(numbers[0])}
    if numbers not in known:
        known[numbers] = out = set()
        for mask in range(1, 2 ** len(numbers) - 1):
            a, b = (tuple(n for i, n in enumerate(numbers) if (mask >> i & 1) == side) for side in (0, 1))
            out |= {f(x, y) for x in _reach(a, known) for y in _reach(b, known) for o, f in OPS.items() if y or o != '/'}
    return known[numbers]

def verify(p, answer):
    """1.0 if answer (str) is an expression with each number once and the target as its value; else 0.0. Precedence by two stacks."""
    limit = 6 * p['level']                                   # digits, signs and parentheses of a sensible answer
    if not isinstance(answer, str) or len(answer) > limit or not re.fullmatch(r'[0-9+\-*/()]+', answer, re.ASCII):
        return 0.0
    values, signs, used, wants = [], [], [], True            # wants: a number or an opening parenthesis comes next
    rank = {'(': 0, '+': 1, '-': 1, '*': 2, '/': 2}

    def reduce(least):
        while signs and rank[signs[-1]] >= least:
            b, a, s = values.pop(), values.pop(), signs.pop()
            values.append(OPS[s](a, b))
    try:
        for t in re.findall(r'[0-9]+|.', answer):
            if wants != (t.isdigit() or t == '('):
                return 0.0
            if t.isdigit():
                used.append(t)
                values.append(Fraction(int(t)))
                wants = False
            elif t == '(':
                signs.append(t)
            elif t == ')':
                reduce(1)
                if not signs:
                    return 0.0
                signs.pop()
            else:
                reduce(rank[t])
                signs.append(t)
                wants = True
        reduce(1)
    except (ZeroDivisionError, IndexError):
        return 0.0
    return float(not wants and not signs and sorted(used) == sorted(map(str, p['numbers'])) and values == [p['target']])

def judge(p, answer):
    """The same by another way, for evaluation: Python's own parser, and the tree walked with whole numbers (numerator, denominator)."""
    def walk(e):
        if isinstance(e, ast.Constant) and type(e.value) is int:
            used.append(e.value)
            return e.value, 1
        (a, b), (c, d), kind = walk(e.left), walk(e.right), type(e.op)       # AttributeError: no such node is allowed
        if kind is ast.Div and c == 0:
            raise ZeroDivisionError
        return {ast.Add: (a * d + c * b, b * d), ast.Sub: (a * d - c * b, b * d), ast.Mult: (a * c, b * d), ast.Div: (a * d, b * c)}[kind]
    try:
        used = []
        if len(answer) > 6 * p['level'] or set(answer) - set('0123456789+-*/()'):
            return 0.0
        n, d = walk(ast.parse(answer, mode='eval').body)
        numbers, target = p['question'].split('=')
        return float(n == int(target) * d and sorted(used) == sorted(map(int, numbers.split())))
    except Exception:
        return 0.0

def steps(p, thought):
    """Arithmetic in a thought (str) -> (right, all): every operation's value, and after every attempt whether the verdict fits."""
    right = total = 0
    for i, attempt in enumerate(parts := thought.split('x')):
        last = i == len(parts) - 1
        if last and not attempt:
            break
        m = re.fullmatch(r'([0-9]{1,3})((?:[+\-*][0-9]=[0-9]{1,4})+)', attempt, re.ASCII)
        v, good, ops = (int(m[1]), True, re.findall(r'([+\-*])([0-9])=([0-9]+)', m[2])) if m else (0, False, [])
        for op, n, new in ops:
            good = good and OPS[op](v, int(n)) == int(new)
            right, total, v = right + good, total + 1, int(new)
        whole = good and sorted([m[1], *(n for _, n, _ in ops)]) == sorted(map(str, p['numbers']))
        right, total = right + (whole and (v == p['target']) == last), total + 1
    return right, total

SKILLS = ()   # for the table of train.py, which is about pictures and sounds: rl.py says what this one can do
