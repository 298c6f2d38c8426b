"""
A mixture of experts of 29.6 B parameters, 3.0 B active (8 of 128 experts and a shared one), close to Qwen3-30B-A3B, on 64 nodes of 8 H100.

    python parallel.py plan --model=config/moe_30b.py --gpus=512 --gpu=h100
    see the Slurm script in README.md

Planned, not run yet: dp128 pp4 ep8 interleaved x4 zero1 rows1; 45 GB of 80 per GPU; 1.4 s per step of 8,388,608 positions,
11,686 tokens per second and GPU, MFU 25.2%.

Do not trust the time: the planner knows no kernel launches, permutations or uneven experts. Of the one published run of such a
model on H100 it predicts 2.5 times the speed (tests/bench/plan.py).
"""
out_dir = 'out-moe-30b'
dataset = 'shakespeare'    # a placeholder: your text by --input=FILE, or a data/NAME/prepare.py of your own
tokenizer = 'cl100k_base'
image = False
audio = False
token_shift = False
act = 'swiglu'
n_layer = 48
n_head = 16
n_kv_head = 4
n_embd = 2048
ff = 6144
n_expert = 128
top_k = 8
expert_ff = 768
shared_ff = 768
rope_base = 500000.0
softcap = 0.0
block_size = 4096
tokens_per_step = 8388608
micro_rows = 1
pp = 4
pp_schedule = 'interleaved'
pp_chunks = 4
ep = 8                     # a node
zero = 1
max_steps = 100000
warmup = 2000
lr = 3e-4
