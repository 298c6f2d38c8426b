"""
Small pictures with their names: the 1,794 emoji (Noto) of the Debian package ruby-tanuki-emoji; or your own pictures.

    python data/emoji/prepare.py                       # apt-get download and dpkg -x, nothing gets installed
    python data/emoji/prepare.py --dir=FOLDER          # images and captions.tsv, whose lines are: filename TAB caption

Documents, `copies` of each kind per picture (in questions they are moved and scaled a little, drawn ones are exact):
    name    <boi> ... <eoi> <user>name?<assistant>avocado<eot>
    draw    <user>draw: avocado<assistant><boi> ... <eoi><eot>          every third one by name and keywords
    about   <boi> ... <eoi> <user>group?<assistant>food<eot>            or keywords?, in turns
Questions have weight 0, answers 1; the picture before a question is learned in 10% of the documents; 10% of the draw
prompts are empty, for guidance. Skin tones and genders of one emoji, and pictures that are equal, share a split.
"""
import hashlib
import json
import re
import sys
from collections import Counter
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
from PIL import Image
from configurator import configure
from data.codec import Codec
from data.shards import shard_dir, write_shards
from data.media import PATCH, BadInput, check, load_image
from data.source import debian, divide, guard, keep, leave_out, table

PACKAGE = 'ruby-tanuki-emoji'
LICENCE = 'pictures: Apache-2.0 (Noto Emoji), flags: public domain; names, groups, keywords: Expat (gemojione, GitLab)'

dir = ''  # a folder with images and captions.tsv, instead of the emoji
size = 32  # pixels: a picture has at most (size/8)**2 patches, a square one is size x size
split = 0.1  # held-out share of the pictures
copies = 3  # documents of each kind per picture
seed = 0
tokenizer = 'bytes'  # see data/codec.py
n_loc = 64  # bins of a coordinate
out = ''  # folder; '' = data/emoji/shards-TOKENIZER

def emoji(root):
    """Unpacked package -> [dict(name, group, keywords [str], keys {what it shares with its relatives}, path)]."""
    index, images, items = next(root.rglob('gemojione/index-3*.json')), next(root.rglob('images/tanuki_emoji')), []
    for e in json.loads(index.read_text(encoding='utf-8')).values():
        points = [ord(c) for c in e['moji'] if ord(c) != 0xFE0F]
        bare = tuple(p for p in points if not 0x1F3FB <= p <= 0x1F3FF and p not in (0x200D, 0x2640, 0x2642))
        file = 'emoji_u' + '_'.join(f'{p:04x}' for p in points)
        if 0x1F1E6 <= points[0] <= 0x1F1FF:           # regional indicators: a flag, its file is named by the country
            file = e['shortname'].strip(':').replace('flag_', '').upper()
        name = re.sub(r' tone ?(\d)$', r' tone \1', e['name'])
        words = [k for k in e['keywords'] if k not in (name, e['category'])][:6]
        items.append(dict(name=name, group=e['category'], keywords=words, keys={bare, base(name)},
                          path=images / f'{file}.png'))
    return items

def folder(dir, skipped):
    """--dir -> the same list, without groups and keywords; relatives are known by their captions."""
    items = []
    for file, caption in table(Path(dir) / 'captions.tsv'):
        if file and 0 < len(caption) <= 400:
            items.append(dict(name=caption, group='', keywords=[], keys={base(caption)}, path=Path(dir) / file))
        else:
            leave_out(skipped, file or caption[:60], 'its line needs: filename TAB caption, of 1 to 400 characters')
    return items

def base(name):
    """'woman with turban tone 3' -> 'with turban': a name or caption without skin tone and gender."""
    name = re.sub('[\U0001F3FB-\U0001F3FF\u200d\u2640\u2642\ufe0f]', ' ', name.lower())
    name = re.sub(r'\btone ?\d\b|\b(medium-?)?(light|dark)?\W?skin tone\b|\(.*?\)', ' ', name)
    name = re.sub(r'\b(man|men|woman|women|person|people|boy|girl|male|female|father|mother|two|and)s?\b', ' ', name)
    return ' '.join(name.split()).strip(' :,').replace('dancing', 'dancer').replace('princess', 'prince')

