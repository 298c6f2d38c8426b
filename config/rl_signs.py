"""
RL on `signs` with three digits: guess, check, try again. Thoughts grow, and the solve rate with the logarithm of their length; four digits, which RL
never sees, go along.

    python train.py config/sft_signs.py          first
    python rl.py config/rl_signs.py
"""
init_from = 'out-sft-signs'
out_dir = 'out-rl-signs'
task = 'signs'
levels = '3'
harder = '4'
max_steps = 100
lr = 2e-4
eval_every = 10
