"""header"""
out_dir = 'out-dense-7b'
dataset = 'shakespeare'    # put your own text in its place: --input=FILE, or a data/NAME/prepare.py
tokenizer = 'cl100k_base'
image = False
audio = False
act = 'swiglu'
n_layer = 32
n_head = 32
n_embd = 4096
ff = 11008
rope_base = 500000.0
softcap = 0.0
block_size = 4096
tokens_per_step = 1048576
max_steps = 100000
warmup = 2000
lr = 3e-4
