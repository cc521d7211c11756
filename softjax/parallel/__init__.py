"""Meshes of devices: collectives, plain `jit`, explicit axes, and functions of global arrays."""
