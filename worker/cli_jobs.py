"""The commands about running launches."""
