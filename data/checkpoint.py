"""
Checkpoints that fit any layout.

A checkpoint is a folder step_00000120/: one raw file per rank, and manifest.json with the name, slice, interval, offset and CRC32 of each
tensor. It is written under a temporary name, flushed to disk and renamed, so a folder with the final name is whole. Nothing is ever
unpickled. Reading puts one whole tensor together at a time and takes from it what this rank holds. What train.py and rl.py share is here,
too: keep_checkpoint() writes, also in the background, and prunes; newest() finds what can be read; together() lets all ranks agree.
"""
import contextlib, ctypes, json, math, os, shutil, sys, threading, time, zlib
from pathlib import Path
import numpy as np
import torch
import torch.distributed as dist
from data.llama import export_llama, write_safetensors
from parallel import Spec

FORMAT = 2      # of what the tensors mean: in 2 rotary positions pair neighbours in a head of q and k, in 1 it was i with i + hd/2


def _fsync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _replace(tmp, final):
    """Give tmp the name final; what had that name gets the name tmp. At no moment is there none (Linux: renameat2, RENAME_EXCHANGE)."""
    if not final.exists():
        os.rename(tmp, final)
    elif not hasattr(libc := ctypes.CDLL(None), 'renameat2') or libc.renameat2(-100, os.fsencode(tmp), -100, os.fsencode(final), 2):
        old = final.with_name(f'.{final.name}.old')
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
        try:
            os.rename(tmp, final)
        except OSError:
            os.rename(old, final)
            raise
        os.rename(old, tmp)


def writes(spec, mesh):
    """Of the ranks that hold the same interval of the same slice, one writes it."""
    if 'edp' in spec.sums:
        return mesh.ereplica.rank == 0
    if mesh.replica.rank or ('ends' in spec.sums and mesh.pp.rank):
        return False
    return mesh.kv.rank == 0 if 'kv' in spec.sums else bool(spec.blocks) or mesh.tp.rank == 0


def biases(models):
    """The experts' selection bias, which is no parameter: as Optimizer.tensors gives these."""
    return [(f'buffer/{n}', Spec(tuple(b.shape)), b, 0) for m in models for n, b in m.named_buffers() if n.endswith('.bias')]


def state(opt, models, mesh, saving=False):
    """(name, Spec, tensor, where it begins in this rank's slice): all that a checkpoint holds; saving: what this rank may have to write."""
    yield from opt.tensors(saving)
    yield from () if saving and mesh.dpcp.rank else biases(models)


def together(f, mesh):
    """f() on every rank -> what each gave; an error of any of them is raised by all, so that nobody waits for a rank that has left."""
    value = error = None
    try:
        value = f()
    except (OSError, ValueError, LookupError) as e:
        error = e
    said = [(value, error)]
    if mesh.world.size > 1:
        said = [None] * mesh.world.size
        dist.all_gather_object(said, (value, error), group=mesh.host)
    if first := next((e for _, e in said if e), None):
        raise first
    return [v for v, _ in said]


def save_checkpoint(out_dir, name, tensors, meta, mesh):
    """
    tensors: iterable of (name, Spec, tensor[, where it begins in this rank's slice]); meta: JSON-able dict. Writes out_dir/name/ whole or
    not at all, on all ranks. OSError (disk full, permission) leaves what was saved before untouched.
    """
    out, master = Path(out_dir), mesh.world.rank == 0
    final, tmp, file = out / name, out / f'.{name}.tmp', f'rank{mesh.world.rank:05d}.bin'

    def begin():
        if master:
            shutil.rmtree(tmp, ignore_errors=True)
            tmp.mkdir(parents=True)

    def write():
        entries, at = [], 0
        with open(tmp / file, 'wb') as f:
            for tname, spec, x, *start in tensors:
                if writes(spec, mesh):
                    raw = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
                    f.write(raw)
                    entries.append(dict(name=tname, file=file, dtype=str(x.dtype)[6:], shape=list(spec.shape), dim=spec.dim,
                                        blocks=[list(b) for b in spec.blocks], start=sum(start), offset=at, nbytes=raw.nbytes,
                                        crc=zlib.crc32(raw)))
                    at += raw.nbytes
            f.flush()
            os.fsync(f.fileno())
        return entries

    def finish():
        if master:
            with open(tmp / 'manifest.json', 'w') as f:
                body = json.dumps(dict(meta, format=FORMAT, tensors=sum(entries, [])))
                f.write(f'{body[:-1]}, "crc": {zlib.crc32(body.encode())}}}')
                f.flush()
                os.fsync(f.fileno())
            _fsync(tmp)
            _replace(tmp, final)
            _fsync(out)
            shutil.rmtree(tmp, ignore_errors=True)                              # holds what was there before, if there was anything

    try:
        together(begin, mesh)
        entries = together(write, mesh)
        together(finish, mesh)
    except OSError:
        if master:
            shutil.rmtree(tmp, ignore_errors=True)
        raise


