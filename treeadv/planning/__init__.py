"""The plan of a run. It predicts the memory of each role and the bytes that a step sends before the run starts."""
