"""Reading answers: from a response to a verdict on two texts.

`thought` and `extract` (with `prose`) find the final answer. `guards` refuses what is too large. `notation` gives it
one spelling, `tokens`, `atoms`, `commands` and `grammar` read it into a tree of `terms`. `comparison` compares two
texts in all their readings: `equality` by kind, `realsets` sets of real numbers, `times` times of day, `scalars` and
`arithmetic` values. `units` lists units, `numbers` reads plain numbers with their units, `choices` the letters of a
multiple choice.
"""
