"""
Recorded English with its words: 544 clips of one speaker (Debian packages asterisk-core-sounds-en*) or recordings of
your own, and spoken digits (Free Spoken Digit Dataset).

    python data/speech/prepare.py                         # apt-get download and dpkg -x, nothing gets installed
    python data/speech/prepare.py --fsdd=FOLDER           # and digits: files  DIGIT_SPEAKER_INDEX.wav
    python data/speech/prepare.py --fsdd=fsdd_train.npz   # the same, packed: audio, offset, digit, speaker, index
    python data/speech/prepare.py --dir=FOLDER            # WAVs and transcripts.tsv: filename TAB words

Documents:
    hear    <user><boa> ... <eoa>transcribe<assistant>seven<eot>
    say     <user>say: seven<assistant><boa> ... <eoa><eot>           every other one of a digit: say as jackson: seven
Digits are heard one by one, and two or three of one speaker joined: transcribe<assistant>seven two nine<eot>.
Questions have weight 0, answers 1; the sound before a question is learned in 10% of the documents; 10% of the say
prompts are empty, for guidance. In training, sounds to hear vary: volume, speed, silence around them.
Held out: a tenth of the clips (the same words always on one side), and digits with an index of 0 to 9: 0 to 4 are the
official test part (the packed file has none of them), 5 to 9 are taken from the official training part.
"""
import gzip
import re
import sys
from collections import Counter
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
import torch
from configurator import configure
from data.codec import Codec
from data.shards import shard_dir, write_shards
from data.media import RATE, BadInput, check, load_audio, mel, resample
from data.source import debian, divide, guard, keep, leave_out, table

HERE = Path(__file__).resolve().parent
PACKAGES = ['asterisk-core-sounds-en', 'asterisk-core-sounds-en-wav']
LICENCES = dict(clip='Asterisk sounds: CC-BY-SA-3.0, (c) 2003-2010 Allison Smith, funded by Digium',
                digit='Free Spoken Digit Dataset: CC-BY-SA-4.0, Jakobovski and others', own="clips: their authors'")
DIGITS = 'zero one two three four five six seven eight nine'.split()
HELD_OUT = 10  # digits with a smaller index
KNOWN = 10  # recordings to train of each digit and speaker that task.py judges what is said by

dir = ''  # a folder with WAVs and transcripts.tsv, instead of the Asterisk clips
asterisk = True  # the Asterisk clips; false leaves them out
fsdd = ''  # folder or .npz of spoken digits
max_seconds = 6.0  # longer clips are left out, 25 positions a second
split = 0.1  # held-out share of the clips (digits: by index)
copies = 4  # hear documents per clip; there are half as many say documents
digit_copies = 6  # hear documents per digit; there are a third as many say documents
strings = 4  # hear documents of two or three digits per digit, which is the first
seed = 0
tokenizer = 'bytes'  # see data/codec.py
n_loc = 64  # bins of a coordinate
out = ''  # folder; '' = data/speech/shards-TOKENIZER

def item(path, text, kind, skipped, wave=None, speaker=''):
    """-> [dict(name, keys, wave float32 (n,) at 8 kHz, kind, speaker)], or [] and a count in skipped."""
    try:
        check(0 < len(text) <= 400, 'no text, or over 400 characters')
        wave = load_audio(path) if wave is None else wave
        check(.05 <= len(wave) / RATE <= max_seconds, f'shorter than .05 s or longer than max_seconds={max_seconds}')
        return [dict(name=text, keys={plain(text)}, wave=wave, kind=kind, speaker=speaker)]
    except BadInput as e:
        leave_out(skipped, path, e)
        return []

def plain(text):
    """'Thank you.' -> 'thank you': what decides if two clips say the same."""
    return ' '.join(re.sub(r"[^\w' ]", ' ', text.lower()).split())