def keep_checkpoint(out_dir, name, tensors, meta, mesh, keep, say, background=False):
    """
    save_checkpoint, as `name`, or as step_*, of which the last `keep` stay. background: of a copy, by a thread, while training goes on.
    -> a function that waits for it and says whether it is on disk. say(..) gets the one line on what could not be written or removed.
    """
    def write():
        try:
            save_checkpoint(out_dir, name or f"step_{meta['step']:08d}", tensors, meta, mesh)
        except OSError as e:
            say(f"step {meta['step']}: no checkpoint written: {e}; the earlier ones are whole; make room or choose another --out_dir")
            return False
        try:
            if mesh.world.rank == 0 and not name:
                prune(out_dir, keep)
        except OSError as e:
            say(f'an old checkpoint could not be removed: {e}')
        return True

    if not background:
        ok = write()
        return lambda: ok
    tensors, done = [(n, s, x.detach().to('cpu', copy=True), at) for n, s, x, at in tensors], []
    thread = threading.Thread(target=lambda: done.append(write()))
    thread.start()
    return lambda: thread.join() or done == [True]                             # not so if it ended by an error that is not the disk's


def checkpoints(out_dir):
    """Whole checkpoints step_*, newest first."""
    return sorted((p.parent for p in Path(out_dir).glob('step_*/manifest.json')), key=lambda p: p.name, reverse=True)


def prune(out_dir, keep):
    for p in checkpoints(out_dir)[keep:]:
        os.rename(p, p.with_name('.' + p.name + '.old'))
        shutil.rmtree(p.with_name('.' + p.name + '.old'), ignore_errors=True)


def newest(paths, load, say, master):
    """
    The first of paths, newest first, that load(path) can read; those before it get names of their own, so that they are not kept in the
    place of good ones. None: there are none. ValueError, that of the last: none can be read.
    """
    for path in paths:
        try:
            load(path)
            for bad in paths[:paths.index(path)] if master else ():
                with contextlib.suppress(OSError):
                    bad.rename(bad.with_name(f'damaged-{bad.name}'))
            return path
        except ValueError as e:
            error = e
            say(f'{e}; trying the one before')
    if paths:
        raise error


def tidy(out_dir):
    """Remove what a killed run may have left half done, which is never read."""
    for p in [p for name in ('step_', 'best', 'sampler') for p in Path(out_dir).glob(f'.{name}*')]:
        shutil.rmtree(p, ignore_errors=True)


def put_aside(out_dir):
    """Checkpoints and metrics of an earlier run move into a folder of their own -> that; None: there are none."""
    if old := [*checkpoints(out_dir), *Path(out_dir).glob('best')]:
        aside = Path(out_dir) / f'before-{time.strftime("%Y%m%d-%H%M%S")}-{os.getpid()}'
        aside.mkdir()
        for p in [*old, *Path(out_dir).glob('metrics.jsonl')]:
            p.rename(aside / p.name)
        return aside


