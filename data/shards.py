"""
Shards on disk: made, written once, memory-mapped, counted.

A data set is a folder  data/NAME/shards-TOKENIZER/  of raw little-endian arrays, one set per split:
    SPLIT.ids.bin   uint16 / uint32 (N,)   token ids, placeholders included       SPLIT.w.bin   uint8 (N,)  learned as a target?
    SPLIT.patch.bin uint8 (P, 192)         image patches in order                 SPLIT.rc.bin  float32 (P, 2)  patch centres
    SPLIT.frame.bin float16 (F, 128)       audio frames in order                  SPLIT.doc.bin int64 (n + 1, 3)  offsets of each document
and meta.json (counts, tokenizer, licence). Only write_shards writes it, and renames it into place when it is whole.
"""
import json, math, os, shutil, subprocess, sys, time
from pathlib import Path
import numpy as np
from data.codec import Codec, save_bpe, train_bpe
from data.media import D, FRAME_D, BadInput

ROOT = Path(__file__).resolve().parent


def shard_dir(name, codec, root=ROOT):
    return Path(root) / name / ('shards-' + codec.name.replace(':', '_') + ('' if codec.n_loc == 64 else f'-{codec.n_loc}'))


def write_shards(out_dir, splits, codec, info):
    """
    Encode {'train': iterable of documents, 'val': ...} into out_dir; returns the meta dict. Half-made data never gets the final name.
    BadInput: out_dir holds what is no shards, or is a file.
    """
    out, tmp = Path(out_dir), Path(f'{out_dir}.tmp{os.getpid()}')
    if out.exists() and not (out.is_dir() and all(p.name == 'meta.json' or p.suffix == '.bin' for p in out.iterdir())):
        raise BadInput(f'out={out}: it holds what is no shards, and is left as it was: choose a folder that is empty or not there')
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    meta = dict(info, tokenizer=codec.name, codec=codec.fingerprint(), splits={})
    if Path(sys.argv[0]).name == 'prepare.py' and not any(a.startswith('--out=') for a in sys.argv):
        # how the user asked for it, to make the same for another tokenizer: see prepared()
        meta.update(cwd=os.getcwd(), flags=[a for a in sys.argv[1:] if not a.startswith(('--tokenizer', '--n_loc'))])
    dtype = np.uint16 if codec.n_vocab <= 65536 else np.uint32
    try:
        for split, docs in splits.items():
            files = {k: open(tmp / f'{split}.{k}.bin', 'wb') for k in ('ids', 'w', 'patch', 'rc', 'frame', 'doc')}
            at, n, n_text, t0, shown = np.zeros(3, np.int64), 0, 0, time.time(), 0.0
            files['doc'].write(at.tobytes())
            for doc in docs:
                e = codec.encode(doc)
                for key, a in (('ids', e['ids'].astype(dtype)), ('w', e['w']), ('patch', e['patches']), ('rc', e['rc']),
                               ('frame', e['frames'].astype(np.float16))):
                    files[key].write(np.ascontiguousarray(a).tobytes())
                at += (len(e['ids']), len(e['patches']), len(e['frames']))
                files['doc'].write(at.tobytes())
                n, n_text = n + 1, n_text + codec.n_bytes(e['ids'])
                if time.time() - shown > 0.5 and sys.stderr.isatty():
                    shown = time.time()
                    print(f'\r{out.parent.name} {split}: {n:,} documents, {at[0]:,} positions, {shown - t0:.0f} s ', end='',
                          file=sys.stderr)
            for f in files.values():
                f.flush(), os.fsync(f.fileno()), f.close()
            if sys.stderr.isatty():
                print('\r' + ' ' * 79, end='\r', file=sys.stderr)
            meta['splits'][split] = dict(documents=n, positions=int(at[0]), patches=int(at[1]), frames=int(at[2]), text_bytes=int(n_text))
        (tmp / 'meta.json').write_text(json.dumps(meta, indent=1))
        if out.exists():                                 # aside first: what has the final name is whole at every moment
            os.rename(out, f'{tmp}.old')
        os.rename(tmp, out)
    finally:
        if not out.exists() and Path(f'{tmp}.old').exists():     # stopped between the two renames
            os.rename(f'{tmp}.old', out)
        for old in (tmp, Path(f'{tmp}.old')):
            shutil.rmtree(old, ignore_errors=True)
    for split, s in meta['splits'].items():
        print(f"{out.parent.name} {split}: {s['documents']:,} documents, {s['positions']:,} positions "
              f"({s['patches']:,} patches, {s['frames']:,} frames, {s['text_bytes']:,} bytes of text)")
    size = sum(f.stat().st_size for f in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB; source: {info.get('source')}; licence: {info.get('licence')}; "
          f"skipped: {info.get('skipped') or 'none'}")
    return meta


