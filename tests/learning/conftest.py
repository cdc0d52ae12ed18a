"""Examples have no deadline here: how long one takes says more about the machine's load than about the code."""

from hypothesis import settings

settings.register_profile("learning", deadline=None)
settings.load_profile("learning")
