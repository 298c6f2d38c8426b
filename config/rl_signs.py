"""
RL on `signs` with 7 digits: guess, check, try again. Thoughts grow, and the solve rate with the logarithm of the tokens that were
drawn for training; 8 digits, which RL never sees, go along.

    python train.py config/sft_signs.py          first
    python rl.py config/rl_signs.py              --plot=True: out-rl-signs/curves.png
"""
init_from = 'out-sft-signs'
out_dir = 'out-rl-signs'
task = 'signs'
levels = '7'
harder = '8'
max_new = 160
block_size = 192
budget = True              # thoughts that do not end in time have failed
prompts = 8
rounds = 1                 # few groups teach nothing, and another round takes as long as the longest of them
max_steps = 80
lr = 3e-4
lr_hold = 8                # then 1 / step: with a constant rate most is won in the first 20 steps, and the curve bends
eval_every = 10
eval_problems = 48
