"""
Seeing, pointing, reading charts, drawing, hearing and thinking in pictures: one model, which begins with the default job.

    python train.py                                                     scenes alone: what a shape is is learned late, and here sooner
    python train.py config/train_skills.py --init_from=out-scenes/step_00001800 --fsdd=fsdd_train.npz
    python tests/bench/skills.py --from=out-skills                      the table with the targets, controls and contact sheets

fsdd: the Free Spoken Digit Dataset, packed, or its folder. Measured: 18 and 39 minutes on one core (1067 and 2339 CPU-seconds, 6.9 and 11.3
M positions, 4.5 M parameters). With flow heads (--bins=0 in both, --flow_draws=2) 646 and 1316; then 6400 steps without the first line (32
minutes) had `what` at 28% where it has 80% so, `play` at 2% and not 100%. Weights are per document. Learned by then: scenes, drawing, and
most of objects. Reading charts with axes, thinking in pictures and changing pictures as asked want more; README has the table.
"""
out_dir = 'out-skills'
dataset = 'scenes:6+objects:1.2+charts:0.3+visual:0.4+speech:4'
block_size = 512
tokens_per_step = 2560
micro_rows = 5
image_weight = 0.3
max_steps = 4400
save_every = 200
eval_docs = 100
skills = 200
