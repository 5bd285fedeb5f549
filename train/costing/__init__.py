"""What `gsnr cost` counts and times: `counts` (multiply-accumulates, bytes), `activations` (what backward keeps), `steps` (training), `sampling`,
`paper` (the rows of Table I.21, and where they disagree).
"""
