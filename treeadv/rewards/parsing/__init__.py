"""Reading answers: from a response to a verdict on two texts.

`thought` and `extract` (with `prose`) find the final answer. `guards` refuses texts that are too expensive. `notation`
normalises the spelling. `tokens`, `atoms`, `commands` and `grammar` parse the text to a tree of `terms`. `comparison`
compares two texts in all their readings. `equality` compares terms by kind, `realsets` compares sets of real numbers,
`times` compares times of day, `scalars` and `arithmetic` compare values. `units` lists units. `numbers` parses plain
numbers with their units. `choices` finds the letters of a multiple choice.
"""
