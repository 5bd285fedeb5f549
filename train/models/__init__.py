"""Networks, one file each, as diffusers models: `sit`, the backbone, and `convnet`, the demo's teacher.

SiT keeps the official state-dict names and module order: checkpoints, conversion, parameter groups and the order of its initial random numbers
depend on them.
"""
