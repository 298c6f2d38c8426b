"""
Idle time of the pipeline schedules, measured: a stage that does nothing but multiply matrices, on Gloo, one thread per process.

    python tests/bench/pipeline.py                  2 processes, 8 microbatches, about 15 seconds on 2 idle cores

idle = wall time - CPU time of the thread that computes, mean over the ranks, of the fastest of several runs in turn (what else the machine
does, and fresh pages, only add time); in theory at the measured F, B and W beside it. Interleaved has
two chunks per rank, each half as deep. Target: zbh1 < interleaved or 1f1b < gpipe. In theory 1f1b idles as long as gpipe: its gain is
memory, the peak of live activations, which is printed too.
"""
import json, sys, tempfile, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from configurator import configure
from data.plan import bubble_theory
from parallel import add_messages, keep_pages, linear, make_mesh, run_pipeline, schedule, simulate

pp = 2           # processes
m = 8            # microbatches
rows = 128       # of a microbatch
width = 512
depth = 16       # matrix products of one rank
turns = 9        # runs of each schedule
configure(globals())

KINDS = (('gpipe', 1), ('1f1b', 1), ('interleaved', 2), ('zbh1', 1))


class Stage(torch.nn.Module):
    def __init__(self, mesh, n, last):
        super().__init__()
        self.mesh, self.last = mesh, last
        self.w = torch.nn.ParameterList(torch.randn(width, width) / width ** 0.5 for _ in range(n))

    def forward(self, b, x=None):
        x = b if x is None else x
        for w in self.w:
            x = linear(x, w, self.mesh)
        return {'loss': x.sum()} if self.last else x


def work(rank, folder, results):
    torch.set_num_threads(1)
    keep_pages()                                                       # as train.py does: fresh pages would cost more than the products
    dist.init_process_group('gloo', store=dist.FileStore(f'{folder}/s', pp), rank=rank, world_size=pp)
    mesh, out = make_mesh(pp=pp), []
    batch = [torch.randn(1, rows, width) for _ in range(m)]
    for name, v in KINDS * (turns + 1):                                # in turn, the first round warms up
        todo = add_messages(schedule(name, pp, m, v), m, v)[rank]
        models = [Stage(mesh, depth // v, c == v - 1 and rank == pp - 1) for c in range(v)]
        dist.barrier()
        t, cpu = time.perf_counter(), time.thread_time()
        run_pipeline(todo, models, batch, mesh, (1, rows, width), torch.float32, 'cpu')
        busy = time.thread_time() - cpu
        dist.barrier()
        wall = time.perf_counter() - t
        out.append((name, wall, wall - busy))
    results.put(out[len(KINDS):])
    dist.destroy_process_group()


if __name__ == '__main__':
    ctx = mp.get_context('spawn')
    with tempfile.TemporaryDirectory() as folder:
        results = ctx.SimpleQueue()
        procs = [ctx.Process(target=work, args=(r, folder, results), daemon=True) for r in range(pp)]
        for p in procs:
            p.start()
        got = [results.get() for _ in procs]
        for p in procs:
            p.join()
    best = {name: min((got[0][i][1], sum(rank[i][2] for rank in got) / pp) for i in range(len(got[0])) if got[0][i][0] == name) for name,
            _ in KINDS}
    wall, idle = {k: b[0] for k, b in best.items()}, {k: b[1] for k, b in best.items()}
    unit = (wall['gpipe'] - idle['gpipe']) / (3 * m)                   # F = B = W: three products of one size
    print(f'{"schedule":12s} {"wall ms":>8s} {"idle ms":>8s} {"theory ms":>10s} {"live activations":>17s}')
    for name, v in KINDS:
        theory = bubble_theory(name, pp, m, v, unit, unit, unit)
        print(f'{name:12s} {1000 * wall[name]:8.1f} {1000 * idle[name]:8.1f} {1000 * theory:10.1f} '
              f'{max(simulate(schedule(name, pp, m, v), m, v, messages=False)["peak"]) / v:17.1f}')
    ok = idle['zbh1'] < min(idle['interleaved'], idle['1f1b']) < idle['gpipe']
    print(json.dumps(dict(bench='pipeline', ok=ok, pp=pp, m=m, **{f'idle_ms_{k}': round(1000 * x, 2) for k, x in idle.items()})))
    sys.exit(not ok)