class Checkpoint:
    """
    An opened checkpoint, or the newest in a folder of some: .meta, .names, full(name) -> the assembled global tensor. ValueError, one line:
    missing or damaged.
    """
    def __init__(self, path):
        self.path = Path(path)
        if not (self.path / 'manifest.json').exists():
            self.path = next(iter(checkpoints(path)), None)
        if not self.path:
            raise ValueError(f'{path}: no checkpoint there: give a folder step_*, or one that holds some')
        try:
            text = (self.path / 'manifest.json').read_text()
            body, _, crc = text.rpartition(', "crc": ')
            if not crc.endswith('}') or crc[:-1] != str(zlib.crc32((body + '}').encode())):
                raise ValueError('the checksum of manifest.json does not match')
            self.meta = json.loads(body + '}')
            if (n := self.meta.pop('format', 1)) != FORMAT:
                raise ValueError(f'it has format {n}, and {FORMAT} is read')
            m = self.meta.get('model', {})
            m.setdefault('rope_2d', not m.get('image', True))       # what it was before there was a choice
            self.parts = {}
            for e in self.meta.pop('tensors'):
                self.parts.setdefault(e['name'], []).append(e)
        except (OSError, ValueError, KeyError) as e:
            raise ValueError(f'{self.path}: no readable checkpoint ({e}): give another one, or delete that folder') from None
        self.files = {}

    @property
    def names(self):
        return list(self.parts)

    def _raw(self, e):
        f = e['file']
        if f not in self.files:
            try:
                self.files[f] = np.memmap(self.path / f, np.uint8, 'r')
            except (OSError, ValueError) as err:
                raise ValueError(f'{self.path / f}: missing or empty shard ({err}): use an earlier checkpoint') from None
        raw = self.files[f][e['offset']:e['offset'] + e['nbytes']]
        if len(raw) != e['nbytes'] or zlib.crc32(raw) != e['crc']:
            raise ValueError(f'{self.path / f}: damaged at {e["name"]} (its checksum does not match): use an earlier checkpoint')
        return torch.frombuffer(bytearray(raw.tobytes()), dtype=getattr(torch, e['dtype']))

    def full(self, name):
        if name not in self.parts:
            raise ValueError(f'{self.path}: holds no {name}: it was written by another model or optimizer')
        shape, dim, locals_, seen = (e0 := self.parts[name][0])['shape'], e0['dim'], {}, 0
        for e in self.parts[name]:                                             # first the slices from their intervals
            local = list(shape)
            if e['blocks']:
                local[dim] = sum(n for _, n in e['blocks'])
            x = self._raw(e)
            new = x if x.numel() == math.prod(local) else x.new_empty(math.prod(local))
            flat = locals_.setdefault(json.dumps(e['blocks']), (e['blocks'], local, new))[2]
            if flat is not x:
                flat[e.get('start', 0):e.get('start', 0) + x.numel()] = x
            seen += x.numel()
        if seen != math.prod(shape):
            raise ValueError(f'{self.path}: {name} is not whole: a shard is missing from the manifest')
        if not e0['blocks']:
            return flat.view(shape)
        out = torch.empty(shape, dtype=flat.dtype)                             # then the whole from the slices
        for blocks, local, flat in locals_.values():
            x, at = flat.view(local), 0
            for o, n in blocks:
                out.narrow(dim, o, n).copy_(x.narrow(dim, at, n))
                at += n
        return out

    def fill(self, tensors):
        """Copy into (name, Spec, tensor[, where it begins in this rank's slice]), whatever layout wrote it."""
        for name, spec, x, *start in tensors:
            full, start = self.full(name), start[0] if start else 0
            if tuple(full.shape) != tuple(spec.shape):
                raise ValueError(f'{self.path}: {name} has shape {tuple(full.shape)}, this model wants {tuple(spec.shape)}')
            x.data.copy_(spec.local(full).reshape(-1)[start:start + x.numel()].view(x.shape))


def export(ck, file):
    """The float32 weights of a Checkpoint as one safetensors file (the format: 8 bytes of length, a JSON header, the raw tensors)."""
    names = {n.partition('/')[2]: n for n in ck.names if n.startswith(('param/', 'buffer/'))}
    first = {short: ck.parts[n][0] for short, n in names.items()}
    entries = [(short, {'float32': 'F32', 'float64': 'F64'}[e['dtype']], e['shape']) for short, e in first.items()]
    write_safetensors(file, entries, lambda short: ck.full(names[short]),
                      {'model': json.dumps(ck.meta['model']), 'step': str(ck.meta['step'])})


def command(argv):
    """inspect DIR, export DIR FILE, export-hf DIR FOLDER, as optim_zero.py takes them -> whether it was one of these; ends on an error."""
    what, *paths = argv or ['']
    if len(paths) != {'inspect': 1, 'export': 2, 'export-hf': 2}.get(what):
        return False
    try:
        ck = Checkpoint(paths[0])
        if what == 'export-hf':
            export_llama(ck.meta['model'], lambda name: ck.full(f'param/{name}'), paths[1])
            print(f'{paths[1]}: config.json, model.safetensors')
        elif what == 'export':
            export(ck, paths[1])
            print(f'{paths[1]}: {os.path.getsize(paths[1]):,} bytes')
        else:
            for n in ck.names:
                x = ck.full(n)
                mean, std = x.double().mean(), x.double().std(correction=0)
                print(f'{n:60s} {str(tuple(x.shape)):20s} {str(x.dtype)[6:]:9s} mean {mean:+.3e} std {std:.3e}')
            print({k: v for k, v in ck.meta.items() if not isinstance(v, (dict, list))})
            print(f'{len(ck.names)} tensors, all checksums right')
    except (ValueError, OSError) as e:
        sys.exit(str(e))
    return True
