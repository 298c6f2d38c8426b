"""
A dense model of 7.3 B parameters, the sizes of Llama 2 7B, on one node of 8 H100.

    python parallel.py plan --model=config/dense_7b.py --gpus=8 --gpu=h100
    torchrun --standalone --nproc_per_node=8 train.py config/dense_7b.py --device=cuda

Planned, not run yet: dp8 zero3 rows1; 50 GB of 80 per GPU; 14.4 s per step of 1,048,576 positions,
9,106 tokens per second and GPU, MFU 44.0%.
"""
out_dir = 'out-dense-7b'
dataset = 'shakespeare'    # a placeholder: your text by --input=FILE, or a data/NAME/prepare.py of your own
tokenizer = 'cl100k_base'
image = False
audio = False
token_shift = False
act = 'swiglu'
n_layer = 32
n_head = 32
n_embd = 4096
ff = 11008
rope_base = 500000.0
softcap = 0.0
block_size = 4096
tokens_per_step = 1048576
micro_rows = 1
zero = 3
max_steps = 200000
warmup = 2000
lr = 3e-4
