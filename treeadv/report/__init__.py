"""What people look at: forests as trees in the terminal and on pages, the display of a run and its report."""