def load(items, skipped):
    """Adds 'image', uint8 (8h, 8w, 3), to the items; what cannot be read is counted and left out. -> list"""
    good = []
    for item in items:
        try:
            item['image'] = load_image(item['path'], (size // PATCH) ** 2, n_loc - 1)
            item['keys'].add(hashlib.sha1(item['image']).hexdigest())
            good.append(item)
        except BadInput as e:
            leave_out(skipped, item['path'], e)
    return good

def jitter(img, rng):
    """uint8 (H, W, 3) -> the same size: scaled to 80-100% and moved, the border in the colour of the corner."""
    s, (h, w) = rng.uniform(.8, 1), img.shape[:2]
    small = Image.fromarray(img).resize((round(w * s), round(h * s)), Image.Resampling.BICUBIC)
    canvas = Image.new('RGB', (w, h), tuple(int(c) for c in img[0, 0]))
    canvas.paste(small, (int(rng.integers(w - small.width + 1)), int(rng.integers(h - small.height + 1))))
    return np.array(canvas)

def documents(items, codec, copies, seed, train=True):
    """Yields the documents of a split. train: pictures move, some are learned, some prompts are empty."""
    turn = lambda *inner: [('ids', [codec.sp['user']], 0), *inner, ('ids', [codec.sp['assistant']], 0)]
    eot = ('ids', [codec.sp['eot']])
    for n, item in enumerate(items):
        rng, img, words = np.random.default_rng((seed, n)), item['image'], ', '.join(item['keywords'])
        about = [(q, a) for q, a in (('group?', item['group']), ('keywords?', words)) if a]
        for c in range(copies):
            see = lambda: ('image', jitter(img, rng) if train and c else img, int(train and rng.random() < .1))
            yield [see(), *turn(('text', 'name?', 0)), ('text', item['name']), eot]
            if about:
                q, a = about[c % len(about)]
                yield [see(), *turn(('text', q, 0)), ('text', a), eot]
            prompt = f"draw: {item['name']}" + (f', {words}' if c % 3 == 2 and words else '')
            yield turn(*([] if train and rng.random() < .1 else [('text', prompt, 0)])) + [('image', img), eot]

if __name__ == '__main__':
    configure(globals())
    with guard('emoji'):
        codec, skipped = Codec(tokenizer, n_loc), Counter()
        check(0 < size < 8 * n_loc and size % 8 == 0, f'size={size} is no multiple of 8 below {8 * n_loc}')
        check(copies > 0, f'copies={copies} is not at least 1')
        if dir:
            items = load(folder(dir, skipped), skipped)
        else:
            here, way_out = Path(__file__).resolve().parent, 'give your own: --dir=FOLDER, images and captions.tsv'
            with debian([PACKAGE], here, way_out) as root:
                items = load(emoji(root), skipped)
        train, val = divide(items, split, seed)
        print(f'{len(items):,} pictures: {len(train):,} to train, {len(val):,} held out', flush=True)
        target = Path(out or shard_dir('emoji', codec))
        kept = keep(target.parent, name=np.array([i['name'] for i in val]), family=np.array([i['family'] for i in val]),
                    pixels=np.concatenate([i['image'].ravel() for i in val]),
                    shape=np.array([i['image'].shape for i in val]))
        docs = dict(train=documents(train, codec, copies, seed), val=documents(val, codec, 1, seed, train=False))
        info = dict(source=dir or f'Debian package {PACKAGE}', licence="their authors'" if dir else LICENCE)
        write_shards(target, docs, codec, dict(info, skipped=dict(skipped), val=kept))
