"""
A dense model of 1.2 B parameters on one H100: the largest that trains there with room for activations (18 bytes per parameter).

    python parallel.py plan --model=config/dense_1b.py --gpus=1 --gpu=h100
    python train.py config/dense_1b.py --device=cuda

Planned, not run yet: one GPU rows8; 53 GB of 80 per GPU; 10.1 s per step of 524,288 positions,
52,113 tokens per second and GPU, MFU 41.1%.
"""
out_dir = 'out-dense-1b'
dataset = 'shakespeare'    # a placeholder: your text by --input=FILE, or a data/NAME/prepare.py of your own
tokenizer = 'gpt2'
image = False
audio = False
token_shift = False
act = 'swiglu'
n_layer = 20
n_head = 16
n_embd = 2048
ff = 5632
softcap = 0.0
block_size = 2048
tokens_per_step = 524288
micro_rows = 8
max_steps = 50000
warmup = 1000
lr = 6e-4
