"""
A training step as CUDA graphs (--graph=true), on one GPU. A step of the default job is some 1,200 kernels of a few microseconds, and the
host takes ten times as long to launch them as the GPU to run them; recorded once, they are launched at once.
"""
import torch


def check_graph(graph, cfg, device, dtype, world):
    """Raises ValueError if a step of this cannot be recorded: on several ranks, with tables, or experts whose products are a loop."""
    wide = dtype == 'bfloat16' and cfg.n_embd % 8 == cfg.expert_ff % 8 == 0
    for ok, why in ((device != 'cpu' and world == 1, 'one GPU'), (not cfg.ngram, 'ngram=0'),
                    (not cfg.n_expert or wide, 'for experts dtype=bfloat16, and n_embd and expert_ff that are multiples of 8')):
        if graph and not ok:
            raise ValueError(f'graph=true needs {why}: or use graph=false')


def recorded(f):
    """
    f(), which works on memory that stays where it is, as a function: the first time it runs f, the second time it records f, and from then
    on replays what was recorded. It returns what f returned, which the next call overwrites.
    """
    warm, graph, out = False, None, None

    def run():
        nonlocal warm, graph, out
        if not warm:
            warm = True
            return f()
        if not graph:
            graph = torch.cuda.CUDAGraph()
            # the autograd thread, the loader's and others may call CUDA meanwhile
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode='thread_local'):
                out = f()
        graph.replay()
        return out
    return run


def graphed(model):
    """
    -> f(b): losses of the batch b, detached, and gradients where the optimizer's hooks put them, as forward_backward() has it.
    Batches are copied into buffers; the compact arrays differ in length, and are filled up with entries that add nothing, as by collate().
    If one is longer than all before, its buffer is made a quarter longer, and all is recorded anew.
    """
    room, used, runs = {}, {}, {}

    def fit(b):
        for k, v in b.items():
            if k not in room or len(room[k]) < len(v):
                n = len(v) if k not in room else max(len(v), -(-len(room[k]) * 5 // 512) * 128)
                room[k], used[k] = v.new_full((n, *v.shape[1:]), -1 if k == 'rc' else 0), 0
                runs.clear()
        torch._foreach_copy_([room[k][:len(v)] for k, v in b.items()], list(b.values()))
        for k, v in b.items():
            if len(v) < used[k] or k == 'mask':
                room[k][len(v):].fill_(-1 if k == 'rc' else b['ids'].numel() if k == 'mask' else 0)
            used[k] = len(v)

    def run(b):
        keys = [k for k in b if k != 'mask']                           # mask: see parallel.flash_mask
        packed = {k: b[k] for k in keys}
        if b.get('mask'):
            packed['mask'] = b['mask'][0]
        fit(packed)
        key = 'mask' in b and b['mask'] is None                        # two programs: rows that are one document, and others
        mask = {'mask': (room['mask'],) * 2 if b['mask'] else None} if 'mask' in b else {}

        def f():
            o = model({k: room[k] for k in keys} | mask)
            o['loss'].backward()
            return {k: x.detach() for k, x in o.items()}
        return {k: x.clone() for k, x in runs.setdefault(key, recorded(f))().items()}
    return run


def graphed_update(opt):
    """opt.update with the learning rate in a tensor, recorded."""
    update, lr = opt.update, torch.zeros((), device=opt.steps.device)
    run = recorded(lambda: update(lr))

    def step(value):
        lr.fill_(value)
        run()
    return step
