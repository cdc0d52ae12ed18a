"""Rewards: verifiers of answers, and the processes in which they judge what the text alone does not decide."""
