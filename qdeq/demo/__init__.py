"""The well-known story, told on real images: an int8 VGG11 that falls to chance when copied by name, and comes back.

Run it with ``python -m qdeq.demo``; it needs the extra ``qdeq[demo]``.
"""
