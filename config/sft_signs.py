"""
Warm start for RL on `signs` (data/signs): format, arithmetic and two ways of thinking, from examples that mostly give up early.

    python train.py config/sft_signs.py
    python rl.py config/rl_signs.py              then

4.8 minutes of one core (Sapphire Rapids; 7 of a busy EPYC). Text loss per token ends near the entropy of the guesses; rl.py measures the
step arithmetic and wants 95%. What it does not measure: whether the answer repeats the signs that hit; that is why in part of the documents
attempts hit on purpose (43 of 43 then; without them 3 of 36 after 2000 steps, and pass@1 is that of a guess).
"""
out_dir = 'out-sft-signs'
dataset = 'signs'
tokenizer = 'bytes'
image = False
audio = False
dtype = 'float32'          # at this width a step is the number of operations, not their size
block_size = 192           # long thoughts fit in
tokens_per_step = 4608
micro_rows = 24
n_layer = 3
n_head = 4
n_embd = 64
token_shift = False        # what is measured of them is from before there was one
max_steps = 2500          # not 1500: by then the signs that hit are repeated in some runs, and in others not yet
warmup = 50
lr = 3e-3
eval_docs = 0
save_every = 500
skills = 0
