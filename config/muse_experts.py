"""
After config/muse.py and config/muse_plain.py: the recipe without hashed tables, with a mixture of experts behind the first layer.

    python train.py config/muse.py config/muse_plain.py config/muse_experts.py

225,480 parameters, and half of the operations of config/llama4_style.py (1.6e12, 60 CPU-seconds): 1.2999 nats per byte of held-out Python
(dev); that one has 1.292 and 1.283 (two seeds) for all of them. Tuned on dev, for these operations: width 64 1.3123 (310 thousand
parameters), 16 experts 1.2933 for 7% more operations, Muon's rate .03 1.3019. Experts were tuned at width 64 for 2.1e12:

    experts  hidden units   shared
          8            48      112    1.277, 1.293, 1.280: chosen; in the first layer, too 1.279; width 48 1.271, and 36 and 84 units 1.278
          8            80       80    1.280, 1.287; Muon's rate .03 1.285
         16            80       80    1.296
          8           112       48    1.301 (for 1.98e12)
          4            80       80    1.289
          8            32      112    1.288, in the first layer, too
    the shared expert reads the position before, too: 48 and 112 1.277, 1.282, 80 and 80 1.277, 64 and 64 1.280, 32 and 128 1.280; with
    experts in the first layer, too, 1.271 (48 and 112), 1.271 (48 and 96), 1.275 (80 and 80): a gain of .004 +- .002, not taken
"""
out_dir = 'out-muse-experts'
n_embd = 48
n_expert = 8
top_k = 1
expert_ff = 48
shared_ff = 112
max_steps = 1875
warmup = 53
