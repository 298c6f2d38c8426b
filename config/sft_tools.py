"""
Warm start for RL on the tasks with tools (data/pytool, lookup, peek, spawn) and on point: formats and calls, from examples of which some
guess or come too early.

    python train.py config/sft_tools.py
    python train.py config/sft_tools.py --init_from=out-sft-tools/step_00002400 --out_dir=out-sft-spawn --dataset=spawn:2+point:1 --max_steps=600
    python rl.py config/rl_tools.py --task=peek --levels=1+2 --harder=3          then; see there

11 minutes of one core, and 3 for the second line.
"""
out_dir = 'out-sft-tools'
dataset = 'pytool:1+lookup:2+peek:4+point:1+spawn:5'
tokenizer = 'bytes'
audio = False
dtype = 'float32'
block_size = 256
tokens_per_step = 6144
micro_rows = 24
n_layer = 3
n_head = 4
n_embd = 64
smear = 2                  # the two ids before: what comes next is copied by one layer, not by two
flow_width = 64
flow_depth = 1
flow_draws = 1
max_steps = 2400
warmup = 50
eval_docs = 0
save_every = 600
skills = 0
