"""
RL on `signs` with 4 to 6 digits: guess, check, try again. Thoughts grow, and the solve rate with the logarithm of the tokens that were
drawn for training; 7 digits, which RL never sees, go along.

    python train.py config/sft_signs.py          first
    python rl.py config/rl_signs.py              --plot=True: out-rl-signs/curves.png

One seed: pass@1 0.23 to 0.55 (R^2 0.97 against ln tokens), pass@16 0.92 to 0.99 (too soon at its ceiling for a line), 7 digits 0.06 to
0.10; from step 40 on 40% of the thoughts end at max_new, which is what bends the curve: --max_new=160 --block_size=192 is the next to
try.
"""
init_from = 'out-sft-signs'
out_dir = 'out-rl-signs'
task = 'signs'
levels = '4+5+6'
harder = '7'
budget = True              # thoughts that do not end in time have failed
prompts = 8
max_steps = 80
lr = 2e-4
eval_every = 10
eval_problems = 48
