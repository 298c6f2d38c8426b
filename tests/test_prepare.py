"""
data/{shakespeare,emoji,digits,speech,spoken}: what ends up in which split, what is left out, and what an interruption leaves behind.
Nothing is fetched: folders of a few files are made here. Tests on the real packages run where they were fetched before.
"""
import json
import re
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.digits.prepare as digits
import data.digits.task as digits_task
import data.emoji.prepare as emoji
import data.emoji.task as emoji_task
import data.shakespeare.prepare as shakespeare
import data.shards as shards
import data.source as source
import data.speech.prepare as speech
import data.speech.task as speech_task
import data.spoken.prepare as spoken
import data.spoken.task as spoken_task
import data.spoken.voices as voices_
from data.codec import Codec
from data.shards import open_shards, shard_dir, write_shards
from data.media import BadInput, mel, save_wav, unpatchify

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared' / 'data'

def prepare(name, *flags):
    """Runs data/NAME/prepare.py in this process, as the command line would -> exit status."""
    argv, handler = sys.argv, signal.getsignal(signal.SIGTERM)
    sys.argv = [f'data/{name}/prepare.py', *flags]
    try:
        runpy.run_path(str(ROOT / 'data' / name / 'prepare.py'), run_name='__main__')
        return 0
    except SystemExit as e:
        return e.code
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)

def read(folder, split, codec):
    """Shards -> list of dict(text: ids as text without payload, w, frames, images [uint8 (8h, 8w, 3)])."""
    s, docs = open_shards(folder, split, codec), []
    for (i, p, f), (j, q, g) in zip(s['doc'], s['doc'][1:]):
        ids, patches, images = s['ids'][i:j].tolist(), s['patch'][p:q], []
        for k in (k for k, v in enumerate(ids) if v == codec.sp['boi']):
            h, w = (v - codec.loc0 for v in ids[k + 1:k + 3])
            images.append(unpatchify(patches[:h * w], h, w))
            patches = patches[h * w:]
        text = codec.untext(ids).replace('<img>', '').replace('<aud>', '')
        docs.append(dict(text=text, w=s['w'][i:j], frames=s['frame'][f:g], images=images))
    return docs

def answer(doc):
    return re.search('assistant>(.*)<eot>', doc['text'])[1]

def picture(k, side=40):
    """k -> a PIL picture that differs from all others."""
    a = np.zeros((side, side, 3), np.uint8)
    a[:, :, k % 3], a[k % side, :, (k + 1) % 3], a[:, k // side, 2] = 40 + 5 * k % 200, 255, 99
    return Image.fromarray(a)

def pictures(folder, captions):
    """Writes captions.tsv and a picture for each caption."""
    folder.mkdir()
    for k in range(len(captions)):
        picture(k).save(folder / f'{k}.png')
    (folder / 'captions.tsv').write_text(''.join(f'{k}.png\t{c}\n' for k, c in enumerate(captions)))
    return folder

def wav(seed, seconds=.3):
    return (np.random.default_rng(seed).normal(0, .1, int(8000 * seconds)) * 32768).clip(-30000, 30000).astype(np.int16)

# -----------------------------------------------------------------------------
# shakespeare

def nanogpt_split(text, tmp_path, capsys):
    (tmp_path / 'in.txt').write_text(text)
    assert prepare('shakespeare', f'--input={tmp_path}/in.txt', f'--out={tmp_path}/shards') == 0
    n = len(text)
    for split, part in (('train', text[:int(n * 0.9)]), ('val', text[int(n * 0.9):])):
        s = open_shards(tmp_path / 'shards', split, Codec())
        assert bytes(s['ids'].tolist()).decode() == part            # bytes: no <eot>, nothing else
        assert len(s['doc']) == 2 and s['w'].all()                  # one document, all learned
    assert f'{int(n * .9):,} characters to train, {n - int(n * 0.9):,} held out' in capsys.readouterr().out

def test_input_is_cut_as_nanogpt_cuts_it(tmp_path, capsys):
    nanogpt_split(''.join(chr(32 + i * 7 % 90) + 'é\n'[i % 9 == 0] for i in range(1003)), tmp_path, capsys)

def test_tinyshakespeare_is_cut_as_nanogpt_cuts_it(tmp_path, capsys):
    if not (SHARED / 'tinyshakespeare.txt').exists():
        pytest.skip('no ../shared/data/tinyshakespeare.txt')
    text = (SHARED / 'tinyshakespeare.txt').read_text()
    nanogpt_split(text, tmp_path, capsys)
    assert len(open_shards(tmp_path / 'shards', 'train', Codec())['ids']) == 1003854        # as nanoGPT prints

def test_plays_are_not_torn():
    plays = ['a' * 40, 'b' * 45, 'c' * 20]
    assert shakespeare.cut(plays, .1, whole=True) == (plays[:2], plays[2:])
    assert shakespeare.cut(plays, .6, whole=True) == (plays[:1], plays[1:])
    with pytest.raises(BadInput, match='split=1'):
        shakespeare.cut(plays, 1.0, whole=True)

def test_long_text_becomes_pieces_with_nothing_lost(monkeypatch):
    monkeypatch.setattr(shakespeare, 'PIECE', 10)
    train, val = shakespeare.cut(['0123456789' * 3 + 'x'], .1, whole=False)
    assert train == ['0123456789', '0123456789', '0123456'] and val == ['789x']

def test_markdown_becomes_plain():
    play = '# Hamlet\n\n## ACT I\n\n_Enter GHOST_\n\n**HAMLET**  \n_\\[Aside]_  \nMore than kin,  \nand less.\n'
    text = 'Hamlet\n\nACT I\n\nEnter GHOST\n\nHAMLET:\n[Aside]\nMore than kin,\nand less.\n'
    assert shakespeare.plain(play) == text

@pytest.mark.parametrize('data, says', [
    (b'', 'empty file'), (b'ab\0c', 'NUL'), (b'caf\xe9 au lait', 'not UTF-8'), (None, 'No such file')])
def test_bad_text_is_one_line(tmp_path, capsys, data, says):
    if data is not None:
        (tmp_path / 'in.txt').write_bytes(data)
    assert prepare('shakespeare', f'--input={tmp_path}/in.txt', f'--out={tmp_path}/shards') == 2
    err = capsys.readouterr().err
    assert says in err and 'in.txt' in err and err.count('\n') == 1 and not (tmp_path / 'shards').exists()

def test_bpe_is_learned_from_the_training_part(tmp_path):
    for f in [ROOT / 'configurator.py', *ROOT.glob('data/*.py'), ROOT / 'data/shakespeare/prepare.py']:
        copy = tmp_path / f.relative_to(ROOT)                       # the merges go beside codec.py
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, copy)
    (tmp_path / 'in.txt').write_text('the cat and the dog and the hat ' * 30 + 'zqzqzqzq' * 12)
    run = [sys.executable, tmp_path / 'data/shakespeare/prepare.py', f'--input={tmp_path}/in.txt', '--tokenizer=bpe:9']
    assert subprocess.run(run, capture_output=True, text=True).returncode == 0
    codec = Codec('bpe:9', dir=tmp_path / 'data')
    s = open_shards(tmp_path / 'data/shakespeare/shards-bpe_9', 'val', codec)
    assert codec.untext(s['ids']).endswith('zqzq') and len(codec.text('zqzq')) == 4 and len(codec.text(' the')) < 4