def clips(root, skipped):
    """Unpacked packages -> items; silence and what is no speech ([tones]) are left out."""
    sounds, items = next(root.rglob('sounds/en_US*')), []
    lines = gzip.decompress(next(root.rglob('core-sounds-en.txt.gz')).read_bytes()).decode().splitlines()
    for name, _, text in (line.partition(':') for line in lines if line.strip() and not line.startswith(';')):
        if name.startswith('silence/') or '[' in text:
            skipped['silence or no speech'] += 1
        else:
            items += item(sounds / f'{name}.wav', ' '.join(text.split()), 'clip', skipped)
    return items

def digits(path, skipped):
    """FSDD folder or packed .npz -> (train items, val items), in the order of digit, speaker, index."""
    found, path = [], Path(path)                      # (digit, speaker, index, path, wave or None)
    if path.is_dir():
        for p in sorted(path.iterdir()):
            m = re.fullmatch(r'(\d)_([^_]+)_(\d+)\.wav', p.name)
            if m:
                found.append((int(m[1]), m[2], int(m[3]), p, None))
            elif p.suffix.lower() == '.wav':
                leave_out(skipped, p, 'the name is not DIGIT_SPEAKER_INDEX.wav')
    else:
        try:
            with np.load(path, allow_pickle=False) as z:
                audio, at, digit, speaker, index = (z[k] for k in 'audio offset digit speaker index'.split())
            assert audio.dtype == np.int16 and len(at) - 1 == len(digit) == len(speaker) == len(index)
            assert at[0] == 0 and at[-1] == len(audio) and (np.diff(at) >= 0).all() and set(digit) <= set(range(10))
        except Exception as e:                        # numpy and zipfile raise many kinds on a damaged file
            raise BadInput(f'--fsdd={path}: neither a folder nor a whole .npz ({type(e).__name__} {e})') from None
        for d, s, i, a, b in zip(digit.tolist(), speaker.tolist(), index.tolist(), at, at[1:]):
            found.append((d, s, i, path / f'{d}_{s}_{i}.wav', audio[a:b].astype(np.float32) / 2 ** 15))
    parts = [], []
    for d, s, i, p, wave in sorted(found, key=lambda f: f[:3]):
        parts[i < HELD_OUT].extend(item(p, DIGITS[d], 'digit', skipped, wave, s))
    check(all(parts), f'--fsdd={path}: {len(parts[0])} digits to train, {len(parts[1])} with an index below {HELD_OUT}')
    return parts

