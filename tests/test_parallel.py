"""
Every parallelism against one process: the representative part of the grid (python tests/grid.py runs all of it), and each piece of parallel.py
by itself against what it means: collectives and their adjoints, attention over context-parallel ranks, experts that nobody chose, the table of
parameters, layouts that cannot work, train.py on several processes.
"""
import json
import os
import socket
import tempfile
import traceback
from itertools import combinations, product
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import grid
import parallel
import toy
from data.loader import collate, pack_train
from model import ModelConfig, build
from optim_zero import Checkpoint, Optimizer
from parallel import (Group, attention, attention_mask, check_layout, copy_to, exchange, gather_from, linear_cross_entropy, make_mesh, moe, my_slice,
                      reduce_from, reduce_scatter_to, solo_mesh, split_to, zigzag)
from test_train import TINY, machine  # noqa: F401

PATIENCE = 120      # seconds; those in which all processes are stopped do not count


def ranks(world, work, *args):
    """[work(rank, *args) of every rank], each in a process of its own inside a Gloo world."""
    ctx = mp.get_context('fork')
    with tempfile.TemporaryDirectory() as folder:
        queue = ctx.SimpleQueue()

        def child(rank):
            torch.set_num_threads(1)
            try:
                dist.init_process_group('gloo', store=dist.FileStore(f'{folder}/store', world), rank=rank, world_size=world)
                queue.put((rank, work(rank, *args), None))
                dist.barrier()
                dist.destroy_process_group()
            except BaseException:
                queue.put((rank, None, traceback.format_exc()))
                os._exit(1)
        procs = [ctx.Process(target=child, args=(r,), daemon=True) for r in range(world)]
        for p in procs:
            p.start()
        out = {}
        try:
            while len(out) < world:
                assert any(queue._reader.poll(1) for _ in range(PATIENCE)), f'no answer in {PATIENCE} s: a rank hangs'
                rank, out[rank], error = queue.get()
                assert error is None, error
            for p in procs:
                p.join(PATIENCE)
        finally:
            for p in procs:
                p.kill()
    return [out[r] for r in range(world)]


def close(a, b, tol=1e-12):
    assert a.shape == b.shape and (not a.numel() or float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) <= tol)


# ---------------------------------------------------------------- the grid

LAYOUTS = [grid.parse(t) for t in '''
    dense dp2
'''.strip().split('\n')]