def test_the_wheel(tmp_path):
    if not shakespeare.CACHE.exists():
        pytest.skip(f'{shakespeare.CACHE.name} was not fetched: python data/shakespeare/prepare.py does it')
    plays = shakespeare.plays()
    assert len(plays) == 38 and sum(map(len, plays)) == 4987655 and not re.search(r'[*_\\#]|  $', ''.join(plays))
    train, val = shakespeare.cut(plays, .1, whole=True)
    assert .08 < sum(map(len, val)) / 4987655 < .12 and not set(train) & set(val)

# -----------------------------------------------------------------------------
# stdlib

def test_python_source_is_split_by_file(tmp_path, capsys):
    root, rng = tmp_path / 'lib', np.random.default_rng(0)
    # m3.py is there twice
    files = {f'{d}m{i}.py': f'# {d}{i} ' + 'x' * int(rng.integers(1, 200)) + '\n' for i in range(60) for d in ('', 'pkg/')}
    files |= {f'p{i}/__init__.py': f'a = {i}\n' for i in range(5)}
    left_out = {'test/a.py': 'not this\n', 'pkg/tests/b.py': 'nor this\n', 'site-packages/c.py': 'nor this\n',
                'encodings/d.py': 'nor this\n', 'empty.py': '\n', 'note.txt': 'no source\n'}
    for name, text in {**files, **left_out}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / 'latin.py').write_bytes('# -*- coding: latin-1 -*-\nname = "é"\n'.encode('latin-1'))
    (root / 'broken.py').write_bytes(b'name = "\xff"\n')
    for out in ('a', 'b'):
        assert prepare('stdlib', f'--root={root}', '--share=0.2', f'--out={tmp_path / out}') == 0
    assert 'skipped broken.py' in capsys.readouterr().out
    found = {split: read(tmp_path / 'a', split, Codec()) for split in ('train', 'dev', 'val', 'test')}
    assert all(len(docs) == 1 and docs[0]['w'].all() for docs in found.values())
    parts = {split: docs[0]['text'].split('<eot>') for split, docs in found.items()}
    assert all(p.pop() == '' for p in parts.values())
    # every file once, whole
    assert sorted(sum(parts.values(), [])) == sorted([*files.values(), '# -*- coding: latin-1 -*-\nname = "é"\n'])
    assert all(parts.values()) and 2 * len(parts['train']) > len(files)
    where = {t: split for split, texts in parts.items() for t in texts}
    assert all(where[files[f'm{i}.py']] == where[files[f'pkg/m{i}.py']] for i in range(60))
    for file in (tmp_path / 'a').iterdir():
        assert file.read_bytes() == (tmp_path / 'b' / file.name).read_bytes(), file.name
    assert prepare('stdlib', f'--root={root / "p1"}', f'--out={tmp_path}/c') == 2

# -----------------------------------------------------------------------------
# splits

def test_families_stay_together():
    names = [n for k in range(30) for n in (f'thing {k}', f'thing {k} tone 1', f'thing {k} tone 5')]
    turbans = ['woman with turban', 'man with turban: medium-dark skin tone']
    names += turbans + ['man dancing', 'dancer tone 2', 'prince', 'princess']
    names += [f'bridge {k}' for k in range(10)]
    items = [dict(name=n, keys={emoji.base(n)}) for n in names]
    for k, it in enumerate(items[-10:]):
        it['keys'] |= {('picture', k), ('picture', k + 1)}          # a chain: each shares one with the next
    train, val = source.divide(items, .1, 0)
    assert len(train) + len(val) == len(names) and 10 <= len(val) <= 20
    for seed in range(20):
        train, val = ({i['family'] for i in part} for part in source.divide(items, .3, seed))
        assert not train & val
    number = {i['name']: i['family'] for i in items}
    assert number['man dancing'] == number['dancer tone 2'] and number['prince'] == number['princess']
    assert number[turbans[0]] == number[turbans[1]]
    assert len({number[f'bridge {k}'] for k in range(10)}) == 1 and len({number[f'thing {k}'] for k in range(30)}) == 30
    again = source.divide(items[::-1], .1, 0)[1]                    # the order of a folder does not matter
    assert {i['name'] for i in again} == {i['name'] for i in source.divide(items, .1, 0)[1]}
    with pytest.raises(BadInput, match='1 families'):
        source.divide(items[:3], .1, 0)

