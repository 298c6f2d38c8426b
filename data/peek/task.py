"""
peek: which digit is it? The picture is too coarse to read it, and says only where it is: look at a crop.

    red?    <tool>look{"box": [8, 40, 15, 47]}</tool><out>(the crop)</out>7

    p = problem(7, 2)                          # number 7 of level 2 (digits in the picture, each of another colour), from the training part
    score = verify(p, '7')                     # 1.0 or 0.0

The original has 64 x 64 pixels: digits of 3 x 5 pixels, each in the middle of a cell of 8 x 8. The prompt shows it at an eighth, a pixel a
cell, with more contrast, and every digit is as bright as gives its cell the same mean: so the coarse picture is the same whatever the
digits are, and without a look nothing is better than a guess: 1 in 10. Held-out pictures have other sets of places. Whatever a model wrote
is only a wrong answer.
"""
import hashlib
import random
import re
import numpy as np

NAME, LEVELS = 'peek', range(1, 4)   # digits in the picture
CELLS, CELL, DARK, MEAN = 8, 8, 16, 40
COLOURS = dict(red=(1, 0, 0), green=(0, 1, 0), blue=(0, 0, 1))
FONT = ('### #.# #.# #.# ###', '##. .#. .#. .#. ###', '### ..# ### #.. ###', '### ..# ### ..# ###', '#.# #.# ### ..# ..#',
        '### #.. ### ..# ###', '### #.. ### #.# ###', '### ..# ..# ..# ..#', '### #.# ### #.# ###', '### #.# ### ..# ###')

def glyph(digit):
    """-> bool (5, 3)."""
    return np.array([[c == '#' for c in row] for row in FONT[digit].split()])

def problem(seed, level, split='train'):
    """Problem number `seed` of a level and of 'train' or 'held', which have no set of places in common."""
    rng = random.Random(f'{NAME}/{seed}/{level}/{split}')
    while True:
        places = [divmod(k, CELLS) for k in rng.sample(range(CELLS ** 2), level)]
        if ('train' if hashlib.sha256(str(sorted(places)).encode()).digest()[0] % 8 else 'held') == split:
            break
    names, digits = rng.sample(list(COLOURS), level), [rng.randrange(10) for _ in range(level)]
    return _make(names, digits, places)

def _make(names, digits, places):
    a = np.full((CELLS * CELL, CELLS * CELL, 3), DARK, np.uint8)
    for name, digit, (r, c) in zip(names, digits, places):
        g = glyph(digit)
        y, x = CELL * r + 2, CELL * c + 3
        bright = DARK + round((MEAN - DARK) * CELL ** 2 / g.sum())
        a[y:y + 5, x:x + 3] = np.where(g[:, :, None] & (np.array(COLOURS[name]) > 0), bright, DARK)
    return dict(task=NAME, level=len(names), question=f'{names[0]}?', digit=digits[0], place=places[0], images=[coarse(a)],
                ctx=dict(images=[a]))

def coarse(a):
    """uint8 (64, 64, 3) -> (8, 8, 3), the mean of every cell; 9 times as far from DARK, or a lit pixel is hardly seen."""
    mean = a.reshape(CELLS, CELL, CELLS, CELL, 3).mean((1, 3)).round()
    return (DARK + 9 * (mean - DARK)).astype(np.uint8)

def canary(seed, level):
    """A problem without a solution, since no digit has that colour: any reward for it is an alarm."""
    p = problem(f'canary/{seed}', level)
    return dict(p, question='black?', digit=None)

def verify(p, answer):
    """1.0 if answer (str) is the digit; else 0.0."""
    return float(isinstance(answer, str) and p['digit'] is not None and answer == str(p['digit']))

def judge(p, answer):
    """The same by another way, for evaluation: reads the original picture."""
    try:
        if not re.fullmatch('[0-9]', answer, re.ASCII):
            return 0.0
        lit = (p['ctx']['images'][0] > DARK) == np.array(COLOURS[p['question'][:-1]], bool)
        lit = lit.all(2) & (p['ctx']['images'][0] > DARK).any(2)
        (y, x), g = np.argwhere(lit).min(0), lit[lit.any(1)][:, lit.any(0)]
        found = [d for d in range(10) if (lit[y:y + 5, x:x + 3].shape == (5, 3) and (lit[y:y + 5, x:x + 3] == glyph(d)).all())]
        return float(found == [int(answer)] and g.shape[0] == 5)
    except Exception:
        return 0.0

def call(place, n_loc=64):
    """The look at a cell."""
    (r, c), n = place, n_loc // CELLS
    return f'look{{"box": [{c * n}, {r * n}, {c * n + n - 1}, {r * n + n - 1}]}}'

def steps(p, thought):
    """-> (right, all) calls in a thought (str)."""
    said = re.findall(r'<tool>(.*?)</tool>', thought, re.S)
    return said.count(call(p['place'])), len(said)

SKILLS = ()   # for the table of train.py, which has its own pictures and sounds: rl.py says what this one can do
