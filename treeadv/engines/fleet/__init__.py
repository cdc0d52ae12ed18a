"""Several inference servers behind one engine: which are ready, which of them grows which tree, and who has which
weights.
"""