def test_emoji_splits_and_documents(tmp_path, capsys):
    captions = [c for k in range(20) for c in (f'thing {k}', f'thing {k} tone 3')] + ['twin one', 'twin two']
    folder = pictures(tmp_path / 'in', captions)
    shutil.copy(folder / '40.png', folder / '41.png')               # equal pictures with different names
    assert prepare('emoji', f'--dir={folder}', f'--out={tmp_path}/shards', '--split=0.2') == 0
    codec = Codec()
    docs = {split: read(tmp_path / 'shards', split, codec) for split in ('train', 'val')}
    names = {s: {answer(d) for d in docs[s] if 'name?' in d['text']} for s in docs}
    assert names['train'] | names['val'] == set(captions)
    assert not names['train'] & names['val'] and len(names['val']) >= 8
    for part in names.values():
        assert len(part & {'twin one', 'twin two'}) in (0, 2)
        assert all((f'thing {k}' in part) == (f'thing {k} tone 3' in part) for k in range(20))
    pixels = {s: {d['images'][0].tobytes() for d in docs[s]} for s in docs}
    assert not pixels['train'] & pixels['val'] and docs['val'][0]['images'][0].shape == (32, 32, 3)
    texts = [d['text'] for d in docs['train']]
    empty = sum(t.startswith('<user><assistant>') for t in texts)
    assert 0 < empty < .3 * sum(t.startswith('<user>') for t in texts)
    assert not any(t.startswith('<user><assistant>') for t in (d['text'] for d in docs['val']))
    see, draw = docs['val'][:2]
    assert np.array_equal(see['images'][0], draw['images'][0])      # as they are; in training questions they move
    moved = [not np.array_equal(a['images'][0], docs['train'][1]['images'][0]) for a in docs['train'][:6:2]]
    assert moved == [False, True, True]
    name = answer(see)
    assert see['text'] == f'<boi><4><4><eoi><user>name?<assistant>{name}<eot>'
    assert see['w'].tolist() == [0] * 27 + [1] * (len(name) + 1)
    assert draw['text'] == f'<user>draw: {name}<assistant><boi><4><4><eoi><eot>'
    assert draw['w'].tolist() == [0] * (len(name) + 8) + [1] * 19 + [0, 1]      # <eoi> is forced
    assert "their authors'" in capsys.readouterr().out

def test_emoji_problems(tmp_path):
    captions, codec = [c for k in range(40) for c in (f'thing {k}', f'thing {k} tone 3')], Codec()
    folder = pictures(tmp_path / 'in', captions)
    assert prepare('emoji', f'--dir={folder}', f'--out={tmp_path}/shards', '--split=0.5', '--copies=1') == 0
    seen = {d['images'][0].tobytes() for d in read(tmp_path / 'shards', 'train', codec)}
    problems = emoji_task.problems('name', 100, codec, shards=tmp_path / 'shards')
    for p in problems:
        assert len(set(p['choices'])) == 16 and p['answer'] in p['choices'] and p['chance'] == 1 / 16
        assert len({emoji.base(c) for c in p['choices']}) == 16     # never two tones of one
        assert p['prompt'][0][1].tobytes() not in seen and codec.encode(p['prompt'])['w'].sum() == 0
        for c in p['choices']:
            assert emoji_task.verify(p, {'text': c + '<eot>'}) == (c == p['answer'])
    assert np.mean([p['choices'].index(p['answer']) for p in problems]) == pytest.approx(7.5, abs=2)
    again = emoji_task.problems('name', 3, codec, shards=tmp_path / 'shards')
    assert [p['choices'] for p in again] == [p['choices'] for p in problems[:3]]
    prompt = codec.untext(codec.encode(problems[0]['prompt'])['ids']).replace('<img>', '')
    val = read(tmp_path / 'shards', 'val', codec)
    assert any(d['text'].startswith(prompt) for d in val)
    known = {(answer(d), d['images'][0].tobytes()) for d in val if 'name?' in d['text']}
    assert {(p['answer'], p['prompt'][0][1].tobytes()) for p in problems} == known