def vary(wave, rng):
    """(n,) -> another take: speed and pitch .9-1.1, volume .37-2.7, up to .2 s of silence at the ends, faint noise."""
    wave = resample(wave, int(rng.integers(72, 89)) * 100, zeros=8) * np.exp(rng.uniform(-1, 1))
    a, b = rng.integers(0, RATE // 5, 2)
    wave = np.pad(wave, (a, b)) + rng.normal(0, rng.uniform(0, 2e-3), len(wave) + a + b)
    return np.clip(wave, -1, 1).astype(np.float32)

def joined(first, items, n, rng):
    """n digits of one speaker, `first` and others drawn from items (its own) -> an item, pauses of up to .15 s between them."""
    parts = [first, *(items[i] for i in rng.integers(len(items), size=n - 1))]
    waves = [w for p in parts for w in (np.zeros(int(rng.integers(RATE * 3 // 20)), np.float32), p['wave'])][1:]
    return dict(first, name=' '.join(p['name'] for p in parts), wave=np.concatenate(waves), kind={2: 'two digits', 3: 'three digits'}[n])

def first(items, n):
    """The first n recordings of each digit and speaker, as items of the kind 'known'."""
    found = {}
    for it in items:
        found.setdefault((it['name'], it['speaker']), []).append(dict(it, kind='known')) if it['kind'] == 'digit' else None
    return [it for some in found.values() for it in some[:n]]

def by_speaker(items):
    """-> {speaker: [the digits it says]}"""
    out = {}
    for it in items:
        out.setdefault(it['speaker'], []).append(it) if it['kind'] == 'digit' else None
    return out

def documents(items, codec, copies, digit_copies, seed, train=True, strings=0):
    """Yields the documents of a split. train: sounds vary, some are learned in questions, some prompts are empty."""
    own = by_speaker(items)
    turn = lambda *inner: [('ids', [codec.sp['user']], 0), *inner, ('ids', [codec.sp['assistant']], 0)]
    eot = ('ids', [codec.sp['eot']])
    for n, it in enumerate(items):
        rng, is_digit = np.random.default_rng((seed, n)), it['kind'] == 'digit'
        for c in range(digit_copies if is_digit else copies):
            frames = mel(vary(it['wave'], rng) if train and c else it['wave'])
            heard = ('audio', frames, int(train and rng.random() < .1))
            yield [*turn(heard, ('text', 'transcribe', 0)), ('text', it['name']), eot]
            if c % (3 if is_digit else 2) == 0 and not it['kind'].endswith('digits'):     # said as recorded; strings are only heard
                who = f" as {it['speaker']}" if is_digit and c % 2 else ''
                prompt = [] if train and rng.random() < .1 else [('text', f"say{who}: {it['name']}", 0)]
                yield [*turn(*prompt), ('audio', mel(it['wave'])), eot]
        for c in range(strings if is_digit else 0):
            s = joined(it, own[it['speaker']], 2 + c % 2, rng)
            yield [*turn(('audio', mel(vary(s['wave'], rng)), int(rng.random() < .1)), ('text', 'transcribe', 0)), ('text', s['name']), eot]

if __name__ == '__main__':
    configure(globals())
    torch.set_num_threads(1)                          # transforms of single seconds: threads only get in the way
    with guard('speech'):
        codec, skipped, items = Codec(tokenizer, n_loc), Counter(), []
        check(min(copies, digit_copies) > 0, f'copies={copies}, digit_copies={digit_copies}: both must be at least 1')
        check(strings >= 0, f'strings={strings} is not at least 0')
        if dir:
            for file, text in table(Path(dir) / 'transcripts.tsv'):
                items += item(Path(dir, file), text, 'own', skipped)
        elif asterisk:
            with debian(PACKAGES, HERE, 'give your own: --dir=FOLDER, WAVs and transcripts.tsv') as root:
                items = clips(root, skipped)
        train, val = divide(items, split, seed) if items or not fsdd else ([], [])
        if fsdd:
            train, val = (a + b for a, b in zip((train, val), digits(fsdd, skipped)))
        kinds, held = (dict(Counter(i['kind'] for i in part)) for part in (train, val))
        minutes = sum(len(i['wave']) for i in train + val) / RATE / 60
        print(f'recordings to train {kinds}, held out {held}, {minutes:.1f} minutes', flush=True)
        rng, own = np.random.default_rng(seed), by_speaker(val)
        val += [joined(v, own[v['speaker']], n, rng) for n in (2, 3) for v in val if v['kind'] == 'digit']
        kept_items = val + first(train, KNOWN)
        target, frames = Path(out or shard_dir('speech', codec)), [mel(i['wave']).astype(np.float16) for i in kept_items]
        kept = keep(target.parent, frames=np.concatenate(frames), n_frames=np.array([len(f) for f in frames]),
                    **{k: np.array([i[k] for i in kept_items]) for k in ('name', 'kind', 'speaker')})
        source = [dir or 'Debian packages ' + ', '.join(PACKAGES)] * bool(items) + [fsdd] * bool(fsdd)
        docs = dict(train=documents(train, codec, copies, digit_copies, seed, strings=strings),
                    val=documents(val, codec, 1, 1, seed, train=False))
        info = dict(source='; '.join(source), licence='; '.join(LICENCES[k] for k in kinds))
        write_shards(target, docs, codec, dict(info, skipped=dict(skipped), val=kept))
