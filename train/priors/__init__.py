"""The frozen VAE encoder as a hierarchy of alignment targets: `layers` (the groups G1 to G4), `features` (on the token grid), `normalise`,
`mixture` (AHPA's target).

Groups and resamplings are part of a cache's header: a change of what they mean makes old caches wrong, so it needs a new name.
"""
