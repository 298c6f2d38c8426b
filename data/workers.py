"""
Work that forked processes do ahead, in order: documents for prepare.py, batches for a trainer whose GPU does not wait. No lock is shared,
so killing them is safe, as it is not in a Pool; they end when their parent is gone.
"""
import atexit, mmap, signal
from contextlib import contextmanager
from itertools import count
from multiprocessing import get_context
import numpy as np
import torch
from data.media import BadInput


@contextmanager
def started(work, workers):
    """Ends of the pipes to so many processes, each with work(number, pipe); they are killed on the way out."""
    fork, ends, procs = get_context('fork'), [], []
    try:
        for k in range(workers):
            end, pipe = fork.Pipe()
            ends.append(end)
            procs.append(fork.Process(target=_child, args=(work, k, pipe, list(ends)), daemon=True))
            procs[-1].start()
            atexit.register(procs[-1].kill)              # multiprocessing would ask it to end, and wait
            pipe.close()
        yield ends
    finally:
        for p in procs:
            p.kill(), p.join(), atexit.unregister(p.kill)


def _child(work, k, pipe, ends):
    signal.signal(signal.SIGINT, signal.SIG_IGN)         # the parent ends its workers: it may want to save first
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for end in ends:                                     # else a worker would never notice that the parent is gone
        end.close()
    torch.set_num_threads(1)
    try:
        work(k, pipe)
    except (BrokenPipeError, ConnectionResetError, EOFError):
        pass
    except Exception as e:                               # it has to be read: the process ends with its parent
        pipe.send(e)
        signal.pause()


def _read(end):
    """What a worker sent; its exception is raised here. EOFError: it died, perhaps in the middle of a message."""
    try:
        got = end.recv()
    except OSError:
        raise EOFError from None
    if isinstance(got, Exception):
        raise got
    return got


def made(document, n, workers):
    """Yields document(0) .. document(n - 1) in order. Process k makes every workers'th block of 50 and waits until it is fetched."""
    def work(k, pipe):
        for lo in range(50 * k, n, 50 * workers):
            pipe.send([document(i) for i in range(lo, min(lo + 50, n))])
    with started(work, workers) as ends:
        try:
            for b in range(-(-n // 50)):
                yield from _read(ends[b % workers])
        except EOFError:
            raise BadInput('a worker process died, for want of memory perhaps: try --workers=1') from None


def ahead(make, step, workers, room):
    """
    Yields make(step), make(step + 1), .. for ever: (step, [{name: tensor}, ...], anything small). Tensors come through shared memory, of at
    most `room` bytes a step, since a pipe takes ten times as long, and hold until the next is asked for. Each process is two steps ahead.
    """
    shared = [mmap.mmap(-1, 2 * room) for _ in range(workers)]             # pages that are never written cost nothing

    def work(k, pipe):
        for i, s in enumerate(count(step + k, workers)):
            if i > 1:
                pipe.recv()                              # the place of the step before the last is free
            (_, batch, rest), at, layout = make(s), i % 2 * room, []
            for b in batch:
                layout.append({})
                for name, x in b.items():
                    x = x.numpy()
                    layout[-1][name] = at, x.dtype, x.shape
                    np.frombuffer(shared[k], x.dtype, x.size, at)[:] = x.reshape(-1)
                    at += -(-x.nbytes // 64) * 64
            pipe.send((layout, rest))

    def tensor(memory, at, dtype, shape):
        return torch.from_numpy(np.frombuffer(memory, dtype, int(np.prod(shape)), at).reshape(shape))

    with started(work, workers) as ends:
        for i, s in enumerate(count(step)):
            k = i % workers
            try:
                if i:                                    # what was yielded last is not needed any more
                    ends[k - 1].send(None)
                got = _read(ends[k])
            except (EOFError, ConnectionError):
                raise RuntimeError('a process that makes batches died, for want of memory perhaps: try --workers=0') from None
            yield s, [{name: tensor(shared[k], *x) for name, x in b.items()} for b in got[0]], got[1]
