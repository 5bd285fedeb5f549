"""Networks, one file each, as diffusers models: the backbones `sit`, of classes, and `mmdit`, of text, and `convnet`, the demo's teacher.

`backbone` is what the two backbones have in common, `layers` what they are made of; `build` makes one of a configuration. SiT keeps the official
state-dict names and module order: checkpoints, conversion, parameter groups and the order of its initial random numbers depend on them.
"""
