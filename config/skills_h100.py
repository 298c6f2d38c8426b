"""
All skills in one model on one H100, in three stages: what a scene is, lessons in what thoughts need, everything.

    python train.py config/skills_h100.py --out_dir=out-first --dataset=scenes --block_size=192 --tokens_per_step=15360 --micro_rows=80 \
        --image_weight=0.2 --max_steps=2000
    python data/visual/prepare.py --tokenizer=bpe:128 --n_train=60000 --p_peek=.4 --p_maze=.25 --p_tangle=.35 --p_say=0 \
        --p_see=.7 --p_aim=.3
    python train.py config/skills_h100.py --out_dir=out-lessons --init_from=out-first/step_00002000 --dataset=scenes:1+visual:3 \
        --block_size=256 --micro_rows=80 --image_weight=0.1 --max_steps=900
    for n in scenes:120000 objects:80000 charts:80000; do
        python data/${n%:*}/prepare.py --n_train=${n#*:} --workers=8 --tokenizer=bpe:128; done
    python data/visual/prepare.py --tokenizer=bpe:128 --n_train=80000 --p_peek=.25 --p_maze=.25 --p_tangle=.3 --p_say=.1 \
        --p_see=.25 --p_aim=.1
    python data/speech/prepare.py --tokenizer=bpe:128 --fsdd=fsdd_train.npz --asterisk=false
    python train.py config/skills_h100.py --init_from=out-lessons/step_00000900
    python tests/bench/skills.py --from=out-skills

Run once: 0.9, 0.4 and 8.1 minutes, 31, 18 and 398 M positions, 13.7 M parameters, 830 thousand positions per second in the last stage. The
table in the README is of its weights, rounded to bfloat16. The data of all stages were made meanwhile, by 16 cores in 90 seconds.
"""
out_dir = 'out-skills'
dataset = 'scenes:3+objects:2+charts:1.5+visual:2.5+speech:2'
n_layer = 6
n_head = 6
n_embd = 384
block_size = 512
tokens_per_step = 20480
micro_rows = 40
image_weight = 0.3
lr = 2e-3
max_steps = 19450
log_every = 100
save_every = 0
eval_docs = 100
skills = 0
graph = True
workers = 8
