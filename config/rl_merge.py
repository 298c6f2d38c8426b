"""
RL of the orchestrator (data/merge): it reads what 8 agents of its own warm start reported on problems of `twice`, and is rewarded for the
right answer. It learns whom to believe: most reports are guesses, and the most frequent answer is wrong.

    python train.py config/sft_twice.py                 first
    python data/merge/prepare.py                        their reports, frozen
    python rl.py config/rl_merge.py
    python tests/bench/contemplate.py --out_dir=out-rl-merge

One seed, half a minute of RL after 5 minutes of warm start and 2.4 for the reports, of one core: pass@1 on held-out reports 0.317 to 0.696,
with 4 reports, which RL never sees, 0.298 to 0.452. Greedy and with agents that work anew (the bench, 200 problems): 8 agents 58.5 to
69.5%, where the majority is right in 18.0% and the self-verified vote in 69.0%; 16 agents 61.5 to 91.0%. Once more from the beginning in a
clean clone: 0.325 to 0.683, 0.268 to 0.426; 8 agents 71.0% (majority 18.0, vote 71.0), 16 agents 88.0%.
"""
init_from = 'out-sft-twice'
out_dir = 'out-rl-merge'
task = 'merge'
levels = '8'
harder = '4'
max_new = 8
budget = True
block_size = 192
prompts = 32
group = 16
rounds = 1
max_steps = 240
lr = 3e-4
eval_every = 40
eval_samples = 16
