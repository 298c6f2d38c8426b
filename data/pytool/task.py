"""
pytool: products too large to work out in the head, small for a tool.

    4821*937=    <tool>python{"code": "print(4821*937)"}</tool><out>4517277</out>4517277

    p = problem(7, 4)                          # number 7 of level 4 (digits of both factors), from the training part
    score = verify(p, '4517277')               # 1.0 or 0.0

Without the tool: a table of products that were seen is of no use, since held-out factors are others; what is left is to multiply in the
head: rl.py --tools=false measures how well that goes. No random state moves; whatever a model may have written, it is only a wrong
answer.
"""
import hashlib
import random
import re

NAME, LEVELS = 'pytool', range(2, 8)   # digits

def problem(seed, level, split='train'):
    """Problem number `seed` of a level and of 'train' or 'held', which have no pair of factors in common, in neither order."""
    rng = random.Random(f'{NAME}/{seed}/{level}/{split}')
    while True:
        a, b = (rng.randrange(10 ** (level - 1), 10 ** level) for _ in range(2))
        key = f'{min(a, b)}*{max(a, b)}'
        if ('train' if hashlib.sha256(key.encode()).digest()[0] % 8 else 'held') == split:
            return dict(task=NAME, level=level, question=f'{a}*{b}=', product=a * b, ctx={})

def twin(p):
    """The same problem in another order: who has learned the problems by heart solves it less often."""
    a, b = p['question'][:-1].split('*')
    return dict(p, question=f'{b}*{a}=', ctx={})

def canary(seed, level):
    """A problem without a solution, since a digit of a factor cannot be read: any reward for it is an alarm."""
    p = problem(f'canary/{seed}', level)
    return dict(p, question='?' + p['question'][1:], product=None)

def verify(p, answer):
    """1.0 if answer (str) is the product, without zeros in front; else 0.0."""
    return float(isinstance(answer, str) and p['product'] is not None and answer == str(p['product']))

def judge(p, answer):
    """The same by another way, for evaluation: reads the question, and divides."""
    try:
        a, b = re.fullmatch(r'([0-9]+)\*([0-9]+)=', p['question'], re.ASCII).groups()
        if not re.fullmatch(r'[1-9][0-9]{0,19}', answer, re.ASCII):
            return 0.0
        return float(divmod(int(answer), int(a)) == (int(b), 0))
    except Exception:
        return 0.0

def call(p):
    """What is to be called."""
    return f'python{{"code": "print({p["question"][:-1]})"}}'

def steps(p, thought):
    """-> (right, all) calls in a thought (str)."""
    calls = re.findall(r'<tool>(.*?)</tool>', thought, re.S)
    return calls.count(call(p)), len(calls)

SKILLS = ()   # for the table of train.py, which is about pictures and sounds: rl.py says what this one can do
