"""One weight, inside: its closed form, where its entries lie, and how they come into an array.

What is public of it is in `idinit_ref` itself.
"""

__all__: tuple[str, ...] = ()
