"""Projectors: hidden states -> the target's space. One file each, found by name; a file has

class Projector(nn.Module)     built as Projector(hidden_size, out_channels, grid)
    .forward(h_BTD)            (B,T,D) -> (B,T,C); T = grid * grid tokens, row by row
"""
