"""
Which ranks of the world are alive, told over a store: a rank that is killed or stopped ends the others with one line that names it.
"""
import atexit, os, sys, threading, time
import torch.distributed as dist


def watch(store, rank, world, patience, holder):
    """
    A thread shows in the store, every second, that this rank is alive, and looks at the others. When a collective fails, a rank has shown
    nothing for `patience` rounds or the holder of the store is gone, one line says who is missing, and all end. By rounds of the thread,
    not by the clock: when all are stopped together, nobody is blamed.
    """
    silent, n, end, once, keys = [0] * world, [0], threading.Event(), threading.Lock(), [*(f'pulse{r}' for r in range(world)), 'why']

    def down(why='the connection to another rank broke'):
        """End this process, not in the usual way, which waits for what is under way. Of all ranks the first says why."""
        once.acquire()                                             # one thread of it
        if gone := [str(r) for r in range(world) if silent[r] > 4]:
            why = f'rank {" and ".join(gone)} does not answer: killed, or stopped'
        try:
            said = store.compare_set('why', '-', f'{why} (says rank {rank})').decode()
        except RuntimeError:
            said = f'{holder} does not answer: killed, or stopped (says rank {rank})'
        print(said, file=sys.stderr, flush=True) if said.endswith(f'(says rank {rank})') else None
        time.sleep(2 * (rank == 0))                                # it may hold the store
        os._exit(1)

    def beat():
        seen = [None] * world
        try:
            while not end.wait(1):
                store.set(f'pulse{rank}', str(n[0]))
                *new, why = store.multi_get(keys)                  # one request per second and rank
                silent[:] = [0 if v == b'end' or v != old else k + 1 for v, old, k in zip(new, seen, silent)]
                seen, n[0] = new, n[0] + 1
                if why != b'-' or max(silent) > patience:
                    down()
            store.set(f'pulse{rank}', 'end')
            for _ in range(30 * (rank == 0)):                      # it may hold the store: the others say their last word first
                if all(v == b'end' for v in store.multi_get(keys[:-1])):
                    break
                time.sleep(.1)
        except RuntimeError:
            down() if holder == 'torchrun' else None

    def failed(kind, e, tb):
        if isinstance(e, dist.DistError) or isinstance(e, RuntimeError) and 'gloo' in str(e):
            till = n[0] + 6
            while n[0] < till and thread.is_alive():               # by then it is known who is alive
                time.sleep(.1)
            down()
        sys.__excepthook__(kind, e, tb)
        down(f'rank {rank} failed: {kind.__name__}: {" ".join(str(e).split())[:200]}')

    sys.excepthook, threading.excepthook = failed, lambda a: failed(a.exc_type, a.exc_value, a.exc_traceback)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    atexit.register(lambda: (end.set(), thread.join()))
