"""
After config/muse.py: the recipe without hashed tables (the no-lookup track): three blocks with one head of keys and values, and the
three bytes before each embedded with it.

With 242,160 parameters, and for half of the operations of config/llama_dense.py (2.1e12, 40 CPU-seconds), 1.343 nats per byte of held-out
Python (dev, one seed). With one thing changed there: as many heads of keys and values as of queries 1.342, batch 2048 1.338, batch 512
1.373, context 256 1.371, the six bytes before 1.350, ten 1.373, 4 blocks of width 48 1.341 or 56 1.349, 2 of 80 1.349.
"""
out_dir = 'out-muse-plain'
ngram = 0
smear = 3
n_layer = 3
n_kv_head = 1
max_steps = 700
