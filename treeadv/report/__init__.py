"""Output for people: forests as trees in the terminal and on pages, the display of a run, and the report of a run."""
