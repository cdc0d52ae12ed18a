"""Rewards: verifiers of answers, and the sandboxed processes in which verifiers run code on untrusted text."""
