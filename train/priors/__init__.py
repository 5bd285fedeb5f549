"""The frozen VAE encoder as a hierarchy of alignment targets: its layers, their groups, and their features on the token grid."""
