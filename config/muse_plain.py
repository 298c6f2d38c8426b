"""
After config/muse.py: the recipe without hashed tables (the no-lookup track): three blocks with two heads of queries and one of keys and
values, value embeddings, and the two bytes before each embedded with it.

With 222,944 parameters, and for 2.1e12 operations, 60 CPU-seconds, 1.292 nats per byte of held-out Python (dev; other seeds 1.294, 1.292);
config/llama_dense.py has 1.325 for 3.2e12. How it was tuned, on dev, each for these operations:

    without token shift
    4 heads, ff 256, 3 bytes before, 5 steps of Muon's iteration    1.323, 1.324 (two seeds); context 64 1.337, 96 1.319; batch 768 1.327;
                                                                    learned skips from the embedding 1.331; value embeddings 1.316
    ff 192 1.315; 2 heads 1.314; 3 steps 1.314 to 1.322; all three  1.302, 1.304; 1 head 1.319, 2 heads of keys and values 1.302, 4 layers
                                                                    with ff 128 1.309, width 80 1.322, batch 768 1.307
    and value embeddings, ff 144                                    1.297 to 1.305 (seeds, coefficients); 4 steps 1.304; Muon's rate .015
                                                                    1.306, .03 1.301; embed_lr 10 1.301; 4 bytes before, ff 128 1.300
    2 bytes before, ff 160                                          1.298, 1.302, 1.296
    with it: before the MLP                                         1.292, 1.294, 1.292: chosen; ff 192 1.289, ff 128 1.290; 1 byte before
                                                                    1.299, 3 and ff 128 1.296; its rate times 4 1.304, times .3 1.291
    elsewhere: before attention 1.296, and before both 1.291; keys and values 1.296, and before the MLP 1.289, 1.290; behind the MLP's
    first matrix 1.292, and before it 1.296; three positions back before the MLP 1.293, before both 1.291

The rates, chosen in an earlier session with the first of these shapes: embed_lr 6 (10 no better), head_lr 2, no weight decay, decay from
0.2 on.
"""
out_dir = 'out-muse-plain'
ngram = 0
smear = 2
value_embed = True
n_layer = 3
n_head = 2
n_kv_head = 1
ff = 160
muon_steps = 3
embed_lr = 6.0
head_lr = 2.0
weight_decay = 0.0
decay_from = 0.2
max_steps = 1842
warmup = 53
