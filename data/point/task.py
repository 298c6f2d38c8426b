"""
point: click the square of that colour. The reward is the hit.

    red?    <point><20><41>                    x and y as bins of the picture

    p = problem(7, 3)                          # number 7 of level 3 (squares, each of another colour), from the training part
    score = verify(p, '<point><20><41>')       # 1.0 or 0.0

The centre of the point's bin must be inside. A square of 6 to 10 pixels covers at most a tenth of the picture of 32 x 32, 1 in 16 on
average: always the same place, in the middle, hits 0.14. Held-out pictures have other squares. Whatever a model wrote is only a wrong
answer.
"""
import hashlib
import random
import re
import numpy as np

NAME, LEVELS, SIDE, BINS = 'point', range(1, 6), 32, 64   # squares; pixels; coordinate bins (Codec.n_loc)
COLOURS = dict(red=(220, 50, 40), green=(50, 180, 60), blue=(50, 80, 220), yellow=(230, 210, 50), white=(240, 240, 240))

def problem(seed, level, split='train'):
    """Problem number `seed` of a level and of 'train' or 'held', which have no set of squares in common."""
    rng = random.Random(f'{NAME}/{seed}/{level}/{split}')
    while True:
        names, boxes = rng.sample(list(COLOURS), level), []
        for _ in range(200):                                    # x0, y0, x1, y1, the end excluded; none overlaps another
            n = rng.randint(6, 10)
            x, y = rng.randint(0, SIDE - n), rng.randint(0, SIDE - n)
            if len(boxes) < level and all(x + n < a or c < x or y + n < b or d < y for a, b, c, d in boxes):
                boxes.append((x, y, x + n, y + n))
        if len(boxes) == level and ('train' if hashlib.sha256(str(sorted(boxes)).encode()).digest()[0] % 8 else 'held') == split:
            break
    a = np.full((SIDE, SIDE, 3), 20, np.uint8)
    for name, (x0, y0, x1, y1) in zip(names, boxes):
        a[y0:y1, x0:x1] = COLOURS[name]
    return dict(task=NAME, level=level, question=f'{names[0]}?', box=boxes[0], boxes=boxes, images=[a])

def canary(seed, level):
    """A problem without a solution, since no square has that colour: any reward for it is an alarm."""
    return dict(problem(f'canary/{seed}', level), question='black?', box=None)

def read(answer):
    """-> the point's place in pixels, x and y, or None."""
    m = isinstance(answer, str) and re.fullmatch('<point><([0-9]{1,2})><([0-9]{1,2})>', answer, re.ASCII)
    return m and [(int(g) + 0.5) * SIDE / BINS for g in m.groups()]

def verify(p, answer):
    """1.0 if the point is inside the square; else 0.0."""
    if p['box'] is None or not (at := read(answer)):
        return 0.0
    (x, y), (x0, y0, x1, y1) = at, p['box']
    return float(x0 < x < x1 and y0 < y < y1)

def judge(p, answer):
    """The same by another way, for evaluation: the colour of the pixel."""
    try:
        x, y = (int(n) * SIDE // BINS for n in re.fullmatch('<point><([0-9]{1,2})><([0-9]{1,2})>', answer, re.ASCII).groups())
        return float(tuple(p['images'][0][y, x].tolist()) == COLOURS[p['question'][:-1]])
    except Exception:
        return 0.0

def steps(p, thought):
    """There is no thought to count steps in."""
    return 0, 0

SKILLS = ()   # for the table of train.py, which has its own pictures and sounds: rl.py says what this one can do