def test_digits_are_held_out_and_judged_by_what_training_has(tmp_path):
    rng, codec, out = np.random.default_rng(0), Codec(), tmp_path / 'shards'
    names = np.arange(200) % 10
    pixels = np.zeros((200, 8, 8, 3), np.uint8)
    pixels[np.arange(200), names % 8, 2 + names // 8 * 3] = 255                   # a dot for each digit, where no other has one
    pixels += rng.integers(0, 40, (200, 8, 8, 1), np.uint8) * (pixels == 0)
    val = digits.held_out(pixels)
    assert val.sum() == 40 and np.array_equal(val[::-1], digits.held_out(pixels[::-1]))             # whatever their order
    kept = source.keep(tmp_path, pixels=pixels[..., 0], name=names, val=val)
    write_shards(out, dict(train=digits.documents(pixels[~val], names[~val], codec, 2, 0),
                           val=digits.documents(pixels[val], names[val], codec, 1, 0, train=False)), codec, dict(val=kept))
    train, held = read(out, 'train', codec), read(out, 'val', codec)
    assert len(train) == 2 * 2 * 160 and len(held) == 2 * 40
    seen = {d['images'][0].tobytes() for d in train}
    exact = {p.tobytes(): n for p, n in zip(pixels, names)}
    assert not seen & {p.tobytes() for p in pixels[val]} and len(seen) > 400                        # those that are read are shaken
    assert all(exact[d['images'][0].tobytes()] == int(answer(d)) for d in held[::2])
    assert held[0]['text'] == f'<boi><1><1><eoi><user>digit?<assistant>{names[val][0]}<eot>' and held[0]['w'].sum() == 2
    assert held[1]['text'] == f'<user>draw: {names[val][0]}<assistant><boi><1><1><eoi><eot>'
    empty = sum(d['text'].startswith('<user><assistant>') for d in train)
    assert 0 < empty < 100
    read_, drawn = (digits_task.problems(k, 60, codec, shards=out) for k in digits_task.SKILLS)
    assert len(read_) == 40 and len(drawn) == 60                                                    # each held-out one at most once
    assert {p['prompt'][0][1].tobytes() for p in read_} == {p.tobytes() for p in pixels[val]}
    assert all(exact[p['prompt'][0][1].tobytes()] == int(p['answer']) for p in read_)
    assert [digits_task.verify(read_[0], dict(text=f'{k}<eot>')) for k in range(10)] == [k == int(read_[0]['answer']) for k in range(10)]
    for p in drawn[:10]:
        mine = names == int(p['answer'])
        assert digits_task.verify(p, dict(images=[pixels[val & mine][0]])) == 1
        assert digits_task.verify(p, dict(images=[pixels[val & ~mine][0]])) == 0
        assert digits_task.verify(p, dict(images=[])) == 0 and digits_task.verify(p, dict(images=[np.zeros((8, 16, 3), np.uint8)])) == 0
    assert digits_task.judge_alone(out) == 1
    with pytest.raises(ValueError, match='read'):
        digits_task.problems('name', 1, codec, shards=out)

def test_the_digits_of_scikit_learn():
    if not digits.CACHE.exists():
        pytest.skip('they were not fetched: python data/digits/prepare.py does it')
    pixels, names = digits.digits()
    assert pixels.shape == (1797, 8, 8, 3) and pixels.max() == 255 and np.bincount(names).min() >= 174
    assert digits.held_out(pixels).sum() == 359

def test_the_emoji_package():
    if not list((ROOT / 'data/emoji').glob('*.deb')) or not shutil.which('dpkg'):
        pytest.skip('ruby-tanuki-emoji was not fetched: python data/emoji/prepare.py does it')
    skipped = emoji.Counter()
    with source.debian([emoji.PACKAGE], ROOT / 'data/emoji', '') as root:
        items = emoji.load(emoji.emoji(root), skipped)
    train, val = source.divide(items, .1, 0)
    assert len(items) == 1794 and not skipped and 179 <= len(val) <= 200
    assert not {emoji.base(i['name']) for i in train} & {emoji.base(i['name']) for i in val}
    assert not {i['image'].tobytes() for i in train} & {i['image'].tobytes() for i in val}
    family = {i['name']: i['family'] for i in items}
    for a, b in (('boy', 'woman tone 4'), ('older man', 'older woman tone 5'), ('man dancing', 'dancer'),
                 ('norway', 'bouvet island')):
        assert family[a] == family[b], (a, b)

# -----------------------------------------------------------------------------
# speech

def digits_folder(folder):
    """A few recordings in the layout of FSDD, and the same ones packed, in another order."""
    folder.mkdir()
    clips = [(d, s, i, wav(1000 * d + 100 * len(s) + i, .2 + .01 * d))
             for i in (0, 4, 5, 9, 10, 49) for s in ('theo', 'lucas') for d in (0, 7)]
    for d, s, i, x in clips:
        save_wav(folder / f'{d}_{s}_{i}.wav', x / 32767)
    digit, speaker, index, audio = zip(*clips)
    np.savez(folder.with_suffix('.npz'), audio=np.concatenate(audio), offset=np.cumsum([0] + [len(a) for a in audio]),
             digit=np.array(digit), speaker=np.array(speaker), index=np.array(index))
    return folder

def test_fsdd_folder_and_npz_are_the_same(tmp_path):
    folder = digits_folder(tmp_path / 'fsdd')
    save_wav(folder / 'seven.wav', np.zeros(4000))
    (folder / '3_theo_12.wav').write_bytes(b'')
    (folder / 'README.md').write_text('not counted')
    skipped, none = speech.Counter(), speech.Counter()
    a, b = speech.digits(folder, skipped), speech.digits(folder.with_suffix('.npz'), none)
    for x, y in zip(a, b):
        assert [(i['name'], i['speaker'], i['kind']) for i in x] == [(i['name'], i['speaker'], i['kind']) for i in y]
        assert all(np.array_equal(i['wave'], j['wave']) and i['wave'].dtype == np.float32 for i, j in zip(x, y))
    assert len(a[0]) == 8 and len(a[1]) == 16                       # index 10 and 49 to train; 0, 4, 5 and 9 held out
    assert skipped.total() == 2 and not none and {i['name'] for i in a[0]} == {'zero', 'seven'}

def test_speech_documents_and_problems(tmp_path, capsys):
    folder = tmp_path / 'in'
    folder.mkdir()
    for k in range(20):
        save_wav(folder / f'{k}.wav', wav(k, .5) / 32768)
    (folder / 'transcripts.tsv').write_text(''.join(f'{k}.wav\tPress  {k // 2}.\n' for k in range(20)))
    digits = digits_folder(tmp_path / 'fsdd').with_suffix('.npz')
    assert prepare('speech', f'--dir={folder}', f'--fsdd={digits}', f'--out={tmp_path}/shards', '--split=0.25') == 0
    codec = Codec()
    docs = {split: read(tmp_path / 'shards', split, codec) for split in ('train', 'val')}
    clips = {s: {answer(d) for d in docs[s] if re.search('transcribe.*Press', d['text'])} for s in docs}
    assert [len(clips['train']), len(clips['val'])] == [7, 3] and not clips['train'] & clips['val']
    hear = sum(d['text'].endswith('transcribe<assistant>seven<eot>') for d in docs['train'])
    assert hear == 4 * 6 and any('say as lucas: zero' in d['text'] for d in docs['train'])
    heard, spoken = docs['val'][:2]
    n, text = len(heard['frames']), answer(heard)
    assert n == 13 and heard['text'] == f'<user><boa><eoa>transcribe<assistant>{text}<eot>'
    assert heard['w'].tolist() == [0] * (n + 14) + [1] * (len(text) + 1)
    assert spoken['text'] == f'<user>say: {text}<assistant><boa><eoa><eot>' and spoken['w'].sum() == n + 3
    out = capsys.readouterr().out
    assert 'CC-BY-SA-4.0' in out and "their authors'" in out
    frames = {d['frames'].tobytes() for d in docs['train']}
    for split, n in (('train', 8), ('val', 16)):                     # so many digits, a string of two and of three each, or four strings
        said = [answer(d).split() for d in docs[split] if re.search('transcribe<assistant>(zero|seven) ', d['text'])]
        assert Counter(map(len, said)) == {k: n * (2 if split == 'train' else 1) for k in (2, 3)}
        assert {w for s in said for w in s} == {'zero', 'seven'}
    for skill, number in (('digit', 16), ('two digits', 16), ('three digits', 16), ('transcript', 6)):
        problems = speech_task.problems(skill, 99, codec, shards=tmp_path / 'shards')
        assert len(problems) == number and all(codec.encode(p['prompt'])['w'].sum() == 0 for p in problems)
        assert all(p['prompt'][1][1].astype(np.float16).tobytes() not in frames for p in problems)
        assert all(speech_task.verify(p, {'text': p['answer'].lower() + '<eot>junk'}) == 1 for p in problems)
        assert all(speech_task.verify(p, {'text': 'eleven'}) == 0 for p in problems)
        prompt = codec.untext(codec.encode(problems[0]['prompt'])['ids']).replace('<aud>', '')
        assert any(d['text'].startswith(prompt) for d in docs['val'])

def test_strings_are_only_heard_where_training_only_hears_them(tmp_path):
    digits = digits_folder(tmp_path / 'fsdd').with_suffix('.npz')
    assert prepare('speech', '--asterisk=false', f'--fsdd={digits}', f'--out={tmp_path}/shards') == 0
    for split in ('train', 'val'):
        texts = [d['text'] for d in read(tmp_path / 'shards', split, Codec())]
        assert any(re.search('transcribe<assistant>(zero|seven) ', t) for t in texts)
        assert any(t.startswith('<user>say') for t in texts) and not any(re.match('<user>say.*: (zero|seven) ', t) for t in texts)

def test_what_is_said_is_judged_by_recordings_of_training(tmp_path):
    """Of training only, and of the first; it finds each of them again; nothing said is wrong."""
    folder = digits_folder(tmp_path / 'fsdd')
    assert prepare('speech', '--asterisk=false', f'--fsdd={folder}', f'--out={tmp_path}/shards') == 0
    problems = speech_task.problems('say', 40, Codec(), shards=tmp_path / 'shards')
    x, size, name = problems[0]['known']
    assert len(x) == len(size) == 8 and sorted(set(name)) == ['seven', 'zero']        # indices 10 and 49 of two digits by two speakers
    assert {p['question'] for p in problems} == {f'say{w}: {d}' for w in ('', ' as theo', ' as lucas') for d in ('zero', 'seven')}
    train, _ = speech.digits(folder, speech.Counter())
    assert [(i['name'], i['wave'] is t['wave'], i['kind']) for i, t in zip(speech.first(train, 1), train[::2])] == [
        (d, True, 'known') for d in ('zero', 'zero', 'seven', 'seven')]                  # of digit and speaker the one with index 10
    for it in train:
        said = dict(audio=[it['wave']])
        assert [speech_task.verify(p, said) for p in problems] == [float(p['answer'] == it['name']) for p in problems]
    for nothing in (dict(audio=[]), dict(text='seven'), dict(audio=[np.zeros(0, np.float32)])):
        assert speech_task.verify(problems[0], nothing) == 0
    assert 0 <= speech_task.judge_alone(tmp_path / 'shards') <= 1                      # of noise

def test_the_judge_of_what_is_said_hears_through_speed_volume_and_silence():
    def sweep(a, b, seconds=.5):                                      # from a to b Hz
        t = np.arange(int(8000 * seconds)) / 8000
        return np.sin(2 * np.pi * (a * t + (b - a) * t ** 2 / 2 / seconds)).astype(np.float32) * .2
    ways = dict(up=(300, 2000), down=(2000, 300), low=(300, 320), high=(1900, 2000))
    frames = [speech.mel(sweep(*w)) for w in ways.values()]
    known = speech_task.recordings(dict(n_frames=np.array([len(f) for f in frames]), kind=np.array(['known'] * 4), name=np.array([*ways]),
                                        frames=np.concatenate(frames)))
    for name, w in ways.items():
        for wave in (sweep(*w), sweep(*w) / 4, sweep(*w, .8), sweep(*w, .3), np.pad(sweep(*w), (9000, 5000))):
            assert speech_task.verify(dict(skill='say', answer=name, known=known), dict(audio=[wave])) == 1, name

def test_time_is_warped_as_the_recursion_says(tmp_path):
    frames = [np.random.default_rng(i).normal(0, .1, (n, 128)) for i, n in enumerate((3, 5, 4))]
    v = dict(n_frames=np.array([3, 5]), kind=np.array(['known'] * 2), name=np.array(['a', 'b']), frames=np.concatenate(frames[:2]))
    way = {}
    for k, c in enumerate(map(speech_task.cepstra, frames[:2])):
        y, d = speech_task.cepstra(frames[2]), {}
        for i in range(len(c)):
            for j in range(len(y)):
                before = [d[q] for q in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if q in d]
                d[i, j] = np.linalg.norm(c[i] - y[j]) + min(before, default=0)
        way['ab'[k]] = d[len(c) - 1, len(y) - 1] / (len(c) + len(y))
    assert speech_task.nearest(speech_task.recordings(v), frames[2]) == min(way, key=way.get)

def test_word_errors():
    p = dict(skill='transcript', answer='Please press one, now.')
    assert speech_task.verify(p, {'text': 'please press one now<eot>'}) == 1
    for text, score in (('press one now', .75), ('please press two now', .75), ('a b c d e f', 0), ('', 0)):
        assert speech_task.verify(p, {'text': text}) == score
    assert speech_task.errors('a b c d'.split(), 'b c x d y'.split()) == 3
    assert speech_task.verify(dict(skill='three digits', answer='one two three'), {'text': 'one two<eot>'}) == pytest.approx(2 / 3)
    d = dict(skill='digit', answer='six')
    assert [speech_task.verify(d, {'text': t}) for t in ('six<eot>', 'Six.', 'six six', 'sixty', '')] == [1, 1, 0, 0, 0]

def test_strings_of_digits_are_of_one_speaker_and_join_what_was_recorded():
    items = [dict(name=f'{s}{k}', speaker=s, kind='digit', wave=np.full(2000, k + 1 + 10 * (s == 'b'), np.float32))
             for s in 'ab' for k in range(5)]
    own, rng = speech.by_speaker([*items, dict(kind='clip', speaker='')]), np.random.default_rng(0)
    assert own == {'a': items[:5], 'b': items[5:]}
    for n in (2, 3) * 20:
        first = items[rng.integers(10)]
        s = speech.joined(first, own[first['speaker']], n, rng)
        names = s['name'].split()
        assert len(names) == n and names[0] == first['name'] and {x[0] for x in names} == {first['speaker']}
        assert s['kind'] == ('two digits' if n == 2 else 'three digits')
        values = [i['wave'][0] for x in names for i in items if i['name'] == x]
        sound = s['wave'][s['wave'] != 0]
        assert np.array_equal(sound, np.repeat(values, 2000)) and 0 <= len(s['wave']) - 2000 * n <= (n - 1) * 1200
        assert s['wave'][0] == values[0] and s['wave'][-1] == values[-1]

def test_takes_differ_and_keep_the_sound():
    rng, x = np.random.default_rng(0), np.sin(np.arange(4000) * 2 * np.pi * 500 / 8000).astype(np.float32) * .2
    for _ in range(20):
        y = speech.vary(x, rng)
        hz = np.abs(np.fft.rfft(y)).argmax() * 8000 / len(y)
        assert 440 < hz < 560 and abs(y).max() <= 1 and 3500 < len(y) < 4000 * 1.12 + 3200 and mel(y).shape[1] == 128

def test_the_asterisk_packages():
    if len(list((ROOT / 'data/speech').glob('*.deb'))) < 2 or not shutil.which('dpkg'):
        pytest.skip('asterisk-core-sounds-en* were not fetched: python data/speech/prepare.py does it')
    skipped = speech.Counter()
    with source.debian(speech.PACKAGES, ROOT / 'data/speech', '') as root:
        items = speech.clips(root, skipped)
    assert len(items) == 510 and skipped['silence or no speech'] == 24 and skipped.total() == 24 + 34 + 1
    assert all(400 <= len(i['wave']) <= 48000 and '[' not in i['name'] and i['name'] for i in items)

# -----------------------------------------------------------------------------
# spoken questions

@pytest.fixture
def said(monkeypatch):
    """What espeak-ng was asked to say, [(text, voice)], instead of its saying it."""
    out = []
    def speak(text, voice, speed, pitch):
        assert 80 < speed < 400 and 0 <= pitch < 100
        out.append((text, voice))
        return np.sin(np.arange(60 * len(text)) * (len(voice) + 3) * .1).astype(np.float32)
    for module in (spoken, spoken_task):
        monkeypatch.setattr(module, 'speak', speak)
    return out

def test_spoken_questions_are_those_of_the_scene_in_voices_of_the_split(said):
    codec, voices = Codec(), {}
    for split in ('train', 'val'):
        kinds = set()
        for i in range(40):
            said.clear()
            doc = spoken.document(i, split, codec)
            voices.setdefault(split, set()).update(v.split('+')[1] for _, v in said)
            text = codec.untext(codec.encode(doc)['ids']).replace('<img>', '').replace('<aud>', '')
            sounds = [s for s in doc if s[0] == 'audio']
            assert len(sounds) == len(said) and all(np.array_equal(s[1], mel(np.sin(np.arange(60 * len(t)) * (len(v) + 3) * .1)))
                                                    for s, (t, v) in zip(sounds, said))
            assert all(s[2] == 0 for s in sounds) or split == 'train'
            if doc[0][0] == 'image':
                kinds.add('ask')
                assert len(said) in (1, 2) and text.count('<user><boa><eoa><assistant>') == len(said) == text.count('<eot>')
                assert not any(t in text for t, _ in said)              # asked aloud alone
                for (question, _), a in zip(said, re.findall('<assistant>(.*?)<eot>', text)):
                    assert re.fullmatch({'how': '[0-3]', 'where': '(top|bottom) (left|right)', 'is': 'yes|no', 'box': '<box>(<[0-9]+>){4}',
                                         'point': '<point>(<[0-9]+>){2}'}[question.split()[0]], a)
            else:
                kinds.add('hear')
                assert text == f'<user><boa><eoa>transcribe<assistant>{said[0][0]}<eot>'
            said.clear()
            assert codec.encode(spoken.document(i, split, codec))['frames'].tobytes() == codec.encode(doc)['frames'].tobytes()
        assert kinds == {'ask', 'hear'}
    heard, held = set(voices_.VOICES), set(voices_.HELD_OUT)
    assert voices['train'] <= heard and voices['val'] <= held and not heard & held

def test_spoken_problems_are_judged_as_the_written_ones(said):
    codec = Codec()
    for skill in spoken_task.SKILLS:
        said.clear()
        ps = spoken_task.problems(skill, 12, codec)
        assert {v.split('+')[1] for _, v in said} <= set(voices_.HELD_OUT)
        for p, (text, _) in zip(ps, said):
            whole = codec.untext(codec.encode(p['prompt'])['ids'])
            assert codec.encode(p['prompt'])['w'].sum() == 0 and whole.endswith('<assistant>') and text not in whole
            assert spoken_task.verify(p, {'text': p['answer'] + '<eot>'}) == 1 and spoken_task.verify(p, {'text': 'x y z'}) == 0
            assert text == (p['answer'] if skill == 'heard' else p['question'])
    p = dict(skill='heard', answer='how many red?')
    assert spoken_task.verify(p, {'text': 'how many blue?<eot>'}) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match='asked count'):
        spoken_task.problems('what', 1, codec)

