"""
A dense model of 404.9 B parameters, the sizes of Llama 3 405B, on 64 nodes of 8 H100.

    python parallel.py plan --model=config/dense_405b.py --gpus=512 --gpu=h100
    see the Slurm script in README.md

Planned, not run yet: dp64 tp8 zero3 recompute rows4; 46 GB of 80 per GPU; 268.9 s per step of 16,777,216 positions,
122 tokens per second and GPU, MFU 32.3%.

The planner's first choice is dp256 tp2, a tenth faster on paper; this one sends a quarter of that over the network.
"""
out_dir = 'out-dense-405b'
dataset = 'shakespeare'    # a placeholder: your text by --input=FILE, or a data/NAME/prepare.py of your own
tokenizer = 'cl100k_base'
image = False
audio = False
token_shift = False
act = 'swiglu'
n_layer = 126
n_head = 128
n_kv_head = 8
n_embd = 16384
ff = 53248
rope_base = 500000.0
softcap = 0.0
block_size = 8192
tokens_per_step = 16777216
micro_rows = 4
tp = 8                     # a node
sp = True
zero = 3
recompute = 1.0
max_steps = 100000
warmup = 8000
lr = 8e-5
