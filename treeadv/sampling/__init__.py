"""The growth of forests: the fork rules, the decision to fork, and the sampler."""
