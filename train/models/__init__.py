"""Backbones. One file each."""
