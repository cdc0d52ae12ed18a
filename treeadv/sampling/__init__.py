"""Growing a forest: when a chain forks, and what follows."""
