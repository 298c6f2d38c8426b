"""
Warm start for RL on the tasks with tools (data/pytool, lookup, peek, spawn) and on point: formats and calls, from examples of which some
guess or come too early.

    python train.py config/sft_tools.py                                              11 minutes of one core: pytool, lookup, peek
    python train.py config/sft_tools.py --init_from=out-sft-tools/step_00002400 --out_dir=out-sft-point \\
        --dataset=spawn:2+point:1 --max_steps=600                                    3 minutes: point
    python train.py config/sft_tools.py --init_from=out-sft-tools/step_00002400 --out_dir=out-sft-spawn \\
        --dataset=spawn --max_steps=900                                              4 minutes: spawn
    python rl.py config/rl_tools.py ...                                              then; see there

Numbers are copied after 500 steps (the two ids before, `smear`); places in a picture are read from 1200 on.
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
token_shift = False        # what is measured of them is from before there was one
smear = 2                  # the two ids before: what comes next is copied by one layer, not by two
flow_width = 64
flow_depth = 1
bins = 0                   # nothing is drawn; what is measured of them is from before there were any
flow_draws = 1
max_steps = 2400
warmup = 50
eval_docs = 0
save_every = 600
skills = 0