def test_espeak_says_the_same_whatever_it_said_before():
    if not voices_.CACHE.exists():
        pytest.skip('it was not fetched: python data/spoken/prepare.py does it')
    one = voices_.speak('where is pink 3?', 'en-us+m1', 180, 40)
    other = voices_.speak('point to red', 'en-029+f4')
    assert np.array_equal(one, voices_.speak('where is pink 3?', 'en-us+m1', 180, 40)) and one.dtype == np.float32
    assert .6 < len(one) / 8000 < 3 and len(other) != len(one) and .05 < abs(one).max() <= 1
    with pytest.raises(BadInput, match='voice=xx.m1'):
        voices_.speak('hello', 'xx+m1')
    code = f'import sys; sys.path.insert(0, {str(ROOT)!r}); from data.spoken.voices import speak; import zlib; ' \
           'print(zlib.crc32(speak("where is pink 3?", "en-us+m1", 180, 40).tobytes()))'
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.stdout.strip() == str(zlib.crc32(one.tobytes())), r.stderr

# -----------------------------------------------------------------------------
# train.py asks for what is missing

def test_a_set_of_ones_own_is_made_again_for_another_tokenizer(tmp_path, monkeypatch, capfd):
    """As its user asked for it, files named from where they were then; not as train.py did for --input, nor of what has been made since."""
    shutil.copytree(ROOT / 'data', tmp_path / 'repo' / 'data', ignore=shutil.ignore_patterns('shards-*', '*.deb', 'espeak-*', 'bpe_*'))
    shutil.copy(ROOT / 'configurator.py', tmp_path / 'repo')
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'book.txt').write_text('my own book ' * 99)
    (tmp_path / 'other.txt').write_text('another text ' * 99)
    script = tmp_path / 'repo' / 'data' / 'shakespeare' / 'prepare.py'
    assert subprocess.run([sys.executable, script, '--input=book.txt', '--split=0.2'], cwd=tmp_path / 'in').returncode == 0
    monkeypatch.setattr(shards, 'ROOT', tmp_path / 'repo' / 'data')
    monkeypatch.setattr(shards, 'shard_dir', lambda name, codec: shard_dir(name, codec, tmp_path / 'repo' / 'data'))
    text = lambda folder, codec, split: bytes(open_shards(folder, split, codec)['ids'].astype(np.uint8))
    codec = Codec('bytes', 32)
    made = shards.prepared('shakespeare', Codec(), str(tmp_path / 'other.txt'), 'input')
    assert text(made, Codec(), 'train').startswith(b'another text')
    new = shards.prepared('shakespeare', codec)
    assert 'with --input=book.txt --split=0.2, as before' in capfd.readouterr().out and new.name == 'shards-bytes-32'
    assert text(new, codec, 'train').startswith(b'my own book') and len(text(new, codec, 'val')) == pytest.approx(.2 * 12 * 99, abs=2)
    before = (new / 'meta.json').stat()
    assert shards.prepared('shakespeare', codec) == new and (new / 'meta.json').stat() == before
    (tmp_path / 'in' / 'book.txt').write_text('my next book ' * 99)               # asked anew, for bytes: what train.py made is out of date
    assert subprocess.run([sys.executable, script, '--input=book.txt'], cwd=tmp_path / 'in').returncode == 0
    assert shards.prepared('shakespeare', codec, make=False) == new and text(new, codec, 'train').startswith(b'my own book')
    assert text(shards.prepared('shakespeare', codec), codec, 'train').startswith(b'my next book')

