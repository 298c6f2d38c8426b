"""
Agents that search together (data/twice): thinking alone, agents with roles who report, and merging, from examples.

    python train.py config/sft_twice.py
    python tests/bench/contemplate.py --out_dir=out-sft-twice        many agents beside one

1 CPU core, about 5 minutes of its time. On 200 held-out problems 8 agents and their orchestrator then solve 58.5%, one agent with at
least as many steps 21.5%. config/rl_merge.py teaches the orchestrator whom to believe.
"""
out_dir = 'out-sft-twice'
dataset = 'twice'
tokenizer = 'bytes'
image = False
audio = False
dtype = 'float32'          # at this width a step is the number of operations, not their size
block_size = 192
tokens_per_step = 3072
micro_rows = 16
n_layer = 3
n_head = 4
n_embd = 64
token_shift = False        # what is measured of them is from before there was one
max_steps = 3000
warmup = 50
lr = 3e-3
eval_docs = 0
eval_every = 0
save_every = 500
skills = 0
