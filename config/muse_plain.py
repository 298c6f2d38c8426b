"""
After config/muse.py: the recipe without hashed tables (the no-lookup track): three blocks with one head of keys and values, and the
three bytes before each embedded with it.

With 242,160 parameters, and for half of the operations of config/llama_dense.py (2.1e12, 41 CPU-seconds), 1.311 nats per byte of
held-out Python (dev, one seed); that one has 1.320 for all of them. How it was tuned, one seed each: with config/muse.py's rates 1.343
(there: as many heads of keys and values as of queries 1.342, batch 2048 1.338, batch 512 1.373, context 256 1.371, the six bytes before
1.350, ten 1.373, 4 blocks of width 48 1.341 or 56 1.349, 2 of 80 1.349); embed_lr 6 and decay from 0.2 on 1.327 (embed_lr 10 1.334);
head_lr 2 1.322, 4 1.318; with weight decay 0.05 1.312 and 1.315, with 0.02 and head_lr 4 1.312, without 1.311 and 1.311. From there
batch 2048 1.323, Muon's rate 0.025 1.316, rope_base 1000 1.311. With the first rates: value embeddings, learned skips from the embedding
and decay from 0.2 on 1.326.
"""
out_dir = 'out-muse-plain'
ngram = 0
smear = 3
n_layer = 3
n_kv_head = 1
embed_lr = 6.0
head_lr = 2.0
weight_decay = 0.0
decay_from = 0.2
max_steps = 700