@pytest.mark.parametrize('name, flags, says', [
    ('signs', '--levels=3', 'levels=3: write LEVEL:SHARE+'), ('signs', '--levels=3:a', 'levels=3:a'),
    ('countdown', '--levels=3:-1', 'levels=3:-1'),
    ('signs', '--n_train=0', 'n_train=0'), ('countdown', '--n_val=-5', 'n_val=-5')])
def test_what_cannot_be_made_up_is_one_line(tmp_path, capsys, name, flags, says):
    assert prepare(name, *flags.split(), f'--out={tmp_path}/shards') == 2
    err = capsys.readouterr().err
    assert says in err and err.count('\n') == 1 and not (tmp_path / 'shards').exists()

def test_a_file_for_a_data_set_that_is_not_in_the_mixture():
    with pytest.raises(ValueError, match='input=x.txt: it is for --dataset=shakespeare, this run has scenes'):
        shards.codec_and_folders(['scenes'], 'bytes', 64, dict(shakespeare=('x.txt', 'input'), speech=('', 'fsdd')))

# -----------------------------------------------------------------------------
# damaged files, wrong flags

def bomb():
    """A PNG of a few bytes that says it has 40,000 x 40,000 pixels."""
    part = lambda kind, d: struct.pack('>I', len(d)) + kind + d + struct.pack('>I', zlib.crc32(kind + d))
    head = struct.pack('>IIBBBBB', 40000, 40000, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + part(b'IHDR', head) + part(b'IDAT', zlib.compress(b'')) + part(b'IEND', b'')

def test_damaged_pictures_are_counted(tmp_path, capsys):
    folder = pictures(tmp_path / 'in', [f'thing {k}' for k in range(10)])
    good = (folder / '0.png').read_bytes()
    bad = {'bomb.png': bomb(), 'empty.png': b'', 'cut.png': good[:len(good) // 2], 'text.png': b'I am no picture'}
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    (folder / 'sub.png').mkdir()
    with open(folder / 'captions.tsv', 'a') as f:
        f.write(''.join(f'{n}\tbad\n' for n in [*bad, 'sub.png', 'missing.png']))
        f.write('no tab here\n\n0.png\t\n\tno file\n1.png\t' + 'x' * 999 + '\n')
    assert prepare('emoji', f'--dir={folder}', f'--out={tmp_path}/shards') == 0
    meta, shown = json.loads((tmp_path / 'shards/meta.json').read_text()), capsys.readouterr().out
    assert sum(meta['skipped'].values()) == 10 and meta['skipped']['no such file'] == 2
    assert [meta['splits'][s]['documents'] for s in ('train', 'val')] == [9 * 6, 2] and 'skipped bomb.png' in shown
    assert not any(str(tmp_path) in reason for reason in meta['skipped'])

def test_damaged_recordings_are_counted(tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    for k in range(6):
        save_wav(folder / f'{k}.wav', wav(k) / 32768)
    good = (folder / '0.wav').read_bytes()
    bad = {'empty.wav': b'', 'cut.wav': good[:-100], 'text.wav': b'I am no sound', 'none.wav': good[:40] + bytes(4)}
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    save_wav(folder / 'long.wav', np.zeros(8000 * 7))
    save_wav(folder / 'short.wav', np.zeros(80))
    lines = [f'{k}.wav\tword {k}' for k in range(6)] + ['0.wav', '\tx']
    lines += [f'{n}\tbad' for n in [*bad, 'long.wav', 'short.wav', 'missing.wav']]
    (folder / 'transcripts.tsv').write_text('\n'.join(lines))
    assert prepare('speech', f'--dir={folder}', f'--out={tmp_path}/shards') == 0
    meta = json.loads((tmp_path / 'shards/meta.json').read_text())
    assert sum(meta['skipped'].values()) == 9 and meta['splits']['val']['documents'] == 2
    with pytest.raises(BadInput, match='--fsdd'):
        speech_task.problems('digit', 5, Codec(), shards=tmp_path / 'shards')

def broken_npz(path, **changes):
    whole = dict(audio=np.zeros(9000, np.int16), offset=np.array([0, 4500, 9000]), digit=np.array([1, 2]),
                 speaker=np.array(['a', 'b']), index=np.array([3, 30]))
    np.savez(path, **{**whole, **changes})
    return path

@pytest.mark.parametrize('line, says', [
    ('emoji --dir={tmp}/none', 'captions.tsv'), ('emoji --dir={tmp}', 'families'),
    ('emoji --size=30 --dir={tmp}', 'size=30'), ('speech --asterisk=0', 'families'),
    ('emoji --copies=0 --dir={tmp}', 'copies=0'), ('emoji --split=0 --dir={tmp}/ok', 'split=0'),
    ('speech --dir={tmp}/none', 'transcripts.tsv'), ('speech --tokenizer=x', 'tokenizer'),
    ('speech --asterisk=0 --fsdd={tmp}/none', '--fsdd='), ('speech --asterisk=0 --fsdd={tmp}', '0 digits'),
    ('speech --asterisk=0 --fsdd={tmp}/objects.npz', '--fsdd='), ('speech --copies=0', 'copies=0'),
    ('speech --asterisk=0 --fsdd={tmp}/offsets.npz', '--fsdd='), ('speech --asterisk=0 --fsdd={tmp}/zip.npz', 'zip')])
def test_wrong_flags_are_one_line(tmp_path, capsys, line, says):
    (tmp_path / 'captions.tsv').write_text('')
    pictures(tmp_path / 'ok', ['a', 'b'])
    broken_npz(tmp_path / 'objects.npz', speaker=np.array([{}, 'b'], dtype=object))
    broken_npz(tmp_path / 'offsets.npz', offset=np.array([0, 99999, 9000]))
    (tmp_path / 'zip.npz').write_bytes(broken_npz(tmp_path / 'whole.npz').read_bytes()[:500])
    name, *flags = line.format(tmp=tmp_path).split()
    assert prepare(name, *flags, f'--out={tmp_path}/shards') == 2
    err = capsys.readouterr().err
    assert says in err and err.count('\n') == 1 and err.startswith(name) and not (tmp_path / 'shards').exists()

def test_without_apt_there_is_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(BadInput, match='no apt-get here .* ruby-tanuki-emoji; use --dir'):
        with source.debian(['ruby-tanuki-emoji'], tmp_path, 'use --dir'):
            pass
    for tool, line, says in (('apt-get', 'exit 100', 'fake cannot be fetched .*; use --dir'),
                             ('apt-get', ': > fake_1_all.deb', 'no dpkg .* fake_1_all.deb; use --dir'),
                             ('dpkg', 'exit 2', 'fake_1_all.deb: damaged')):
        (tmp_path / tool).write_text(f'#!/bin/sh\n{line}\n')
        (tmp_path / tool).chmod(0o755)
        with pytest.raises(BadInput, match=says):
            with source.debian(['fake'], tmp_path, 'use --dir'):
                pass
    assert list(tmp_path.glob('*.deb')) == [tmp_path / 'fake_1_all.deb']

def test_held_out_items_are_whole_or_refused(tmp_path):
    name = source.keep(tmp_path, a=np.arange(3))
    (tmp_path / 'shards').mkdir()
    meta, where = tmp_path / 'shards/meta.json', tmp_path / 'shards'
    meta.write_text(json.dumps(dict(val=name)))
    assert source.kept(where)['a'].tolist() == [0, 1, 2] and not list(tmp_path.glob('.*'))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50])
    with pytest.raises(BadInput, match='missing or damaged'):
        source.kept(where)
    np.savez(tmp_path / name, a=np.array([{}], dtype=object))
    with pytest.raises(BadInput, match='missing or damaged'):       # pickles are never read
        source.kept(where)
    meta.unlink()
    with pytest.raises(BadInput, match='missing or damaged'):
        source.kept(where)

# -----------------------------------------------------------------------------
# interruption

SLOW = '''
import runpy, sys, time
sys.path.insert(0, {root!r})
from data.codec import Codec
fast = Codec.encode
Codec.encode = lambda self, doc: (time.sleep(.1), fast(self, doc))[1]
sys.argv = [{script!r}] + {flags!r}
runpy.run_path({script!r}, run_name='__main__')
'''

@pytest.mark.parametrize('name, stop', [('emoji', signal.SIGINT), ('speech', signal.SIGTERM),
                                        ('shakespeare', signal.SIGINT), ('emoji', signal.SIGKILL)])
def test_interruption_leaves_no_data_set(tmp_path, name, stop):
    out = tmp_path / 'shards'
    code = SLOW
    if name == 'emoji':
        flags = [f'--dir={pictures(tmp_path / "in", [f"thing {k}" for k in range(30)])}']
    elif name == 'speech':
        flags = ['--asterisk=false', f'--fsdd={digits_folder(tmp_path / "fsdd")}']
    else:
        (tmp_path / 'in.txt').write_text('to be or not to be ' * 40)
        flags = [f'--input={tmp_path}/in.txt']
        code = SLOW.replace('sleep(.1)', 'sleep(20)')               # it has two documents only
    flags.append(f'--out={out}')
    code = code.format(root=str(ROOT), script=str(ROOT / f'data/{name}/prepare.py'), flags=flags)
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    for _ in range(600):                                            # until shards are being written
        if list(tmp_path.glob('shards*tmp*/train.ids.bin')) or p.poll() is not None:
            break
        time.sleep(.05)
    time.sleep(.3)
    p.send_signal(stop)
    _, err = p.communicate(timeout=60)
    assert not out.exists(), err
    if stop == signal.SIGKILL:
        assert p.returncode == -9
    else:
        assert p.returncode == 130 and 'interrupted, no data set' in err and 'Traceback' not in err
        assert not [f for f in tmp_path.iterdir() if 'tmp' in f.name or f.name.startswith('.')]
    assert prepare(name, *flags) == 0                               # the next try is not disturbed by what is left
    assert len(read(out, 'train', Codec())) >= 1 and len(read(out, 'val', Codec())) >= 1