def open_shards(out_dir, split, codec):
    """One split of one data set as a dict of memory-mapped arrays. Raises ValueError, one line, if it was made by another codec."""
    out, s = Path(out_dir), {}
    try:
        s['meta'] = meta = json.loads((out / 'meta.json').read_text())
        if meta['codec'] != codec.fingerprint():
            raise RuntimeError(f"{out} was prepared with another tokenizer ({meta['tokenizer']}, fingerprint {meta['codec']}): "
                               'delete that folder to prepare it again')
        if split not in meta['splits']:
            raise RuntimeError(f"{out} has no split {split}: it has {', '.join(meta['splits'])}")
        size = meta['splits'][split]
        for k, dt, width, n in (('ids', np.uint16 if codec.n_vocab <= 65536 else np.uint32, 0, size['positions']),
                                ('w', np.uint8, 0, size['positions']),
                                ('patch', np.uint8, D, size['patches']), ('rc', np.float32, 2, size['patches']),
                                ('frame', np.float16, FRAME_D, size['frames']), ('doc', np.int64, 3, size['documents'] + 1)):
            f = out / f'{split}.{k}.bin'
            if f.stat().st_size != n * max(width, 1) * np.dtype(dt).itemsize:
                raise ValueError(f'{f.name} has {f.stat().st_size} bytes, {n * max(width, 1) * np.dtype(dt).itemsize} expected')
            a = np.memmap(f, dt, 'r').view(np.ndarray) if n else np.zeros(0, dt)            # plain arrays slice faster
            s[k] = a.reshape(-1, width) if width else a
        if not (np.diff(s['doc'][:, 0]) > 1).any():
            raise RuntimeError(f'{out}: nothing to predict in its split {split} of {size["documents"]} documents: prepare it with more')
    except RuntimeError as e:
        raise ValueError(str(e)) from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        why = ' '.join(str(e).split()) or type(e).__name__
        raise ValueError(f'{out} is damaged ({why}): delete that folder to prepare it again') from None
    return s


def mixture(text):
    """NAME, or NAME:WEIGHT+NAME:WEIGHT -> names, weights. ValueError, one line, if it is not that or a data set has no prepare.py."""
    try:
        names, weights = zip(*((n.split(':')[0], float((n.split(':') + ['1'])[1])) for n in text.split('+')))
        if not all(0 < w < math.inf for w in weights):
            raise ValueError
    except ValueError:
        raise ValueError(f'dataset={text}: write NAME, or NAME:WEIGHT+NAME:WEIGHT with weights above 0') from None
    for n in names:
        if not (ROOT / n / 'prepare.py').is_file():
            there = ', '.join(sorted(p.parent.name for p in ROOT.glob('*/prepare.py')))
            raise ValueError(f'dataset={text}: there is no data/{n}/prepare.py; there are {there}')
    return names, weights


def asked_before(folder):
    """What the user gave to the prepare.py of a data set, for whatever tokenizer -> {meta.json: (when, flags, where it was called)}."""
    asked = {}
    for p in folder.glob('shards-*/meta.json'):
        try:
            meta = json.loads(p.read_text())
            asked[p] = p.stat().st_mtime, meta['flags'], meta['cwd']
        except (OSError, ValueError, KeyError, TypeError):           # damaged, or made by train.py
            continue
    return asked


def prepared(name, codec, file='', flag='', make=True):
    """
    The folder of a data set's shards, made by its prepare.py when it is missing, or was made so before the user last called that for
    another tokenizer (make=False: another rank does). file: a source given by the user, as --flag of prepare.py, which has shards of its
    own. ValueError, one line, if there is no such file or it did not finish.
    """
    out, flags = shard_dir(name, codec), [f'--tokenizer={codec.name}', f'--n_loc={codec.n_loc}']
    if file:
        p = Path(file).expanduser().resolve()
        if not p.exists():
            raise ValueError(f'{flag}={file}: no such file or folder')
        out = out.with_name(f'{out.name}-{p.stem}-{int(p.stat().st_mtime) % 99991:05d}{p.stat().st_size % 99991:05d}')
        flags += [f'--{flag}={p}']
    asked, meta = {} if file else asked_before(out.parent), out / 'meta.json'
    when, asked, cwd = max(asked.values(), key=lambda x: x[0], default=(0, [], None)) if meta not in asked else (0, [], None)
    if make and not (meta.exists() and meta.stat().st_mtime >= when):
        print(f'preparing data/{name} in {out}' + (f' with {" ".join(asked)}, as before' if asked else ''))
        command = [sys.executable, str(ROOT / name / 'prepare.py'), *asked, *flags, f'--out={out}']
        if subprocess.run(command, env={**os.environ, 'RANK': '0'}, cwd=cwd if asked and Path(cwd).is_dir() else None).returncode:
            raise ValueError(f'data/{name}/prepare.py did not finish (see above)')
    return out


def codec_and_folders(names, tokenizer, n_loc, given=(), make=True):
    """
    -> the Codec, {data set: the folder of its shards}, as prepared() gives it. given: {data set: (file, flag)}. Merges of bpe:N that are
    not there yet are learned on the training text of the first data set.
    """
    for name, (file, flag) in dict(given).items():
        if file and name not in names:
            raise ValueError(f'{flag}={file}: it is for --dataset={name}, this run has {"+".join(names)}')
    folder = lambda name, codec: prepared(name, codec, *dict(given).get(name, ()), make=make)
    if tokenizer.startswith('bpe:') and not (ROOT / f'bpe_{tokenizer[4:]}.json').exists():
        plain = Codec('bytes', n_loc)
        s = open_shards(folder(names[0], plain), 'train', plain)
        save_bpe(train_bpe(np.where(s['ids'] < 256, s['ids'], 10).astype(np.uint8).tobytes(), int(tokenizer[4:])))
    codec = Codec(tokenizer, n_loc)
    return codec, {n: folder(n, codec) for n in names}


def unigram(train, val, codec):
    """Cross-entropy in nats of the text targets of val under the frequencies of train, two splits: what knowing no context gives."""
    text = lambda s: s['ids'][(s['w'] > 0) & ~np.isin(s['ids'], [codec.sp['img'], codec.sp['eoi']])]
    p, n = np.bincount(text(train), minlength=codec.n_vocab) + 1.0, np.bincount(text(val), minlength=codec.n_vocab)
    return float(-(n * np.log(p / p.sum())).sum() / max(n.sum(), 1))
