"""Routers: t -> mixture weights. One file each, found by name; a file has

class Router(nn.Module)     built as Router(sizes), sizes: group -> number of layers, in concatenation order
    .forward(t_B)           {group: alpha (B,L) summing to 1, ..., "beta": (B, groups) summing to 1}; t = 1 is noise
"""
