"""Linear probes: one linear layer on frozen features, by the protocols of the field.

Features are taken as they are: whether they are L2-normalised is the caller's choice
(RankCLIP's released protocol does not; CLIP_benchmark does by default).
"""
