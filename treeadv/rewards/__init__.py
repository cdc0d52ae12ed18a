"""Rewards: an answer is extracted, guarded, compared exactly where that decides, else judged in a killable process."""
